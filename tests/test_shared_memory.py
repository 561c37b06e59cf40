"""Containers with next to no shared memory: processes that read images read them all the same."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch

from medvlp.backbone.features import default_workers, image_features
from medvlp.data.datasets import load_dataset
from medvlp.methods.adapters.linear_probe import LinearProbe
from medvlp.methods.adapters.text_probe import TextProbe
from medvlp.methods.adapters.tip_adapter import TipAdapter
from medvlp.study.evaluation import evaluate, predict_logits
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.study.training.small_training import CARD, Prototypes, Tinted, small_sets

CONFIG = TrainConfig(epochs=1, batch_size=8, views="fresh", num_workers=2)
CACHED = replace(CONFIG, views=1)
QUIET = {"progress": False}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_shared_memory(monkeypatch):
    """Refuse shared memory as torch does where /dev/shm is full, in this process and those it forks."""

    def refuse(*_, **__):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left (28)")

    for name in ("_new_using_fd_cpu", "_share_fd_cpu_", "_new_using_filename_cpu", "_share_filename_cpu_"):
        monkeypatch.setattr(torch.UntypedStorage, name, refuse)


@pytest.mark.parametrize(
    "read",
    [
        lambda clip, train, val: image_features(clip, train, batch_size=4, num_workers=2, **QUIET).features,
        lambda clip, train, val: fit(Tinted(clip, CARD), train, val, CONFIG, **QUIET)["loss"],
        lambda clip, train, val: fit(Prototypes(clip, CARD), train, val, CACHED, **QUIET)["loss"],
        lambda clip, train, val: evaluate(Tinted(clip, CARD), val, 5, num_workers=2).table()["value"],
        lambda clip, train, val: evaluate(Prototypes(clip, CARD), val, 5, num_workers=2).table()["value"],
    ],
    ids=["image_features", "fit on images", "fit on features", "evaluate images", "evaluate features"],
)
def test_images_are_read_without_shared_memory(clip, no_shared_memory, monkeypatch, tmp_path, read):
    monkeypatch.setenv("MEDVLP_CACHE", str(tmp_path / "a"))
    values = np.asarray(read(clip, *small_sets()))
    monkeypatch.undo()
    monkeypatch.setenv("MEDVLP_CACHE", str(tmp_path / "b"))
    assert np.array_equal(values, np.asarray(read(clip, *small_sets())))


def test_without_semaphores_no_process_is_started(monkeypatch):
    assert default_workers(100, 10) > 0

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    assert default_workers(100, 10) == 0


@pytest.fixture
def counts(monkeypatch) -> list[int]:
    """How many processes each loader of images was given."""
    counts, start = [], torch.utils.data.DataLoader.__init__

    def noting(self, *args, **options) -> None:
        counts.append(options["num_workers"])
        start(self, *args, **options)

    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", noting)
    return counts


def test_fit_and_evaluate_are_told_how_many_processes_read(clip, counts, monkeypatch, tmp_path):
    train, val = small_sets()
    for number in (0, 1):
        monkeypatch.setenv("MEDVLP_CACHE", str(tmp_path / str(number)))
        counts.clear()
        for method in (Prototypes(clip, CARD), Tinted(clip, CARD)):
            fit(method, train, val, replace(CONFIG, views=1, num_workers=number), **QUIET)
        monkeypatch.setenv("MEDVLP_CACHE", str(tmp_path / f"{number} again"))
        for method in (Prototypes(clip, CARD), Tinted(clip, CARD)):
            evaluate(method, val, 5, num_workers=number)
        assert len(counts) == 6 and set(counts) == {number}


def test_an_evaluation_that_keeps_no_features_reads_by_several_processes_but_for_phantoms(
    clip, counts, monkeypatch
):
    monkeypatch.setattr("medvlp.backbone.features.default_workers", lambda n_images, batch_size: 2)
    method, phantoms = Tinted(clip, CARD), load_dataset("phantom-derm", test_only=True).test.subset(range(2))
    evaluate(method, small_sets()[1], 5)
    predict_logits(method, phantoms)
    assert counts == [2, 0]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", [LinearProbe, TextProbe, TipAdapter])
def test_what_is_fitted_before_and_after_training_is_told_as_well(clip, counts, tmp_path, kind, number):
    config = replace(CONFIG, views=1, num_workers=number)
    fit(kind(clip, CARD), *small_sets(), config, cache_dir=tmp_path, **QUIET)
    assert len(counts) > 1 and set(counts) == {number}
