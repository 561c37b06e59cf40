"""The widget of a `SymptomReview`: labelled fields and buttons, every one of them a method of the review.

Phrases come from an LLM, so all text is escaped where it meets HTML. No colour carries a meaning, and
everything can be done with the keyboard: Tab, Enter, the arrow keys in the list of classes.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from medvlp.data.errors import brief
from medvlp.data.html import escaped, literal, literal_block
from medvlp.show.widgets.parts import Controls

if TYPE_CHECKING:
    from medvlp.show.widgets.review import SymptomReview


def facts_html(row: pd.Series) -> str:
    """One row of `review_table` as a line of escaped HTML."""
    reason = row["reason"]
    check = "&#10003; passes the checks" if reason is None else f"&#10007; <b>{literal(str(reason))}</b>"
    if pd.isna(row["own"]) and pd.isna(row["others"]):
        return f"<div>{check}</div>"
    forms = {"own": ".3f", "others": ".3f", "difference": "+.3f", "auroc": ".2f"}
    numbers = {c: "unknown" if pd.isna(row[c]) else format(row[c], form) for c, form in forms.items()}
    words = "own {own}, others {others}, difference <b>{difference}</b>, AUROC <b>{auroc}</b>"
    return f"<div>{words.format(**numbers)}; {check}</div>"


class _Row(NamedTuple):
    """One phrase: its text to edit, a button that drops it, what is known of it, and the box of the three."""

    text: Any
    drop: Any
    facts: Any
    box: Any


class ReviewWidget(Controls):
    """Fields and buttons over a review, one class at a time.

    Attributes:
        box: what a notebook displays; made at the first use, and with it all that follows.
        classname, rows, new, add, flagged, approve, undo, initials, save: the controls, from top to bottom.
        overview, message: HTML, what is approved and what the last action said.
    """

    HELP = (
        "Change a phrase and press Enter: the checks and similarities follow. own and others: mean cosine "
        "with the training images of this class and of all other classes. AUROC: how well the phrase ranks "
        "this class's images above the others; 1 always, 0.5 no better than chance, below 0.5 it speaks for"
        " others."
    )

    def __init__(self, review: "SymptomReview") -> None:
        self.review = review

    def _make_box(self) -> list[Any]:
        w = self.widgets
        self.overview, self.list = w.HTML(), w.VBox()
        self.rows: list[_Row] = []
        classname = w.Dropdown(
            options=list(self.review.phrases),
            description="class",
            tooltip="the class whose phrases are shown",
        )
        self.classname = self._follow(classname, self._choose)
        self.new = self._field("new phrase", "a phrase to add", "36em")
        self.add = self._button("Add", "add the new phrase to this class", self._add)
        self.flagged = w.Checkbox(
            description="approve flagged phrases, too",
            tooltip="approve phrases that fail a check as well; the saved set says so",
            indent=False,
        )
        self.approve = self._button("Approve", "approve this class's phrases as they are now", self._approve)
        self.undo = self._button("Undo", "take the last change back", self._undo)
        self.initials = self._field("initials", "your initials, 1 to 8 letters")
        self.save = self._button("Save", "write the reviewed phrases, all classes approved", self._save)
        return [
            self.overview,
            self.classname,
            self.list,
            w.HBox([self.new, self.add]),
            w.HBox([self.approve, self.flagged, self.undo]),
            w.HBox([self.initials, self.save]),
        ]

    def _make_row(self, i: int) -> _Row:
        w, n = self.widgets, i + 1
        text = self._field(f"phrase {n}", f"phrase {n}: change it and press Enter", "36em")
        text.observe(lambda change: self._on_edit(i, change["new"]), names="value")
        drop = self._button(f"Drop {n}", f"take phrase {n} out of the list", lambda: self._drop(i))
        facts = w.HTML(layout=w.Layout(margin="0 0 0.6em 90px"))
        return _Row(text, drop, facts, w.VBox([w.HBox([text, drop]), facts]))

    def _show(self) -> None:
        """Show the review as it is now. Fields stay where they are, so the keyboard's focus does, too."""
        table = self._table()
        while len(self.rows) < len(table):
            self.rows.append(self._make_row(len(self.rows)))
        for row, (_, facts) in zip(self.rows, table.iterrows(), strict=False):
            row.text.value = facts["phrase"]  # the review holds this phrase already, so it is no edit
            row.facts.value = facts_html(facts)
        boxes = tuple(row.box for row in self.rows[: len(table)])
        if self.list.children != boxes:
            self.list.children = boxes
        states = [
            f"{escaped(name)}: {'&#10003; approved' if name in self.review.approved else 'not yet approved'}"
            for name in self.review.phrases
        ]
        self.overview.value = literal_block(f"<p>{'; '.join(states)}</p>")

    def _table(self) -> pd.DataFrame:
        """The rows of the review's table that are of this class."""
        table = self.review.table()
        return table[table["classname"] == self.classname.value]

    def _choose(self, classname: str) -> str:
        self.flagged.value = False
        return f"These are the phrases of {classname}."

    def _on_edit(self, i: int, text: str) -> None:
        phrases = self.review.phrases[self.classname.value]
        if i < len(phrases) and text != phrases[i]:
            self._do(lambda: self._edit(i, text))

    def _edit(self, i: int, text: str) -> str:
        name = self.classname.value
        self.review.edit(name, i, text)
        return f"Phrase {i + 1} of {name} is changed. {self._verdict(i)}"

    def _drop(self, i: int) -> str:
        name = self.classname.value
        phrase = self.review.phrases[name][i]
        self.review.drop(name, i)
        return f"{brief(phrase)} is no longer a phrase of {name}; Undo brings it back."

    def _add(self) -> str:
        name = self.classname.value
        self.review.add(name, self.new.value)
        self.new.value = ""
        return f"Added to {name}. {self._verdict(len(self.review.phrases[name]) - 1)}"

    def _verdict(self, i: int) -> str:
        reason = self._table()["reason"].iloc[i]
        return "It passes the checks." if reason is None else f"It fails a check: {reason}"

    def _approve(self) -> str:
        self.review.approve(self.classname.value, self.flagged.value)
        self.flagged.value = False
        return f"{self.classname.value} is approved."

    def _undo(self) -> str:
        self.review.undo()
        return "The last change is taken back."

    def _save(self) -> str:
        if self.new.value.strip():
            raise ValueError("not saved: there is a new phrase that was not added. Add it, or clear it.")
        self.review.save(self.initials.value)
        return f"Saved to {self.review.path}."
