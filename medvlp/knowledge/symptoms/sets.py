"""SymptomSet: symptoms by class together with how they came about, kept as readable JSON."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medvlp.data.cards import DataCard, in_label_order
from medvlp.data.errors import brief, unknown_name, visible
from medvlp.data.files import check_readable, composed, read_json, write_json
from medvlp.data.html import Table, escaped, literal_block

KIND = "medvlp symptoms"
VERSION = 1
REMAKE = "Delete it and generate the symptoms again, or give another path."


class _Part(BaseModel):
    """A part of the record: its fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Candidate(_Part):
    """A phrase that came back, what became of it and why; `similarity` is its best with the other stage."""

    text: str
    stage: Literal["text", "images", "review"]
    attempt: int
    kept: bool
    reason: str | None = None
    similarity: float | None = None


class Call(_Part):
    """One answer of the server. `options` are what was sent beside the messages; images are hashes."""

    stage: Literal["text", "images", "agree"]
    attempt: int
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    reply: str
    problem: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float
    time: str

    @property
    def tokens(self) -> int:
        """Tokens of question and answer, as far as the server counted them."""
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


class ClassRecord(_Part):
    """One class: its phrases, every candidate and every call."""

    phrases: list[str] = []
    candidates: list[Candidate] = []
    calls: list[Call] = []
    finished: bool = False


class Review(_Part):
    """Who read the phrases, when, what was changed, and the review before this one."""

    reviewer: str = Field(pattern=r"^[^\W\d_]{1,8}$", description="initials, 1 to 8 letters")
    date: Annotated[date, Field(description="an ISO date such as '2026-05-31'")]
    changes: list[dict[str, Any]] = []
    before: "Review | None" = None


class SymptomRecord(_Part):
    """Everything about a SymptomSet, as it is stored; `classes` in label order.

    `changed` says that its file was changed by other hands since, and that no review followed.
    """

    kind: Literal["medvlp symptoms"] = KIND
    version: Literal[1] = VERSION
    card: str
    card_hash: str
    origin: str = "generated"
    model: str | None = None
    server: str | None = None
    prompts: dict[str, str] = {}
    settings: dict[str, Any] = {}
    checks: dict[str, Any] = {}
    created: str
    classes: dict[str, ClassRecord]
    review: Review | None = None
    changed: bool = False


class SymptomSet(Mapping[str, list[str]]):
    """Symptoms by class name, in label order, with their record: `symptoms=` of ZeroShot and ViP as it is.

    Attributes:
        record: SymptomRecord; `print(symptoms.record.model_dump_json(indent=2))` shows all of it.
        new_calls: how many of its calls `generate_symptoms` made just now; 0 for a replay.

    Example:
        >>> import medvlp
        >>> card = medvlp.load_card("phantom-derm")
        >>> phrases = {"melanoma": ["a blue veil"], "nevus": ["one even brown", "a round shape"]}
        >>> medvlp.SymptomSet.from_phrases(card, phrases, origin="a textbook")
        SymptomSet for card 'phantom-derm': a textbook, ..., not reviewed
          melanoma
            - a blue veil
          nevus
            - one even brown
            - a round shape
          0 calls, ...
    """

    def __init__(self, record: SymptomRecord, new_calls: int | None = None) -> None:
        self.record, self.new_calls = record, new_calls

    @classmethod
    def from_phrases(
        cls, card: DataCard, symptoms: Mapping[str, Sequence[str]], origin: str = "given by hand"
    ) -> "SymptomSet":
        """Symptoms that no LLM made here, such as `card.symptoms()`, as a set that can be reviewed and saved.

        Raises:
            ValueError: a class missing, unknown or without a phrase.
        """
        phrases = in_label_order(symptoms, card.classnames, card.name)
        classes = {name: ClassRecord(phrases=some, finished=True) for name, some in phrases.items()}
        return cls(
            SymptomRecord(card=card.name, card_hash=card.hash, origin=origin, created=now(), classes=classes)
        )

    @classmethod
    def load(cls, path: str | Path) -> "SymptomSet":
        """Read what `save` wrote; FileNotFoundError, or ValueError for a damaged or another file.

        A file that was changed since is read, with a RuntimeWarning, and counts as not reviewed until
        `reviewed` is called again.
        """
        path = Path(path)
        check_readable(path, "a set of symptoms")
        try:
            facts, whole = read_json(path)
            record = SymptomRecord.model_validate(facts)
        except ValueError as error:
            wrong = str(error)
            if isinstance(error, ValidationError):
                first = error.errors(include_url=False, include_input=False)[0]
                wrong = "".join(f"{part}, " for part in first["loc"]) + first["msg"]
            raise ValueError(f"{path} is damaged or no symptoms of this version: {wrong}. {REMAKE}") from None
        if not whole:
            said = f"{path} is not as it was saved: changed by hand, or damaged. Its phrases need a review."
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            record.changed = True
        return cls(record)

    def save(self, path: str | Path) -> None:
        """Write readable JSON with a hash of its content, whole or not at all."""
        write_json(path, self.record.model_dump(mode="json"))

    def __getitem__(self, classname: str) -> list[str]:
        classname = composed(classname)
        if classname not in self.record.classes:
            where = f"the symptoms for card {brief(self.record.card)}"
            raise KeyError(unknown_name("class", classname, self.record.classes, where))
        return list(self.record.classes[classname].phrases)

    def __iter__(self) -> Iterator[str]:
        return iter(self.record.classes)

    def __len__(self) -> int:
        return len(self.record.classes)

    def candidates(self) -> pd.DataFrame:
        """One row for each phrase that came back: what became of it and why."""
        table = self._table("candidates", ["text", "stage", "kept", "reason", "similarity", "attempt"])
        return table.rename(columns={"text": "phrase"}).astype({"kept": bool, "similarity": float})

    def calls(self) -> pd.DataFrame:
        """One row for each answer of the server: stage, tokens, seconds and the raw reply."""
        fields = ["stage", "attempt", "problem", "finish_reason", "prompt_tokens", "completion_tokens"]
        table = self._table("calls", [*fields, "seconds", "time", "reply"])
        return table.astype({"prompt_tokens": "Int64", "completion_tokens": "Int64"})

    def _table(self, part: str, fields: list[str]) -> pd.DataFrame:
        """These fields of every candidate or call of every class."""
        rows = [
            (name, *(getattr(one, field) for field in fields))
            for name, entry in self.record.classes.items()
            for one in getattr(entry, part)
        ]
        return Table(rows, columns=["classname", *fields])

    def reviewed(
        self,
        symptoms: Mapping[str, Sequence[str]],
        reviewer: str,
        date: str | None = None,
        changes: Sequence[Mapping[str, Any]] = (),
    ) -> "SymptomSet":
        """The set with these phrases in place of its own, and who reviewed it; the set itself stays.

        Candidates that are no longer in it are marked, phrases that are new become candidates of stage
        "review". A review of a reviewed set keeps the one before.

        Args:
            symptoms: phrases of every class.
            reviewer: initials, 1 to 8 letters.
            date: ISO date, such as "2026-05-31"; default today (UTC).
            changes: what was done, JSON-able.

        Raises:
            ValueError: a class missing, unknown or without a phrase; initials or a date of another form.
        """
        phrases = in_label_order(symptoms, list(self), self.record.card)
        day = date or datetime.now(UTC).date().isoformat()
        try:
            review = Review(
                reviewer=reviewer, date=day, changes=[dict(c) for c in changes], before=self.record.review
            )
        except ValidationError as error:
            first = error.errors()[0]
            field, hint = first["loc"][0], Review.model_fields[first["loc"][0]].description
            raise ValueError(f"the review's {field} must be {hint}, not {brief(first['input'])}.") from None
        entries = self.record.classes.items()
        classes = {name: _reviewed(entry, phrases[name], reviewer) for name, entry in entries}
        update = {"classes": classes, "review": review, "changed": False}
        return SymptomSet(self.record.model_copy(update=update))

    @property
    def origin(self) -> str:
        """One line: made by which model, from which prompts, on which day, reviewed by whom."""
        record, review = self.record, self.record.review
        by = f" by {record.model}, prompts {record.prompts.get('version')}" if record.model else ""
        seen = f", reviewed by {review.reviewer} on {review.date}" if review else ", not reviewed"
        seen += ", then changed by hand: review it again" if record.changed else ""
        return f"{record.origin}{by}, {record.created[:10]}{seen}"

    def __repr__(self) -> str:
        lines = [f"SymptomSet for card {brief(self.record.card)}: {self.origin}"]
        for name, entry in self.record.classes.items():
            note = "" if entry.finished else " (not finished)"
            lines += [f"  {name}{note}", *(f"    - {phrase}" for phrase in entry.phrases)]
        return visible("\n".join([*lines, f"  {self._cost()}"]))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escaped(name)}</th><td style='text-align:left'>"
            f"{'<br>'.join(map(escaped, entry.phrases))}</td></tr>"
            for name, entry in self.record.classes.items()
        )
        return literal_block(
            f"<p>Symptoms for card <b>{escaped(self.record.card)}</b>: {escaped(self.origin)}.<br>"
            f"{escaped(self._cost())}</p><table><tr><th>class</th><th>symptoms</th></tr>{rows}</table>"
        )

    def _cost(self) -> str:
        entries = self.record.classes.values()
        calls = [call for entry in entries for call in entry.calls]
        rejected = sum(not one.kept for entry in entries for one in entry.candidates)
        seconds = sum(call.seconds for call in calls)
        counted = sum(call.tokens for call in calls) or "uncounted"
        replayed = " (replayed, none made now)" if self.new_calls == 0 and calls else ""
        numbers = f"{len(calls)} calls{replayed}, {counted} tokens, {seconds:.1f} s"
        return f"{numbers}; {rejected} candidates not kept"


def now() -> str:
    """This moment in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _reviewed(entry: ClassRecord, phrases: list[str], reviewer: str) -> ClassRecord:
    candidates = []
    for one in entry.candidates:
        dropped = one.kept and one.text not in phrases
        update = {"kept": False, "reason": f"dropped in review by {reviewer}"} if dropped else {}
        candidates.append(one.model_copy(update=update))
    known = {one.text for one in candidates if one.kept}
    new = [Candidate(text=p, stage="review", attempt=1, kept=True) for p in phrases if p not in known]
    return entry.model_copy(update={"phrases": phrases, "candidates": candidates + new, "finished": True})
