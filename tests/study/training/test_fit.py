"""fit: the recipe's numbers, the best epoch kept, the same run twice, and each error."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import is_initialized
from safetensors.torch import load_file

from medvlp.methods.adapters.linear_probe import LinearProbe
from medvlp.methods.adapters.text_probe import TextProbe
from medvlp.methods.adapters.tip_adapter import TipAdapter
from medvlp.methods.base import READING, own_tensors, trainable_parameters
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.evaluation import evaluate, predict_logits
from medvlp.study.training.batches import FeatureBatches, ImageBatches, epoch_order
from medvlp.study.training.callbacks import Callback
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set
from tests.study.training.small_training import CARD, Prototypes, Recorder, Tinted, copy_of, same

SHORT = TrainConfig(epochs=6, batch_size=8, lr=0.1, views=2, num_workers=0)
QUIET = {"progress": False}
pytestmark = pytest.mark.usefixtures("one_thread")


# the recipe


@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_the_cosine_is_torchs_after_the_warm_up(schedule):
    config = TrainConfig(epochs=4, lr=0.8, warmup_lr=None, schedule=schedule)
    warm = replace(config, warmup_lr=0.01)
    steps = 3 if schedule == "step" else 1
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.8)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 4 * steps)
    assert warm.learning_rate(1) == warm.learning_rate(1, 0.5) == 0.01
    for epoch in range(1, 5):
        for done in (0, 1 / 3, 2 / 3):
            assert config.learning_rate(epoch, done) == pytest.approx(cosine.get_last_lr()[0], abs=1e-9)
            assert warm.learning_rate(epoch + 1, done) == config.learning_rate(epoch, done)
            if schedule == "step":
                sgd.step()
                cosine.step()
        if schedule == "epoch":
            sgd.step()
            cosine.step()


def test_every_image_once_an_epoch_in_an_order_of_seed_and_epoch():
    config = TrainConfig(batch_size=4, views=3)
    batches, views = epoch_order(config, 12, 1)
    assert [len(b) for b in batches] == [4, 4, 4]
    assert sorted(torch.cat(batches).tolist()) == list(range(12))
    assert set(views) == {0, 1, 2}
    again, same_views = epoch_order(config, 12, 1)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True)) and views == same_views
    for other in (epoch_order(config, 12, 2), epoch_order(replace(config, seed=2), 12, 1)):
        assert not torch.equal(torch.cat(batches), torch.cat(other[0]))
        assert views != other[1]


@pytest.mark.parametrize("views", [0, 3])
def test_cached_features_are_those_of_the_images_that_would_be_read(clip, sets, views):
    config = TrainConfig(batch_size=5, views=views, num_workers=0)
    cached = FeatureBatches(clip, sets[0], config, READING).epoch(2, 0, 1)
    for one, other in zip(cached, ImageBatches(clip, sets[0], config).epoch(2, 0, 1), strict=True):
        assert torch.allclose(one.inputs, clip.encode_images(other.inputs), atol=1e-6)
        assert torch.equal(one.labels, other.labels)


def test_fresh_views_differ_in_every_epoch_and_repeat_with_the_seed(clip, sets):
    batches = ImageBatches(clip, sets[0], TrainConfig(batch_size=24, views="fresh", num_workers=0))

    def images(epoch: int) -> torch.Tensor:  # in the data set's order
        rows = epoch_order(batches.config, 24, epoch)[0][0]
        (batch,) = batches.epoch(epoch, 0, 1)
        return batch.inputs[rows.argsort()]

    first = images(1)
    assert ((first - images(2)).abs().amax(dim=(1, 2, 3)) > 0).all()
    assert torch.equal(first, images(1))


@pytest.mark.parametrize("views", [0, 2, "fresh"])
def test_features_and_images_train_alike(clip, sets, views):
    config = replace(SHORT, epochs=3, views=views)
    cached, read = Prototypes(clip, CARD), Tinted(clip, CARD)
    read.tint.requires_grad_(False)
    histories = [fit(method, *sets, config, **QUIET) for method in (cached, read)]
    assert torch.allclose(cached.weight, read.head.weight, atol=1e-5)
    assert np.allclose(histories[0]["loss"], histories[1]["loss"], atol=1e-5)


def test_features_are_read_once_and_not_in_every_epoch(clip, sets, tmp_path):
    class NoCache(Callback):
        def on_epoch_end(self, method, epoch, row):
            if epoch == 1:
                shutil.rmtree(tmp_path / "features")

    config = replace(SHORT, epochs=3)
    fit(Prototypes(clip, CARD), *sets, config, cache_dir=tmp_path, callbacks=[NoCache()], **QUIET)
    assert not (tmp_path / "features").exists()


# what comes out


@pytest.mark.parametrize(("kind", "lr"), [(Prototypes, 0.1), (ViP, 0.02)])
def test_it_learns_what_the_images_show(clip, sets, kind, lr):
    method = kind(clip, CARD)

    def loss() -> float:
        return F.cross_entropy(predict_logits(method, sets[1]), sets[1].labels).item()

    before = loss()  # of ViP that of its symptoms
    history = fit(method, *sets, replace(SHORT, epochs=8, lr=lr, metric="loss"), **QUIET)
    assert loss() < before - 0.1 and history["loss"].iloc[-1] < history["loss"].iloc[0]


@pytest.mark.parametrize("metric", ["accuracy", "macro-F1", "loss", "ECE"])
def test_the_best_epoch_is_kept_and_of_equals_the_earliest(clip, sets, metric):
    train, val = sets
    method, recorder = Prototypes(clip, CARD), Recorder()
    config = replace(SHORT, epochs=8, metric=metric, lr=10)
    history = fit(method, train, val, config, callbacks=[recorder], **QUIET)
    values = history["val_" + metric.replace("-", "_")]
    best = values.idxmin() if metric in ("loss", "ECE") else values.idxmax()  # these give the first of equals
    assert list(history.index[history["best"]]) == [best]
    assert same(own_tensors(method), recorder.weights[best])
    assert best != 7  # or it would show nothing
    if metric != "loss":
        table = evaluate(method, val, n_bootstrap=10).table()
        assert table.loc[metric, "value"] == pytest.approx(values[best], abs=1e-12)


def test_the_last_epoch_is_kept_when_asked_also_without_validation(clip, sets):
    for val in (sets[1], None):
        method, recorder = Prototypes(clip, CARD), Recorder()
        history = fit(method, sets[0], val, replace(SHORT, keep="last"), callbacks=[recorder], **QUIET)
        assert same(own_tensors(method), recorder.weights[-1]) and len(recorder.weights) == 6
        assert ("val_accuracy" in history) == history["best"].any() == (val is not None)


def test_history_is_tidy_and_the_bar_shows_loss_and_validation(clip, sets, capsys):
    history = fit(Prototypes(clip, CARD), *sets, replace(SHORT, epochs=2))
    metrics = ["loss", "accuracy", "balanced_accuracy", "macro_F1", "AUROC", "kappa", "ECE"]
    columns = ["epoch", "lr", "loss", *(f"val_{m}" for m in metrics), "seconds", "best"]
    assert list(history.columns) == columns
    assert list(history["epoch"]) == [1, 2] and history["best"].dtype == bool
    last = capsys.readouterr().err.strip().split("\r")[-1]
    assert "Prototypes, lesions: 100%" in last and "6/6" in last and "epoch=2/2" in last
    for column in ("loss", "val_accuracy"):
        assert f"{column}={history[column].iloc[-1]:.3g}" in last


def test_only_what_requires_gradients_changes(clip, sets):
    frozen = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    method = Tinted(clip, CARD)
    before = copy_of(method)
    fit(method, *sets, replace(SHORT, epochs=2), **QUIET)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in clip.state_dict().items())
    assert not any(torch.equal(tensor, before[name]) for name, tensor in own_tensors(method).items())
    assert not method.training


# the same again


@pytest.mark.parametrize("kind", [Prototypes, Tinted])
def test_two_runs_are_equal_bit_for_bit(clip, sets, kind):
    arguments = {"dropout": 0.3} if kind is Prototypes else {}
    config = replace(SHORT, epochs=3)
    methods, histories = [kind(clip, CARD, **arguments) for _ in range(3)], []
    for method, seed in zip(methods, (1, 1, 2), strict=True):
        state = torch.get_rng_state()
        histories.append(fit(method, *sets, replace(config, seed=seed), **QUIET))
        assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are the caller's
        torch.rand(3)
    assert same(own_tensors(methods[0]), own_tensors(methods[1]))
    pd.testing.assert_frame_equal(histories[0].drop(columns="seconds"), histories[1].drop(columns="seconds"))
    assert not same(own_tensors(methods[0]), own_tensors(methods[2]))


def test_reading_with_workers_changes_nothing(clip, sets):
    methods = [Tinted(clip, CARD) for _ in range(2)]
    for method, workers in zip(methods, (0, 2), strict=True):
        fit(method, *sets, replace(SHORT, epochs=2, views="fresh", num_workers=workers), **QUIET)
    assert same(own_tensors(methods[0]), own_tensors(methods[1]))


def test_bf16_is_near_fp32_and_leaves_no_trace(clip, sets):
    weights = []
    for precision in ("fp32", "bf16", "fp32"):  # accelerate would keep the first precision of a process
        method = Prototypes(clip, CARD)
        fit(method, *sets, replace(SHORT, epochs=3, keep="last", precision=precision), **QUIET)
        assert method.weight.dtype == torch.float32 and not is_initialized()
        weights.append(method.weight.detach())
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert torch.allclose(weights[0], weights[1], atol=0.02)


@pytest.fixture(scope="module")
def apart(tmp_path_factory, repository):
    """Runs of other processes; see runs_apart.py."""
    folder = tmp_path_factory.mktemp("apart")
    command = [sys.executable, "-m", "tests.study.training.runs_apart", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_ten_kills_leave_bit_identical_weights(apart):
    kills = json.loads((apart / "kills.json").read_text())
    assert kills["killed"] == [True] * 10 and kills["last run"] == 0
    whole, killed = load_file(apart / "whole.safetensors"), load_file(apart / "killed.safetensors")
    parts = ("own", "kept", "optimizer/momentum_buffer", "callback 0")  # which is an average over epochs
    assert {f"{part}/weight" for part in parts} <= whole.keys()
    assert same(whole, killed)
    assert kills["resumed at"] == sorted(kills["resumed at"]) and 0 < kills["resumed at"][-1] < 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Prototypes", "Tinted"])
def test_two_processes_train_as_one_does(apart, kind):
    names = ("one-0", "two-0", "two-1")
    one, first, second = (load_file(apart / f"{kind}-{name}.safetensors") for name in names)
    assert same(first, second)
    for name, tensor in one.items():
        assert torch.allclose(tensor, first[name], atol=1e-5), name
    histories = [pd.read_json(apart / f"{kind}-{name}.json") for name in names]
    for column in ("loss", "val_loss", "val_accuracy"):
        assert np.allclose(histories[0][column], histories[1][column], atol=1e-5)
        assert np.array_equal(histories[1][column], histories[2][column])


# stopped


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Stops(Prototypes):
    """Presses Ctrl-C, or gives NaN, at one training step."""

    def __init__(self, clip, card, at: int, nan: bool = False) -> None:
        super().__init__(clip, card)
        self.left, self.nan = at, nan

    def logits_from_features(self, image_features):
        logits = super().logits_from_features(image_features)
        self.left -= self.training
        if self.left == 0 and self.training:
            if self.nan:
                return logits * torch.nan
            signal.raise_signal(signal.SIGINT)
        return logits


def test_ctrl_c_keeps_the_best_so_far(clip, sets, capsys, interruptible):
    method, recorder = Stops(clip, CARD, at=3 * 3 + 2), Recorder()  # three steps an epoch: in the fourth
    history = fit(method, *sets, SHORT, callbacks=[recorder], **QUIET)
    assert list(history["epoch"]) == [1, 2, 3]
    assert same(own_tensors(method), recorder.weights[history["best"].idxmax()])
    best = int(history["epoch"][history["best"]].iloc[0])
    shown = capsys.readouterr().out
    assert f"interrupted in epoch 4 of 6: the weights are those of epoch {best} (val_accuracy" in shown


def test_ctrl_c_in_the_first_epoch_leaves_the_method_as_it_was(clip, sets, capsys, interruptible):
    method = Stops(clip, CARD, at=3)
    before = copy_of(method)
    assert len(fit(method, *sets, replace(SHORT, warmup_lr=None), **QUIET)) == 0
    assert same(own_tensors(method), before)
    assert "in epoch 1 of 6: the weights are those from before training" in capsys.readouterr().out


def test_a_nan_loss_says_where_and_what_to_try(clip, sets):
    method, recorder = Stops(clip, CARD, at=3 + 2, nan=True), Recorder()
    message = "loss is nan at step 2 of epoch 2.*Try a lower lr than 0.1.*precision='fp32' instead of 'bf16'"
    with pytest.raises(FloatingPointError, match=message):
        fit(method, *sets, replace(SHORT, precision="bf16"), callbacks=[recorder], **QUIET)
    assert same(own_tensors(method), recorder.weights[0])


def test_weights_that_overflow_are_no_result(clip, sets):
    method = ViP(clip, CARD)
    with pytest.raises(FloatingPointError, match="Try a lower lr than 1e\\+30"):
        fit(method, *sets, replace(SHORT, lr=1e30), **QUIET)
    assert all(tensor.isfinite().all() for tensor in own_tensors(method).values())


# what is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metric": "acuracy"}, "unknown metric 'acuracy' in TrainConfig; did you mean 'accuracy'"),
        ({"precision": "fp61"}, "unknown precision 'fp61' in TrainConfig; did you mean 'fp16'"),
        ({"class_weight": "balance"}, "unknown class_weight 'balance' .*; did you mean 'balanced'"),
        ({"keep": "lst"}, "unknown keep 'lst' in TrainConfig; did you mean 'last'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam' in TrainConfig.*Choices: 'sgd', 'adamw'"),
        ({"epoch": 3}, "unknown field 'epoch' in TrainConfig; did you mean 'epochs'"),
        ({"views": "frech"}, "TrainConfig: views is 'frech'; it should be a valid integer or 'fresh'."),
        ({"views": -1}, "views is -1; it should be greater than or equal to 0 or 'fresh'"),
        ({"views": True}, "views is True"),
        ({"epochs": 0}, "epochs is 0; it should be greater than 0"),
        ({"epochs": True}, "epochs is True; it should be a valid integer"),
        ({"epochs": 1.0}, "epochs is 1.0; it should be a valid integer"),
        ({"epochs": "3"}, "epochs is '3'; it should be a valid integer"),
        ({"batch_size": 0}, "batch_size is 0; it should be greater than 0"),
        ({"seed": 1.5}, "seed is 1.5; it should be a valid integer"),
        ({"lr": 0.0}, "lr is 0.0; it should be greater than 0"),
        ({"lr": "0.1"}, "lr is '0.1'; it should be a valid number"),
        ({"lr": float("nan")}, "lr is nan; it should be a finite number"),
        ({"warmup_lr": 0.0}, "warmup_lr is 0.0; it should be greater than 0"),
        ({"momentum": -0.1}, "momentum is -0.1; it should be greater than or equal to 0"),
        ({"weight_decay": -1}, "weight_decay is -1; it should be greater than or equal to 0"),
        ({"num_workers": -1}, "num_workers is -1; it should be greater than or equal to 0"),
    ],
)
def test_a_config_that_makes_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        TrainConfig(**wrong)
    assert "\n" not in str(error.value)


def test_a_config_is_a_frozen_dataclass():
    config = TrainConfig(epochs=3)
    assert replace(config, lr=1) == TrainConfig(epochs=3, lr=1.0) != config
    assert pickle.loads(pickle.dumps(config)) == config and asdict(config)["epochs"] == 3
    with pytest.raises(FrozenInstanceError):
        config.epochs = 4
    with pytest.raises(ValueError, match="epochs is 0"):
        replace(config, epochs=0)


def test_images_that_cannot_serve(clip, sets):
    train, val = sets
    method = Prototypes(clip, CARD)
    for bad, message in [
        ((train.subset(np.arange(0)), val), "the train set of card 'lesions' is empty"),
        ((train, val.subset(np.arange(0))), "the val set of card 'lesions' is empty"),
        ((make_set(CARD, [0, 1, 5]), val), "'train/002.png' of the train set .* has label 5, outside the"),
        ((train, make_set(CARD, [0, -1], "val")), "'val/001.png' of the val set .* has label -1"),
        ((train, make_set(make_card(2), [0, 1], "val")), "Prototypes has the classes .*, but the val set"),
        ((train, None), "needs validation images to find the best epoch; give val, or keep='last'"),
        ((train, val.subset([0, 3])), "AUROC is undefined on these validation images"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(method, *bad, replace(SHORT, metric="AUROC", epochs=1), **QUIET)


def test_choosing_the_epoch_on_test_images_is_said_aloud(clip, sets):
    test = make_set(CARD, [0, 1, 2], "test")
    with pytest.warns(UserWarning, match="chosen on the test set"):
        fit(Prototypes(clip, CARD), sets[0], test, replace(SHORT, epochs=1), **QUIET)


class Shrinks(Tinted):
    """Gives the CLIP images of the wrong size."""

    def forward(self, images):
        return super().forward(images[..., :16, :16])


@pytest.mark.parametrize(
    ("kind", "precision", "message"),
    [
        (ZeroShot, "fp32", "ZeroShot has nothing to train"),
        (Prototypes, "fp16", "precision='fp16' needs a GPU.*use 'bf16' or 'fp32'"),
        (Shrinks, "fp32", "wants floats of B x 3 x 32 x 32, got 8 x 3 x 16 x 16"),
    ],
)
def test_what_cannot_be_trained_is_refused(clip, sets, kind, precision, message):
    with pytest.raises(ValueError, match=message):
        fit(kind(clip, CARD), *sets, replace(SHORT, precision=precision), **QUIET)
    assert not is_initialized()


# parameters


def test_trainable_parameters_by_part(clip):
    table = trainable_parameters(Tinted(clip, CARD))
    assert list(table.index) == ["tint", "head.weight", "total"]
    D = clip.embed_dim
    assert table.loc["head.weight"].to_dict() == {"shape": f"3 x {D}", "count": 3 * D}
    assert table.loc["total", "count"] == 3 + 3 * D
    assert trainable_parameters(ZeroShot(clip, CARD)).loc["total", "count"] == 0


def test_what_is_fitted_without_gradients_counts_as_learned(clip):
    n, D = len(CARD.classnames), clip.embed_dim
    table = trainable_parameters(LinearProbe(clip, CARD))
    counts = {"linear.weight": n * D, "linear.bias": n, "total": n * (D + 1)}
    assert table["count"].to_dict() == counts
    assert trainable_parameters(TextProbe(clip, CARD)).loc["total", "count"] == n * D
    assert trainable_parameters(TipAdapter(clip, CARD)).loc["total", "count"] == 0  # keys are not learned
