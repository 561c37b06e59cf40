"""Grids: the settings of each run of a study, whose setting it is, and what a value is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
import torch

from medvlp.data.errors import brief, unknown_name
from medvlp.data.files import sha256
from medvlp.methods.base import Method, arguments_of
from medvlp.study.training.config import TrainConfig

PROTOCOL_KEYS = ("method", "data", "test", "num_shots", "seed", "scenario", "clip", "average", "base_to_new")
CONFIG_KEYS = tuple(field.name for field in fields(TrainConfig) if field.name != "average")
IN_TABLES = (bool, int, float, str)  # values that stand in tables as they are


@dataclass(frozen=True)
class Named:
    """A value of a grid with a name for tables.

    Example:
        >>> import medvlp
        >>> few = medvlp.Named("one symptom", {"melanoma": ["irregular border"], "nevus": ["one colour"]})
        >>> grid = {"method": "ZeroShot", "symptoms": [medvlp.Named("the card's", None), few]}
        >>> [symptoms.name for symptoms in grid["symptoms"]]
        ["the card's", 'one symptom']
    """

    name: str
    value: Any


def combinations(grid: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings of each run: the product of a grid's lists; of several grids one after another.

    A value that is no list, tuple or range counts as one.
    """
    grids = grid if isinstance(grid, list | tuple) else [grid]
    settings = []
    for one in grids:
        if not isinstance(one, Mapping):
            raise ValueError(f"a grid is a mapping such as {{'method': ['ViP']}}, not {brief(one)}.")
        values_of_keys = [_values_of(key, values) for key, values in one.items()]
        settings += [dict(zip(one, values, strict=True)) for values in product(*values_of_keys)]
    if not settings:
        raise ValueError("there is no grid; give at least {'method': ['ViP']}.")
    return settings


def _values_of(key: str, values: Any) -> list[Any]:
    """A key's values: those of a list, tuple, range or array, else the value itself."""
    if isinstance(values, set | frozenset | Iterator):
        raise ValueError(f"the grid's {brief(key)} is a {type(values).__name__}; give its values in a list.")
    if not isinstance(values, list | tuple | range | np.ndarray):
        return [values]
    if len(values) == 0:
        raise ValueError(f"the grid has no value for {brief(key)}.")
    return list(values)


def plain(value: Any) -> Any:
    """A grid's value without its name, NumPy numbers as Python's."""
    value = value.value if isinstance(value, Named) else value
    return value.item() if isinstance(value, np.generic) else value


def content(value: Any) -> Any:
    """What a value is, as JSON: two values with equal contents make the same run.

    Raises:
        TypeError: something whose content is unknown.
    """
    value = plain(value)
    if value is None or isinstance(value, IN_TABLES):
        return value
    if isinstance(value, Mapping):
        return {str(key): content(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [content(one) for one in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return {"array": sha256(str(value.dtype), str(value.shape), np.ascontiguousarray(value).tobytes())}
    if hasattr(value, "fingerprint"):
        return {"fingerprint": value.fingerprint}
    raise TypeError(
        f"a grid cannot hold a {type(value).__name__}: give numbers, names, lists of them, mappings, tensors "
        "or something with a fingerprint."
    )


def label(value: Any) -> Any:
    """What stands for a value in tables."""
    if isinstance(value, Named):
        return value.name
    value = plain(value)
    if isinstance(value, IN_TABLES):
        return value
    if value is None:
        return "default"
    if isinstance(value, list | tuple) and all(isinstance(one, IN_TABLES) for one in value):
        return ", ".join(map(str, value))
    return f"{type(value).__name__} {sha256(json.dumps(content(value), sort_keys=True))[:8]}"


def names_of(key: str) -> tuple[str, str, str]:
    """What a grid's key may be called in a run's settings."""
    return key, f"config.{key}", f"method.{key}"


def setting_of(settings: Mapping[str, Any], key: str) -> Any:
    """A run's setting by the key that grids have for it; None where the run's method has no such argument."""
    return next((settings[name] for name in names_of(key) if name in settings), None)


def sort_keys(
    settings: Mapping[str, Any], method: str, kinds: Mapping[str, type[Method]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The grid's values for the recipe and those for the method's constructor, by name.

    Args:
        settings: One run's, by key.
        method: Name of its method.
        kinds: The classes of the grid's methods, by name.

    Raises:
        ValueError: a key that nothing takes, that this method does not have, or that could mean two things.
    """
    taken = arguments_of(kinds[method])
    config, arguments = {}, {}
    for key, value in settings.items():
        if key in PROTOCOL_KEYS:
            continue
        where, _, name = key.rpartition(".")
        in_config = name in CONFIG_KEYS and where in ("", "config")
        in_method = name in taken and where in ("", "method")
        if in_config and in_method:
            raise ValueError(
                f"{brief(key)} is a field of TrainConfig and an argument of {method}: write 'config.{key}' "
                f"or 'method.{key}'."
            )
        if not in_config and not in_method:
            argument = key.removeprefix("method.")
            having = [other for other, kind in kinds.items() if argument in arguments_of(kind)]
            if not having:
                raise ValueError(unknown_name("key", key, [*PROTOCOL_KEYS, *taken, *CONFIG_KEYS], "the grid"))
            raise ValueError(
                f"{method} has no {brief(argument)} (of this grid's methods: {', '.join(having)}); write two "
                f"grids in a list, one with {brief(key)} and one without."
            )
        taker = config if in_config else arguments
        if name in taker:
            raise ValueError(
                f"the grid gives {brief(name)} twice, as {brief(key)} and by another name; give it once."
            )
        taker[name] = value
    return config, arguments
