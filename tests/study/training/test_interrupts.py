"""Ctrl-C at any place of fit: the history and the weights that are kept stay those of the same epochs."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import is_initialized

import medvlp
from medvlp.methods.adapters.tip_adapter import TipAdapter
from medvlp.methods.base import own_tensors
from medvlp.study.training import batches
from medvlp.study.training.callbacks import EpochAverage
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.study.training.small_training import CARD, Prototypes, Recorder, copy_of, same

CONFIG = TrainConfig(epochs=2, batch_size=24, lr=0.5, views=0, warmup_lr=None)
QUIET = {"progress": False}
TRAINING = str(Path(medvlp.__file__).parent / "study" / "training")
EVERY = 6  # moment is tried; 1 is thorough, and takes as many times longer
pytestmark = pytest.mark.usefixtures("one_thread")


class CtrlC:
    """Raises KeyboardInterrupt at the n-th line that runs in training's files; without n it notes all."""

    def __init__(self, n: int | None = None) -> None:
        self.n, self.places = n, []

    def __call__(self, frame: FrameType, event: str, arg: Any) -> "CtrlC | None":
        if not frame.f_code.co_filename.startswith(TRAINING):
            return None
        if event == "line":
            self.places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            if len(self.places) == self.n:
                raise KeyboardInterrupt
        return self

    def during(self, work: Callable[[], pd.DataFrame]) -> pd.DataFrame | None:
        """What `work` returns; None where KeyboardInterrupt came through."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return work()
        except KeyboardInterrupt:
            return None
        finally:
            sys.settrace(before)


def moments(work: Callable[[], pd.DataFrame]) -> list[int]:
    """When lines of training run for the first and for the last time, as a CtrlC counts."""
    noting = CtrlC()
    noting.during(work)
    first = {place: n for n, place in reversed([*enumerate(noting.places, start=1)])}
    last = {place: n for n, place in enumerate(noting.places, start=1)}
    return sorted({*first.values(), *last.values()})[::EVERY]


def average_of(recorder: Recorder, epochs: int) -> dict:
    """What `EpochAverage(2)` gives after so many epochs."""
    average, method = EpochAverage(2), recorder.method
    for epoch, weights in enumerate(recorder.weights[:epochs], start=1):
        method.load_state_dict(weights, strict=False)
        average.on_epoch_end(method, epoch, {})
    average.on_fit_end(method)
    return copy_of(method)


@pytest.mark.parametrize("kind", ["best", "last", "average"])
def test_history_and_weights_are_of_the_same_epochs_wherever_ctrl_c_is_pressed(clip, sets, tmp_path, kind):
    config = replace(CONFIG, keep="best" if kind == "best" else "last", metric="loss")
    recorder = Recorder()
    whole = Prototypes(clip, CARD)
    start, recorder.method = copy_of(whole), Prototypes(clip, CARD)

    def run(method: Prototypes, checkpoint: Path | None = None) -> pd.DataFrame:
        callbacks = [EpochAverage(2)] if kind == "average" else []
        return fit(method, *sets, config, callbacks=callbacks, checkpoint=checkpoint, **QUIET)

    fit(Prototypes(clip, CARD), *sets, config, callbacks=[recorder], **QUIET)
    history = run(whole)
    seen = set()
    for n in moments(lambda: run(Prototypes(clip, CARD), tmp_path / "noted")):
        method, ctrl_c, file = Prototypes(clip, CARD), CtrlC(n), tmp_path / f"{n}.safetensors"
        part = ctrl_c.during(lambda m=method, f=file: run(m, f))
        epochs = None if part is None else len(part)
        seen.add(epochs)
        if not epochs:  # it came through, or nothing was learned yet
            expected = start
        elif kind == "average":
            expected = average_of(recorder, epochs)
        else:
            expected = recorder.weights[epochs - 1 if kind == "last" else part["val_loss"].idxmin()]
        assert same(own_tensors(method), expected), (ctrl_c.places[-1], epochs)
        assert torch.is_grad_enabled(), ctrl_c.places[-1]
        if epochs:
            expected_rows = history[:epochs].drop(columns=["seconds", "best"])
            pd.testing.assert_frame_equal(part.drop(columns=["seconds", "best"]), expected_rows)
            assert part["best"].sum() == 1
        if n % 8 == 0:
            resumed = Prototypes(clip, CARD)
            again = run(resumed, file)
            pd.testing.assert_frame_equal(history.drop(columns="seconds"), again.drop(columns="seconds"))
            assert same(own_tensors(whole), own_tensors(resumed)), ctrl_c.places[-1]
    assert seen == {None, 0, 1, 2}


def test_ctrl_c_as_the_accelerator_is_made_leaves_none_behind(clip, sets, monkeypatch):
    class Interrupted(Accelerator):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batches, "Accelerator", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(Prototypes(clip, CARD), *sets, CONFIG, **QUIET)
    assert not is_initialized()
    fit(Prototypes(clip, CARD), *sets, replace(CONFIG, precision="bf16"), **QUIET)


def test_what_is_fitted_without_steps_is_fitted_whole_or_not_at_all(clip, sets):
    train, val = sets
    sizes = {"first": train.subset(range(9)), "whole": train}  # a cache of another size was there before

    def fitted(*names: str) -> TipAdapter:
        method = TipAdapter(clip, CARD, cache_views=0)
        for name in names:
            fit(method, sizes[name], val, CONFIG, **QUIET)
        return method

    first, whole = fitted("first"), fitted("first", "whole")
    seen = set()
    for n in moments(lambda: fit(fitted("first"), train, val, CONFIG, **QUIET)):
        method, ctrl_c = fitted("first"), CtrlC(n)
        history = ctrl_c.during(lambda m=method: fit(m, train, val, CONFIG, **QUIET))
        expected = first if history is None else whole
        assert same(own_tensors(method), own_tensors(expected)), ctrl_c.places[-1]
        assert method.config == expected.config
        seen.add(history is None or history["epoch"].tolist() == [0])
    assert seen == {True}
