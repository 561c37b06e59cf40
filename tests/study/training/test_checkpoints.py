"""Checkpoints: a run goes on from a whole one of its own, and from no other."""

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medvlp.data.cards import DataCard
from medvlp.methods.base import own_tensors
from medvlp.methods.vip import ViP
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import make_set
from tests.study.training.small_training import CARD, PowerCut, Prototypes, Recorder, same, small_clip

CONFIG = TrainConfig(epochs=4, batch_size=8, lr=0.1, views=2)
QUIET = {"progress": False}


@pytest.fixture
def stopped(clip, sets, tmp_path):
    """The checkpoint of a run that broke off after two epochs."""
    file = tmp_path / "run.safetensors"
    with pytest.raises(RuntimeError, match="power cut"):
        fit(Prototypes(clip, CARD), *sets, CONFIG, checkpoint=file, callbacks=[PowerCut(3)], **QUIET)
    return file


@pytest.mark.parametrize(
    ("kind", "optimizer", "remembered"),
    [(ViP, "sgd", ("momentum_buffer",)), (Prototypes, "adamw", ("step", "exp_avg", "exp_avg_sq"))],
)
def test_a_stopped_run_goes_on_as_if_it_had_not(clip, sets, tmp_path, kind, optimizer, remembered):
    file = tmp_path / "deep" / "run.safetensors"
    config = replace(CONFIG, lr=0.02, optimizer=optimizer, metric="loss")
    sets = sets[0], sets[1].subset([0, 3, 6])  # of one class: AUROC is NaN
    whole, resumed = kind(clip, CARD), kind(clip, CARD)
    history = fit(whole, *sets, config, **QUIET)
    with pytest.raises(RuntimeError):
        fit(kind(clip, CARD), *sets, config, checkpoint=file, callbacks=[PowerCut(3)], **QUIET)
    names = own_tensors(whole)
    assert {f"optimizer/{what}/{name}" for name in names for what in remembered} <= load_file(file).keys()
    with torch.no_grad():
        next(p for p in resumed.parameters() if p.requires_grad).fill_(7)  # what it held before is no matter
    again = fit(resumed, *sets, config, checkpoint=file, callbacks=[PowerCut()], **QUIET)
    one, other = (table.drop(columns="seconds") for table in (history, again))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert history["val_AUROC"].isna().all() and same(own_tensors(whole), own_tensors(resumed))


def test_a_finished_run_is_not_run_again(clip, sets, tmp_path):
    file, seen = tmp_path / "run.safetensors", Recorder()
    first, second = Prototypes(clip, CARD), Prototypes(clip, CARD)
    history = fit(first, *sets, CONFIG, checkpoint=file, callbacks=[seen], **QUIET)
    again = fit(second, *sets, CONFIG, checkpoint=file, callbacks=[seen], **QUIET)
    assert len(seen.weights) == 4
    pd.testing.assert_frame_equal(history, again)
    assert torch.equal(first.weight, second.weight)


def test_a_finished_run_goes_on_with_more_epochs_and_says_so(clip, sets, tmp_path):
    file, seen, longer = tmp_path / "run.safetensors", Recorder(), replace(CONFIG, epochs=6)
    first = fit(Prototypes(clip, CARD), *sets, CONFIG, checkpoint=file, callbacks=[seen], **QUIET)
    with pytest.warns(UserWarning, match="finished run of 4 epochs, which now goes on to 6") as said:
        history = fit(Prototypes(clip, CARD), *sets, longer, checkpoint=file, callbacks=[seen], **QUIET)
    assert len(seen.weights) == 6 and said[0].filename == __file__
    pd.testing.assert_frame_equal(history[:4].drop(columns="best"), first.drop(columns="best"))
    assert history["lr"].tolist()[4:] == [longer.learning_rate(5), longer.learning_rate(6)]
    again = fit(Prototypes(clip, CARD), *sets, longer, checkpoint=file, callbacks=[seen], **QUIET)
    assert len(seen.weights) == 6  # it is finished now
    pd.testing.assert_frame_equal(again, history)


def test_more_epochs_are_refused_where_the_run_is_not_finished_or_epochs_are_averaged(
    clip, sets, stopped, tmp_path
):
    file, longer = tmp_path / "average.safetensors", replace(CONFIG, epochs=6)
    with pytest.raises(ValueError, match="another run: epochs is 4 there, 6 here"):
        fit(Prototypes(clip, CARD), *sets, longer, checkpoint=stopped, callbacks=[PowerCut()], **QUIET)
    average = replace(CONFIG, average=True)
    fit(Prototypes(clip, CARD), *sets, average, checkpoint=file, **QUIET)
    with pytest.raises(ValueError, match="another run: epochs is 4 there, 6 here"):
        fit(Prototypes(clip, CARD), *sets, replace(average, epochs=6), checkpoint=file, **QUIET)


def test_half_a_file_left_by_a_kill_is_cleared_away(clip, sets, stopped):
    half = stopped.with_name(f".{stopped.name}.abc.part")
    half.write_bytes(b"half")
    other, once = stopped.with_name(f"other{stopped.name}"), replace(CONFIG, epochs=1, views=0)
    fit(Prototypes(clip, CARD), *sets, once, checkpoint=other, **QUIET)
    assert half.exists()
    of_other = half.rename(other.with_name(f".{other.name}.abc.part"))
    half.write_bytes(b"half")
    fit(Prototypes(clip, CARD), *sets, CONFIG, checkpoint=stopped, callbacks=[PowerCut()], **QUIET)
    assert not half.exists() and of_other.exists()


@pytest.mark.parametrize(
    "name", ["file.txt/run.safetensors", "folder", "x" * 5000, "x" * 250, "locked/run.safetensors"]
)
def test_a_checkpoint_that_cannot_be_written_is_named_before_any_step(
    clip, sets, tmp_path, monkeypatch, name
):
    (tmp_path / "file.txt").write_text("no folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() == 0 and name.startswith("locked"):  # root may write anywhere

        def refuse(*_, **__) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "touch", refuse)
    method, seen = Prototypes(clip, CARD), Recorder()
    before = method.weight.clone()
    with pytest.raises(OSError, match="cannot be written|is a folder; give the name of a file") as error:
        fit(method, *sets, CONFIG, checkpoint=tmp_path / name, callbacks=[seen], **QUIET)
    assert error.value.errno is None and name[:20] in str(error.value) and len(str(error.value)) < 900
    assert not seen.weights and torch.equal(method.weight, before)


def test_a_checkpoint_of_another_run_says_what_differs(clip, sets, stopped, tmp_path):
    train, val = sets
    more = make_set(CARD, [0, 1, 2] * 9)
    other_clip = small_clip(tmp_path / "clip", seed=5)
    changed = CARD.model_dump(exclude={"path"})
    changed["classes"][0]["knowledge"]["symptoms"][0]["text"] = "uneven shape"
    other_card = DataCard.model_validate(changed)
    mine = Prototypes(clip, CARD)
    for method, data, config, callbacks, message in [
        (mine, sets, replace(CONFIG, lr=0.2, seed=3), [PowerCut()], "lr is 0.1 there, 0.2 here; seed is 1"),
        (mine, (more, val), CONFIG, [PowerCut()], "another run: the training images differ"),
        (mine, (train, more), CONFIG, [PowerCut()], "another run: the validation images differ"),
        (mine, sets, CONFIG, [], "another run: the callbacks differ"),
        (Prototypes(clip, CARD, 0.5), sets, CONFIG, [PowerCut()], "dropout is 0.0 there, 0.5 here"),
        (Prototypes(other_clip, CARD), sets, CONFIG, [PowerCut()], "another run: the clip differs"),
        (Prototypes(clip, other_card), sets, CONFIG, [PowerCut()], "another run: the card differs"),
        (ViP(clip, CARD), sets, CONFIG, [PowerCut()], "method is 'Prototypes' there, 'ViP' here"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            fit(method, *data, config, checkpoint=stopped, callbacks=callbacks, **QUIET)
        assert str(stopped) in str(error.value) and "Give another path, or delete it" in str(error.value)


def test_number_of_workers_is_no_difference(clip, sets, stopped):
    config = replace(CONFIG, num_workers=1)
    fit(Prototypes(clip, CARD), *sets, config, checkpoint=stopped, callbacks=[PowerCut()], **QUIET)


@pytest.mark.parametrize("damage", ["cut", "flipped", "metadata", "text"])
def test_a_damaged_checkpoint_is_named_and_not_used(clip, sets, stopped, damage):
    raw = bytearray(stopped.read_bytes())
    if damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "flipped":
        raw[-3] ^= 1
    elif damage == "metadata":
        raw = raw.replace(rb"\"epoch\": 2,", rb"\"epoch\": 1,", 1)
    else:
        raw = bytearray(b"not a checkpoint")
    stopped.write_bytes(raw)
    method = Prototypes(clip, CARD)
    before = method.weight.clone()
    with pytest.raises(ValueError, match="is damaged.*Delete it to train from the start") as error:
        fit(method, *sets, CONFIG, checkpoint=stopped, callbacks=[PowerCut()], **QUIET)
    assert str(stopped) in str(error.value)
    assert torch.equal(method.weight, before)
