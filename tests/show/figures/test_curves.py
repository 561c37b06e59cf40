"""The curves: what is drawn where, and what is refused."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medvlp.show import name_rate_figure, report_curves, shots_curve, training_curves
from medvlp.study.ablation.statistics import t_interval
from medvlp.study.evaluation import report_of
from tests.methods.small import make_card, make_set

HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [0.9, 0.5, 0.4],
        "val_loss": [0.8, 0.6, 0.7],
        "val_balanced_accuracy": [0.5, 0.8, 0.7],
        "best": [False, True, False],
    }
)
RUNS = [("ViP", 1, 0.5), ("ViP", 1, 0.7), ("ViP", 4, 0.8), ("probe", 4, 0.4)]
SCORES = pd.DataFrame(RUNS, columns=["method", "num_shots", "accuracy"])


def points(line) -> list[tuple[float, float]]:
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_training_curves_show_losses_and_mark_the_epoch_kept():
    left, right = training_curves(HISTORY, "balanced accuracy").axes
    assert [line.get_label() for line in left.lines] == ["training", "validation"]
    assert points(left.lines[0]) == [(1, 0.9), (2, 0.5), (3, 0.4)]
    assert points(left.lines[1]) == [(1, 0.8), (2, 0.6), (3, 0.7)]
    assert points(right.lines[0]) == [(1, 0.5), (2, 0.8), (3, 0.7)]
    assert points(right.lines[1]) == [(2, 0.8)] and right.lines[1].get_marker() == "o"
    assert right.get_ylabel() == "validation balanced accuracy"


def test_without_validation_the_training_loss_is_drawn_alone():
    (left,) = training_curves(HISTORY[["epoch", "loss", "best"]]).axes
    assert left.get_ylabel() == "training loss" and len(left.lines) == 1
    left, right = training_curves({"a": HISTORY, "b": HISTORY[["epoch", "loss"]]}, "balanced accuracy").axes
    assert len(left.lines) == 3 and len(right.lines) == 2
    left, right = training_curves(HISTORY.drop(columns="val_loss"), "balanced accuracy").axes
    assert len(left.lines) == 1 and points(right.lines[1]) == [(2, 0.8)]


def test_several_runs_have_a_colour_each():
    left, right = training_curves({"a": HISTORY, "b": HISTORY}, "balanced accuracy").axes
    labels = [line.get_label() for line in left.lines]
    assert labels == ["a training", "a validation", "b training", "b validation"]
    assert len({line.get_color() for line in right.lines}) == 2


@pytest.mark.parametrize(
    ("runs", "message"), [(HISTORY, "unknown metric 'F1' in the history[.;]"), ({}, "no hist")]
)
def test_a_history_without_the_metric_says_what_there_is(runs, message):
    with pytest.raises(ValueError, match=message):
        training_curves(runs, "F1")


def test_shots_curve_draws_every_run_and_the_mean():
    ax = shots_curve(SCORES, reference={"zero-shot": 0.6}).axes[0]
    vip, dots, probe, _, zero = ax.lines
    assert points(vip) == [(1, pytest.approx(0.6)), (4, 0.8)]
    assert points(dots) == [(1, 0.5), (1, 0.7), (4, 0.8)]
    assert points(probe) == [(4, 0.4)]
    assert list(zero.get_ydata()) == [0.6, 0.6] and zero.get_linestyle() == "--"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "4"]
    assert len({line.get_color() for line in (vip, probe, zero)}) == 3


def test_all_images_stand_behind_the_numbers_and_failed_runs_nowhere():
    scores = pd.DataFrame(
        {"method": "ViP", "num_shots": [16, "all", 2, 2], "accuracy": [0.7, 0.9, 0.5, None]}
    )
    ax = shots_curve(scores).axes[0]
    assert points(ax.lines[0]) == [(2, 0.5), (16, 0.7), (32, 0.9)]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "16", "all"]


def test_no_axis_says_that_an_accuracy_could_be_above_one():
    ax = shots_curve(SCORES, interval=True).axes[0]
    assert t_interval([0.5, 0.7])[1] > 1.1 and ax.get_ylim()[1] <= 1.02
    free = SCORES.rename(columns={"accuracy": "seconds"}).assign(seconds=[1.0, 3.0, 9.0, 2.0])
    assert shots_curve(free, "seconds", interval=True).axes[0].get_ylim()[1] > 9


def test_intervals_are_students_and_each_method_has_a_panel_of_its_own():
    figure = shots_curve(SCORES, interval=True)
    vip, probe = figure.axes
    assert (vip.get_title(), probe.get_title()) == ("ViP", "probe")
    (x, low), (_, high) = vip.collections[0].get_segments()[0]
    assert (x, low, high) == (1, *map(pytest.approx, t_interval([0.5, 0.7], least=0, most=1)))
    own, _, other = vip.lines
    assert points(own) == [(1, pytest.approx(0.6)), (4, 0.8)] and points(other) == [(4, 0.4)]
    assert own.get_color() != other.get_color() == probe.lines[0].get_color()
    assert "95 % over seeds" in figure.get_supxlabel()


def test_the_eleventh_method_has_a_line_of_its_own():
    scores = pd.DataFrame({"method": [f"m{i}" for i in range(11)], "num_shots": 1, "accuracy": 0.5})
    lines = shots_curve(scores).axes[0].lines[::2]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 11


def test_name_rates_show_every_seed_the_mean_over_seeds_and_the_reference_lines():
    columns = ["name_rate", "seed", "step", "knowledge"]
    runs = pd.DataFrame(product((0.01, 0.1), (0, 1), (50, 150), ("symptoms", "classnames")), columns=columns)
    figure = name_rate_figure(runs.assign(accuracy=0.5 + 0.1 * runs["seed"]), bayes=0.89, chance=0.5)
    assert len(figure.axes) == 2
    dots = np.vstack([dots.get_offsets() for dots in figure.axes[0].collections])  # no band around the mean
    each = [(rate, 0.5 + 0.1 * seed) for rate in (0.01, 0.1) for seed in (0, 1) for _ in range(2)]
    assert np.allclose(sorted(map(tuple, dots)), sorted(each))
    heights = [line.get_ydata() for line in figure.axes[0].lines]
    assert any(len(y) == 2 and y == pytest.approx([0.55, 0.55]) for y in heights)
    assert any(list(y) == [0.89, 0.89] for y in heights) and any(list(y) == [0.5, 0.5] for y in heights)


def test_report_curves_are_those_of_the_class_with_their_areas():
    images = make_set(make_card(), [i % 3 for i in range(60)])
    name, labels = images.card.classnames[2], images.labels.numpy()
    p = np.random.default_rng(0).dirichlet(np.ones(len(images.card.classnames)), size=len(images))
    report = report_of("Some method", images, p, 5, 1, 1.0)
    roc, precision, calibration = report_curves({"$a": report, "b": report}, name).axes
    score, true = p[:, 2], labels == 2
    said = [text.get_text() for ax in (roc, precision) for text in ax.get_legend().get_texts()]
    assert said[0] == f"$a (AUC = {roc_auc_score(true, score):.2f})"
    assert said[2] == f"$a (AP = {average_precision_score(true, score):.2f})"
    assert len(calibration.lines) == 3 and name in calibration.get_xlabel()  # the diagonal, and two
    assert len({line.get_color() for line in roc.lines}) == 2
    only = report_of("Some method", images.subset(np.flatnonzero(true)), p[true], 5, 1, 1.0)
    for given, classname, message in (
        ({}, name, "no report to draw"),
        (report, "nobody", "unknown class 'nobody'"),
        (only, name, "needs images of class"),
    ):
        with pytest.raises(ValueError, match=message):
            report_curves(given, classname)
