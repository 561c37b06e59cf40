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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from medvlp.backbone.features import CROP
from medvlp.data.cards import DataCard
from medvlp.data.datasets import Data
from medvlp.data.errors import check_choice, check_kinds
from medvlp.data.html import Table
from medvlp.knowledge.llm.representations import Representations
from medvlp.methods.base import arguments_of
from medvlp.methods.cilmp import INTERVENTIONS
from medvlp.methods.registry import METHODS
from medvlp.study.ablation.grid import Named, combinations, plain
from medvlp.study.ablation.sources import ALL
from medvlp.study.ablation.study import Study
from medvlp.study.ablation.variants import (
    Where,
    by_kind,
    card_of,
    fewer_symptoms,
    kinds_of_knowledge,
    shifted,
    trained,
)

SEEDS = (1, 2, 3)


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
    grids: tuple[Mapping[str, Any], ...]
    baseline: Mapping[str, Any]
    cards: tuple[str, ...] = ("phantom-derm",)
    num_shots: tuple[int | str, ...] = (16,)
    config: Mapping[str, Any] = field(default_factory=dict)
    tune: str | None = None
    by: tuple[str, ...] | None = None

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


TRAINED: dict[str, tuple[str, dict[str, Any]]] = {  # name in tables: method, arguments
    "CLAP": ("TextProbe", {"knowledge": "classnames"}),
    "Tip-Adapter-F": ("TipAdapter", {"trained": True, "cache_crop": CROP}),
    "CLIP-Adapter": ("CLIPAdapter", {"knowledge": "classnames"}),
    "CoOp": ("CoOp", {}),
    "CoOp, csc": ("CoOp", {"csc": True}),
    "CoCoOp": ("CoCoOp", {}),
    "KgCoOp": ("KgCoOp", {}),
    "BiomedCoOp": ("BiomedCoOp", {}),
    "VPT-shallow": ("VPT", {"depth": 1}),
    "VPT-deep": ("VPT", {"depth": None}),
    "IVLP": ("IVLP", {}),
    "MaPLe": ("MaPLe", {}),
    "PromptSRC": ("PromptSRC", {}),
    "ViP": ("ViP", {}),
    "CILMP": ("CILMP", {}),
}
SAME = {  # recipe of all methods that are compared with each other, whatever they were published with
    "batch_size": 32,
    "drop_last": True,
    "eps": 1e-8,
    "schedule": "epoch",
    "views": 0,
    "crop": CROP,
    "flip": True,
    "warmup_lr": None,
    "metric": "loss",
    "class_weight": "balanced",
}
ALIKE = {"config": SAME, "tune": "lr", "by": ("method", "data", "num_shots")}
SEVERAL = ["ZeroShot", "LinearProbe", "TipAdapter", "CoOp", "KgCoOp", "ViP", "CILMP"]
# whose learned tensors all classes share, see `transfer`
TRANSFERABLE = ["ZeroShot", "CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC", "CILMP"]
PROBE = {"method": Named("Linear probe", "LinearProbe"), "method.class_weight": "balanced"}
CONTEXT = {"n_ctx": 4, "csc": False, "position": "end"}
# of the study of interventions: epochs of CILMP and of ViP, and what is different for classes of unequal size
UNEVEN = {"class_weight": by_kind(None, "balanced"), "metric": by_kind("accuracy", "balanced accuracy")}
SHORT = {"epochs": by_kind(6, 8), "lr": 0.0025, "batch_size": 64, "views": 0, "keep": "best"} | UNEVEN
SHORT_VIP = {
    "epochs": by_kind(10, 20), "lr": by_kind(0.002, 0.02), "views": by_kind(0, 4),
    "logit_scale": by_kind(None, 100),
} | UNEVEN  # fmt: skip


def _vip(question: str, baseline: Mapping[str, Any], *grids: Mapping[str, Any]) -> Ablation:
    """An ablation of ViP, on all images."""
    return Ablation(question, tuple({"method": "ViP"} | grid for grid in grids), baseline, num_shots=(ALL,))


def _cilmp(question: str, baseline: Mapping[str, Any], *grids: Mapping[str, Any]) -> Ablation:
    """An ablation of CILMP."""
    return Ablation(question, tuple({"method": "CILMP"} | grid for grid in grids), baseline)


ABLATIONS: dict[str, Ablation] = {
    "vip_parts": _vip(  # in the paper
        "What do ViP's context prompt and its merge prompt add, alone and together?",
        {"context": True, "aggregation": "merge"},
        {"aggregation": ["mean", "merge"], "context": [False, True]},
    ),
    "vip_aggregation": _vip(  # in the paper
        "Does a learned merge of the symptoms beat their mean and their maximum?",
        {"aggregation": "merge"},
        {"aggregation": ["merge", "mean", "max"]},
    ),
    "vip_knowledge": _vip(  # in the paper, with out-of-domain, useless and incorrect symptoms as here
        "How much does it matter what is said of the classes, before and after training?",
        {"symptoms": "symptoms"},
        {"method": ["ZeroShot", "ViP"], "symptoms": kinds_of_knowledge},
    ),
    "vip_number": _vip(
        "How many symptoms does a class need?",
        {"symptoms": "all"},
        {"method": ["ZeroShot", "ViP"], "symptoms": fewer_symptoms},
    ),
    "vip_context": _vip(  # one changed at a time
        "Do the length of ViP's context, a context for each class, or its place among the words matter?",
        CONTEXT,
        CONTEXT,
        CONTEXT | {"n_ctx": [2, 8, 16]},
        CONTEXT | {"csc": True},
        CONTEXT | {"position": ["middle", "front"]},
    ),
    "cilmp_intervention": _cilmp(
        "Is it the intervention on the LLM's states that helps, and must it know the image?",
        {"intervention": "conditional"},
        {"intervention": list(INTERVENTIONS)},
    ),
    "cilmp_rank": _cilmp(
        "How low may the rank of CILMP's interventions be?", {"rank": 8}, {"rank": [1, 2, 4, 8, 16]}
    ),
    "cilmp_lengths": _cilmp(  # each with each: a heat map
        "Which of the LLM's states are worth editing, the first, the last, or both?",
        {"prefix_length": 4, "suffix_length": 4},
        {"prefix_length": [0, 4, 8], "suffix_length": [0, 4, 8]},
    ),
    "cilmp_depth": _cilmp(  # the embedded CLIP has 4 blocks a tower, ViT-B/16 has 12
        "How deep must CILMP's prompts go, and does the image tower need any?",
        {"depth": 4, "image_depth": 4},
        *({"depth": text, "image_depth": image} for text, image in ((1, 1), (2, 2), (4, 4), (4, 0))),
    ),
    "cilmp_averaging": _cilmp(
        "Does averaging CILMP's prompts over the epochs change anything?",
        {"average": True},
        {"average": [True, False]},
    ),
    "family": Ablation(  # every method of the package, some in two or three forms
        "How do all methods compare, given the same images, seeds and care?",
        (
            *(
                {"method": Named(f"ZeroShot, {kind}", "ZeroShot"), "knowledge": kind}
                for kind in ("classnames", "templates", "symptoms")
            ),
            {"method": Named("Tip-Adapter", "TipAdapter"), "trained": False, "cache_crop": CROP},
            PROBE,
            *(trained(name, method, **arguments) for name, (method, arguments) in TRAINED.items()),
        ),
        {"method": "Linear probe"},
        **ALIKE,
    ),
    "few_shot": Ablation(  # six methods that need seconds, trained as in "family", so that the two agree
        "Which method makes most of few images, and from how many on does it matter less?",
        (
            {"method": Named("ZeroShot", "ZeroShot"), "knowledge": "symptoms"},
            PROBE,
            *(
                trained(name, TRAINED[name][0], **TRAINED[name][1])
                for name in ("CLAP", "Tip-Adapter-F", "CoOp", "ViP")
            ),
        ),
        {"method": "ZeroShot"},
        num_shots=(1, 2, 4, 8, 16),
        **ALIKE,
    ),
    "base_to_new": Ablation(  # ViP without its merge prompt, which has one vector a class
        "Is what was learned on some classes of use for others?",
        (
            {"method": TRANSFERABLE, "base_to_new": True},
            {"method": "ViP", "base_to_new": True, "aggregation": "mean"},
        ),
        {"method": "ZeroShot"},
        cards=("phantom-fundus",),
    ),
    "shift": Ablation(
        "What is left of each method's accuracy where other signs tell the classes apart?",
        ({"method": SEVERAL, "test": shifted},),
        {"method": "ZeroShot"},
    ),
    "interventions": Ablation(  # few epochs, the best one kept, no average: what notebook 04 shows
        "Does it matter that CILMP's intervention sees the image?",
        (
            *(
                {"method": Named(f"zero-shot, {kind}", "ZeroShot"), "knowledge": kind}
                for kind in ("classnames", "symptoms")
            ),
            {"method": Named("linear probe", "LinearProbe")},
            {"method": Named("linear probe, balanced", "LinearProbe"), "method.class_weight": "balanced"},
            *(
                {"method": Named(f"CILMP, {kind}", "CILMP"), "intervention": kind, "average": False} | SHORT
                for kind in INTERVENTIONS
            ),
            {"method": "ViP"} | SHORT_VIP,
        ),
        {"method": "CILMP, conditional"},
        cards=("phantom-derm", "phantom-fundus"),
        num_shots=(ALL,),
        by=("method", "data"),
    ),
}


def backbones(clips: Sequence[Any], methods: Sequence[str] = SEVERAL) -> Ablation:
    """Methods on several CLIPs, named as for `load_clip`."""
    return Ablation(
        "Does the order of the methods depend on the CLIP beneath them?",
        ({"method": list(methods), "clip": list(clips)},),
        {"method": methods[0]},
    )


def cilmp_llm(representations: Mapping[str, Sequence[Named]]) -> Ablation:
    """LLM, layer and layout: CILMP with each of a card's `representations`, see `llm_variants`."""
    return Ablation(
        "Does it matter which LLM has read about the classes, and where in it one looks?",
        ({"method": "CILMP", "representations": lambda where: list(representations[where.card.name])},),
        {"representations": next(iter(representations.values()))[0].name},
        cards=tuple(representations),
    )


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
