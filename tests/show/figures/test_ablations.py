"""The figures of a study: what is drawn where, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from medvlp.show import forest_plot, heat_map, intervention_figure
from medvlp.study.ablation.statistics import COMPARISON, SUMMARY

NUMBERS = ["difference", "images low", "images high", "p Holm", "seeds low", "seeds high"]
ROWS = [
    ("ViP", 1, 0.10, 0.05, 0.15, 0.004, 0.02, 0.18),
    ("ViP", 4, -0.02, -0.06, 0.03, 0.900, -0.09, 0.05),
    ("probe", 4, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan),
]
COMPARED = pd.DataFrame(ROWS, columns=["method", "shots", *NUMBERS]).assign(
    baseline="CoOp", measure="accuracy"
)
COMPARED = COMPARED.reindex(columns=["method", "shots", *COMPARISON])
SUMMED = pd.DataFrame(
    [("ViP", 16, 0.8, 0.7, 0.9), ("ViP", "all", 0.9, 0.8, 1.0), ("probe", 4, 0.6, 0.5, 0.7)],
    columns=["method", "shots", "mean", "images low", "images high"],
).assign(measure="accuracy", seeds=3)
SUMMED = SUMMED.reindex(columns=["method", "shots", *SUMMARY])


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_forest_plot_has_a_row_each_and_both_intervals():
    fig = forest_plot(COMPARED)
    (ax,) = fig.axes
    assert ticks(ax.yaxis) == ["ViP, shots=1", "ViP, shots=4", "probe, shots=4"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # from top to bottom
    seeds, images = ([s.tolist() for s in lines.get_segments()] for lines in ax.collections)
    assert images[:2] == [[[0.05, 0], [0.15, 0]], [[-0.06, 1], [0.03, 1]]]
    assert [[x for x, _ in segment] for segment in seeds[:2]] == [[0.02, 0.18], [-0.09, 0.05]]
    zero = ax.lines[0]
    assert list(zero.get_xdata()) == [0, 0] and zero.get_linestyle() == "--"
    assert texts(ax) == ["+0.100  (0.004)", "−0.020  (0.900)", "no run was done"]
    assert fig.get_suptitle() == "difference in accuracy from CoOp (in brackets: Holm p)"


def test_a_dot_is_as_full_as_what_tells_it_from_zero():
    rows = pd.concat([COMPARED[:2], COMPARED[:1], COMPARED[:1]])
    rows["seeds low"] = [0.02, -0.09, -0.01, np.nan]
    rows["seeds high"] = [0.18, 0.05, 0.18, np.nan]  # the last has one seed
    rows["shots"] = [1, 4, 16, 64]
    full, half, hollow = forest_plot(rows).axes[0].lines[1:]
    assert full.get_ydata().tolist() == [0] and full.get_fillstyle() == "full"
    assert half.get_ydata().tolist() == [2, 3] and half.get_fillstyle() == "left"
    assert hollow.get_ydata().tolist() == [1] and hollow.get_xdata().tolist() == [-0.02]
    assert to_rgba(hollow.get_markerfacecolor()) == (1, 1, 1, 1)
    assert to_rgba(full.get_markerfacecolor()) == to_rgba(full.get_color())


def test_panels_share_their_rows():
    left, right = forest_plot(COMPARED, panels="shots").axes
    assert (left.get_title(), right.get_title()) == ("shots=1", "shots=4")
    assert ticks(left.yaxis) == ["ViP", "probe"]
    assert len(texts(left)) == 1 and len(texts(right)) == 2


def test_a_single_row_is_named_and_one_seed_has_no_line_in_the_legend():
    row = COMPARED[:1].assign(**{"seeds low": np.nan, "seeds high": np.nan})
    fig = forest_plot(row)
    assert ticks(fig.axes[0].yaxis) == ["ViP"]
    assert "95 % over seeds" not in [text.get_text() for text in fig.legends[0].get_texts()]
    assert "95 % over seeds" in [text.get_text() for text in forest_plot(COMPARED).legends[0].get_texts()]


def test_an_error_is_better_where_it_is_lower():
    assert "ECE (lower is better)" in forest_plot(COMPARED.assign(measure="ECE")).get_suptitle()


def test_heat_map_orders_the_grid_and_writes_the_interval():
    ax = heat_map(SUMMED, x="shots", y="method").axes[0]
    assert ticks(ax.xaxis) == ["4", "16", "all"] and ticks(ax.yaxis) == ["ViP", "probe"]
    written = dict(zip(np.flatnonzero(~ax.collections[0].get_array().mask.ravel()), texts(ax), strict=True))
    assert written == {1: "0.800\n0.70 to 0.90", 2: "0.900\n0.80 to 1.00", 3: "0.600\n0.50 to 0.70"}
    assert ax.collections[0].colorbar.ax.get_ylabel() == "accuracy"


def test_heat_map_of_differences_is_centred_and_starred():
    ax = heat_map(COMPARED, x="shots", y="method").axes[0]
    assert texts(ax) == ["+0.100*\n0.05 to 0.15", "−0.020\n−0.06 to 0.03"]
    assert ax.collections[0].get_clim() == (-0.1, 0.1)
    assert "Holm p < 0.05" in ax.collections[0].colorbar.ax.get_ylabel()


def test_heat_map_of_a_field_that_some_lack():
    ax = heat_map(SUMMED.assign(shots=[16, None, 4]), x="shots", y="method").axes[0]
    assert ticks(ax.xaxis) == ["4", "16", "–"] and len(texts(ax)) == 3


def test_two_rows_for_a_cell_say_in_what_they_differ():
    table = pd.concat([SUMMED.assign(csc=True), SUMMED.assign(csc=False)])
    with pytest.raises(ValueError, match="2 rows have shots=16 and ViP; draw one value of csc at a time"):
        heat_map(table, x="shots", y="method")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: forest_plot(COMPARED, panels="shot"), "unknown field 'shot'.*did you mean 'shots'"),
        (lambda: forest_plot(COMPARED[:0]), "no row; give what compare gives"),
        (lambda: forest_plot(COMPARED.assign(measure=["a", "b", "a"])), "more than one measure"),
        (lambda: heat_map(SUMMED, "shots", "methods"), "unknown field 'methods'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_interventions_show_every_seed_with_its_interval():
    runs = pd.DataFrame(
        [
            (data, method, seed, 0.5 + 0.1 * seed, 0.4 + 0.1 * seed, 0.6 + 0.1 * seed)
            for data in ("phantom-derm", "phantom-fundus")
            for method in ("ViP", "CILMP, conditional")
            for seed in (1, 2)
        ],
        columns=["data", "method", "seed", "accuracy", "accuracy low", "accuracy high"],
    )
    axes = intervention_figure(runs).axes
    assert [ax.get_title() for ax in axes] == ["phantom-derm", "phantom-fundus"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["CILMP, conditional", "ViP"]
    first, second = axes[0].lines
    assert list(first.get_xdata()) == list(second.get_xdata()) == pytest.approx([0.6, 0.7])
    spans = [[tuple(x) for x in segment[:, :1]] for segment in axes[0].collections[0].get_segments()]
    assert [(a[0], b[0]) for a, b in spans] == [pytest.approx((0.5, 0.7)), pytest.approx((0.6, 0.8))]
