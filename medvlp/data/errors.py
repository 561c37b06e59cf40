"""Error messages that name the choices."""

import difflib
from collections.abc import Iterable


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
