"""Cross-validation keeps groups whole and encodes an image once; two reports are compared in pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest, t

from medvlp.backbone.clip import Clip
from medvlp.methods.adapters.linear_probe import LinearProbe
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.cross_validation import compare, cross_validate
from medvlp.study.evaluation import evaluate
from medvlp.study.metrics import METRICS, metric_values
from medvlp.study.training.config import TrainConfig
from tests.methods.small import make_card, make_set
from tests.study.test_evaluation import Reader, noisy_logits, written

CARD = make_card()
N = 60


@pytest.fixture(scope="module")
def images():
    """20 patients, of one class each, with three images each."""
    labels = np.repeat(np.arange(20) % 3, 3)
    return replace(make_set(CARD, labels), groups=[f"patient {i // 3}" for i in range(N)])


@pytest.fixture
def encoded(monkeypatch):
    """How many images each call of the image tower is given."""
    calls, encode = [], Clip.encode_images

    def count(self, pixels, *args, **kwargs):
        if len(calls) == count.dies_at:
            raise RuntimeError("out of power")
        calls.append(len(pixels))
        return encode(self, pixels, *args, **kwargs)

    count.dies_at = None
    monkeypatch.setattr(Clip, "encode_images", count)
    return calls, count


def validated(clip, images, cache, **options):
    options = {"folds": 5, "n_bootstrap": 50, "progress": False, "cache_dir": cache} | options
    return cross_validate(images, lambda: LinearProbe(clip, CARD), **options)


def test_five_folds_encode_each_image_once_and_a_second_start_none(clip, images, encoded, tmp_path):
    first = validated(clip, images, tmp_path)
    assert sum(encoded[0]) == N
    again = validated(clip, images, tmp_path)
    assert sum(encoded[0]) == N and again.per_image.equals(first.per_image)
    validated(clip, images, tmp_path, seed=2, folds=2)
    assert sum(encoded[0]) == N


def test_killed_in_the_middle_a_second_start_encodes_what_was_missing(clip, images, encoded, tmp_path):
    calls, switch = encoded
    switch.dies_at = 1  # the validation part is not reached
    with pytest.raises(RuntimeError, match="out of power"):
        validated(clip, images, tmp_path)
    done = sum(calls)
    assert 0 < done < N
    switch.dies_at = None
    report = validated(clip, images, tmp_path)
    assert sum(calls) == N and len(report.per_image) == N


def test_no_patient_is_in_two_parts_and_each_image_is_tested_once(clip, images, tmp_path, monkeypatch):
    seen, labels = [], images.labels.clone()
    labels[::4] = (labels[::4] + 1) % 3  # so that no method is always right
    images = replace(images, labels=labels)

    class Spy(LinearProbe):
        def before_training(self, train, val, *args, **options):
            seen.append((self, train, val))
            super().before_training(train, val, *args, **options)

    options = {"n_bootstrap": 50, "cache_dir": tmp_path}
    report = cross_validate(images, lambda: Spy(clip, CARD), **options, calibrate=True, progress=False)
    labels, probabilities = report.arrays()
    tested = []
    for fold, (method, train, val) in enumerate(seen, start=1):
        assert (train.split, val.split) == ("train", "val")
        test = set(images.groups) - set(train.groups) - set(val.groups)
        assert not set(train.groups) & set(val.groups) and len(test) == 4
        assert set(train.labels.tolist()) == set(val.labels.tolist()) == {0, 1, 2}
        rows = [i for i, group in enumerate(images.groups) if group in test]
        alone = evaluate(method, images.subset(rows), calibrate_on=val, **options)
        assert report.folds["temperature"][fold] == pytest.approx(alone.temperature) != 1
        assert probabilities[rows] == pytest.approx(alone.arrays()[1])
        tested += test
    assert sorted(tested) == sorted(set(images.groups))
    folds = report.folds
    assert folds.index.tolist() == [1, 2, 3, 4, 5]
    assert (folds[["train", "val", "test"]].sum(axis=1) == N).all()
    assert report.per_image["id"].tolist() == images.ids
    assert labels.tolist() == images.labels.tolist()
    assert report.table()["value"].to_dict() == pytest.approx(metric_values(labels, probabilities))
    assert "their 20 groups" in repr(report) and "5 folds" in repr(report) and "folds low" in repr(report)
    table = report.table()
    assert table["folds mean"].to_dict() == pytest.approx(folds[list(METRICS)].mean().to_dict())
    ends = t.interval(0.95, 4, folds["ECE"].mean(), folds["ECE"].sem())
    assert table.loc["ECE", ["folds low", "folds high"]].tolist() == pytest.approx(np.clip(ends, 0, 1))
    assert table["folds high"]["accuracy"] <= 1


def test_folds_without_training_are_the_methods_own_report(clip, images, tmp_path, bars):
    zero = ZeroShot(clip, CARD)
    report = cross_validate(images, lambda: zero, n_bootstrap=50, progress=False, cache_dir=tmp_path)
    assert bars == ["bootstrap"]
    whole = evaluate(zero, images, n_bootstrap=50, cache_dir=tmp_path)
    assert report.metrics.equals(whole.metrics)


def test_folds_go_on_from_their_checkpoints(clip, images, tmp_path):
    config = TrainConfig(epochs=1, batch_size=16, views=0)
    options = {"folds": 2, "n_bootstrap": 10, "progress": False, "cache_dir": tmp_path / "features"}
    options["checkpoint_dir"] = tmp_path / "folds"
    (tmp_path / "folds").mkdir()
    first = cross_validate(images, lambda: ViP(clip, CARD), config, calibrate=True, **options)
    files = sorted(path.name for path in (tmp_path / "folds").iterdir())
    assert files == ["fold-1.safetensors", "fold-2.safetensors"]
    again = cross_validate(images, lambda: ViP(clip, CARD), config, calibrate=True, **options)
    assert again.per_image.equals(first.per_image)
    assert (first.folds["temperature"] != 1).all()


@pytest.mark.parametrize(
    ("pattern", "options", "said"),
    [
        (False, {"folds": 1}, "at least 2 folds"),
        (False, {"folds": 7}, r"class 'keratosis' has 6 group\(s\) of images for 7 folds"),
        (False, {"n_bootstrap": 0}, "n_bootstrap is 0; an interval needs resamples"),
        (True, {}, "its group_pattern finds nothing"),
    ],
)
def test_what_cannot_be_folded_is_refused(clip, images, pattern, options, said):
    if pattern:
        source = CARD.source.model_copy(update={"group_pattern": "(patient[0-9]+)"})
        images = replace(images, card=CARD.model_copy(update={"source": source}), groups=images.ids)
    with pytest.raises(ValueError, match=said):
        cross_validate(images, lambda: LinearProbe(clip, CARD), **options)
    with pytest.raises(ValueError, match="ZeroShot has the classes"):
        cross_validate(make_set(CARD, [0, 1, 2] * 5), lambda: ZeroShot(clip, make_card(2)), folds=2)


@pytest.fixture(scope="module")
def reports():
    """Of a better and a worse method on the same 90 images."""
    sets = [written(*noisy_logits(90, 0, gain=gain)) for gain in (4, 2)]
    return [evaluate(Reader(), one, n_bootstrap=20) for one in sets]


def test_two_methods_are_compared_in_pairs(reports):
    better, worse = reports
    table = compare(better, worse, n_bootstrap=500)
    accuracy = table.loc["accuracy"]
    assert accuracy["difference"] == pytest.approx(
        better.per_image["correct"].mean() - worse.per_image["correct"].mean()
    )
    assert 0 < accuracy["low"] < accuracy["difference"] < accuracy["high"] and accuracy["p"] < 0.05
    won = int((better.per_image["correct"] & ~worse.per_image["correct"]).sum())
    lost = int((worse.per_image["correct"] & ~better.per_image["correct"]).sum())
    assert (accuracy["won"], accuracy["lost"]) == (won, lost) and won + lost < 25
    assert accuracy["p McNemar"] == pytest.approx(binomtest(lost, won + lost).pvalue)
    assert table["p McNemar"].drop("accuracy").isna().all()
    back = compare(worse, better, n_bootstrap=500)
    assert back["difference"].to_numpy() == pytest.approx(-table["difference"].to_numpy())
    assert back["low"].to_numpy() == pytest.approx(-table["high"].to_numpy())
    same = compare(better, better, n_bootstrap=50)
    assert (same[["difference", "low", "high"]] == 0).all(axis=None) and (same["p"] == 1).all()


def test_groups_are_resampled_together_and_have_no_mcnemar(reports):
    patients = [f"patient {i // 10}" for i in range(90)]
    better, worse = (replace(report, groups=patients) for report in reports)
    table, alone = compare(better, worse), compare(*reports)
    assert np.isnan(table.loc["accuracy", "p McNemar"])
    assert (table["low"] != alone["low"]).all()


def test_other_images_or_another_order_are_refused(reports):
    better, worse = reports
    rows = worse.per_image
    with pytest.raises(ValueError, match="1 are in one of the reports only, .* such as 'test/089.png'"):
        compare(better, replace(worse, per_image=rows[:89], groups=worse.groups[:89]))
    turned = replace(worse, per_image=rows[::-1], groups=worse.groups[::-1])
    with pytest.raises(ValueError, match="90 stand in another place .* such as 'test/000.png'"):
        compare(better, turned)
    with pytest.raises(ValueError, match="90 are .* another label or group"):
        compare(better, replace(worse, groups=["one patient"] * 90))
    with pytest.raises(ValueError, match="the other has"):
        compare(better, replace(worse, classnames=worse.classnames[::-1]))
    with pytest.raises(ValueError, match="n_bootstrap is 0"):
        compare(better, worse, n_bootstrap=0)


def test_a_temperature_of_validation_lowers_ece_and_nll_and_keeps_every_class(images):
    both = written(*noisy_logits(400, 1, spread=4, gain=2))
    val, test = both.subset(range(200)), both.subset(range(200, 400))
    plain = evaluate(Reader(), test, n_bootstrap=20)
    sites = {"internal": test.subset(range(90)), "external": test}
    calibrated = evaluate(Reader(), sites, n_bootstrap=20, calibrate_on=val)["external"]
    assert calibrated.temperature > 2 and f"at temperature {calibrated.temperature:.3g}" in repr(calibrated)
    assert plain.temperature == 1 and "temperature" not in repr(plain)
    y, p = map(torch.tensor, evaluate(Reader(), val, n_bootstrap=20).arrays())
    steps = [F.cross_entropy(p.log() / (calibrated.temperature * by), y) for by in (0.99, 1, 1.01)]
    assert steps[1] < min(steps[0], steps[2])
    y, p = plain.arrays()
    _, q = calibrated.arrays()
    nll = [-np.log(one[np.arange(200), y]).mean() for one in (p, q)]
    assert nll[1] < 0.7 * nll[0]
    assert calibrated.table()["value"]["ECE"] < 0.5 * plain.table()["value"]["ECE"]
    assert (p.argsort(axis=1) == q.argsort(axis=1)).all()
    assert q == pytest.approx(torch.tensor(np.log(p) / calibrated.temperature).softmax(1).numpy())
    with pytest.raises(ValueError, match=r"has 200 image\(s\) that are to be tested on"):
        evaluate(Reader(), test, calibrate_on=test)
