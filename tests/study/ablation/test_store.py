"""The store: what is written comes back, a lock is held by one, damage is named."""

import json

import numpy as np
import pytest

from medvlp.data.files import write_json
from medvlp.study.ablation.store import FIELDS, RunStore, pack, unpack
from medvlp.study.ablation.study import Study
from tests.methods.small import flips, make_set
from tests.study.training.small_training import CARD

RECORD = dict.fromkeys(FIELDS, "x") | {"status": "done"}


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("offset", [0, 25, -4000])
def test_packed_logits_keep_the_probabilities_whatever_is_added_to_them(offset):
    logits = np.random.default_rng(1).normal(0, 3, size=(500, 4))
    kept = unpack(json.loads(json.dumps(pack(logits + offset))))
    assert np.abs(kept - softmax(logits)).max() < 1e-3
    assert np.allclose(kept.sum(axis=1), 1)


def test_packed_logits_stay_finite_where_a_class_is_certain():
    kept = unpack(pack(np.array([[0.0, 1e6], [1e6, 0.0]])))
    assert np.array_equal(kept, [[0, 1], [1, 0]])


def test_the_bytes_are_little_endian_float16():
    packed = pack(np.array([[0.0, 0.0]]))
    assert packed["shape"] == [1, 2]
    assert packed["float16"] == "jLmMuQ=="  # log(1/2) twice: 0xB98C, low byte first


def test_a_record_comes_back_without_numbers_that_json_lacks(tmp_path):
    store = RunStore(tmp_path / "new" / "store")
    assert store.read("a") is None and store.ids() == []
    needed = dict.fromkeys(FIELDS, "x")
    metrics = {"kappa": float("nan"), "accuracy": np.float64(0.5)}
    store.write("a", needed | {"metrics": metrics, "list": (1, 2)})
    assert store.ids() == ["a"]
    record = store.read("a")
    found = {"metrics": {"kappa": None, "accuracy": 0.5}, "list": [1, 2]}
    assert record == {"kind": "medvlp run", "id": "a"} | needed | found


def test_a_test_set_is_kept_once_and_without_ids_and_written_again_where_it_is_damaged(tmp_path):
    store, images = RunStore(tmp_path), make_set(CARD, [0, 1, 2, 1], "test")
    images.groups[3] = images.groups[1]
    store.write_test(images)
    (path,) = (tmp_path / "tests").iterdir()
    before = path.stat().st_mtime_ns
    store.write_test(images)
    assert path.stat().st_mtime_ns == before
    for damaged in ("half", path.read_text().replace("2", "1")):
        path.write_text(damaged)
        store.write_test(images)
        labels, groups = store.read_test(images.fingerprint)
        assert labels.tolist() == [0, 1, 2, 1] and groups.tolist() == [0, 1, 2, 1]
    assert "test/" not in path.read_text()
    with pytest.raises(FileNotFoundError, match="left behind when stores were merged"):
        store.read_test("0")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is damaged .*delete it"),
        (b"\xff\xfe{", "is damaged .*delete it"),
        (b'{"kind": "medvlp run", "id": "a"}', "is damaged .*its checksum differs.*delete it"),
        (b'{"kind": "cake"}', "'cake'"),
        (b"[1]", "list"),
    ],
)
def test_a_file_that_is_no_record_of_its_run_is_named(tmp_path, content, words):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json .*{words}"):
        Study(tmp_path)


def test_a_record_of_another_run_is_named(tmp_path):
    for facts in ({}, {"id": "b"}, {"id": "a", "status": "done"}):
        write_json(tmp_path / "a.json", {"kind": "medvlp run"} | facts)
        with pytest.raises(ValueError, match=r"a\.json is not the record of run 'a'.*delete it"):
            RunStore(tmp_path).read("a")


def test_no_turned_bit_is_believed(tmp_path):
    store, images = RunStore(tmp_path), make_set(CARD, [0, 1, 2, 1] * 20, "test")
    logits = pack(np.random.default_rng(0).normal(size=(80, 3)))
    metrics = {"accuracy": 0.8049281903, "AUC": 1e-05}
    store.write("a", RECORD | {"metrics": metrics, "logits": logits, "test": images.fingerprint})
    store.write_test(images)
    for path, read in (
        (tmp_path / "a.json", lambda: store.read("a")),
        (tmp_path / "tests" / f"{images.fingerprint}.json", lambda: store.read_test(images.fingerprint)),
    ):
        whole = path.read_bytes()
        for raw in flips(whole, 300):
            path.write_bytes(raw)
            with pytest.raises(ValueError, match=path.name):
                read()
        for raw in (whole[:-1], whole + b" ", whole.replace(b"1", b"2", 1)):
            path.write_bytes(raw)
            with pytest.raises(ValueError, match=path.name):
                read()
        path.write_bytes(whole.replace(b"\n", b"\r\n"))  # as version control writes it on Windows
        read()


def test_a_lock_is_held_by_one(tmp_path):
    store, other = RunStore(tmp_path), RunStore(tmp_path)
    with store.lock("a", wait=False) as ours:
        assert ours
        with other.lock("a", wait=False) as theirs, other.lock("b", wait=False) as another:
            assert not theirs and another
    with other.lock("a", wait=False) as now:
        assert now


def test_what_a_call_began_and_did_not_end_is_known(tmp_path):
    store = RunStore(tmp_path)
    store.begin("a", "first call")
    assert store.has_begun("a", "first call") and not store.has_begun("a", "second call")
    store.end("a")
    assert not store.has_begun("a", "first call")
