"""evaluate: the report of a method whose logits are written in the pixels, then of real ones."""

import tracemalloc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import ArrayLike
from sklearn import metrics as sk
from torchvision.transforms.functional import pil_to_tensor

from medvlp.methods import METHODS
from medvlp.methods.base import Method
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study import evaluation, metrics
from medvlp.study.evaluation import Report, evaluate, predict_logits
from medvlp.study.metrics import METRICS
from medvlp.study.prediction import predict
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set, set_of

CARD = make_card()


class Reader(Method):
    """The logits of an image are its mean red, green and blue, in steps of 10."""

    def __init__(self, card=CARD, broken: int | None = None) -> None:
        clip = SimpleNamespace(device=torch.device("cpu"), preprocess=pil_to_tensor, logit_scale=1.0)
        super().__init__(clip, card, locals())
        self.broken, self.modes = broken, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        logits = images.float().mean(dim=(2, 3))[:, : len(self.card.classnames)] / 10
        if self.broken is not None:
            logits[self.broken] = float("nan")
        return logits


def written(labels: ArrayLike, logits: ArrayLike, card=CARD):
    """Images from which Reader reads these logits, (N, 3)."""
    pixels = np.round(np.array(logits) * 10).astype(np.uint8)[:, None, None, :]
    return set_of(card, np.array(labels), pixels.repeat(4, 1).repeat(4, 2))


def noisy_logits(n: int, seed: int, spread: float = 2, gain: float = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) of three classes, and logits (n, 3) that tell something about them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    return labels, np.round(10 + spread * rng.normal(size=(n, 3)) + gain * np.eye(3)[labels], 1).clip(0, 25)


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray, Report]:
    """Labels, probabilities and report of 100 images, more than one batch of them."""
    labels, logits = noisy_logits(100, 0, 3, 4)
    p = torch.tensor(logits).softmax(1).numpy()
    return labels, p, evaluate(Reader(), written(labels, logits), n_bootstrap=200)


def test_table_has_every_metric_inside_its_interval(noisy):
    labels, p, report = noisy
    table = report.table()
    assert list(table.index) == list(METRICS) and list(table.columns) == ["value", "low", "high"]
    assert table.loc["accuracy", "value"] == sk.accuracy_score(labels, p.argmax(1))
    assert table.loc["AUROC", "value"] == pytest.approx(sk.roc_auc_score(labels, p, multi_class="ovr"))
    rows = table.drop(index="ECE")  # which resampling overstates
    assert (rows["low"] < rows["value"]).all() and (rows["value"] < rows["high"]).all()


def test_per_image_says_what_was_seen_in_each(noisy):
    labels, p, report = noisy
    rows = report.per_image
    names = CARD.classnames
    columns = ["id", "true", "predicted", "correct", "confidence", *(f"P({n})" for n in names)]
    assert list(rows.columns) == columns
    assert list(rows["id"]) == [f"test/{i:03d}.png" for i in range(100)]
    assert list(rows["true"]) == [names[y] for y in labels]
    assert list(rows["predicted"]) == [names[y] for y in p.argmax(1)]
    assert (rows["correct"] == (rows["true"] == rows["predicted"])).all()
    assert rows.iloc[:, 5:].to_numpy() == pytest.approx(p, abs=1e-6)
    assert (rows["confidence"] == rows.iloc[:, 5:].max(axis=1)).all()


def test_per_class_and_confusion_are_scikit_learns(noisy):
    labels, p, report = noisy
    table = report.per_class()
    expected = sk.classification_report(labels, p.argmax(1), target_names=CARD.classnames, output_dict=True)
    for name in CARD.classnames:
        row = table.loc[name]
        assert row[["precision", "recall", "F1", "support"]].tolist() == pytest.approx(
            list(expected[name].values())
        )
    assert table.loc["nevus", "AUROC"] == pytest.approx(sk.roc_auc_score(labels == 1, p[:, 1]))
    confusion = report.confusion()
    assert (confusion.to_numpy() == sk.confusion_matrix(labels, p.argmax(1))).all()
    assert confusion.index.name == "true" and confusion.columns.name == "predicted"
    assert list(confusion.index) == list(confusion.columns) == CARD.classnames


def test_a_class_without_images_stays_in_the_tables():
    report = evaluate(Reader(), written([0, 0, 1], [[9, 1, 1], [1, 9, 1], [1, 9, 1]]), n_bootstrap=50)
    assert report.confusion().loc["keratosis"].tolist() == [0, 0, 0]
    assert report.per_class().loc["keratosis", "support"] == 0
    assert np.isnan(report.per_class().loc["keratosis", "recall"])
    assert report.table().loc["balanced accuracy", "value"] == pytest.approx((1 / 2 + 1) / 2)


def test_the_report_shows_its_table_and_says_of_what(noisy):
    report = noisy[2]
    title = "Reader on lesions, test: 100 images; 95 % intervals from 200 bootstrap resamples of the images"
    assert repr(report).splitlines()[0] == f"{title}, seed 1"
    assert f"{report.table().loc['kappa', 'low']:.3f}" in repr(report)
    shown = report._repr_html_()
    assert title in shown and f"{report.table().loc['kappa', 'low']:.3f}" in shown
    assert shown == report._repr_html_()


def test_several_sets_have_their_reports_side_by_side():
    sites = {
        "internal": written([0, 1, 2] * 4, [[9, 1, 1], [1, 9, 1], [1, 1, 9]] * 4),
        "$x$ <b>": written([0, 1, 2] * 4, [[9, 1, 1]] * 12),
    }
    reports = evaluate(Reader(), sites, n_bootstrap=50)
    assert list(reports) == list(sites)
    table = reports.table()
    assert list(table.columns) == [(name, end) for name in sites for end in ("value", "low", "high")]
    assert list(table.index) == list(METRICS)
    for name, images in sites.items():
        alone = evaluate(Reader(), images, n_bootstrap=50)
        pd.testing.assert_frame_equal(pd.DataFrame(table[name]), pd.DataFrame(alone.table()))
        pd.testing.assert_frame_equal(reports[name].per_image, alone.per_image)
    assert table.loc["accuracy", ("internal", "value")] == 1
    assert table.loc["ECE", ("$x$ <b>", "value")] == pytest.approx(2 / 3, abs=0.01)  # sure, and wrong
    lines = repr(reports).splitlines()
    assert lines[0].startswith("internal: Reader on lesions, test: 12 images; 95 % intervals from 50")
    assert lines[1].startswith("$x$ <b>: Reader on") and "ECE" in lines[-1]
    html = reports._repr_html_()
    assert "tex2jax_ignore" in html and "<b>" not in html and "$x$ &lt;b&gt;: Reader" in html
    with pytest.raises(TypeError, match="images is"):
        evaluate(Reader(), {"internal": "a folder"})
    with pytest.raises(ValueError, match="there is no data set to evaluate; give some by name"):
        evaluate(Reader(), {})


def test_the_seed_decides_the_intervals():
    data = written([0, 1, 2] * 8, [[5, 5.3, 5]] * 12 + [[5, 5, 5.5]] * 12)
    once, again, other = (evaluate(Reader(), data, n_bootstrap=100, seed=seed).table() for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(once, again)
    assert not once.equals(other)
    pd.testing.assert_series_equal(once["value"], other["value"])


def test_groups_are_resampled_whole():
    single, grouped = (written([0, 1, 2] * 10, [[9, 1, 1]] * 10 + [[1, 9, 1]] * 20) for _ in range(2))
    grouped.groups = ["patient 1"] * 15 + ["patient 2"] * 15
    wide, narrow = (evaluate(Reader(), data, n_bootstrap=200) for data in (grouped, single))
    assert "resamples of their 2 groups" in repr(wide)
    assert len(set(wide.table().loc["accuracy"])) <= 3  # two patients give three different resamples
    assert wide.table().loc["accuracy", "value"] == narrow.table().loc["accuracy", "value"]


def test_evaluation_mode_without_gradients_and_the_mode_put_back():
    method = Reader().train()
    evaluate(method, written([0, 1], [[9, 1, 1], [1, 9, 1]]), n_bootstrap=5)
    assert method.modes == [(False, False)]
    assert method.training


def test_cached_features_give_the_logits_of_forward(clip):
    zero, data = ZeroShot(clip, CARD), make_set(CARD, [0, 1, 2, 1], "test")
    images = torch.stack([clip.preprocess(data.image(i)) for i in range(4)])
    logits = predict_logits(zero, data)
    assert torch.allclose(logits, zero(images), atol=1e-4)
    report = evaluate(zero, data, n_bootstrap=5)
    assert list(report.per_image["predicted"]) == [CARD.classnames[y] for y in logits.argmax(1)]


@pytest.fixture
def readings(clip, monkeypatch) -> Iterator[list]:
    """One entry each time texts are read; methods evaluate two images at once."""
    readings: list = []
    hook = clip.token_embedding.register_forward_pre_hook(lambda *_: readings.append(1))
    monkeypatch.setattr(evaluation, "_FEATURES", 2)
    monkeypatch.setattr(evaluation, "_IMAGES", 2)
    yield readings
    hook.remove()


@pytest.mark.parametrize("name", ["CoOp", "ViP", "IVLP", "MaPLe"])
def test_texts_are_encoded_once_an_evaluation(name, clip, readings):
    method, data = METHODS[name](clip, CARD), make_set(CARD, [0, 1, 2, 1, 0], "test")
    readings.clear()
    logits = predict_logits(method, data)
    assert len(readings) == 1
    images = torch.stack([clip.preprocess(data.image(i)) for i in range(5)])
    with torch.no_grad():
        assert torch.allclose(logits, torch.cat([method(part) for part in images.split(2)]), atol=1e-6)
        method.ctx += 1  # other weights, other texts
    assert not torch.equal(predict_logits(method, data), logits)
    method(images).sum().backward()
    assert method.ctx.grad.any()

    readings.clear()
    assert len(predict(method, [data.image(i) for i in range(3)])) == 3  # ViP scores its symptoms, too
    assert len(readings) == 1


def test_texts_are_encoded_once_a_validation(clip, readings):
    method, data = METHODS["CoOp"](clip, CARD), make_set(CARD, [0, 1, 2, 1, 0], "val")
    readings.clear()
    config = TrainConfig(epochs=3, batch_size=5, views=0)
    fit(method, data, data, config, progress=False)
    assert len(readings) == 3 * (1 + 1)  # a step and a validation each


def test_texts_that_depend_on_the_image_are_encoded_for_each_and_not_kept(clip, readings, monkeypatch):
    method, made, kept = METHODS["CoCoOp"](clip, CARD), [], []
    encode = type(method).class_features

    def watched(self, f):
        kept.append(sum(t() is not None for t in made))
        t = encode(self, f)
        made.append(weakref.ref(t))
        return t

    monkeypatch.setattr(type(method), "class_features", watched)
    readings.clear()
    predict_logits(method, make_set(CARD, [0, 1, 2, 1, 0], "test"))
    assert len(readings) == 3 and kept == [0, 0, 0]


def test_of_many_classes_few_images_are_evaluated_at_once(clip, monkeypatch):
    method, data, seen = METHODS["CoCoOp"](clip, CARD), make_set(CARD, [0, 1, 2, 1, 0], "test"), []
    whole, encode = predict_logits(method, data), method.class_features
    monkeypatch.setattr(evaluation, "PROMPTED_AT_ONCE", 8)  # two images of three classes
    monkeypatch.setattr(method, "class_features", lambda f: seen.append(len(f)) or encode(f))
    logits = predict_logits(method, data)
    assert seen == [2, 2, 1]
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("method", "labels", "message"),
    [
        (Reader(), [], "the test set of card 'lesions' is empty"),
        (Reader(), [0, 5], "image 'test/001.png' of the test set .* 'lesions' has label 5, outside the card"),
        (Reader(make_card(2)), [0], "Reader has the classes 'melanoma', 'nevus', but the test set of card"),
        (Reader(broken=1), [0, 1], "logits that are not finite for 1 of 2 images, first 'test/001.png'"),
    ],
)
def test_errors_name_what_is_wrong(method, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate(method, make_set(CARD, labels, "test"))


def test_no_resamples_are_no_interval():
    with pytest.raises(ValueError, match="n_bootstrap is 0; an interval needs resamples"):
        evaluate(Reader(), written([0], [[1, 1, 1]]), n_bootstrap=0)


def reports_of(n: int) -> list[Report]:
    """Two reports of noisy images of three classes, for validation and for the test."""
    once = [evaluate(Reader(), written(*noisy_logits(n, seed)), n_bootstrap=1) for seed in (1, 2)]
    return [replace(report, n_bootstrap=200) for report in once]


def test_an_operating_point_is_chosen_on_validation_and_measured_on_the_test():
    val, test = reports_of(150)
    name = CARD.classnames[1]
    table = test.operating_point(name, val)
    threshold = table["threshold"].iloc[0]

    def rates(report: Report, at: float) -> tuple[float, float]:
        labels, p = report.arrays()
        tn, fp, fn, tp = sk.confusion_matrix(labels == 1, p[:, 1] >= at).ravel()
        return tp / (tp + fn), tn / (tn + fp)

    best = max(sum(rates(val, at)) for at in val.arrays()[1][:, 1])
    assert sum(rates(val, threshold)) == pytest.approx(best)
    assert table["value"].iloc[:2].tolist() == pytest.approx(rates(test, threshold))
    labels, p = test.arrays()
    ppv = sk.precision_score(labels == 1, p[:, 1] >= threshold)
    npv = sk.precision_score(labels != 1, p[:, 1] < threshold)
    assert table.loc[["PPV", "NPV"], "value"].tolist() == pytest.approx([ppv, npv])
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()

    demanded = test.operating_point(name, val, sensitivity=0.95)["threshold"].iloc[0]
    labels, p = val.arrays()
    higher = np.sort(p[p[:, 1] > demanded, 1])[0]
    assert rates(val, demanded)[0] >= 0.95 > rates(val, higher)[0]


def test_an_operating_point_holds_a_block_of_resamples_at_once(monkeypatch):
    val, test = (replace(report, n_bootstrap=1000) for report in reports_of(4000))
    tables, peaks = [], []
    for at_once in (10**6, 40_000):  # 100 resamples, and 10
        monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", at_once)
        tracemalloc.start()
        tables.append(test.operating_point(CARD.classnames[1], val))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 5 * 8 * 4000 * 100 and peaks[1] < peaks[0] / 2
    pd.testing.assert_frame_equal(*tables)


def test_an_operating_point_says_what_it_cannot_be_chosen_on():
    val, test = reports_of(60)
    name = CARD.classnames[1]
    for report, options, message in (
        (test, {}, "has images that are tested here, such as"),
        (val, {"sensitivity": 1.5}, "sensitivity is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            test.operating_point(name, report, **options)
    with pytest.raises(ValueError, match="unknown class 'nobody'"):
        test.operating_point("nobody", val)
    for other in (replace(val, temperature=2.0), replace(val, method="ViP")):
        with pytest.raises(ValueError, match="the same for the same probabilities only"):
            test.operating_point(name, other)
    alone = evaluate(Reader(), written([0, 0], [[9, 1, 1], [8, 2, 1]]), n_bootstrap=5)
    with pytest.raises(ValueError, match="needs validation images of class"):
        test.operating_point(name, alone)
