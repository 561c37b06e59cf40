"""load_clip and Clip: parity with open_clip, errors, fingerprints."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from medvlp.backbone import sources
from medvlp.backbone.clip import load_clip
from tests.backbone import small_clips

TEXTS = ["opacity", "a dermoscopy image of a dark lesion.", "pleural effusion, irregular border"]
# kind, and the columns of the longest text: start, 10 word pieces..., end of text
KINDS = {
    "open_clip_kind": 13,
    "openai_kind": 13,
    "eos_kind": 13,
    "biomedclip_kind": 10,
    "siglip_kind": 32,
    "coca_kind": 76,
    "golden_kind": 13,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_open_clips_own(kind, tmp_path):
    clip = load_clip(getattr(small_clips, kind)(tmp_path / kind), device="cpu")
    full = clip.tokenizer(TEXTS)  # (3, context_length)
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    assert clip.tokenize(TEXTS).shape == (3, KINDS[kind])
    expected = F.normalize(clip.model.encode_text(full), dim=-1)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected, atol=1e-5, rtol=0)
    expected = F.normalize(clip.model.encode_image(images), dim=-1)
    torch.testing.assert_close(clip.encode_images(images), expected, atol=1e-6, rtol=0)
    assert (
        clip.encode_texts(TEXTS).shape == (3, clip.embed_dim)
        and clip.encode_texts(TEXTS).dtype == torch.float32
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_means_the_same_alone_and_among_longer_ones(kind, tmp_path):
    clip = load_clip(getattr(small_clips, kind)(tmp_path / kind), device="cpu")
    torch.testing.assert_close(clip.encode_texts(TEXTS)[:1], clip.encode_texts(TEXTS[:1]), atol=1e-5, rtol=0)


def test_many_texts_are_encoded_in_chunks_and_stay_in_order(clip, monkeypatch):
    texts = [f"lesion {i}" for i in range(7)]
    whole = clip.encode_texts(texts)
    monkeypatch.setattr("medvlp.backbone.clip.TEXTS_AT_ONCE", 3)
    torch.testing.assert_close(clip.encode_texts(texts), whole, atol=1e-6, rtol=0)


def test_golden_features_and_tokens(tmp_path):
    golden = np.load(small_clips.GOLDEN)
    clip = load_clip(small_clips.golden_kind(tmp_path), device="cpu")
    meta = json.loads(str(golden["meta"]))
    prompts = [prompt for prompts in meta["prompts"].values() for prompt in prompts]
    ids = torch.from_numpy(np.concatenate([golden["in/token_ids/0"], golden["in/token_ids/1"]]))  # (8, 77)
    tokens = clip.tokenize(prompts)  # (8, L)
    assert torch.equal(tokens, ids[:, : tokens.shape[1]])
    assert tokens.shape[1] == 1 + max(end for ends in meta["eot"].values() for end in ends)
    images = clip.encode_images(torch.from_numpy(golden["in/images"]))
    torch.testing.assert_close(
        images, torch.from_numpy(golden["out/image_features_normalized"]), atol=1e-5, rtol=0
    )
    plain = F.normalize(torch.from_numpy(golden["out/plain_text_features"]), dim=-1)
    torch.testing.assert_close(clip.encode_texts(prompts), plain, atol=1e-5, rtol=0)


def test_sizes_and_scale_of_each_kind(tmp_path):
    clip = load_clip(small_clips.openai_kind(tmp_path / "a"), device="cpu")
    assert (clip.embed_dim, clip.text_width, clip.image_size, clip.context_length) == (40, 48, 32, 77)
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    bert = load_clip(small_clips.biomedclip_kind(tmp_path / "b"), device="cpu")
    assert (bert.embed_dim, bert.text_width, bert.image_size, bert.context_length) == (40, 48, 160, 40)


def test_a_clip_shows_itself_in_one_line(clip):
    shown = repr(clip)
    assert "\n" not in shown and "images of 32 pixels" in shown and "embed_dim 40" in shown
    assert f"{sum(p.numel() for p in clip.parameters()) / 1e6:.1f} M" in shown


def test_frozen_and_eval_also_inside_a_training_method(tmp_path):
    clip = load_clip(small_clips.biomedclip_kind(tmp_path), device="cpu")  # its BERT has dropout
    method = torch.nn.Sequential(clip).train()
    assert method.training and not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    assert torch.equal(clip.encode_texts(TEXTS), clip.encode_texts(TEXTS))


def test_gradients_reach_the_image(clip):
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    clip.encode_images(image)[0, 0].backward()
    assert image.grad.abs().sum() > 0


def test_preprocessing_is_the_models_own(tmp_path):
    picture = Image.new("RGB", (40, 80), (255, 0, 0))
    clip = load_clip(small_clips.openai_kind(tmp_path / "a"), device="cpu")
    tensor = clip.preprocess(picture)
    assert tensor.shape == (3, 32, 32)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(small_clips.MEAN)) / torch.tensor(small_clips.STD)
    torch.testing.assert_close(tensor[:, 16, 16], red)
    halves = Image.new("RGB", (40, 80))
    halves.paste((255, 255, 255), (0, 0, 40, 15))  # a bar that a centre crop loses and a squash keeps
    bert = load_clip(small_clips.biomedclip_kind(tmp_path / "b"), device="cpu")
    assert bert.preprocess_cfg["resize_mode"] == "squash"
    assert bert.preprocess(halves)[0, 0, 0] > 0 > clip.preprocess(halves)[0, 0, 0]


# --- fingerprints


def test_fingerprint_is_the_same_in_another_process_and_folder(tmp_path):
    here = load_clip(small_clips.biomedclip_kind(tmp_path / "one"), device="cpu").fingerprint
    name = small_clips.biomedclip_kind(tmp_path / "two")
    code = f"from medvlp.backbone.clip import load_clip; print(load_clip({name!r}, device='cpu').fingerprint)"
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    there = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.split()[-1] == here and len(here) == 64


def test_fingerprint_knows_weights(tmp_path):
    names = [small_clips.openai_kind(tmp_path / f"{i}", seed) for i, seed in enumerate([0, 0, 1])]
    prints = [load_clip(name, device="cpu").fingerprint for name in names]
    assert prints[0] == prints[1] != prints[2]


# --- texts and images that do not fit


@pytest.mark.parametrize("kind", ["openai_kind", "siglip_kind", "biomedclip_kind"])
def test_a_text_may_fill_the_context_but_not_more(kind, tmp_path):
    clip = load_clip(getattr(small_clips, kind)(tmp_path), device="cpu")
    fits = " ".join(["dark"] * (clip.context_length - 2))
    assert clip.encode_texts(["opacity", fits]).shape == (2, 40)
    with pytest.raises(ValueError) as error:
        clip.encode_texts(["opacity", fits + " dark"])
    message = str(error.value)
    assert "dark dark" in message and f"at most {clip.context_length}" in message
    assert f"has {clip.context_length + 1} tokens" in message


def test_no_texts_and_a_bare_string_are_errors(clip):
    with pytest.raises(ValueError, match="list of texts is empty"):
        clip.encode_texts([])
    with pytest.raises(TypeError, match="list of strings"):
        clip.encode_texts("opacity")


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (3, 32, 32), (2, 1, 32, 32), (1, 3, 32, 32)])
def test_images_that_were_not_preprocessed(clip, shape):
    images = torch.zeros(shape, dtype=torch.uint8 if shape == (1, 3, 32, 32) else torch.float32)
    got = f"{' x '.join(map(str, shape))} of {images.dtype}"
    with pytest.raises(ValueError, match=f"wants floats of B x 3 x 32 x 32, got {got}; use clip.preprocess"):
        clip.encode_images(images)


# --- names that lead nowhere


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-61/openai", r"unknown architecture 'ViT-B-61'; did you mean 'ViT-B-16'\? Choices: "),
        ("ViT-B-16/openia", r"unknown pretrained tag 'openia' in .*'ViT-B-16'; did you mean 'openai'\?"),
        ("ViT-B-16", r"names no weights; write 'ViT-B-16/TAG'. Tags: 'openai'.*'random'"),
        ("tinny", r"unknown clip 'tinny'; did you mean 'tiny'\? Choices: .*'large', 'ARCH/TAG'"),
    ],
)
def test_unknown_names(name, expected):
    with pytest.raises(ValueError, match=expected):
        load_clip(name)


def test_unknown_device_and_precision(tmp_path):
    with pytest.raises(ValueError, match="unknown precision 'fp61'; did you mean 'fp16'"):
        load_clip("tiny", precision="fp61")
    with pytest.raises(ValueError, match="unknown device 'cdua'; did you mean 'cuda'"):
        load_clip("tiny", device="cdua")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
            load_clip("tiny", device="cuda")


def test_incomplete_folders_name_the_missing_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        load_clip(f"local-dir:{tmp_path / 'nowhere'}")
    name = small_clips.openai_kind(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="write 'local-dir:model'"):
        load_clip("model")
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no weights; .*open_clip_model.safetensors is missing"):
        load_clip(name)
    (tmp_path / "model" / "open_clip_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="open_clip_config.json is missing"):
        load_clip(name)


def test_a_bert_tower_without_its_tokenizer(tmp_path):
    name = small_clips.biomedclip_kind(tmp_path)
    for file in ("tokenizer.json", "vocab.txt"):
        (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer; .*tokenizer.json is missing"):
        load_clip(name)


def test_damaged_folders(tmp_path):
    name = small_clips.openai_kind(tmp_path)
    weights, config = tmp_path / "open_clip_model.safetensors", tmp_path / "open_clip_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="weights in .* cannot be loaded"):
        load_clip(name)
    weights.write_bytes(whole)
    stored = json.loads(config.read_text())
    stored["model_cfg"]["text_cfg"]["layers"] = 5
    config.write_text(json.dumps(stored))
    with pytest.raises(
        ValueError, match=r"(?s)cannot be loaded as .*open_clip_config.json says.*resblocks.3"
    ):
        load_clip(name)
    config.write_text("{ not json")
    with pytest.raises(ValueError, match="is no open_clip configuration"):
        load_clip(name)


# --- no network


@pytest.fixture(params=["refused", "offline"])
def no_network(request, monkeypatch, tmp_path):
    """A hub that refuses connections, or one that was switched off, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", request.param == "offline")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("name", "repo", "way_on"),
    [
        (
            "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            "microsoft/BiomedCLIP",
            "local-dir:",
        ),
        ("ViT-B-16-quickgelu/openai", "timm/vit_base_patch16_clip_224.openai", "local-dir:"),
        ("roberta-ViT-B-32/random", "roberta-base", "copy the cache here"),
    ],
)
def test_no_network_and_no_copy_says_what_to_do_at_once(no_network, name, repo, way_on):
    start = time.perf_counter()
    with pytest.raises(ConnectionError) as error:
        load_clip(name)
    assert time.perf_counter() - start < 10
    message = str(error.value)
    for part in (name, repo, way_on, huggingface_hub.constants.HF_HUB_CACHE, "load_clip('tiny')"):
        assert part in message


def test_a_folder_without_its_towers_config_asks_for_it(no_network, tmp_path):
    name = small_clips.biomedclip_kind(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ConnectionError, match="needs config.json of 'some/bert'"):
        load_clip(name)


def test_an_answering_hub_and_a_cached_file_are_at_hand(no_network, tmp_path, monkeypatch):
    sources.check_at_hand("x", str(tmp_path), sources.CONFIG, "")  # a folder is always at hand
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: f"{repo}/{file}")
    sources.check_at_hand("x", "some/repo", sources.CONFIG, "")


def test_a_hub_that_drips_is_not_waited_for(tmp_path, monkeypatch):
    def drip():
        link, _ = listener.accept()
        with suppress(OSError), link:
            link.sendall(b"HTTP/1.1 200 OK\r\n")
            while True:
                time.sleep(0.05)
                link.sendall(b"A: b\r\n")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=drip, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        start = time.perf_counter()
        with pytest.raises(ConnectionError, match="cannot be reached"):
            sources.check_at_hand("x", "some/repo", sources.CONFIG, "", timeout=0.2)
    assert time.perf_counter() - start < 2


# --- random weights and the packaged model


def test_random_weights_are_seeded_and_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = load_clip("RN50-quickgelu/random", device="cpu")
    assert torch.equal(torch.rand(3), expected)
    two = load_clip("RN50-quickgelu/random", device="cpu")
    assert one.model_cfg["quick_gelu"] and isinstance(one.model, open_clip.CustomTextCLIP)
    assert torch.equal(one.token_embedding.weight, two.token_embedding.weight)
    assert torch.equal(one.model.visual.conv1.weight, two.model.visual.conv1.weight)


@pytest.mark.parametrize("name", sources.EMBEDDED)
def test_some_clips_come_with_the_package(name):
    clip = load_clip(name)
    assert clip.name == name and clip.encode_texts(["a dermoscopy image"]).shape == (1, clip.embed_dim)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("hf_model_name", "no folder here, and no name of a repository"),
        ("pool_type", r"open_clip_config.json says: a value that .* may not have"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_named_in_few_words(tmp_path, key, says):
    for file in (sources.ASSETS / "tiny").iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"][key] = "m" * 5000
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says) as raised:
        load_clip(f"local-dir:{tmp_path}", device="cpu")
    assert len(str(raised.value)) < 600
