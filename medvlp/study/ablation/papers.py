"""The papers' ablations as grids that are ready to run, each with the question that it answers.

    from medvlp.study.ablation import papers
    ablation = papers.vip_parts(cards=["phantom-derm"], shots=["all"], seeds=[1, 2, 3])
    study = medvlp.run_ablation(ablation.grids, store="studies/first")
    study.compare(ablation.baseline)

ViP's paper (arXiv 2409.00341) has the ablations of its parts, of its merge prompt and of the knowledge; the
others are questions that its design raises. Which ablations CILMP's paper (arXiv 2511.12639) has is for the
most part unknown to us; these follow its design.

Every function takes `cards` (names, paths, cards or data sets), `shots` (a class, or "all") and `seeds`. The
number of runs is the number of settings, which each docstring gives, times the numbers of cards, shots and
seeds. `overview` lists it for the defaults: one phantom card, 3 seeds; for ViP all images, as in its paper,
for the others 16 shots. Runs that two ablations have in common are made once in one store.

Ablations that compare methods (`family`, `few_shot`) make their recipes alike and choose learning rates on
validation images: pass their `config` and `tune` on to `run_ablation`, as `python -m medvlp ablate` does.
"""

from collections.abc import Callable, Sequence
from importlib import resources

import pandas as pd

from medvlp.data.errors import unknown_name
from medvlp.study.ablation.cilmp_grids import (
    cilmp_averaging,
    cilmp_depth,
    cilmp_intervention,
    cilmp_lengths,
    cilmp_llm,
    cilmp_rank,
    llm_variants,
)
from medvlp.study.ablation.family_grids import family
from medvlp.study.ablation.protocol_grids import backbones, base_to_new, few_shot, shift
from medvlp.study.ablation.questions import SEEDS, Ablation
from medvlp.study.ablation.study import Study
from medvlp.study.ablation.vip_grids import vip_aggregation, vip_context, vip_knowledge, vip_number, vip_parts

# those that need nothing but cards, shots and seeds
ABLATIONS: dict[str, Callable[..., Ablation]] = {
    "vip_parts": vip_parts,
    "vip_aggregation": vip_aggregation,
    "vip_knowledge": vip_knowledge,
    "vip_number": vip_number,
    "vip_context": vip_context,
    "cilmp_intervention": cilmp_intervention,
    "cilmp_rank": cilmp_rank,
    "cilmp_lengths": cilmp_lengths,
    "cilmp_depth": cilmp_depth,
    "cilmp_averaging": cilmp_averaging,
    "family": family,
    "few_shot": few_shot,
    "base_to_new": base_to_new,
    "shift": shift,
}

__all__ = [
    *ABLATIONS,
    "ABLATIONS",
    "Ablation",
    "backbones",
    "cilmp_llm",
    "llm_variants",
    "overview",
    "shipped_study",
]


def shipped_study(name: str) -> Study:
    """A study that ships with the package, made by `python -m medvlp ablate NAME --export DIR`.

    "few_shot", as it is, and "vip_parts", with `-c epochs=10 -c views=0`: both on phantom-derm with the
    embedded CLIP. Phantoms are drawings: how methods behave there says nothing about how well they read
    real images.

    Raises:
        ValueError: no such study.
    """
    folder = resources.files("medvlp") / "assets" / "studies"
    names = sorted(one.name for one in folder.iterdir())
    if name not in names:
        raise ValueError(unknown_name("shipped study", name, names))
    return Study(str(folder / name))


def overview(seeds: Sequence[int] = SEEDS) -> pd.DataFrame:
    """The ablations with their default cards and shots: index ablation, columns question, "runs at most"."""
    made = {name: build(seeds=seeds) for name, build in ABLATIONS.items()}
    rows = {name: (one.question, one.n_runs) for name, one in made.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["question", "runs at most"]).rename_axis(
        "ablation"
    )
