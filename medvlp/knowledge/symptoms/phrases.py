"""Is a phrase fit to be a visual symptom? Each check has its own reason, which a person can read."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

import torch
import yaml
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.slots import SLOT, find_slots, symptom_text
from medvlp.data.card_parts import is_word
from medvlp.data.cards import DataCard
from medvlp.data.errors import brief, check_choice
from medvlp.data.files import sha256

VERSION = "4"  # of the checks and of what is read in a reply
N_CTX = 4  # learned vectors that ViP puts before a phrase
N_NEIGHBOURS = 5  # known terms that are asked about a phrase without a visual word
LONGEST_WORD = 25  # letters, on average
MARKUP = "<>{}[]|\\`*"
ARTICLES = {"a", "an", "the"}
ADDRESS = re.compile(r"\bhttps?:|\bwww\.|[\w-]\.(?:com|org|net|edu|gov|io)\b|\w@\w", re.IGNORECASE)
SPOKEN = re.compile(  # "I" is also a number: a type I lesion
    r"\b(?i:we|you|your|let me)\b|(?<!type )(?<!types )(?<!grade )(?<!stage )(?<!class )(?<!zone )\bI\b(?!-)"
)
DENIED = re.compile(
    r"\b(?:without|no|not|none|never|neither|nor|absent|absence of|lack(?:s|ing)?|devoid of)\b"
    r"|\bfree (?:of|from)\b|-free\b",
    re.IGNORECASE,
)
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")  # scripts


@dataclass(frozen=True)
class Verdict:
    """What the checks say of a phrase: `reason` is why it was rejected, None if it passed."""

    phrase: str
    reason: str | None

    @property
    def kept(self) -> bool:
        """Whether the phrase passed."""
        return self.reason is None


class PhraseChecker:
    """Checks phrases for the classes of a card.

    A contrastive model learns what is named and hardly what is denied: "a clear brown surface without blue"
    is near to blue images. So a phrase says what is seen, not what is absent.

    Args:
        card: Its class names and aliases may not stand in a phrase.
        clip: The model that the phrases are for. Without it, neither neighbours nor tokens are looked at.
        max_words: The most words a phrase may have.

    Raises:
        ValueError: `max_words` below 1.
    """

    def __init__(self, card: DataCard, clip: Clip | None = None, *, max_words: int = 12) -> None:
        """Read the known terms; see the class."""
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {max_words}.")
        self.card, self.clip, self.max_words = card, clip, max_words
        self.terms, self._terms_sha256 = _known_terms()
        self._nonvisual = {words_of(term): term for term in self.terms["nonvisual"]}
        self._visual_words = {
            word for term in self.terms["visual"] for word in words_of(term).split() if len(word) > 2
        }
        self._names = {
            words_of(word): (info.name, word)
            for info in reversed(card.classes)
            for word in reversed([info.name, *info.aliases])
            if word == info.name or _is_unspaced(word) or is_word(word)
        }

    @property
    def names(self) -> set[str]:
        """The names and word aliases of all classes."""
        return {written for _, written in self._names.values()}

    @property
    def facts(self) -> dict[str, Any]:
        """The version and the settings of the checks, for provenance."""
        return {
            "version": VERSION,
            "max_words": self.max_words,
            "n_neighbours": N_NEIGHBOURS,
            "n_ctx": N_CTX,
            "terms_sha256": self._terms_sha256,
            "clip": self.clip and self.clip.name,
            "clip_fingerprint": self.clip and self.clip.fingerprint,
        }

    def check(
        self, classname: str, phrases: Sequence[str], others: Mapping[str, Sequence[str]] | None = None
    ) -> list[Verdict]:
        """A verdict on each phrase for class `classname`, in order.

        Args:
            classname: the class that the phrases are to describe.
            phrases: what to check.
            others: phrases that are kept already, {classname: [phrase, ...]}, of this class too. A phrase
                that repeats one of them, or one that passed earlier in this call, is a duplicate.

        Raises:
            ValueError: an unknown class, or phrases that are not a list of strings.
        """
        for name in (classname, *(others or {})):
            check_choice("class", name, self.card.classnames, f"card {self.card.name!r}")
        if isinstance(phrases, str) or not all(isinstance(phrase, str) for phrase in phrases):
            raise ValueError(f"the phrases of {brief(classname)} must be a list of strings.")
        taken = {words_of(p): (name, p) for name, kept in (others or {}).items() for p in kept}
        verdicts = []
        for phrase in phrases:
            reason = self._reason(classname, phrase, taken)
            if reason is None:
                taken[words_of(phrase)] = (classname, phrase)
            verdicts.append(Verdict(phrase, reason))
        return verdicts

    def _reason(self, classname: str, phrase: str, taken: Mapping[str, tuple[str, str]]) -> str | None:
        """Why the phrase is rejected, by the first check that it fails."""
        if reason := self._unreadable(phrase) or self._too_long(phrase) or _talk(phrase):
            return reason
        words = words_of(phrase)
        for name, (owner, written) in self._names.items():
            if find_name(words, name) >= 0:
                whose = f"its own class {brief(owner)}" if owner == classname else f"the class {brief(owner)}"
                by = "" if written == owner else f" by its other name {brief(written)}"
                return f"names {whose}{by}"
        for term, written in self._nonvisual.items():
            if f" {term} " in f" {words} ":
                return f"not visual: {brief(written)} cannot be seen in an image"
        if denied := DENIED.search(phrase):
            said = denied[0].lower()
            return f"negation: {brief(said)} is hardly read, and what it denies is; say what is seen instead"
        too_many = self._tokens(phrase)
        if not too_many and (reason := self._neighbours(phrase, words)):
            return reason
        if words in taken:
            owner, first = taken[words]
            again = "" if first == phrase else f", as {brief(first)}"
            return f"duplicate: class {brief(owner)} has it already{again}"
        return too_many

    def _unreadable(self, phrase: str) -> str | None:
        if sum(map(str.isalpha, phrase)) < 2:
            return "empty: it has fewer than two letters"
        if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in phrase):
            return "unreadable: it has a line break or a control character"
        if unseen := [letter for letter in phrase if unicodedata.category(letter) == "Cf"]:
            return f"unreadable: it has a character that is not seen (U+{ord(unseen[0]):04X})"
        marks = sorted(set(phrase).intersection(MARKUP))
        return f"unreadable: it has {' '.join(marks)}, marks of code or markup" if marks else None

    def _too_long(self, phrase: str) -> str | None:
        n_words = len(phrase.split())
        if n_words > self.max_words:
            return f"too long: {n_words} words, at most {self.max_words}"
        room = self.max_words * LONGEST_WORD
        return f"too long: {len(phrase)} letters, at most {room}" if len(phrase) > room else None

    def _tokens(self, phrase: str) -> str | None:
        """Whether the text tower can read the phrase behind ViP's context vectors."""
        if self.clip is None:
            return None
        try:
            find_slots(self.clip, [f"{f'{SLOT} ' * N_CTX}{symptom_text(phrase)}"])
        except ValueError as error:
            return f"does not fit the text tower behind {N_CTX} context vectors: {error}"
        return None

    def _neighbours(self, phrase: str, words: str) -> str | None:
        """Whether most of the nearest known terms are not visual, for a phrase without a visual word.

        They are compared by the cosine of their text features.
        """
        if self.clip is None or self._visual_words.intersection(words.split()):
            return None
        cosines = phrase_features(self.clip, [phrase]) @ self._term_features.T  # (1, terms)
        terms = [*self.terms["visual"], *self.terms["nonvisual"]]
        nearest = cosines[0].topk(min(N_NEIGHBOURS, len(terms))).indices.tolist()
        not_visual = [i for i in nearest if i >= len(self.terms["visual"])]
        if 2 * len(not_visual) <= len(nearest):
            return None
        shown = ", ".join(repr(terms[i]) for i in nearest)
        return f"not visual: {len(not_visual)} of its {len(nearest)} nearest terms are not ({shown})"

    @cached_property
    def _term_features(self) -> Tensor:
        """Text features of the known terms, visual ones first, (terms, D)."""
        return phrase_features(self.clip, [*self.terms["visual"], *self.terms["nonvisual"]])


@cache
def _known_terms() -> tuple[dict[str, list[str]], str]:
    """The terms that ship with the package, "visual" and "nonvisual", and the hash of their file."""
    raw = (resources.files("medvlp") / "assets" / "terms.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(raw), sha256(raw)


def _talk(phrase: str) -> str | None:
    """Why the phrase is talk with a reader rather than a description."""
    if phrase.rstrip(" .\"'”’»)").endswith(("?", "!", "？", "！")):
        return "no description: it is a question or an exclamation"
    if address := ADDRESS.search(phrase):
        return f"no description: it has an address ({address[0]!r})"
    spoken = SPOKEN.search(phrase)
    return f"no description: it speaks to somebody ({brief(spoken[0])})" if spoken else None


def find_name(words: str, name: str) -> int:
    """Where a text holds a class's name, both as `words_of` gives them; -1 if it does not.

    The name stands there as whole words, or anywhere if its script puts no spaces between words or joins
    endings to them.

    >>> find_name("early melanoma", "melanoma"), find_name("melanomatous", "melanoma")
    (6, -1)
    """
    at = f" {words} ".find(f" {name} ")
    if at < 0 and _is_unspaced(name):
        return words.replace(" ", "").find(name.replace(" ", ""))
    return at


def _is_unspaced(text: str) -> bool:
    return any(unicodedata.name(letter, "").startswith(UNSPACED) for letter in text)


def words_of(text: str) -> str:
    """A text as it is compared: lower case, without punctuation, articles, plural endings and what is unseen.

    >>> words_of("The Dense, white PATCHES!")
    'dense white patch'
    """
    seen = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    plain = unicodedata.normalize("NFKC", seen).casefold()
    words = [word for word in re.findall(r"[^\W_]+", plain) if word not in ARTICLES]
    return " ".join(map(_singular, words))


def _singular(word: str) -> str:
    if len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return f"{word[:-3]}y" if word.endswith("ies") else word.removesuffix("s")


def phrase_features(clip: Clip, phrases: Sequence[str]) -> Tensor:
    """Text features of phrases, (N, D), without gradients."""
    with torch.no_grad():
        return clip.encode_texts([symptom_text(phrase) for phrase in phrases])  # (N, D)
