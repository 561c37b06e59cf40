"""Words for people: error messages that name the choices, checks that give such, texts fit to be shown."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from inspect import formatannotation, signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, ValidationError, validate_call
from pydantic.dataclasses import dataclass

_Config = TypeVar("_Config")
_Function = TypeVar("_Function", bound=Callable)
# control characters but tab and line break, what turns the direction of a text round, halves of characters
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONG, _MANY = 120, 60  # letters of a value, and choices, that an error shows


class ImageError(ValueError):
    """An image that cannot be read; the message names it and says what to do."""


def visible(text: str) -> str:
    r"""Text from a card, a model or a file, fit for a terminal or a page: nothing in it acts unseen.

    >>> print(visible("mole\x1b[2J"))
    mole\x1b[2J
    """
    return _UNSEEN.sub(lambda unseen: unseen[0].encode("unicode_escape").decode(), text)


def brief(value: object, most: int = _LONG) -> str:
    """The value as it is written in code, its middle left out where that has more than `most` letters.

    >>> brief("word " * 1000)
    "'word word ... word ' (5002 letters)"
    """
    text = visible(repr(value))
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} ... {text[-most // 3 :]} ({len(text)} letters)"


def listed(names: Iterable[object]) -> str:
    """The names, each as `brief`, of many the first only.

    >>> listed(["nevus", "melanoma"])
    "'nevus', 'melanoma'"
    """
    names = list(names)
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(map(brief, names[:_MANY])) + more


def unknown_name(what: str, name: object, choices: Iterable[object], where: str = "") -> str:
    """Say that `name` is no `what`, suggest the nearest choice and list them all.

    >>> unknown_name("card", "pneumona", ["derm7pt", "pneumonia"])
    "unknown card 'pneumona'; did you mean 'pneumonia'? Choices: 'derm7pt', 'pneumonia'."
    """
    choices = [str(choice) for choice in choices]
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(name)[:_LONG].lower(), by_lower, n=1, cutoff=0.5)
    hint = f"; did you mean {brief(by_lower[near[0]])}?" if near else "."
    place = f" in {where}" if where else ""
    return f"unknown {what} {brief(str(name))}{place}{hint} Choices: {listed(choices) or 'none'}."


def check_choice(what: str, name: object, choices: Iterable[object], where: str = "") -> None:
    """Raise ValueError, which `unknown_name` words, unless `name` is among the choices.

    >>> check_choice("metric", "acuracy", ["accuracy", "kappa"])
    Traceback (most recent call last):
    ValueError: unknown metric 'acuracy'; did you mean 'accuracy'? Choices: 'accuracy', 'kappa'.
    """
    if name not in choices:
        raise ValueError(unknown_name(what, name, choices, where))


def free_name(name: str, taken: Iterable[object]) -> str:
    """A name for what a table adds to rows or columns of the user's: `name`, with "_" where that is taken.

    >>> free_name("total", ["nevus", "melanoma"]), free_name("total", ["partial", "total"])
    ('total', 'total_')
    """
    taken = set(taken)
    while name in taken:
        name += "_"
    return name


def check_same_classes(one: str, classnames: Sequence[str], other: str, theirs: Sequence[str]) -> None:
    """Raise ValueError unless both things ("ViP", "the test set") have the same classes in the same order.

    >>> check_same_classes("ViP", ["nevus", "melanoma"], "the test set", ["melanoma", "nevus"])
    Traceback (most recent call last):
    ValueError: ViP has the classes 'nevus', 'melanoma', but the test set has 'melanoma', 'nevus'. They ...
    """
    if list(classnames) != list(theirs):
        raise ValueError(
            f"{one} has the classes {listed(classnames)}, but {other} has {listed(theirs)}. They must be the "
            "same, in the same order: build both from one card, or choose and order classes with "
            "card.with_classes(names) and data.of_classes(names)."
        )


_SUCH_AS = {
    "CILMP": "CILMP(clip, card)",
    "Clip": "load_clip('tiny')",
    "DataCard": "load_card('pneumonia')",
    "Embeddings": "symptom_points(method)",
    "Image": "PIL.Image.open(file)",
    "ImageSet": "load_dataset('pneumonia').test",
    "Method": "ViP(clip, card) or a class that derives from medvlp.Method",
    "PhantomSet": "load_dataset('phantom-derm').test",
    "World": "get_world('derm')",
}


def check_kinds(function: Callable, arguments: Mapping[str, Any]) -> None:
    """Raise TypeError, naming the argument, unless each is of the kind that the annotation says.

    A public function calls it first, with `locals()`. Numbers may be of any kind of number, lists anything
    that can be gone through but a text, and a class of medvlp stands for all that share its base: that these
    phantoms are none is for the function to say.
    """
    who = type(arguments["self"]).__name__ if "self" in arguments else function.__name__
    for name, kind in _kinds(function).items():
        if name in arguments and not _fits(arguments[name], kind):
            value, wanted = arguments[name], _in_words(kind)
            if isinstance(value, str) and get_args(kind) == (str,):
                wanted += f", such as [{brief(value)}]"
            raise TypeError(f"{who}: {name} is {said(value)}; it should be {wanted}.")


@cache
def _kinds(function: Callable) -> dict[str, Any]:
    """The annotations of a function's arguments."""
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return"}


def _fits(value: object, kind: Any) -> bool:
    """Whether the value is of the kind that an annotation says."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin is type:
        return isinstance(value, type) and all(issubclass(value, part) for part in parts)
    kind = origin or kind
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or kind in (bool, Any):
        return True
    if kind in (int, float):  # NumPy's and torch's numbers too, but no 2.5 for an int
        return hasattr(type(value), "__index__") or (kind is float and hasattr(type(value), "__float__"))
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind in (dict, Mapping):
        return hasattr(type(value), "keys") and all(
            _fits(value[key], parts[1]) for key in (value if parts else ())
        )
    if kind in (list, tuple, Sequence, Iterable):
        members = value if isinstance(value, list | tuple) and len(parts) == 1 else ()
        return (
            hasattr(type(value), "__iter__")
            and not isinstance(value, str | bytes | Mapping)
            and all(_fits(member, parts[0]) for member in members)
        )
    bases = [base for base in kind.__mro__ if base.__module__.startswith("medvlp.")] or [kind]
    return isinstance(value, bases[-1])


def _in_words(kind: Any) -> str:
    """An annotation in words, such as "ImageSet or None, such as load_dataset('pneumonia').test"."""
    words = re.sub(r"\b\w+\.", "", formatannotation(kind)).replace(" | ", " or ")
    words = re.sub(r"\b(Sequence|Iterable)\[", "list[", words.replace("Mapping[", "dict["))
    example = next((example for name, example in _SUCH_AS.items() if re.search(rf"\b{name}\b", words)), "")
    return f"{words}, such as {example}" if example else words


def said(value: object) -> str:
    """What was given: texts, numbers, lists and the like as they are, a class by its name, else the kind."""
    if value is None or isinstance(value, str | int | float | list | dict):
        return brief(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"of kind {type(value).__name__}"


def check_columns(table: Any, columns: Iterable[str], maker: str) -> None:
    """Raise ValueError unless a table has these columns; `maker` is what gives such a table.

    >>> import pandas as pd
    >>> check_columns(pd.DataFrame({"scores": [0.5]}), ["score"], "faithfulness")
    Traceback (most recent call last):
    ValueError: the table has no column 'score', but 'scores'; give what faithfulness gives.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(
            f"the table has no column {listed(missing)}, but {listed(table) or 'none at all'}; give what "
            f"{maker} gives."
        )


@dataclass_transform(frozen_default=True)
def frozen_config(cls: type[_Config]) -> type[_Config]:
    """Make a frozen dataclass whose fields have exactly the annotated types: True is no number, 1.0 no int.

    A value that does not fit is a ValueError of one line that names the class, the field and the value.
    """
    checked = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))(cls)
    checked.__init__ = _told_in_one_line(checked.__init__, cls.__name__, [f.name for f in fields(checked)])
    return checked


def exact_kinds(function: _Function) -> _Function:
    """Hold the arguments of a function to its annotations, as `frozen_config` does for fields."""
    checked = validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))(function)
    told = _told_in_one_line(checked, function.__name__, list(signature(function).parameters))

    @wraps(function)
    def call(*args: Any, **values: Any) -> Any:
        signature(function).bind(*args, **values)  # Python's own error where one is missing or unknown
        return told(*args, **values)

    return call


def _told_in_one_line(checked: Callable, owner: str, names: list[str]) -> Callable:
    @wraps(checked)
    def call(*args: Any, **values: Any) -> Any:
        try:
            return checked(*args, **values)
        except ValidationError as error:
            if error.title != owner:  # of something else, within the function
                raise
            raise ValueError(_in_one_line(error, owner, names)) from None

    return call


def _in_one_line(error: ValidationError, owner: str, names: list[str]) -> str:
    """What is wrong with the first field that pydantic complains about."""
    first = error.errors()[0]
    field, value = first["loc"][0], first["input"]
    if isinstance(field, int):  # an argument that was given by its place
        field = names[field]
    if first["type"] == "unexpected_keyword_argument":
        return unknown_name("field", field, names, owner)
    if first["type"] == "literal_error" and len(first["loc"]) == 1:
        return unknown_name(field, value, re.findall("'(.*?)'", first["ctx"]["expected"]), owner)
    # a field of several types, such as int | Literal["fresh"], has one complaint for each
    same = [one for one in error.errors() if one["loc"][0] == first["loc"][0]]
    wanted = [one["msg"].removeprefix("Input should be ") for one in same]
    return f"{owner}: {field} is {brief(value)}; it should be {' or '.join(wanted)}."
