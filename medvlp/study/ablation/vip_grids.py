"""Ablations of ViP (Fang et al., MICCAI 2024, arXiv 2409.00341), see `medvlp.study.ablation.papers`."""

from collections.abc import Mapping, Sequence

import numpy as np

from medvlp.study.ablation.grid import Named
from medvlp.study.ablation.questions import CARDS, SEEDS, Ablation, Cards, Shots, card_of, runs_of

ALL = ("all",)  # the paper trains on all images


def vip_parts(cards: Cards = CARDS, shots: Shots = ALL, seeds: Sequence[int] = SEEDS) -> Ablation:
    """Context prompt, merge prompt, both, neither (in the paper): 4 settings."""
    parts = [(False, "mean"), (True, "mean"), (False, "merge"), (True, "merge")]
    return Ablation(
        "What do ViP's context prompt and its merge prompt add, alone and together?",
        tuple(
            runs_of("ViP", cards, shots, seeds, context=context, aggregation=aggregation)
            for context, aggregation in parts
        ),
        {"context": True, "aggregation": "merge"},
    )


def vip_aggregation(cards: Cards = CARDS, shots: Shots = ALL, seeds: Sequence[int] = SEEDS) -> Ablation:
    """Merge prompt, mean, maximum (in the paper): 3 settings."""
    return Ablation(
        "Does a learned merge of the symptoms beat their mean and their maximum?",
        (runs_of("ViP", cards, shots, seeds, aggregation=["merge", "mean", "max"]),),
        {"aggregation": "merge"},
    )


def vip_knowledge(
    cards: Cards = CARDS,
    shots: Shots = ALL,
    seeds: Sequence[int] = SEEDS,
    more: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] | None = None,
) -> Ablation:
    """Kinds of knowledge, for ZeroShot and ViP: class names, templates and every kind of the card.

    A packaged card has symptoms and, as in the paper, out-of-domain, useless and incorrect ones: 6 kinds for
    2 methods, so 12 settings. In ViP the class names and templates stand where the symptoms would.

    Args:
        cards: As for all.
        shots: As for all.
        seeds: As for all.
        more: Symptoms of your own, {card name: {name for tables: {classname: [phrase, ...]}}}, such as what
            `generate_symptoms` got from a local LLM.
    """
    grids = []
    for given in cards:
        card = card_of(given)
        kinds = [Named("symptoms", None)]  # the card's own, which both methods read by default
        names = {c: [template.replace("{}", c) for template in card.templates] for c in card.classnames}
        kinds += [Named("class names", {c: texts[:1] for c, texts in names.items()})]
        kinds += [Named("templates", names)]
        kinds += [Named(kind, card.symptoms(kind)) for kind in card.kinds if kind != "symptoms"]
        kinds += [Named(name, phrases) for name, phrases in (more or {}).get(card.name, {}).items()]
        grids.append(runs_of(["ZeroShot", "ViP"], [given], shots, seeds, symptoms=kinds))
    return Ablation(
        "How much does it matter what is said of the classes, before and after training?",
        tuple(grids),
        {"symptoms": "symptoms"},
    )


def vip_number(
    cards: Cards = CARDS,
    shots: Shots = ALL,
    seeds: Sequence[int] = SEEDS,
    numbers: Sequence[int] = (1, 2, 4),
) -> Ablation:
    """How many symptoms a class, for ZeroShot and ViP: `numbers` and all, 8 settings.

    Which ones is drawn anew for each seed, so that the spread over seeds holds the luck of that draw; the
    fewer are among the more. Classes with equally long lists get the same places of their lists.
    """
    grids = []
    for given in cards:
        symptoms = card_of(given).symptoms()
        fewest = min(map(len, symptoms.values()))
        for seed in seeds:
            drawn = [
                Named(str(k), {c: _draw(phrases, k, seed) for c, phrases in symptoms.items()})
                for k in numbers
                if k < fewest
            ]
            some = [*drawn, Named("all", None)]
            grids.append(runs_of(["ZeroShot", "ViP"], [given], shots, [seed], symptoms=some))
    return Ablation("How many symptoms does a class need?", tuple(grids), {"symptoms": "all"})


def vip_context(
    cards: Cards = CARDS,
    shots: Shots = ALL,
    seeds: Sequence[int] = SEEDS,
    lengths: Sequence[int] = (2, 8, 16),
) -> Ablation:
    """Number, sharing and position of the context vectors, one changed at a time: 7 settings."""
    usual = {"n_ctx": 4, "csc": False, "position": "end"}
    changed = [{}, {"n_ctx": list(lengths)}, {"csc": True}, {"position": ["middle", "front"]}]
    return Ablation(
        "Do the length of ViP's context, a context for each class, or its place among the words matter?",
        tuple(runs_of("ViP", cards, shots, seeds, **usual | change) for change in changed),
        usual,
    )


def _draw(phrases: Sequence[str], k: int, seed: int) -> list[str]:
    """K of the phrases, in their order; lists of one length give the same places for the same seed."""
    places = np.random.default_rng(seed).permutation(len(phrases))[:k]
    return [phrases[place] for place in sorted(places)]
