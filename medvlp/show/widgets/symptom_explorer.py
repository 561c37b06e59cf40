"""Symptom explorer: leave symptoms of an image out or write others, and see the decision move."""

from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from medvlp.data.datasets import ImageSet
from medvlp.data.errors import brief, check_choice, check_kinds
from medvlp.data.html import Table, literal
from medvlp.methods.base import Method, check_symptoms
from medvlp.methods.zero_shot import score_table
from medvlp.show.explanations.twins import with_symptoms
from medvlp.show.figures.basic import symptom_bars
from medvlp.show.widgets.parts import COLOURS, ImageExplorer, table_html
from medvlp.study.evaluation import evaluating
from medvlp.study.prediction import class_probabilities

LEFT_OUT = "#cccccc"  # the bar of a symptom that is not used; its button says so, too


def probabilities(method: Method, image_features: Tensor) -> pd.Series:
    """P(class) of one image by classname, from its normalised feature (1, D)."""
    with evaluating(method):
        return class_probabilities(method, method.logits_from_features(image_features))


class SymptomExplorer(ImageExplorer):
    """Look at an image through its symptoms, leave some out, write others, and see the decision move.

    `SymptomExplorer(vip, data.test)` at the end of a cell shows the widget. Its controls are methods, so that
    a script can do the same: `explorer.toggle(3)`, then `explorer.probabilities()`.

    A symptom is scored by its cosine. The decision is the method's own rule on the symptoms that are used:
    for `ZeroShot` the mean over a class's symptoms, for `ViP` the merge prompt's attention among them.

    Args:
        method: `ZeroShot` with symptoms, or `ViP`.
        images: Images of the method's card.
        index: The image that is shown first, from 0.

    Attributes:
        index: The image that is shown.
        symptoms: [(classname, phrase), ...], class after class, one's own at the end of each class.
        used: Whether each of them takes part in the decision.

    Raises:
        ValueError: a method without symptom scores, an image that is not there.

    Example:
        >>> import medvlp
        >>> from medvlp.show import SymptomExplorer
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> explorer = SymptomExplorer(medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card), data.test)
        >>> explorer.toggle(0)
        >>> explorer
        SymptomExplorer(ZeroShot, phantom-derm: image 0 of 2000, 15 of 16 symptoms used)
    """

    HELP = (
        "Each bar is the cosine of the image with a symptom. Press a symptom to leave it out of its class, "
        "press it again to take it back; write one of your own below. The probabilities follow."
    )

    def __init__(self, method: Method, images: ImageSet, index: int = 0) -> None:
        """Score the first image; see the class."""
        check_kinds(SymptomExplorer.__init__, locals())
        check_symptoms(method)
        images.check(method.card, type(method).__name__)
        self.method, self.images = method, images
        self._start()
        self.choose(index)

    def __repr__(self) -> str:
        return (
            f"SymptomExplorer({type(self.method).__name__}, {self.images.card.name}: image {self.index} of "
            f"{len(self.images)}, {sum(self.used)} of {len(self.symptoms)} symptoms used)"
        )

    def choose(self, index: int) -> None:
        """Look at another image."""
        self._take(index)
        self.features = self._feature(self.method)  # (1, D)
        self._before = probabilities(self.method, self.features)
        self._judge()

    def toggle(self, row: int) -> None:
        """Leave out a symptom, or take it back; `row` as in `table`. ValueError for a class's last one."""
        classname, phrase = self.symptoms[row]
        used = [not u if i == row else u for i, u in enumerate(self.used)]
        if not any(u for u, (name, _) in zip(used, self.symptoms, strict=True) if name == classname):
            raise ValueError(
                f"{brief(phrase)} is the last symptom of {brief(classname)}; without any a class has no "
                "score."
            )
        self._decide(self.symptoms, used)

    def add(self, classname: str, phrase: str) -> None:
        """Add a symptom of one's own. ValueError for an unknown class, an empty or a known phrase."""
        phrase = " ".join(phrase.split())
        check_choice("class", classname, self.method.card.classnames)
        if not phrase.strip(" ."):
            raise ValueError("the symptom is empty; write something that can be seen.")
        if (classname, phrase) in self.symptoms:
            raise ValueError(f"{brief(phrase)} is a symptom of {brief(classname)} already.")
        place = max(i for i, (name, _) in enumerate(self.symptoms) if name == classname) + 1
        symptoms = [*self.symptoms[:place], (classname, phrase), *self.symptoms[place:]]
        self._decide(symptoms, [*self.used[:place], True, *self.used[place:]])

    def reset(self) -> None:
        """All symptoms of the method again, and no others."""
        self._start()
        self._judge()

    def table(self) -> pd.DataFrame:
        """One row a symptom: classname, symptom, score (its cosine), used, own (not the method's)."""
        return self._table.copy()

    def probabilities(self) -> pd.DataFrame:
        """P(class) by classname: `before`, with the method's symptoms, and `now`, with those used."""
        return Table({"before": self._before, "now": self._now})

    def decision(self) -> str:
        """In words: what the method decides now, and whether that is another class than before."""
        return self._in_words(self._now, self._before, "It has moved: with the method's own symptoms it is")

    def static(self) -> Figure:
        """The image beside the scores of the symptoms that are used."""
        table = self.table()
        now = self.probabilities()["now"]
        return symptom_bars(table[table["used"]], self.true, now.idxmax(), self.image)

    def _start(self) -> None:
        """The method itself, with all its symptoms."""
        by_class = self.method.symptoms.items()
        self.symptoms = [(name, phrase) for name, phrases in by_class for phrase in phrases]
        self.used, self._method_has = [True] * len(self.symptoms), set(self.symptoms)
        self._scorer = self._chosen = self.method

    def _decide(self, symptoms: list[tuple[str, str]], used: list[bool]) -> None:
        """Take these symptoms, or, where the method does not, leave all as it was."""
        scorer = self._scorer if symptoms == self.symptoms else self._with(symptoms)
        self._chosen = self._with(compress(symptoms, used))
        self._scorer, self.symptoms, self.used = scorer, symptoms, used
        self._judge()

    def _with(self, symptoms: Iterable[tuple[str, str]]) -> Method:
        """The method with these symptoms in the place of its own."""
        by_class: dict[str, list[str]] = {name: [] for name in self.method.card.classnames}
        for name, phrase in symptoms:
            by_class[name].append(phrase)
        return with_symptoms(self.method, by_class)

    def _judge(self) -> None:
        """Score the symptoms, and decide by those that are used."""
        with evaluating(self._scorer):
            scores = self._scorer.symptom_scores(self.features)
        own = [symptom not in self._method_has for symptom in self.symptoms]
        self._table = score_table(scores, self._scorer.symptoms).assign(used=self.used, own=own)
        self._now = probabilities(self._chosen, self.features)

    # --- the widget ---

    def _make_box(self) -> list[Any]:
        w, classnames = self.widgets, self.images.card.classnames
        self._make_image()
        self._decision = w.HTML(layout=w.Layout(max_width="45em", flex="1 1 25em"))
        self._lists = {name: _List(w, c, name, self._press) for c, name in enumerate(classnames)}
        of = "the class of your own symptom"
        self._classname = w.Dropdown(options=classnames, description="class", tooltip=of)
        self._text = self._field("symptom", "a symptom of your own: something that can be seen", "300px")
        self._add = self._button("Add", "add your own symptom to this class", self._on_add)
        self._reset = self._button("Reset", "the method's symptoms again, and no others", self.reset)
        return [
            self._index,
            self._wrapped(self._picture, self._decision, align_items="center"),
            self._wrapped(*(one.box for one in self._lists.values())),
            self._wrapped(self._classname, self._text, self._add, self._reset, align_items="center"),
        ]

    def _on_add(self) -> None:
        self.add(self._classname.value, self._text.value)
        self._text.value = ""

    def _press(self, classname: str, place: int) -> None:
        rows = [i for i, (name, _) in enumerate(self.symptoms) if name == classname]
        self._do(lambda: self.toggle(rows[place]))

    def _show(self) -> None:
        table = self.table()
        self._show_image()
        chances = self.probabilities().rename_axis("class").reset_index()
        bars = {"before": COLOURS[7], "now": COLOURS[0]}
        words = f'<div role="status" style="margin-top:0.5em">{literal(self.decision())}</div>'
        self._decision.value = table_html(chances, bars, "Probabilities") + words
        axis = min(0.0, table["score"].min()), max(0.0, table["score"].max())
        for name, rows_of_class in table.groupby("classname", sort=False):
            self._lists[name].show(rows_of_class, axis)


class _List:
    """The symptoms of one class: a button and a bar for each. They stay, and so does the keyboard's focus."""

    def __init__(self, widgets: Any, c: int, classname: str, press: Callable[[str, int], None]) -> None:
        self.widgets, self.classname, self.press = widgets, classname, press
        self.colour = COLOURS[c % len(COLOURS)]
        self.heading, self.buttons, self.bars = widgets.HTML(), widgets.VBox(), widgets.HTML()
        layout = widgets.Layout(width="32em", max_width="100%", margin="0 2em 0.5em 0")
        self.box = widgets.VBox([self.heading, widgets.HBox([self.buttons, self.bars])], layout=layout)

    def show(self, rows: pd.DataFrame, axis: tuple[float, float]) -> None:
        """Show the class's rows of `SymptomExplorer.table`."""
        mean = rows.loc[rows["used"], "score"].mean()
        self.heading.value = (
            f'<div style="font-weight:600;border-bottom:3px solid {self.colour}">{literal(self.classname)}: '
            f"mean of the used {mean:.3f}</div>"
        )
        if len(self.buttons.children) != len(rows):
            known = self.buttons.children[: len(rows)]
            self.buttons.children = [*known, *map(self._button, range(len(known), len(rows)))]
        for button, row in zip(self.buttons.children, rows.to_dict("records"), strict=True):
            button.description = f"{'✓' if row['used'] else '✗'} {row['symptom']}"
            button.tooltip = f"{'leave out' if row['used'] else 'take back'}: {row['symptom']}"
        bars = {
            ("score", tuple(rows.index[rows["used"]])): self.colour,
            ("score", tuple(rows.index[~rows["used"]])): LEFT_OUT,
        }
        self.bars.value = table_html(rows[["score"]], bars, axis=axis, header=False)

    def _button(self, place: int) -> Any:
        button = self.widgets.Button(layout=self.widgets.Layout(width="18em"))
        button.on_click(lambda _: self.press(self.classname, place))
        return button
