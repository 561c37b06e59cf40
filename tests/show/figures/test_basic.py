"""The figures: what stands in their axes, and what is written to disk."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medvlp.show import contrastive_matrix, interval_plot, save_figure, show_images, symptom_bars
from medvlp.show.figures.basic import figures_folder
from tests.methods.small import make_card, make_set

ROWS = [("melanoma", "ragged border", 0.3), ("melanoma", "gray colors", -0.1), ("nevus", "round", 0.25)]
SCORES = pd.DataFrame(ROWS, columns=["classname", "symptom", "score"])
VALUES = {"names": (0.6, 0.5, 0.68), "symptoms": (0.8, 0.75, 0.85)}
TABLES = {
    name: pd.DataFrame([values], columns=["value", "low", "high"], index=["accuracy"])
    for name, values in VALUES.items()
}


def pictures(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(n)]


def test_pictures_are_shown_under_their_own_titles_wrapped_and_letter_by_letter():
    titles = ["nevus:\nmelanoma -> nevus", "a title of one line, longer than its image", "from $5 to $10_{"]
    fig = show_images(pictures(3), titles, columns=2)
    wrapped = "a title of one line,\nlonger than its image"
    assert [ax.get_title() for ax in fig.axes] == [titles[0], wrapped, titles[2], ""]
    assert (fig.axes[1].images[0].get_array()[0, 0] == [20, 0, 0]).all()
    assert not fig.axes[2].title.get_parse_math()  # its dollar signs are no mathematics


def test_contrastive_matrix_shows_values_and_outlines_the_diagonal():
    similarity = np.array([[0.9, 0.1], [0.2, 0.8]])
    fig = contrastive_matrix(similarity, ["a mole", "a lung"], pictures(2))
    ax = fig.axes[0]
    assert [text.get_text() for text in ax.texts] == ["0.90", "0.10", "0.20", "0.80"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a mole", "a lung"]
    assert [patch.get_xy() for patch in ax.patches] == [(0, 0), (1, 1)]
    assert [len(thumbnail.images) for thumbnail in ax.child_axes] == [1, 1]


def test_a_large_contrastive_matrix_has_no_numbers_in_it():
    ax = contrastive_matrix(np.eye(13), [f"caption {i}" for i in range(13)]).axes[0]
    assert len(ax.texts) == 0
    assert ax.get_yticklabels()[12].get_text() == "image 13"


def test_symptom_bars_are_as_long_as_the_scores():
    fig = symptom_bars(SCORES, true="melanoma", predicted="nevus")
    ax = fig.axes[0]
    assert [bar.get_width() for bar in ax.patches] == [0.3, -0.1, 0.25]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(SCORES["symptom"])
    assert list(ax.get_yticks()) == [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    assert ax.get_title() == "true: melanoma     predicted: nevus"
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend == ["melanoma: mean 0.100", "nevus: mean 0.250"]
    colours = [bar.get_facecolor() for bar in ax.patches]
    assert colours[0] == colours[1] != colours[2]


def test_symptom_bars_beside_their_image():
    left, right = symptom_bars(SCORES, image=pictures(1)[0]).axes
    assert len(left.images) == 1 and len(right.patches) == 3
    assert right.get_title() == ""


def test_intervals_run_from_low_to_high_and_lines_stand_where_they_should():
    ax = interval_plot(TABLES, chance=0.5, reference={"Bayes optimum": 0.93}).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["names", "symptoms"]
    ends = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    assert ends == [[0.5, 0.68], [0.75, 0.85]]
    assert list(ax.lines[0].get_xdata()) == [0.6, 0.8]
    assert [text.get_text() for text in ax.texts] == ["0.600", "0.800"]
    assert [set(line.get_xdata()) for line in ax.lines[1:]] == [{0.5}, {0.93}]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["chance 0.500", "Bayes optimum 0.930"]
    low, high = ax.get_xlim()
    assert low < 0.5 and high > 0.93
    bottom, top = ax.get_ylim()
    assert bottom > top  # the first method is on top


@pytest.mark.parametrize("value", [0.8525, 0.8515, 0.5, 0.12349])
def test_numbers_in_a_figure_are_those_of_a_table_that_pandas_rounds(value):
    table = pd.DataFrame({"value": [value], "low": [value], "high": [value]}, index=["accuracy"])
    ax = interval_plot({"a": table}, chance=value, reference={"best": value}).axes[0]
    written = f"{table.round(3).loc['accuracy', 'value']:.3f}"
    assert ax.texts[0].get_text() == written
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"chance {written}", f"best {written}"]


def test_without_lines_there_is_no_legend_and_figures_are_closed_for_a_notebook_to_show_once():
    assert interval_plot(TABLES).axes[0].get_legend() is None
    symptom_bars(SCORES)
    assert plt.get_fignums() == []


def test_saved_figures_name_their_maker_and_are_the_same_bytes(tmp_path):
    fig = interval_plot(TABLES)
    assert save_figure(fig, "accuracy", "notebooks/01_zero_shot_clip.ipynb", folder=tmp_path / "a") is fig
    save_figure(interval_plot(TABLES), "accuracy", "notebooks/01_zero_shot_clip.ipynb", folder=tmp_path / "b")
    assert (tmp_path / "a/accuracy.png").read_bytes() == (tmp_path / "b/accuracy.png").read_bytes()
    with Image.open(tmp_path / "a/accuracy.png") as image:
        assert image.text == {"Source": "notebooks/01_zero_shot_clip.ipynb"}
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["accuracy.png"]


def test_figures_go_to_the_checkouts_folder_from_the_notebooks_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert figures_folder() == tmp_path / "figures"
    (tmp_path / "figures").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert figures_folder() == tmp_path / "figures"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: show_images([]), "there are no images to show"),
        (lambda: show_images(pictures(2), titles=["one"]), "1 titles for 2 images"),
        (
            lambda: contrastive_matrix(np.eye(2), ["a"]),
            r"similarity has shape \(2, 2\), but 1 captions need \(1, 1\)",
        ),
        (lambda: contrastive_matrix(np.eye(2), ["a", "b"], pictures(1)), "1 images for 2 captions"),
        (
            lambda: symptom_bars(SCORES, true="nevi"),
            r"unknown class 'nevi' in the symptom scores; did you mean 'nevus'\?",
        ),
        (
            lambda: interval_plot(TABLES, "acuracy"),
            r"unknown metric 'acuracy' in the table of 'names'; did you mean 'acc",
        ),
        (lambda: interval_plot({}), "there are no tables to plot"),
        (lambda: save_figure(plt.Figure(), "a/b", "x.ipynb"), "figure name 'a/b' must be bare"),
        (lambda: save_figure(plt.Figure(), "a.png", "x.ipynb"), "figure name 'a.png' must be bare"),
        (
            lambda: save_figure(plt.Figure(), "a", "/home/x.ipynb"),
            "made_by '/home/x.ipynb' is absolute",
        ),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_of_a_sorted_set_every_class_is_shown_and_with_titles_of_ones_own_the_first_images():
    card = make_card()
    images = make_set(card, [0] * 5 + [1] * 5 + [2])
    a, b, c = card.classnames
    for n, expected in ((3, [a, b, c]), (5, [a, a, b, b, c]), (99, [a] * 5 + [b] * 5 + [c])):
        fig = show_images(images, n=n)
        assert [ax.get_title() for ax in fig.axes if ax.images] == expected
    fig = show_images(images, [str(row) for row in range(11)], n=3)
    assert [ax.get_title() for ax in fig.axes] == ["0", "1", "2"]
    assert (fig.axes[2].images[0].get_array() == np.asarray(images.image(2))).all()
