"""All methods under one protocol, see `medvlp.study.papers`."""

from collections.abc import Sequence

from medvlp.study.ablation_grids import CARDS, SEEDS, SHOTS, Ablation, Cards, Shots, runs_of
from medvlp.study.grid import Named

TRAINED = (
    "TextProbe", "CLIPAdapter", "CoOp", "CoCoOp", "KgCoOp", "BiomedCoOp", "IVLP", "MaPLe", "PromptSRC",
    "ViP", "CILMP",
)  # fmt: skip


def family(cards: Cards = CARDS, shots: Shots = SHOTS, seeds: Sequence[int] = SEEDS) -> Ablation:
    """Every method of the package, some in two or three forms: 20 settings.

    Each trains by its own published recipe, which was made for ViT-B/16 and photographs; `config` of
    `run_ablation` changes it for all.
    """
    zero_shot = [
        runs_of(Named(f"ZeroShot, {kind}", "ZeroShot"), cards, shots, seeds, knowledge=kind)
        for kind in ("classnames", "templates", "symptoms")
    ]
    forms = [
        runs_of(Named("Tip-Adapter", "TipAdapter"), cards, shots, seeds, trained=False),
        runs_of(Named("Tip-Adapter-F", "TipAdapter"), cards, shots, seeds, trained=True),
        runs_of(Named("CoOp, csc", "CoOp"), cards, shots, seeds, csc=True),
        runs_of(Named("VPT-shallow", "VPT"), cards, shots, seeds, depth=1),
        runs_of(Named("VPT-deep", "VPT"), cards, shots, seeds, depth=None),
    ]
    return Ablation(
        "How do all methods compare, given the same images, seeds and care?",
        (
            runs_of("LinearProbe", cards, shots, seeds),
            *zero_shot,
            *forms,
            runs_of(list(TRAINED), cards, shots, seeds),
        ),
        {"method": "LinearProbe"},
    )
