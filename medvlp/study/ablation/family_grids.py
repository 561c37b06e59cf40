"""All methods under one protocol, see `medvlp.study.ablation.papers`."""

from collections.abc import Sequence
from typing import Any

from medvlp.study.ablation.grid import Named
from medvlp.study.ablation.questions import (
    CARDS,
    SAME,
    SEEDS,
    SHOTS,
    Ablation,
    Cards,
    Shots,
    runs_of,
    trained,
)

TRAINED: dict[str, tuple[str, dict[str, Any]]] = {  # name in tables: method, arguments
    "CLAP": ("TextProbe", {}),
    "Tip-Adapter-F": ("TipAdapter", {"trained": True}),
    "CLIP-Adapter": ("CLIPAdapter", {}),
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


def family(cards: Cards = CARDS, shots: Shots = SHOTS, seeds: Sequence[int] = SEEDS) -> Ablation:
    """Every method of the package, some in two or three forms: 20, of which 15 try three rates; 50 settings.

    A trained method has its published recipe but for what is the same for all: `ablation_grids.SAME`, 50
    epochs of few shots or 3 of all images, and the choice among learning rates, see `ablation_grids.trained`.
    """
    untrained = [
        runs_of(Named(f"ZeroShot, {kind}", "ZeroShot"), cards, shots, seeds, knowledge=kind)
        for kind in ("classnames", "templates", "symptoms")
    ]
    untrained.append(runs_of(Named("Tip-Adapter", "TipAdapter"), cards, shots, seeds, trained=False))
    balanced = {"method.class_weight": "balanced"}
    untrained.append(runs_of(Named("Linear probe", "LinearProbe"), cards, shots, seeds, **balanced))
    forms = [
        grid
        for name, (method, arguments) in TRAINED.items()
        for grid in trained(name, method, cards, shots, seeds, **arguments)
    ]
    return Ablation(
        "How do all methods compare, given the same images, seeds and care?",
        (*untrained, *forms),
        {"method": "Linear probe"},
        config=SAME,
        tune="lr",
        by=("method", "data", "shots"),
    )
