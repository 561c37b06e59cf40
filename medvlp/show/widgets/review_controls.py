"""The widget of a `SymptomReview`: labelled fields and buttons, every one of them a method of the review.

Phrases come from an LLM, so all text is escaped where it meets HTML. No colour carries a meaning, and
everything can be done with the keyboard: Tab, Enter, the arrow keys in the list of classes.
"""

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from medvlp.show.widgets.parts import import_widgets

if TYPE_CHECKING:
    from medvlp.show.widgets.review import SymptomReview

HELP = (
    "Change a phrase and press Enter: the checks and similarities follow. own and others: mean cosine with "
    "the training images of this class and of all other classes. AUROC: how well the phrase ranks this "
    "class's images above the others; 1 always, 0.5 no better than chance, below 0.5 it speaks for others."
)


def facts_html(row: pd.Series) -> str:
    """One row of `review_table` as a line of escaped HTML."""
    reason = row["reason"]
    check = "&#10003; passes the checks" if reason is None else f"&#10007; <b>{escape(str(reason))}</b>"
    if pd.isna(row["own"]) and pd.isna(row["others"]):
        return f"<div>{check}</div>"
    own, others = _number(row["own"], ".3f"), _number(row["others"], ".3f")
    difference, auroc = _number(row["difference"], "+.3f"), _number(row["auroc"], ".2f")
    numbers = f"own {own}, others {others}, difference <b>{difference}</b>, AUROC <b>{auroc}</b>"
    return f"<div>{numbers}; {check}</div>"


def _number(value: float, form: str) -> str:
    return "unknown" if pd.isna(value) else format(value, form)


class _Row:
    """One phrase: its text to edit, what is known of it, a button that drops it."""

    def __init__(self, widgets: Any, i: int, edit: Callable[[int, str], None], drop: Callable[[int], None]):
        self.text = widgets.Text(
            description=f"phrase {i + 1}",
            continuous_update=False,
            tooltip=f"phrase {i + 1}: change it and press Enter",
            layout=widgets.Layout(width="36em", max_width="85%"),
        )
        self.drop = widgets.Button(
            description=f"Drop {i + 1}", tooltip=f"take phrase {i + 1} out of the list"
        )
        self.facts = widgets.HTML(layout=widgets.Layout(margin="0 0 0.6em 90px"))
        self.box = widgets.VBox([widgets.HBox([self.text, self.drop]), self.facts])
        self.text.observe(lambda change: edit(i, change["new"]), names="value")
        self.drop.on_click(lambda _: drop(i))

    def show(self, row: pd.Series) -> None:
        """Show one row of `review_table`."""
        self.text.value = row["phrase"]  # the review holds this phrase already, so it is no edit
        self.facts.value = facts_html(row)


class ReviewWidget:
    """Fields and buttons over a review, one class at a time.

    Attributes:
        box: what a notebook displays.
        classname, rows, new, add, flagged, approve, undo, initials, save: the controls, from top to bottom.
        overview, message: HTML, what is approved and what the last action said.
    """

    def __init__(self, review: "SymptomReview") -> None:
        self.review, self.widgets = review, import_widgets()
        w = self.widgets

        def text(description: str, tooltip: str, width: str) -> Any:
            layout = w.Layout(width=width, max_width="85%")
            return w.Text(description=description, tooltip=tooltip, layout=layout, continuous_update=False)

        def button(description: str, action: Callable[[], str], tooltip: str) -> Any:
            one = w.Button(description=description, tooltip=tooltip)
            one.on_click(lambda _: self._do(action))
            return one

        self.overview, self.message = w.HTML(), w.HTML()
        self.classname = w.Dropdown(
            options=list(review.phrases), description="class", tooltip="the class whose phrases are shown"
        )
        self.classname.observe(self._on_class, names="value")
        self.rows: list[_Row] = []
        self.list = w.VBox()
        self.new = text("new phrase", "a phrase to add", "36em")
        self.add = button("Add", self._add, "add the new phrase to this class")
        self.flagged = w.Checkbox(
            description="approve flagged phrases, too",
            tooltip="approve phrases that fail a check as well; the saved set says so",
            indent=False,
        )
        self.approve = button("Approve", self._approve, "approve this class's phrases as they are now")
        self.undo = button("Undo", self._undo, "take the last change back")
        self.initials = text("initials", "your initials, 1 to 8 letters", "22em")
        self.save = button("Save", self._save, "write the reviewed phrases, all classes approved")
        self.box = w.VBox(
            [
                w.HTML(f"<p>{escape(HELP)}</p>"),
                self.overview,
                self.classname,
                self.list,
                w.HBox([self.new, self.add]),
                w.HBox([self.approve, self.flagged, self.undo]),
                w.HBox([self.initials, self.save]),
                self.message,
            ]
        )
        self.show()

    def show(self) -> None:
        """Show the review as it is now. Fields stay where they are, so the keyboard's focus does, too."""
        table = self.review.table()
        own = table[table["classname"] == self.classname.value]
        while len(self.rows) < len(own):
            self.rows.append(_Row(self.widgets, len(self.rows), self._on_edit, self._on_drop))
        for row, (_, facts) in zip(self.rows, own.iterrows(), strict=False):
            row.show(facts)
        boxes = tuple(row.box for row in self.rows[: len(own)])
        if self.list.children != boxes:
            self.list.children = boxes
        states = [
            f"{escape(name)}: {'&#10003; approved' if name in self.review.approved else 'not yet approved'}"
            for name in self.review.phrases
        ]
        self.overview.value = f"<p>{'; '.join(states)}</p>"

    def _do(self, action: Callable[[], str]) -> None:
        """Act, and say what it says; an error as an alert, with which a screen reader interrupts."""
        try:
            message = f'<div role="status">{escape(action())}</div>'
        except (ValueError, OSError) as error:
            message = f'<div role="alert">&#10007; {escape(str(error))}</div>'
        self.show()
        self.message.value = message

    def _on_class(self, _: dict) -> None:
        self.flagged.value = False
        self._do(lambda: f"These are the phrases of {self.classname.value}.")

    def _on_edit(self, i: int, text: str) -> None:
        phrases = self.review.phrases[self.classname.value]
        if i < len(phrases) and text != phrases[i]:
            self._do(lambda: self._edit(i, text))

    def _on_drop(self, i: int) -> None:
        self._do(lambda: self._drop(i))

    def _edit(self, i: int, text: str) -> str:
        name = self.classname.value
        self.review.edit(name, i, text)
        return f"Phrase {i + 1} of {name} is changed. {self._verdict(i)}"

    def _drop(self, i: int) -> str:
        name = self.classname.value
        phrase = self.review.phrases[name][i]
        self.review.drop(name, i)
        return f"{phrase!r} is no longer a phrase of {name}; Undo brings it back."

    def _add(self) -> str:
        name = self.classname.value
        self.review.add(name, self.new.value)
        self.new.value = ""
        return f"Added to {name}. {self._verdict(len(self.review.phrases[name]) - 1)}"

    def _verdict(self, i: int) -> str:
        table = self.review.table()
        reason = table[table["classname"] == self.classname.value]["reason"].iloc[i]
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
