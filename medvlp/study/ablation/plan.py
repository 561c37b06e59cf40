"""The runs of a study: what goes into each, and the id that this gives it."""

import ast
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import CROP
from medvlp.data.cards import DataCard
from medvlp.data.datasets import Data
from medvlp.data.errors import brief, check_choice, check_same_classes, frozen_config, unknown_name
from medvlp.data.files import sha256
from medvlp.knowledge.representations import shipped_representations
from medvlp.methods import METHODS
from medvlp.methods.base import Method, arguments_of, check_named_arguments
from medvlp.study.ablation.grid import (
    PROTOCOL_KEYS,
    Named,
    combinations,
    content,
    label,
    names_of,
    plain,
    setting_of,
    sort_keys,
)
from medvlp.study.ablation.sources import ALL, FEW_SHOT, RAREST, SCENARIOS, Source, clip_source, data_source
from medvlp.study.saving import base_and_new
from medvlp.study.training.config import TrainConfig

NOT_CHOSEN = ("method", "data", "test", "seed", "num_shots", "scenario")  # what is compared, or repeated
LATER = {"drop_last": True, "eps": 1e-8, "schedule": "epoch", "crop": CROP, "flip": True}
PROTOCOL = 1  # raised when the same inputs would give other results


@frozen_config
class Protocol:
    """How a run uses its data; the attributes are keys of a grid, see `run_ablation`.

    Attributes:
        num_shots: Training images a class, "all", or "rarest": as many as the rarest class has.
        seed: Of the shots.
        scenario: "few-shot": as many images of every class, and few of each for validation. The others have
            no validation images, so that the recipe is fixed and the last epoch is kept, and are those of
            arXiv 2506.17500: "standard" with as many images of every class; "realistic" with as many in all,
            and of each class its share, which may be none; "relaxed" the same with at least one.
        average: Whether the weights are averaged over epochs.
        base_to_new: Whether it trains on the first half of the classes and is tested on each half.
    """

    num_shots: PositiveInt | Literal[ALL, RAREST] = ALL
    seed: NonNegativeInt = 1
    scenario: Literal[SCENARIOS] = FEW_SHOT
    average: bool = False
    base_to_new: bool = False


@dataclass(frozen=True)
class Run:
    """One run. Its results follow from `inputs`, on one machine bit for bit.

    Attributes:
        method: Name of the method; `kind` is its class and `arguments` those of its constructor.
        config: The recipe.
        clip: Where its Clip comes from; so `data`, and `test` for the test images.
        protocol: How it uses its data.
        inputs: All that the results depend on, as JSON.
        settings: {key: value for tables}, the recipe's as "config.lr", the method's as "method.n_ctx".
        given: The keys that the grid gave, as they were written.
    """

    method: str
    kind: type[Method]
    arguments: dict[str, Any]
    config: TrainConfig
    clip: Source
    data: Source
    test: Source
    protocol: Protocol
    inputs: dict[str, Any]
    settings: dict[str, Any]
    given: tuple[str, ...]

    @cached_property
    def id(self) -> str:
        """16 hex digits of the hash of `inputs`."""
        return sha256(json.dumps(self.inputs, sort_keys=True, ensure_ascii=False))[:16]

    def all_but(self, *keys: str) -> str:
        """The run's settings but those of these keys, as text."""
        left_out = {name for key in keys for name in names_of(key)}
        kept = {key: value for key, value in self.settings.items() if key not in left_out}
        return json.dumps(kept, sort_keys=True)


def plan(
    grid: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    data: str | Path | Data | None,
    root: str | Path | None,
    clip: str | Clip,
    config: Mapping[str, Any] | None,
    methods: Mapping[str, type[Method]] | None,
) -> list[Run]:
    """The runs of a grid, each once, in the grid's order; see `run_ablation`.

    Raises:
        ValueError: an unknown key, method or data set, a key that a method does not have, two different runs
            that no table could tell apart.
    """
    _check_config(config)
    wanted = [{"data": data, "clip": clip, "seed": 1} | settings for settings in combinations(grid)]
    for settings in wanted:
        if "method" not in settings:
            if misspelt := get_close_matches("method", map(str, settings), n=1):
                raise ValueError(unknown_name("key", misspelt[0], PROTOCOL_KEYS, "the grid"))
            raise ValueError("a grid needs a 'method', such as {'method': ['ViP', 'LinearProbe']}.")
        if settings["data"] is None:
            raise ValueError("no data set: give data='pneumonia', or 'data' in the grid.")
    names = dict.fromkeys(plain(settings["method"]) for settings in wanted)
    kinds = {name: _kind(name, methods) for name in names}
    root = root or os.environ.get("MEDVLP_DATA")
    root = None if root is None else str(Path(root).expanduser().resolve())
    planner = _Planner(root, dict(config or {}), kinds)
    runs = {run.id: run for run in map(planner.run, wanted)}
    _check_told_apart(list(runs.values()))
    return list(runs.values())


def keys_to_choose(runs: Sequence[Run], tune: str | Sequence[str] | None) -> list[str]:
    """The keys of `tune` that have several values in the runs of the first seed; one value needs no choice.

    Raises:
        ValueError: a key that the grids do not have, or that cannot be chosen.
    """
    tune = [tune] if isinstance(tune, str) else list(tune or ())
    known = [key for key in dict.fromkeys(key for run in runs for key in run.given) if key not in NOT_CHOSEN]
    for key in tune:
        check_choice("key to tune", key, known, "the grid")
        if any(run.inputs["val"] is None for run in runs):
            raise ValueError(f"{brief(key)} is chosen on validation images, and a scenario here has none.")
    first = [run.settings for run in runs if run.protocol.seed == runs[0].protocol.seed]
    return [key for key in tune if len({setting_of(settings, key) for settings in first}) > 1]


def settled(runs: Sequence[Run], over: Sequence[str], losses: Mapping[str, float]) -> list[Run]:
    """The runs that are left when the values of `over` are chosen: of runs alike in all else, the best.

    Args:
        runs: Of all seeds.
        over: Keys of the grid.
        losses: {run id: loss on the validation images}, of the runs of the first seed that are done. In a
            tie the run that the grid has first is chosen.
    """
    best: dict[str, Run] = {}  # by what is neither seed nor chosen
    for run in runs:
        alike = run.all_but("seed", *over)
        if run.id in losses and (alike not in best or losses[run.id] < losses[best[alike].id]):
            best[alike] = run
    chosen = {alike: run.all_but("seed") for alike, run in best.items()}
    # where all runs of the first seed failed, none was chosen: all are kept, to be seen as failures
    return [run for run in runs if chosen.get(run.all_but("seed", *over)) in (None, run.all_but("seed"))]


def _check_config(config: Mapping[str, Any] | None) -> None:
    if isinstance(config, TrainConfig):
        raise ValueError(
            "config is a TrainConfig, which would undo every method's recipe; give only the fields that "
            "change, such as config={'epochs': 20}."
        )
    if "seed" in (config or {}):
        raise ValueError("config has a 'seed', but a study's seeds are in its grid: {'seed': [1, 2, 3]}.")


class _Planner:
    """Makes runs; clips and data sets are loaded once, and what is hashed often is hashed once."""

    def __init__(self, root: str | None, config: dict[str, Any], kinds: Mapping[str, type[Method]]) -> None:
        self.root, self.config, self.kinds = root, config, kinds
        self.codes = {name: _code(kind) for name, kind in kinds.items()}
        self.sources: dict[Any, Source] = {}
        self.shipped: dict[str, Any] = {}

    def run(self, given: dict[str, Any]) -> Run:
        """The run of these settings, each by the key that the grid has for it."""
        method = plain(given["method"])
        kind = self.kinds[method]
        in_config, in_method = sort_keys(given, method, self.kinds)
        switches = {key: plain(given[key]) for key in asdict(Protocol()) if key in given}
        average = self.config.get("average")
        average = kind.average is not None if average is None else average
        protocol = Protocol(**{"average": average} | switches)
        seed = protocol.seed

        # the constructor's defaults, over them the seed, over that the grid; values may be Named
        parameters = arguments_of(kind)
        labelled = {name: one.default for name, one in parameters.items() if one.default is not one.empty}
        labelled |= ({"seed": seed} if "seed" in parameters else {}) | in_method
        arguments = {name: plain(value) for name, value in labelled.items()}
        # the method's recipe, over it the study's, over that the grid
        fixed = {} if protocol.scenario == FEW_SHOT else {"keep": "last"}
        recipe = dict(kind.recipe) | fixed | self.config | {"seed": seed}
        config = TrainConfig(**recipe | {name: plain(value) for name, value in in_config.items()})

        clip = self._source(given["clip"], clip_source)
        data = self._source(given["data"], data_source, self.root)
        test = self._source(given.get("test", given["data"]), data_source, self.root)
        card, test_card = data.get().data.card, test.get().data.card
        ours, theirs = f"data set {card.name!r}", f"test set {test_card.name!r}"
        check_same_classes(ours, card.classnames, theirs, test_card.classnames)
        if protocol.base_to_new:
            base_and_new(card)  # it raises for too few classes
        train, val = data.get().cut(protocol.num_shots, seed, protocol.scenario)

        apart = ("num_workers", "average")  # the one changes no number, the other stands for itself
        numbers = {name: value for name, value in asdict(config).items() if name not in apart}
        # fields that came later count where they change something, so that older runs are found again
        counted = {name: value for name, value in numbers.items() if LATER.get(name, ...) != value}
        inputs = {
            "protocol": PROTOCOL,
            "method": method,
            "code": self.codes[method],
            "arguments": self._contents(arguments, card),
            "config": counted,
            "average": content(kind.average or {}) if protocol.average else None,
            "base_to_new": protocol.base_to_new,
            "clip": clip.fingerprint,
            "card": card.hash,
            "train": train.fingerprint,
            "val": None if val is None else val.fingerprint,
            "test": test.get().data.test.fingerprint,
        }
        if val is None:  # of classes of equal size two scenarios may draw the same images
            inputs["scenario"] = protocol.scenario
        shown = {"method": method, "data": data.name, "test": test.name, "clip": clip.name}
        shown |= asdict(protocol)
        shown |= {key: given[key].name for key in shown if isinstance(given.get(key), Named)}
        shown |= {f"config.{name}": label(value) for name, value in (numbers | in_config).items()}
        shown |= {f"method.{name}": label(value) for name, value in labelled.items()}
        return Run(method, kind, arguments, config, clip, data, test, protocol, inputs, shown, tuple(given))

    def _source(self, value: Any, make: Callable[..., Source], *args: Any) -> Source:
        given = plain(value)
        key = (make, str(given) if isinstance(given, str | Path) else id(given))
        if key not in self.sources:
            self.sources[key] = make(given, *args)
        return self.sources[key]

    def _contents(self, arguments: dict[str, Any], card: DataCard) -> dict[str, Any]:
        """What the arguments are; of representations that the method finds by itself, too."""
        contents = {name: content(value) for name, value in arguments.items()}
        if contents.get("representations", "") is None:
            if card.hash not in self.shipped:
                try:
                    self.shipped[card.hash] = content(shipped_representations(card))
                except ValueError:
                    self.shipped[card.hash] = None  # the run will say what it lacks
            contents["representations"] = self.shipped[card.hash]
        return contents


def _kind(name: str, methods: Mapping[str, type[Method]] | None) -> type[Method]:
    """The class of a method, the user's or the package's."""
    if methods and name in methods:
        check_named_arguments(methods[name])
        return methods[name]
    if name not in METHODS:
        known = unknown_name("method", name, [*(methods or {}), *METHODS])
        raise ValueError(f"{known} For a class of your own pass methods=.")
    return METHODS[name]


def _code(kind: type[Method]) -> str | None:
    """Hash of the source of a method that is not the package's: changed, it makes other runs.

    Its own class and those of its bases that are not a package's; not what they call.
    """
    if kind.__module__.startswith("medvlp."):
        return None
    packages = ("medvlp", "torch", "builtins")
    bases = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in packages]
    return sha256(*map(_source_of, bases))


def _source_of(kind: type) -> str:
    """The source of a class. One in a notebook has no file, but its functions know the cell they are from.

    Raises:
        ValueError: there is none.
    """
    try:
        return dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        members = vars(kind)
    # besides methods: what a property, a cached one, a static and a class method call
    wrapped = [getattr(one, name, None) for one in members.values() for name in ("fget", "func", "__func__")]
    functions = [one for one in (*members.values(), *wrapped) if inspect.isfunction(one)]
    try:
        cell = "".join(inspect.findsource(functions[0])[0]) if functions else ""
        nodes = ast.walk(ast.parse(cell))
        classes = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
        if classes:
            return "\n".join(map(ast.unparse, classes))
        # no statement made it, as with type("Mine", (Base,), {...}): its constants, and its functions' source
        constants = (bool, int, float, str, list, tuple, dict)
        named = [repr((name, value)) for name, value in members.items() if isinstance(value, constants)]
        return "\n".join([*named, *map(inspect.getsource, functions)])
    except OSError:
        raise ValueError(
            f"the source of {kind.__name__} cannot be read, so a study could not notice when it changes; "
            "write the class in a file or in a notebook's cell."
        ) from None


def _check_told_apart(runs: list[Run]) -> None:
    """Raise where two runs differ, but not in what tables show of them."""
    seen: dict[str, str] = {}
    for run in runs:
        shown = json.dumps(run.settings, sort_keys=True)
        if seen.setdefault(shown, run.id) != run.id:
            raise ValueError(
                f"two runs of {run.method} on {brief(run.settings['data'])} differ, but look the same in "
                "tables; name the values that differ, as Named('mine', value)."
            )
