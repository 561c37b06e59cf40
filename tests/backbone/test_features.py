"""The cache of image features: values, keys, damage, several processes, views."""

import json
import multiprocessing
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from medvlp.backbone.clip import load_clip
from medvlp.backbone.features import RandomView, image_features
from medvlp.data import tensor_files
from medvlp.data.files import sha256
from medvlp.data.tensor_files import Blocks
from tests.backbone import small_clips


class Pictures(torch.utils.data.Dataset):
    """Coloured noise; `broken` are the images that cannot be read, `folder` is where all are said to be."""

    def __init__(self, n=10, seed=0, transform=None, indices=None, broken=(), folder="train"):
        self.seed, self.transform, self.broken = seed, transform, broken
        self.indices = list(range(n)) if indices is None else indices
        self.ids = [f"{folder}/{seed}/{i}.png" for i in self.indices]
        self.hashes = [sha256(str(seed), str(i)) for i in self.indices]
        self.labels = torch.tensor([i % 3 for i in self.indices], dtype=torch.long)

    @property
    def fingerprint(self):
        return sha256(*self.ids)

    def with_transform(self, transform):
        return Pictures(seed=self.seed, transform=transform, indices=self.indices, broken=self.broken)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        if self.indices[i] in self.broken:
            raise OSError(f"cannot read {self.ids[i]}")
        rng = np.random.default_rng([self.seed, self.indices[i]])
        image = Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8))
        return (self.transform(image) if self.transform else image), int(self.labels[i])


pytestmark = pytest.mark.usefixtures("one_thread")


def files(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


@pytest.fixture
def encoded(clip, monkeypatch) -> list[int]:
    """How many images the clip was given each time."""
    encode_images, counts = clip.encode_images, []
    counted = lambda images: counts.append(len(images)) or encode_images(images)  # noqa: E731
    monkeypatch.setattr(clip, "encode_images", counted)
    return counts


def test_features_are_the_clips_own_in_order(clip, tmp_path):
    data = Pictures(10)
    got = image_features(clip, data, cache_dir=tmp_path, batch_size=4, num_workers=0)
    images = torch.stack([clip.preprocess(data[i][0]) for i in range(10)])
    torch.testing.assert_close(got.features, clip.encode_images(images), atol=1e-6, rtol=0)
    assert got.features.shape == (10, 40) and got.features.dtype == torch.float32
    assert got.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] and got.ids == data.ids
    workers = image_features(clip, data, cache_dir=tmp_path / "b", batch_size=4, num_workers=2)
    assert torch.equal(workers.features, got.features)
    assert not got.features.requires_grad and not got.features.is_inference()


def test_the_second_time_no_image_is_read(clip, tmp_path):
    first = image_features(clip, Pictures(6), cache_dir=tmp_path)
    again = image_features(clip, Pictures(6, broken=range(6)), cache_dir=tmp_path)
    assert torch.equal(first.features, again.features)
    (file,) = files(tmp_path)
    with safe_open(file, framework="pt") as stored:
        facts = json.loads(stored.metadata()["facts"])
    assert facts["clip"] == clip.name and facts["clip_fingerprint"] == clip.fingerprint
    assert facts["view"] == "evaluation"


def test_default_folder_is_the_environments(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVLP_CACHE", str(tmp_path / "env"))
    image_features(clip, Pictures(3))
    assert len(files(tmp_path / "env")) == 1
    monkeypatch.delenv("MEDVLP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    image_features(clip, Pictures(3))
    assert len(files(tmp_path / "home" / ".cache" / "medvlp")) == 1


def test_each_clip_image_and_view_has_its_own_features(clip, tmp_path):
    other = load_clip(small_clips.open_clip_kind(tmp_path / "other", seed=1), device="cpu")
    cache = tmp_path / "cache"
    made = [
        image_features(clip, Pictures(4), cache_dir=cache),
        image_features(other, Pictures(4), cache_dir=cache),
        image_features(clip, Pictures(4, seed=1), cache_dir=cache),
        image_features(clip, Pictures(4), view=0, cache_dir=cache),
        image_features(clip, Pictures(4), view=1, cache_dir=cache),
    ]
    assert len(files(cache)) == 4  # the two sets share one
    for i in range(5):
        for j in range(i):
            assert not torch.allclose(made[i].features, made[j].features, atol=1e-3)
    moved = load_clip(small_clips.open_clip_kind(tmp_path / "moved"), device="cpu")  # the same clip elsewhere
    unread = Pictures(4, broken=range(4))
    assert torch.equal(image_features(moved, unread, cache_dir=cache).features, made[0].features)


def test_folds_encode_each_image_once(clip, encoded, tmp_path):
    where, order = {"cache_dir": tmp_path, "num_workers": 0}, np.random.default_rng(1).permutation(500)
    for fold in range(5):
        train = image_features(clip, Pictures(indices=np.delete(order, np.s_[fold::5]).tolist()), **where)
        test = image_features(clip, Pictures(indices=order[fold::5].tolist(), folder="test"), **where)
        assert (len(train.features), len(test.features)) == (400, 100)
    assert sum(encoded) == 500
    whole = image_features(clip, Pictures(500, broken=range(500)), **where)
    assert torch.equal(whole.features[order[4::5]], test.features)
    assert len(files(tmp_path)) < 10
    image_features(clip, Pictures(502), **where)
    assert sum(encoded) == 502


def test_a_set_without_hashes_is_kept_as_a_whole(clip, encoded, tmp_path):
    for n in (6, 6, 7):
        data = Pictures(n)
        del data.hashes
        image_features(clip, data, cache_dir=tmp_path)
    assert encoded == [6, 7]


def test_equal_images_are_encoded_once_but_not_in_random_views(clip, encoded, tmp_path):
    data = Pictures(indices=[0, 1, 0])
    data.ids = ["a.png", "b.png", "c.png"]
    features = image_features(clip, data, cache_dir=tmp_path).features
    assert torch.equal(features[0], features[2]) and encoded == [2]
    features = image_features(clip, data, view=0, cache_dir=tmp_path).features
    assert not torch.allclose(features[0], features[2], atol=1e-3) and encoded == [2, 3]


def test_images_looked_at_one_by_one_share_a_file(clip, tmp_path):
    for i in range(6):
        image_features(clip, Pictures(indices=[i]), cache_dir=tmp_path)
    assert len(files(tmp_path)) == 1
    image_features(clip, Pictures(6, broken=range(6)), cache_dir=tmp_path)


def test_files_are_few_whatever_the_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "FULL", 20_000)  # bytes
    written, blocks = [], Blocks(tmp_path, "feature cache", {"view": 1}, ["view"])
    write = tensor_files.write_tensors
    counted = lambda path, tensors, *how: written.append(len(tensors["rows"])) or write(path, tensors, *how)  # noqa: E731
    monkeypatch.setattr(tensor_files, "write_tensors", counted)
    keys, rows = [sha256(str(i)) for i in range(1000)], torch.randn(1000, 32).numpy()  # 160 bytes each
    for start in range(0, 1000, 20):
        blocks.write(dict(zip(keys[start : start + 20], rows[start : start + 20], strict=True)))
    assert len(files(tmp_path)) <= 1000 * 160 / 20_000 + 1
    assert max(written) <= 150 and sum(written) < 5 * 1000  # a row is written a few times, whatever comes
    kept = blocks.read(keys)
    assert np.array_equal(np.stack([kept[key] for key in keys]), rows)


DAMAGES = {
    "cut": lambda raw, other: raw[:100],
    "empty": lambda raw, other: b"",
    "garbage": lambda raw, other: b"\xff" * 5000,
    "a bit flipped": lambda raw, other: raw[:-1] + bytes([raw[-1] ^ 1]),
    "another file": lambda raw, other: other,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_again_with_a_warning(clip, tmp_path, damage):
    image_features(clip, Pictures(5), view=1, cache_dir=tmp_path / "other")
    whole = image_features(clip, Pictures(5), cache_dir=tmp_path / "cache")
    (file,), (other,) = files(tmp_path / "cache"), files(tmp_path / "other")
    file.write_bytes(DAMAGES[damage](file.read_bytes(), other.read_bytes()))
    with pytest.warns(UserWarning, match=f"damaged feature cache .*{file.name} is computed again"):
        again = image_features(clip, Pictures(5), cache_dir=tmp_path / "cache")
    assert torch.equal(again.features, whole.features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the file is whole again
        image_features(clip, Pictures(5, broken=range(5)), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_loses_nothing_of_the_others(clip, encoded, tmp_path, workers):
    how = {"cache_dir": tmp_path, "batch_size": 4, "num_workers": workers}
    with pytest.raises(OSError, match="cannot read train/0/9.png"):
        image_features(clip, Pictures(11, broken=[9]), **how)
    assert sum(encoded) == 10
    features = image_features(clip, Pictures(11, broken=set(range(11)) - {9}), **how).features
    assert sum(encoded) == 11
    fresh = image_features(clip, Pictures(11), cache_dir=tmp_path / "fresh").features
    torch.testing.assert_close(features, fresh, atol=1e-6, rtol=0)


def _stop_in_the_middle(clip, cache, started):
    torch.set_num_threads(1)
    encode_images, calls = clip.encode_images, []

    def encode(images):
        calls.append(1)
        if len(calls) == 6:
            started.set()
            signal.pause()
        return encode_images(images)

    clip.encode_images = encode
    image_features(clip, Pictures(500), cache_dir=cache, num_workers=0)


def test_a_killed_process_leaves_what_it_wrote(clip, encoded, tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_stop_in_the_middle, args=(clip, tmp_path, started))
    process.start()
    assert started.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join(timeout=60)
    features = image_features(clip, Pictures(500), cache_dir=tmp_path, num_workers=0).features
    assert 500 - 320 <= sum(encoded) <= 500 - 256
    fresh = image_features(clip, Pictures(500), cache_dir=tmp_path / "fresh", num_workers=0).features
    torch.testing.assert_close(features, fresh, atol=1e-6, rtol=0)


def _work(clip, cache, barrier, results, first):
    torch.set_num_threads(1)
    barrier.wait()
    for n in range(1, 7):  # many small writes, of sets that overlap, each merged with what is there
        data = Pictures(indices=list(range(first, first + 4 * n)))
        features = image_features(clip, data, cache_dir=cache, batch_size=4, num_workers=0).features
    results.put((first, features.numpy()))


def test_two_processes_may_compute_the_same_at_once(clip, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results, first = context.Barrier(3), context.Queue(), [0, 0, 8]
    workers = [context.Process(target=_work, args=(clip, tmp_path, barrier, results, n)) for n in first]
    for worker in workers:
        worker.start()
    features = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no file was seen half written
        again = image_features(clip, Pictures(32, broken=range(32)), cache_dir=tmp_path).features.numpy()
    for start, theirs in features:
        assert np.array_equal(theirs, again[start : start + 24])
    assert len(files(tmp_path)) <= 3


def test_what_others_write_and_merge_meanwhile_is_not_lost_nor_seen_half(tmp_path, monkeypatch):
    blocks = Blocks(tmp_path, "feature cache", {"view": 1}, ["view"])
    keys, rows = [sha256(str(i)) for i in range(4)], np.eye(4, dtype=np.float32)
    save, read = tensor_files.save_file, Blocks._rows

    def add(i):
        blocks.write({keys[i]: rows[i]})

    def add_1_then_save(tensors, part, facts):
        monkeypatch.setattr(tensor_files, "save_file", save)
        part.write_bytes(b"half")
        add(1)
        save(tensors, part, facts)

    def add_3_then_read(self, path, wanted=None):
        monkeypatch.setattr(Blocks, "_rows", read)
        add(3)  # the files that were there are one now
        return read(self, path, wanted)

    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")  # listed, and removed before it is read
    add(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(tensor_files, "save_file", add_1_then_save)
        add(2)
        monkeypatch.setattr(Blocks, "_rows", add_3_then_read)
        kept = blocks.read(keys)
    assert np.array_equal(np.stack([kept[key] for key in keys]), rows)


def test_a_view_depends_on_its_number_and_the_images_id_alone(clip, tmp_path):
    data = Pictures(8)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    whole = image_features(clip, data, view=4, cache_dir=tmp_path / "a", batch_size=3, num_workers=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    forked = image_features(clip, data, view=4, cache_dir=tmp_path / "b", batch_size=3, num_workers=2)
    assert torch.equal(forked.features, whole.features)
    part = image_features(clip, Pictures(indices=[6, 2]), view=4, cache_dir=tmp_path / "c")
    torch.testing.assert_close(part.features, whole.features[[6, 2]], atol=1e-6, rtol=0)


def test_a_view_is_a_crop_or_its_mirror_image(clip):
    left = Image.new("RGB", (64, 64))
    left.paste((255, 255, 255), (0, 0, 32, 64))  # white left half
    view = torch.stack([RandomView(clip)(left, "a.png", number) for number in range(40)])  # (40, 3, 32, 32)
    assert view.shape == (40, 3, 32, 32) and len(view.unique(dim=0)) > 20
    slope = (view[..., :8] - view[..., -8:]).mean(dim=(1, 2, 3))
    assert (slope > 0.5).any() and (slope < -0.5).any()
    black, white = [(value - np.array(small_clips.MEAN)) / np.array(small_clips.STD) for value in (0.0, 1.0)]
    assert view.min() >= black.min() - 1e-4 and view.max() <= white.max() + 1e-4


def test_crops_and_flips_are_those_asked_for(clip, tmp_path):
    left = Image.new("RGB", (64, 64))
    left.paste((255, 255, 255), (0, 0, 32, 64))  # white left half
    whole = torch.stack([RandomView(clip, crop=1.0, flip=False)(left, "a.png", n) for n in range(10)])
    assert (whole[..., :8] - whole[..., -8:]).mean(
        dim=(1, 2, 3)
    ).min() > 0.5  # never mirrored, both halves seen
    data, of = Pictures(4), {"cache_dir": tmp_path}
    usual = image_features(clip, data, view=1, **of).features
    large = image_features(clip, data, view=1, crop=0.5, **of).features
    still = image_features(clip, data, view=1, flip=False, **of).features
    assert not torch.equal(usual, large) and not torch.equal(usual, still)
    assert torch.equal(image_features(clip, data, view=1, crop=0.08, flip=True, **of).features, usual)
    assert len(files(tmp_path)) == 3
    evaluation = image_features(clip, data, crop=0.5, **of).features  # which is no random view
    assert torch.equal(evaluation, image_features(clip, data, **of).features)
    assert len(files(tmp_path)) == 4


def test_an_empty_data_set_and_a_folder_that_cannot_be(clip, tmp_path):
    with pytest.raises(ValueError, match="the data set is empty"):
        image_features(clip, Pictures(0), cache_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="feature cache .*file.* cannot be written"):
        image_features(clip, Pictures(4, broken=range(4)), cache_dir=tmp_path / "file")


def test_features_that_are_not_finite_name_the_image_and_are_not_kept(clip, tmp_path, monkeypatch):
    encode_images = clip.encode_images
    monkeypatch.setattr(clip, "encode_images", lambda images: torch.full((len(images), 40), torch.nan))
    with pytest.raises(ValueError, match="features of 4 images are not finite, the first 'train/0/0.png'"):
        image_features(clip, Pictures(4), cache_dir=tmp_path)
    assert files(tmp_path) == []

    def second_is_not(images):
        features = encode_images(images)
        features[1, 3] = torch.inf
        return features

    monkeypatch.setattr(clip, "encode_images", second_is_not)
    with pytest.raises(ValueError, match="features of 1 images are not finite, the first 'train/0/1.png'"):
        image_features(clip, Pictures(4), cache_dir=tmp_path)
    monkeypatch.setattr(clip, "encode_images", encode_images)
    image_features(clip, Pictures(4, broken=[0, 2, 3]), cache_dir=tmp_path)  # the others were kept


def test_a_file_that_another_process_removes_while_it_is_opened_is_one_that_is_not_there(
    tmp_path, monkeypatch
):
    path = tmp_path / "block.safetensors"
    tensor_files.write_tensors(path, {"x": torch.ones(2)}, "a block", {})

    def gone(file, framework):
        path.unlink()
        raise RuntimeError(f"unable to open file <{path}>")

    monkeypatch.setattr(tensor_files, "safe_open", gone)
    with pytest.raises(FileNotFoundError, match="there is no file .*block"):
        tensor_files.read_tensors(path, "a block", "a block of features")
