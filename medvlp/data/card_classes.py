"""What a card says of one class: its name, its other names, and phrases of each kind of knowledge."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from medvlp.data.card_sources import Strict

SHORTEST_WORD = 3  # aliases shorter than this ("mel" is not, "nv" is) are codes, allowed inside phrases


def _spoken(value: Any) -> Any:
    """YAML's 0 is the text "0"; its yes, no, on and off are not text at all."""
    if isinstance(value, bool):
        raise ValueError("YAML reads an unquoted yes, no, on, off, true or false as a truth value: quote it")
    return str(value) if isinstance(value, int) else value


Name = Annotated[str, BeforeValidator(_spoken), Field(min_length=1)]


class Phrase(Strict):
    """One visual phrase and the clinical criterion it was taken from; a plain string in YAML will do."""

    text: str = Field(min_length=1)
    criterion: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class ClassInfo(Strict):
    """One class: its name in plain words, its other names, and its phrases by kind of knowledge.

    `aliases` are folder names, codes or label numbers that mean this class. `knowledge` maps a
    kind ("symptoms", "out-of-domain", "useless", "incorrect", or one of your own) to phrases.
    """

    name: Name
    aliases: list[Name] = []
    knowledge: dict[str, list[Phrase]] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str | int) else value

    @model_validator(mode="after")
    def _phrases_are_sound(self) -> "ClassInfo":
        own = [self.name, *(alias for alias in self.aliases if _is_word(alias))]
        for kind, phrases in self.knowledge.items():
            texts = [phrase.text.casefold() for phrase in phrases]
            for phrase, text in zip(phrases, texts, strict=True):
                if texts.count(text) > 1:
                    raise ValueError(f"the phrase {phrase.text!r} is listed twice under {kind!r}")
                named = [word for word in own if _whole_word(word).search(text)]
                if named:
                    raise ValueError(
                        f"the phrase {phrase.text!r} under {kind!r} names its own class ({named[0]!r}): "
                        "describe what is seen instead"
                    )
        return self


def _is_word(alias: str) -> bool:
    return len(alias) >= SHORTEST_WORD and any(letter.isalpha() for letter in alias)


def _whole_word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
