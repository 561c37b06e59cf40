"""The runs of a study: what goes into each, and the id that this gives it."""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from medvlp.backbone.clip import Clip
from medvlp.data.datasets import Data
from medvlp.data.files import sha256
from medvlp.data.names import unknown_name
from medvlp.knowledge.representations import shipped_representations
from medvlp.methods.registry import METHODS
from medvlp.study.config import TrainConfig
from medvlp.study.grid import (
    CONFIG_KEYS,
    Named,
    arguments_of,
    combinations,
    content,
    label,
    plain,
    sort_keys,
)
from medvlp.study.run_sources import ALL, Source, clip_source, data_source

PROTOCOL = 1  # raised when the same inputs would give other results
LEAST_CLASSES = 4  # of a card with base and new classes: two in each half


@dataclass(frozen=True)
class Run:
    """One run. Its results follow from `inputs`, on one machine bit for bit.

    Attributes:
        method: Name of the method; `kind` is its class and `arguments` those of its constructor.
        config: The recipe.
        clip: Where its Clip comes from; so `data`, and `test` for the test images.
        shots: Training images a class, or "all".
        seed: Of the shots.
        average: Whether the weights are averaged over epochs.
        base_to_new: Whether it trains on the first half of the classes and is tested on each half.
        inputs: All that the results depend on, as JSON.
        settings: {key: value for tables}, the recipe's as "config.lr", the method's as "method.n_ctx".
        given: The keys that the grid gave, as they were written.
    """

    method: str
    kind: type[nn.Module]
    arguments: dict[str, Any]
    config: TrainConfig
    clip: Source
    data: Source
    test: Source
    shots: int | str
    seed: int
    average: bool
    base_to_new: bool
    inputs: dict[str, Any]
    settings: dict[str, Any]
    given: tuple[str, ...]

    @cached_property
    def id(self) -> str:
        """16 hex digits of the hash of `inputs`."""
        return sha256(json.dumps(self.inputs, sort_keys=True, ensure_ascii=False))[:16]


def plan(
    grid: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    data: str | Path | Data | None,
    root: str | Path | None,
    clip: str | Clip,
    config: Mapping[str, Any] | None,
    methods: Mapping[str, type[nn.Module]] | None,
) -> list[Run]:
    """The runs of a grid, each once, in the grid's order; see `run_ablation`.

    Raises:
        ValueError: an unknown key, method or data set, a key that a method does not have, two different runs
            that no table could tell apart.
    """
    for name in config or {}:
        if name not in CONFIG_KEYS:
            raise ValueError(unknown_name("field", name, CONFIG_KEYS, "config"))
    root = root or os.environ.get("MEDVLP_DATA")
    planner = _Planner(None if root is None else str(Path(root).expanduser().resolve()), dict(config or {}))
    wanted = [{"data": data, "clip": clip, "seed": 1} | settings for settings in combinations(grid)]
    for settings in wanted:
        if "method" not in settings:
            raise ValueError("a grid needs a 'method', such as {'method': ['ViP', 'LinearProbe']}.")
        if settings["data"] is None:
            raise ValueError("no data set: give data='pneumonia', or 'data' in the grid.")
    kinds = {plain(settings["method"]): None for settings in wanted}
    kinds = {name: _kind(name, methods) for name in kinds}
    runs = {run.id: run for run in (planner.run(settings, kinds) for settings in wanted)}
    _check_told_apart(list(runs.values()))
    return list(runs.values())


class _Planner:
    """Makes runs; clips and data sets are loaded once."""

    def __init__(self, root: str | None, config: dict[str, Any]) -> None:
        self.root, self.config = root, config
        self.sources: dict[Any, Source] = {}

    def run(self, settings: dict[str, Any], kinds: Mapping[str, type[nn.Module]]) -> Run:
        """The run of these settings."""
        method = plain(settings["method"])
        kind = kinds[method]
        in_config, in_method = sort_keys(settings, method, kind, kinds)
        seed, shots = int(plain(settings["seed"])), plain(settings.get("shots", ALL))
        own = arguments_of(kind)
        defaults = {name: one.default for name, one in own.items() if one.default is not one.empty}
        seeds = {"seed": seed} if "seed" in own else {}
        labelled = defaults | seeds | in_method  # values may be Named
        arguments = {name: plain(value) for name, value in labelled.items()}
        recipe = getattr(kind, "recipe", {}) | self.config | {"seed": seed}
        train_config = TrainConfig(**recipe | {name: plain(value) for name, value in in_config.items()})
        clip = self._source(settings["clip"], clip_source)
        data = self._source(settings["data"], data_source, self.root)
        test = self._source(settings.get("test", settings["data"]), data_source, self.root)
        published = getattr(kind, "average", None)
        average = bool(plain(settings.get("average", published is not None)))
        base_to_new = bool(plain(settings.get("base_to_new", False)))
        card = data.get().data.card
        self._check_classes(card, test.get().data.card, base_to_new)
        train, val = data.get().cut(shots, seed)

        config_facts = {name: value for name, value in asdict(train_config).items() if name != "num_workers"}
        inputs = {
            "protocol": PROTOCOL,
            "method": method,
            "code": _code(kind),
            "arguments": {name: content(value) for name, value in arguments.items()},
            "config": config_facts,
            "average": content(published or {}) if average else None,
            "base_to_new": base_to_new,
            "clip": clip.fingerprint,
            "card": card.hash,
            "train": train.fingerprint,
            "val": val.fingerprint,
            "test": test.get().data.test.fingerprint,
        }
        if "representations" in arguments and arguments["representations"] is None:
            inputs["arguments"]["representations"] = _shipped(card)
        shown = {"method": method, "data": data.name, "test": test.name, "clip": clip.name, "shots": shots}
        shown |= {"seed": seed, "average": average, "base_to_new": base_to_new}
        shown |= {key: label(settings[key]) for key in shown if isinstance(settings.get(key), Named)}
        shown |= {f"config.{name}": label(value) for name, value in config_facts.items()}
        shown |= {f"config.{name}": label(value) for name, value in in_config.items()}
        shown |= {f"method.{name}": label(value) for name, value in labelled.items()}
        return Run(
            method,
            kind,
            arguments,
            train_config,
            clip,
            data,
            test,
            shots,
            seed,
            average,
            base_to_new,
            inputs,
            shown,
            tuple(settings),
        )

    def _source(self, value: Any, make: Any, *args: Any) -> Source:
        given = plain(value)
        key = (make, str(given) if isinstance(given, str | Path) else id(given))
        if key not in self.sources:
            self.sources[key] = make(given, *args)
        return self.sources[key]

    def _check_classes(self, card: Any, test_card: Any, base_to_new: bool) -> None:
        if card.classnames != test_card.classnames:
            raise ValueError(
                f"data set {card.name!r} has classes {card.classnames}, but the test set of "
                f"{test_card.name!r} has {test_card.classnames}: they must be the same, in the same order."
            )
        if base_to_new and len(card.classnames) < LEAST_CLASSES:
            raise ValueError(
                f"base_to_new needs {LEAST_CLASSES} classes or more, two in each half; card {card.name!r} "
                f"has {len(card.classnames)}."
            )


def _kind(name: str, methods: Mapping[str, type[nn.Module]] | None) -> type[nn.Module]:
    """The class of a method, the user's or the package's."""
    if methods and name in methods:
        return methods[name]
    if name not in METHODS:
        known = unknown_name("method", name, [*(methods or {}), *METHODS])
        raise ValueError(f"{known} For a class of your own pass methods=.")
    return METHODS[name]


def _code(kind: type[nn.Module]) -> str | None:
    """Hash of the code of a method that is not the package's: changed, it makes other runs.

    What the class calls or inherits is not in it.
    """
    if kind.__module__.startswith("medvlp."):
        return None
    codes = []
    for name, function in sorted(vars(kind).items()):
        if inspect.isfunction(function):
            try:
                codes.append(inspect.getsource(function))
            except OSError:  # typed into a Python prompt
                codes.append(name + function.__code__.co_code.hex())
    return sha256(*codes)


def _shipped(card: Any) -> Any:
    """The content of the representations that a method finds for this card if it is given none."""
    try:
        return content(shipped_representations(card))
    except ValueError:
        return None  # the run will say what it lacks


def _check_told_apart(runs: list[Run]) -> None:
    """Raise where two runs differ, but not in what tables show of them."""
    seen: dict[str, str] = {}
    for run in runs:
        shown = json.dumps(run.settings, sort_keys=True)
        if seen.setdefault(shown, run.id) != run.id:
            raise ValueError(
                f"two runs of {run.method} on {run.settings['data']!r} differ, but look the same in tables; "
                "name the values that differ, as Named('mine', value)."
            )
