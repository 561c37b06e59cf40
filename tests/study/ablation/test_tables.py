"""What stands in the exported tables, and that nothing of it is taken for LaTeX or Markdown."""

import numpy as np
import pandas as pd
import pytest

from medvlp.study.ablation.tables import as_text, in_words, to_latex, to_markdown, wide

TABLE = pd.DataFrame(
    {
        "method": ["A_b & 5 % {x} $#~^\\ <|>", "plain"],
        "lr": [0.0002, None],
        "mean": [0.8, 1.0],
        "images low": [-0.01, np.nan],
        "images high": [0.9, np.nan],
        "p Holm": [0.00049, 0.04],
        "won": pd.array([3, None], dtype="Int64"),
    }
)


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (0.8125, "mean", "0.812"),
        (1.0, "accuracy", "1.000"),
        (-0.02, "difference", "−0.020"),
        (0.0004, "p", "<0.001"),
        (0.25, "p McNemar", "0.250"),
        (0.0002, "lr", "0.0002"),
        (16.0, "shots", "16"),
        (np.int64(4), "shots", "4"),
        ("all", "shots", "all"),
        (True, "csc", "True"),
        (None, "n_ctx", "–"),
        (pd.NA, "won", "–"),
        (float("nan"), "mean", "–"),
    ],
)
def test_numbers_are_written_by_the_column_that_they_stand_in(value, column, text):
    assert as_text(value, column) == text


def test_the_ends_of_an_interval_are_one_column():
    words = in_words(TABLE, digits=2)
    assert list(words) == ["method", "lr", "mean", "images 95 % interval", "p Holm", "won"]
    assert words["images 95 % interval"].tolist() == ["−0.01 to 0.90", "–"]
    assert words["p Holm"].tolist() == ["<0.01", "0.04"]


@pytest.mark.parametrize("form", [in_words, to_markdown, to_latex])
def test_classes_may_have_the_names_of_a_tables_own_columns(form):
    names = ["split", "mean", "p", "low", "high", "total", "95 % interval", "value"]
    counts = pd.DataFrame([range(10, 18)], columns=names, index=pd.Index(["train"], name="split"))
    words = form(counts)
    if form is in_words:
        assert words.columns.tolist() == ["split", *names]
        words = words.to_csv()
    assert [number for number in range(10, 18) if str(number) not in words] == [] and "0.000" not in words


def test_a_reports_table_keeps_its_metrics_and_an_interval_without_width():
    values = {"value": [0.5], "low": [0.5], "high": [0.5]}
    table = in_words(pd.DataFrame(values, index=["kappa"]).rename_axis("metric"))
    assert list(table) == ["metric", "value", "95 % interval"]
    assert table.to_numpy().tolist() == [["kappa", "0.500", "0.500 to 0.500"]]


def test_latex_is_escaped_in_cells_headers_and_caption():
    latex = to_latex(TABLE.rename(columns={"lr": "lr_0"}), caption="5 % of_it", label="tab:one")
    assert r"A\_b \& 5 \% \{x\} \$\#\textasciitilde{}\textasciicircum{}\textbackslash{} " in latex
    assert (
        r"\textless{}\textbar{}\textgreater{} & 0.0002 & 0.800 & $-$0.010 to 0.900 & \textless{}0.001 &"
        in latex
    )
    assert r"method & lr\_0 & mean & images 95 \% interval & p Holm & won \\" in latex
    assert r"\caption{5 \% of\_it}" in latex and r"\label{tab:one}" in latex
    assert r"\toprule" in latex and latex.count(r"\\") == 3
    assert latex.isascii()


def test_markdown_has_a_cell_for_every_value():
    header, rule, first, second = to_markdown(TABLE).splitlines()
    assert r"<\|>" in first
    assert [row.replace(r"\|", "").count("|") for row in (header, rule, first, second)] == [7] * 4
    assert [cell.strip() for cell in second.split("|")[1:-1]] == ["plain", "–", "1.000", "–", "0.040", "–"]


def test_a_line_break_stays_in_its_cell():
    table = pd.DataFrame({"error": ["one\ntwo"]})
    assert len(to_markdown(table).splitlines()) == 3
    assert "one two" in to_latex(table)


def test_wide_tables_have_a_cell_for_each_pair_in_the_order_of_the_summary():
    rows = [("b", "y", 0.5), ("b", "x", 0.6), ("a", "x", 0.7)]
    table = pd.DataFrame(rows, columns=["method", "data", "mean"])
    table = table.assign(sd=[0.01, np.nan, 0.0], **{"images low": 0.4, "images high": 0.8})
    cells = wide(table, "method", "data")
    assert cells.index.tolist() == ["b", "a"] and cells.columns.tolist() == ["y", "x"]
    assert cells.loc["b", "y"] == "0.500 ± 0.010 [0.400, 0.800]"
    assert cells.loc["b", "x"] == "0.600 ± – [0.400, 0.800]" and cells.loc["a", "y"] == "–"
    with pytest.raises(ValueError, match="unknown column 'dat' in the summary; did you mean 'data'"):
        wide(table, "method", "dat")
    with pytest.raises(ValueError, match="several rows for one method and data"):
        wide(pd.concat([table, table]), "method", "data")
