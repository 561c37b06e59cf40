"""Error messages that name the choices; names that are free; a check and configurations that give such."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

_Config = TypeVar("_Config")


def unknown_name(what: str, name: object, choices: Iterable[object], where: str = "") -> str:
    """Say that `name` is no `what`, suggest the nearest choice and list them all.

    >>> unknown_name("card", "pneumona", ["derm7pt", "pneumonia"])
    "unknown card 'pneumona'; did you mean 'pneumonia'? Choices: 'derm7pt', 'pneumonia'."
    """
    choices = [str(choice) for choice in choices]
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else "."
    listed = ", ".join(repr(choice) for choice in choices) or "none"
    return f"unknown {what} {str(name)!r}{f' in {where}' if where else ''}{hint} Choices: {listed}."


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
            f"{one} has the classes {', '.join(map(repr, classnames))}, but {other} has "
            f"{', '.join(map(repr, theirs))}. They must be the same, in the same order: build both from one "
            "card, or choose and order classes with card.with_classes(names) and data.of_classes(names)."
        )


@dataclass_transform(frozen_default=True)
def frozen_config(cls: type[_Config]) -> type[_Config]:
    """Make a frozen dataclass whose fields have exactly the annotated types: True is no number, 1.0 no int.

    A value that does not fit is a ValueError of one line that names the class, the field and the value.
    """
    checked = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))(cls)
    pydantics = checked.__init__

    @wraps(pydantics)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            pydantics(self, *args, **values)
        except ValidationError as error:
            raise ValueError(_in_one_line(error, checked)) from None

    checked.__init__ = __init__
    return checked


def _in_one_line(error: ValidationError, config: type) -> str:
    """What is wrong with the first field that pydantic complains about."""
    first = error.errors()[0]
    field, value = first["loc"][0], first["input"]
    if first["type"] == "unexpected_keyword_argument":
        return unknown_name("field", field, [f.name for f in fields(config)], config.__name__)
    if first["type"] == "literal_error" and len(first["loc"]) == 1:
        return unknown_name(field, value, re.findall("'(.*?)'", first["ctx"]["expected"]), config.__name__)
    # a field of several types, such as int | Literal["fresh"], has one complaint for each
    wanted = [one["msg"].removeprefix("Input should be ") for one in error.errors() if one["loc"][0] == field]
    return f"{config.__name__}: {field} is {value!r}; it should be {' or '.join(wanted)}."
