"""EpochAverage: the Gaussian average by hand, of the tensors asked for, also after a stop."""

from dataclasses import replace
from math import exp

import pytest
import torch

from medvlp.methods.base import own_tensors
from medvlp.study.training.callbacks import EpochAverage
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.study.training.small_training import CARD, PowerCut, Prototypes, Recorder, Tinted, small_sets

RUN = TrainConfig(epochs=5, batch_size=8, lr=0.1, views=0, num_workers=0, keep="last")


def test_the_average_is_the_gaussian_one_of_all_epochs(clip):
    method, recorder = Tinted(clip, CARD), Recorder()
    history = fit(method, *small_sets(), RUN, callbacks=[recorder, EpochAverage(5)], progress=False)
    a = [exp(-((e - 5) ** 2) / (2 * 1.5**2)) for e in range(1, 6)]
    assert history["average_weight"].tolist() == pytest.approx(a)
    for name, tensor in own_tensors(method).items():
        expected = sum(w * epoch[name] for w, epoch in zip(a, recorder.weights, strict=True)) / sum(a)
        assert torch.allclose(tensor, expected, atol=1e-6), name
        assert not torch.allclose(tensor, recorder.weights[-1][name], atol=1e-6), name


@pytest.mark.parametrize(("tensors", "averaged"), [(("tint",), "tint"), (("head",), "head.weight")])
def test_only_what_is_named_is_averaged_the_rest_is_the_last_epochs(clip, tensors, averaged):
    method, recorder = Tinted(clip, CARD), Recorder()
    callbacks = [recorder, EpochAverage(5, mean=3, std=2, tensors=tensors)]
    fit(method, *small_sets(), RUN, callbacks=callbacks, progress=False)
    for name, tensor in own_tensors(method).items():
        assert torch.equal(tensor, recorder.weights[-1][name]) == (name != averaged)


def test_a_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(clip, tmp_path):
    whole, resumed = Prototypes(clip, CARD, dropout=0.2), Prototypes(clip, CARD, dropout=0.2)
    file, sets = tmp_path / "run.safetensors", small_sets()
    fit(whole, *sets, RUN, callbacks=[EpochAverage(5), PowerCut()], progress=False)
    with pytest.raises(RuntimeError, match="power cut"):
        cut = [EpochAverage(5), PowerCut(4)]
        fit(Prototypes(clip, CARD, dropout=0.2), *sets, RUN, checkpoint=file, callbacks=cut, progress=False)
    fit(resumed, *sets, RUN, checkpoint=file, callbacks=[EpochAverage(5), PowerCut()], progress=False)
    assert torch.equal(resumed.weight, whole.weight)
    longer = replace(RUN, epochs=6)
    with pytest.raises(ValueError, match="epochs"):
        fit(resumed, *sets, longer, checkpoint=file, callbacks=[EpochAverage(6), PowerCut()], progress=False)


def test_what_makes_no_sense_is_refused(clip):
    with pytest.raises(ValueError, match="std above 0, got 5 and 0"):
        EpochAverage(5, std=0)
    wrong = EpochAverage(5, tensors=("tin",))
    with pytest.raises(ValueError, match="unknown tensor 'tin' in Tinted; did you mean 'tint'"):
        fit(Tinted(clip, CARD), *small_sets(), RUN, callbacks=[wrong], progress=False)
