"""Tables of a study for papers (LaTeX) and pages (Markdown), the two ends of an interval in one column."""

import numbers

import pandas as pd

from medvlp.data.errors import check_choice, check_kinds
from medvlp.data.html import Table
from medvlp.study.metrics import METRICS

MISSING = "–"
_FIXED = ("value", "mean", "sd", "difference", *METRICS)  # and the ends of intervals
_LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " "}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "−": "$-$", MISSING: "--"}
)
_MARKDOWN = str.maketrans({"|": r"\|", "\n": " "})


def as_text(value: object, column: str = "", digits: int = 3) -> str:
    """A table's value for people, by the column that it stands in.

    Metrics, means, differences and p values have `digits` decimals, a p value too small for them is "<0.001";
    other numbers (shots, a learning rate) have as many as they need. What is missing is a dash.
    """
    if value is None or value is pd.NA or value != value:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):  # a count, whatever a class that is counted is called
        return str(int(value)).replace("-", "−")
    least = 10**-digits
    if column == "p" or column.startswith("p "):
        return f"<{least:.{digits}f}" if value < least else f"{value:.{digits}f}"
    fixed = column in _FIXED or column.split(" ")[-1] in ("low", "high")
    return (f"{value:.{digits}f}" if fixed else f"{value:g}").replace("-", "−")


def in_words(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The table as text: values by `as_text`, the columns low and high as one, a named index as a column.

    Example:
        >>> import medvlp, pandas as pd
        >>> medvlp.in_words(pd.DataFrame({"mean": [0.5], "low": [0.41239], "high": [0.6]}))
            mean 95 % interval
        0  0.500  0.412 to 0.600
    """
    check_kinds(in_words, locals())
    if any(name is not None for name in table.index.names):
        table = table.reset_index(allow_duplicates=True)
    headers: list[str] = []
    columns: list[list[str]] = []
    counts = [pd.api.types.is_integer_dtype(dtype) for dtype in table.dtypes]  # no ends of an interval
    for i, name in enumerate(table.columns):
        header = " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
        texts = [as_text(value, header, digits) for value in table.iloc[:, i]]
        of = header.removesuffix("high")
        if header.endswith("high") and f"{of}low" in headers and not counts[i]:
            place = headers.index(f"{of}low")
            ends = zip(columns.pop(place), texts, strict=True)
            texts = [low if low == high == MISSING else f"{low} to {high}" for low, high in ends]
            header = headers.pop(place).removesuffix("low") + "95 % interval"
        headers.append(header)
        columns.append(texts)
    words = Table(dict(enumerate(columns)), dtype=object)
    return words.set_axis(headers, axis=1)


def wide(table: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """A summary with a column for each value of a field: "mean ± sd [images low, images high]" in each cell.

    Args:
        table: What `summary` gives, with one row for each pair of values of `rows` and `columns`.
        rows: The field whose values are the index, such as "method".
        columns: The field whose values are the columns, such as "data".

    Raises:
        ValueError: a field that is not there, two rows of the table for one cell.
    """
    for field in (rows, columns):
        check_choice("column", field, table.columns, "the summary")
    if table.duplicated([rows, columns]).any():
        raise ValueError(f"the summary has several rows for one {rows} and {columns}; select some first.")

    def cell(row: pd.Series) -> str:
        mean, sd, low, high = (
            as_text(row[name], name) for name in ("mean", "sd", "images low", "images high")
        )
        return MISSING if mean == MISSING else f"{mean} ± {sd} [{low}, {high}]"

    cells = table.assign(cell=table.apply(cell, axis=1)).pivot(index=rows, columns=columns, values="cell")
    cells = cells.loc[table[rows].drop_duplicates(), table[columns].drop_duplicates()].fillna(MISSING)
    return cells.rename_axis(columns=None)


def to_latex(table: pd.DataFrame, caption: str | None = None, label: str | None = None) -> str:
    """A LaTeX table for the package booktabs; everything but `label` is plain text, and is escaped."""
    words = in_words(table).map(lambda text: text.translate(_LATEX))
    words.columns = [column.translate(_LATEX) for column in words.columns]
    caption = None if caption is None else caption.translate(_LATEX)
    return words.to_latex(index=False, escape=False, caption=caption, label=label)


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table as GitHub and notebooks show it.

    Example:
        >>> import medvlp, pandas as pd
        >>> print(medvlp.to_markdown(pd.DataFrame({"method": ["ViP"], "mean": [0.5]})))
        | method   | mean   |
        |:---------|:-------|
        | ViP      | 0.500  |
    """
    check_kinds(to_markdown, locals())
    words = in_words(table).map(lambda text: text.translate(_MARKDOWN))
    words.columns = [column.translate(_MARKDOWN) for column in words.columns]
    return words.to_markdown(index=False, disable_numparse=True)
