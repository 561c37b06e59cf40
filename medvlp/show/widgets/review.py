"""Symptoms under review: what each phrase is worth on the training images, and a widget to mend the lists.

`review_table` is the table alone. `SymptomReview` is the same with edits; everything that its widget does is
a method, so a review can be scripted as well.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.backbone.prompts.slots import symptom_text
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.data.errors import brief, check_choice, check_kinds, listed
from medvlp.data.files import composed
from medvlp.data.html import Table
from medvlp.knowledge.symptoms.phrases import PhraseChecker
from medvlp.knowledge.symptoms.sets import SymptomSet

COLUMNS = ["classname", "phrase", "reason", "own", "others", "difference", "auroc"]


class _Measures:
    """The table of phrases."""

    def __init__(
        self, card: DataCard, clip: Clip | None, images: ImageSet | None, checker: PhraseChecker | None
    ) -> None:
        self.card, self.clip = card, clip
        self.checker = PhraseChecker(card, clip) if checker is None else checker
        self.similarity = cache(self._similarity)  # measured once a class and phrase
        self.features: np.ndarray | None = None  # (N, D)
        if images is None:
            return
        if clip is None:
            raise ValueError("similarity to images needs a clip; give clip=, or leave images out.")
        images.check(card, f"card {card.name!r}")
        if images.split == "test":
            raise ValueError(
                "these are test images: phrases chosen on them would look better than they are; "
                "give the training images."
            )
        cached = image_features(clip, images)
        self.features, self.labels = cached.features.numpy(), cached.labels.numpy()  # (N, D), (N,)

    def table(self, symptoms: Mapping[str, Sequence[str]]) -> pd.DataFrame:
        """The columns of `review_table`; a phrase is held against those before it."""
        kept: dict[str, list[str]] = {name: [] for name in symptoms}
        rows = []
        for name, phrases in symptoms.items():
            verdicts = self.checker.check(name, phrases, kept)
            kept[name] = [verdict.phrase for verdict in verdicts if verdict.kept]
            for phrase, verdict in zip(phrases, verdicts, strict=True):
                own, others, auroc = self.similarity(name, phrase)
                rows.append((name, phrase, verdict.reason, own, others, own - others, auroc))
        table = Table(rows, columns=COLUMNS, dtype=object)  # or None would become NaN
        return table.astype(dict.fromkeys(COLUMNS[3:], float))

    @torch.no_grad()
    def _similarity(self, classname: str, phrase: str) -> tuple[float, float, float]:
        """Mean cosine with the class's images and with the others, and AUROC; NaN where there are none."""
        if self.features is None:
            return np.nan, np.nan, np.nan
        try:
            t = self.clip.encode_texts([symptom_text(phrase)])[0].cpu().numpy()  # (D,)
        except ValueError:  # too long for the tower, or no text at all
            return np.nan, np.nan, np.nan
        of_class = self.labels == self.card.classnames.index(classname)  # (N,)
        cosines = self.features @ t  # (N,)
        parts = cosines[of_class], cosines[~of_class]
        own, others = (float(part.mean()) if len(part) else np.nan for part in parts)
        return own, others, float(roc_auc_score(of_class, cosines)) if all(map(len, parts)) else np.nan


def review_table(
    symptoms: Mapping[str, Sequence[str]],
    card: DataCard,
    clip: Clip | None = None,
    images: ImageSet | None = None,
    checker: PhraseChecker | None = None,
) -> pd.DataFrame:
    """What each phrase is worth: its checks, and whether it tells its class from the others.

    Args:
        symptoms: {classname: [phrase, ...]}, such as a `SymptomSet`. A class may be missing.
        card: gives the classes and their names, which phrases must not contain.
        clip: for the checks that need a text tower, and for similarity.
        images: training images for similarity; needs `clip`. Their features come from the cache.
        checker: the checks; default `PhraseChecker(card, clip)`. Give one made with your own `max_words`.

    Returns:
        One row a phrase, in label order: classname, phrase, reason (None: it passed every check), own and
        others (mean cosine with the images of its class, and with all other images), difference (own minus
        others), auroc (does its cosine rank its own class's images above the others: 1 always, 0.5 chance).
        NaN where there is nothing to measure with.

    Raises:
        ValueError: an unknown class, a class whose phrases are no list of strings, images without a clip, of
            another card, or of the test split.

    Example:
        >>> import medvlp
        >>> card = medvlp.load_card("phantom-derm")
        >>> table = medvlp.review_table({"nevus": ["a clean rim", "high fever"]}, card)
        >>> table["reason"].isna().tolist()
        [True, False]
    """
    check_kinds(review_table, locals())
    return _Measures(card, clip, images, checker).table(_by_class(symptoms, card))


def _by_class(symptoms: Mapping[str, Sequence[str]], card: DataCard) -> dict[str, list[str]]:
    """A copy in label order; a class that is missing has no phrases."""
    symptoms = {composed(name): phrases for name, phrases in symptoms.items()}
    for name in symptoms:
        check_choice("class", name, card.classnames, f"the symptoms for card {card.name!r}")
    return {name: list(symptoms.get(name, ())) for name in card.classnames}


class SymptomReview:
    """Mend generated symptoms, class by class, and save them with the reviewer's initials and the date.

    `review.widget` at the end of a notebook cell shows the widget; without it, `review.table()` and the
    methods do the same. A method that cannot do what it is asked raises a ValueError and changes nothing; the
    widget shows that message.

    Args:
        symptoms: a `SymptomSet`, or {classname: [phrase, ...]}. It stays as it is.
        card: gives the classes.
        clip: for the checks that need a text tower, and for similarity.
        images: training images; each phrase's similarity with them is shown and follows every edit.
        path: where `save` writes the reviewed set, JSON; default CARD_symptoms_reviewed.json, here.
        checker: the checks; default `PhraseChecker(card, clip)`.

    Attributes:
        phrases: {classname: [phrase, ...]} as they are now, in label order.
        approved: names of the classes that the reviewer approved as they are now.
        changes: what was done, as a list of dicts: action, classname, and before or after.

    Raises:
        ValueError: as `review_table`.

    Example:
        >>> import medvlp
        >>> review = medvlp.SymptomReview({"nevus": ["a clean rim"]}, medvlp.load_card("phantom-derm"))
        >>> review.add("melanoma", "black dots")
        >>> review.approve("melanoma")
        >>> review
        SymptomReview(phantom-derm: 2 phrases, 1 of 2 classes approved, 2 changes)
    """

    def __init__(
        self,
        symptoms: Mapping[str, Sequence[str]],
        card: DataCard,
        clip: Clip | None = None,
        images: ImageSet | None = None,
        path: str | Path | None = None,
        checker: PhraseChecker | None = None,
    ) -> None:
        """Measure every phrase; see the class."""
        check_kinds(SymptomReview.__init__, locals())
        self.original, self.card = symptoms, card
        self.path = Path(f"{card.name}_symptoms_reviewed.json" if path is None else path)
        if isinstance(symptoms, SymptomSet) and symptoms.record.card != card.name:
            raise ValueError(f"these symptoms are of card {brief(symptoms.record.card)}, not {card.name!r}.")
        self.phrases = _by_class(symptoms, card)
        self.approved: set[str] = set()
        self.changes: list[dict[str, Any]] = []
        self._earlier: list[tuple] = []
        self._measures = _Measures(card, clip, images, checker)

    def __repr__(self) -> str:
        return (
            f"SymptomReview({self.card.name}: {sum(map(len, self.phrases.values()))} phrases, "
            f"{len(self.approved)} of {len(self.phrases)} classes approved, {len(self.changes)} changes)"
        )

    def table(self) -> pd.DataFrame:
        """The phrases as they are now; columns as in `review_table`."""
        return self._measures.table(self.phrases)

    def edit(self, classname: str, i: int, text: str) -> None:
        """Replace phrase `i` (from 0) of a class. One that fails a check is taken, and flagged."""
        before, after = self._phrase(classname, i), _one_line(text)
        if after != before:
            self._remember({"action": "edit", "classname": classname, "before": before, "after": after})
            self.phrases[classname][i] = after

    def drop(self, classname: str, i: int) -> None:
        """Take phrase `i` (from 0) out of a class's list."""
        before = self._phrase(classname, i)
        self._remember({"action": "drop", "classname": classname, "before": before})
        del self.phrases[classname][i]

    def add(self, classname: str, text: str) -> None:
        """Add a phrase to a class. One that fails a check is taken, and flagged."""
        self._of_class(classname)
        after = _one_line(text)
        self._remember({"action": "add", "classname": classname, "after": after})
        self.phrases[classname].append(after)

    def approve(self, classname: str, flagged: bool = False) -> None:
        """Approve a class's phrases as they are now; any later change of the class takes that back.

        Phrases that fail a check are approved only with `flagged=True`: the reviewer has the last word, and
        the changes say so.
        """
        if not self._of_class(classname):
            raise ValueError(f"class {brief(classname)} has no phrase left; add one before you approve it.")
        if classname in self.approved:
            return
        failing = self.failing(classname)
        if failing and not flagged:
            reasons = "; ".join(f"{brief(phrase)}: {reason}" for phrase, reason in failing.items())
            raise ValueError(
                f"class {brief(classname)} is not approved, {len(failing)} phrase(s) fail a check. "
                f"{reasons}. Edit or drop them, or approve flagged phrases, too."
            )
        self._remember({"action": "approve", "classname": classname, "flagged": failing})
        self.approved.add(classname)

    def failing(self, classname: str) -> dict[str, str]:
        """The phrases of a class that fail a check, with the reasons."""
        self._of_class(classname)
        table = self.table()
        rows = table[(table["classname"] == classname) & table["reason"].notna()]
        return dict(zip(rows["phrase"], rows["reason"], strict=True))

    def undo(self) -> None:
        """Take the last change back."""
        if not self._earlier:
            raise ValueError("there is nothing to undo.")
        self.phrases, self.approved, self.changes = self._earlier.pop()

    def save(self, initials: str) -> SymptomSet:
        """Write the reviewed set to `path` and return it.

        Args:
            initials: the reviewer's, 1 to 8 letters; stored with today's date and the changes.

        Raises:
            ValueError: bad initials, a class that is not approved, phrases that no card may have (its
                class's name, a phrase twice), or a `path` that holds another card's set.
            OSError: `path` cannot be written.
        """
        waiting = [name for name in self.phrases if name not in self.approved]
        if waiting:
            raise ValueError(f"not saved: approve every class first. Not approved yet: {listed(waiting)}.")
        try:
            self.card.with_knowledge("this review", self.phrases)
        except ValueError as error:
            raise ValueError(f"not saved: {error}") from None
        if self.path.exists() and SymptomSet.load(self.path).record.card != self.card.name:
            raise ValueError(f"not saved: {self.path} holds another card's set; give another path.")
        symptoms = self.original
        if not isinstance(symptoms, SymptomSet):
            symptoms = SymptomSet.from_phrases(self.card, self.phrases)
        reviewed = symptoms.reviewed(self.phrases, initials.strip(), changes=deepcopy(self.changes))
        reviewed.save(self.path)
        return reviewed

    @cached_property
    def widget(self) -> Any:
        """The review as an ipywidgets box, made at the first use; needs the extra `notebooks`."""
        from medvlp.show.widgets.review_controls import ReviewWidget

        return ReviewWidget(self).box

    def _remember(self, change: dict[str, Any]) -> None:
        self._earlier.append((deepcopy(self.phrases), set(self.approved), list(self.changes)))
        self.changes.append(change)
        self.approved.discard(change["classname"])

    def _of_class(self, classname: str) -> list[str]:
        check_choice("class", classname, self.phrases, f"card {self.card.name!r}")
        return self.phrases[classname]

    def _phrase(self, classname: str, i: int) -> str:
        phrases = self._of_class(classname)
        if not 0 <= i < len(phrases):
            raise ValueError(f"class {brief(classname)} has {len(phrases)} phrases, from 0; there is no {i}.")
        return phrases[i]


def _one_line(text: str) -> str:
    """The text without line breaks and spaces around it."""
    line = " ".join(text.split())
    if not line.strip(" ."):
        raise ValueError("the phrase is empty; write what can be seen, or drop the phrase.")
    return line
