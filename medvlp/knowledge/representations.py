"""Representations: what an LLM's hidden states are after it has read about each class.

    H_c = states(LLM, text_c),   (L_c, d)       one matrix per class, lengths may differ

CILMP (Du et al., IEEE TMI 2025, arXiv 2511.12639) turns H_c into prompts. Which LLM, layer and text its
authors used is not published, so all are options here. Two layouts:

    tokens   one layer's states of the last tokens of the text. An LLM is causal: each token has read all
             before it, so the last ones have read the whole text.
    layers   the last token's state after each decoder layer (the last one's after the final norm),
             (n_layers, d), as an independent reproduction (LuckyE993/cilmp) did with Llama-3-8B: (32, 4096).

`python -m medvlp.knowledge.representations` makes the representations that ship with the package.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from medvlp.backbone.clip import find_device
from medvlp.data.card_parts import plain_name
from medvlp.data.cards import DataCard, load_card
from medvlp.data.errors import brief, check_choice, check_kinds, said, unknown_name
from medvlp.data.files import check_writable, sha256
from medvlp.data.tensor_files import read_tensors, write_tensors
from medvlp.knowledge.llms import LLM, find_llm

KIND = "medvlp LLM representations, version 1"
PROMPTS = {
    "tokens": "In {modality}, {name} is recognised by these visual signs: {symptoms}.",
    "layers": "Which visual features in {modality} tell {name} from other findings?",
}
PLACEHOLDERS = ("name", "modality", "symptoms")
REMAKE = "Make them with llm_representations(card, ...)."
GIVE = "Make them with llm_representations(card, ...) and give them as `representations`."


@dataclass(frozen=True)
class Representations:
    """One matrix of LLM states per class, and where they came from.

    Args:
        states: classname -> (L_c, d), in label order; kept as float32 on the CPU.
        provenance: JSON-able facts: llm, llm_sha256 or revision, prompt, texts by class, layout, layer,
            max_tokens, dtype it was computed in, date (UTC), card and card_hash.

    Raises:
        ValueError: no class, a matrix that is no matrix, differs in d or is not finite; the class is named.

    Example:
        >>> import medvlp, torch
        >>> states = {"melanoma": torch.zeros(3, 8), "nevus": torch.ones(5, 8)}
        >>> own = medvlp.Representations(states, {"llm": "made by hand"})
        >>> own.dim, own.lengths
        (8, {'melanoma': 3, 'nevus': 5})
    """

    states: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.states:
            raise ValueError("representations need at least one class.")
        first = next(iter(self.states))
        for name, state in self.states.items():
            if not isinstance(state, Tensor):
                raise TypeError(f"class {brief(name)}: its states are {said(state)}, not a Tensor.")
            if state.ndim != 2 or 0 in state.shape:
                raise ValueError(
                    f"class {brief(name)}: its states must have shape (tokens, d), but have "
                    f"{tuple(state.shape)}."
                )
            if state.shape[1] != self.states[first].shape[1]:
                raise ValueError(
                    f"class {brief(name)} has states of dimension {state.shape[1]}, class {brief(first)} of "
                    f"{self.states[first].shape[1]}: take all from one LLM."
                )
            if not state.isfinite().all():
                raise ValueError(f"class {brief(name)}: its states are not finite; take device='cpu'.")
        kept = {n: s.detach().to("cpu", torch.float32).contiguous() for n, s in self.states.items()}
        object.__setattr__(self, "states", kept)

    def __repr__(self) -> str:
        """Whose they are and how large, without the numbers."""
        llm, card = (self.provenance.get(fact, "unknown") for fact in ("llm", "card"))
        rows = sorted(set(self.lengths.values()))
        size = f"{rows[0]} to {rows[-1]}" if len(rows) > 1 else f"{rows[0]}"
        return (
            f"Representations(card {brief(card)}, llm {brief(llm)}: {len(self.states)} classes, {size} rows "
            f"of {self.dim} each)"
        )

    @property
    def dim(self) -> int:
        """Dimension d of the LLM's states."""
        return next(iter(self.states.values())).shape[1]

    @property
    def lengths(self) -> dict[str, int]:
        """Rows L_c of each class."""
        return {name: len(state) for name, state in self.states.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of class names, their order and states."""
        parts: list[bytes | str] = []
        for name, state in self.states.items():
            parts += [name, str(tuple(state.shape)), state.numpy().tobytes()]
        return sha256(*parts)

    def for_card(self, card: DataCard) -> list[Tensor]:
        """States (L_c, d) of each class of a card, in label order; ValueError naming a class without any."""
        for name in card.classnames:
            if name not in self.states:
                where = f"representations of {self.provenance.get('card', 'no card')!r}"
                raise ValueError(f"{unknown_name('class', name, self.states, where)} {REMAKE}")
        return [self.states[name] for name in card.classnames]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; as float16 where that loses nothing."""
        exact = all(torch.equal(state, state.half().float()) for state in self.states.values())
        dtype = torch.float16 if exact else torch.float32
        tensors = {f"{i:04}": state.to(dtype) for i, state in enumerate(self.states.values())}
        write_tensors(path, tensors, KIND, {"classnames": list(self.states), "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path) -> "Representations":
        """Read what `save` wrote; FileNotFoundError, or ValueError for a damaged or another file."""
        try:
            tensors, facts = read_tensors(path, KIND, "LLM representations of this version of medvlp")
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{error} {REMAKE}") from error
        states = {name: tensors[f"{i:04}"] for i, name in enumerate(facts["classnames"])}
        return cls(states, facts["provenance"])


def llm_representations(
    card: DataCard,
    llm: str | Path | LLM = "smollm2",
    layout: str = "tokens",
    layer: int = -1,
    prompt: str | None = None,
    max_tokens: int = 16,
    *,
    path: str | Path | None = None,
    revision: str | None = None,
    half: bool = False,
    device: str | torch.device = "auto",
    batch_size: int = 8,
    progress: bool = True,
) -> Representations:
    """Hidden states of an LLM that reads a text about each class of a card.

    Computed in float32 on the CPU and in bfloat16 on a CUDA GPU, returned and stored as float32.

    Args:
        card: whose classes.
        llm: "smollm2" (SmolLM2-135M-Instruct, d = 576, 30 layers), a local folder, a GGUF file, a name on the
            Hugging Face hub, or what `find_llm` gave (then several cards share one loaded LLM).
        layout: "tokens" or "layers", see the top of this file.
        layer: for "tokens": index into the hidden states as transformers gives them. 0 is the embeddings, i
            the output of decoder layer i, -1 the last one's after the final norm.
        prompt: text of a class, with the placeholders {name}, {modality} and {symptoms} (the card's phrases,
            joined by "; "); {{ and }} for braces. Default: `PROMPTS[layout]`. It is read as plain text,
            without a chat template.
        max_tokens: for "tokens": how many of the last tokens to keep; a shorter text gives all it has. The
            first token of a text is no description: in SmolLM2's middle layers its norm is 100 times that
            of the others.
        path: a file to keep them in. If it holds what would be made now (same card, LLM, prompt, layout,
            layer, max_tokens, half), it is read and no LLM is loaded; if it holds other representations, they
            are replaced. A hub name without `revision` counts as the same LLM at any commit.
        revision: branch, tag or commit of a hub name.
        half: round to float16, for a file of half the size; ValueError where the states are too large.
        device: "auto" (CUDA, else CPU) or a torch device.
        batch_size: texts read at once; it changes numbers within rounding only.
        progress: show a bar where reading takes over two seconds.

    Raises:
        ValueError: an unknown layout, layer or placeholder; classes with equal texts; a text longer than the
            LLM's context; an LLM that cannot be loaded; a file at `path` that is damaged or something else.
        FileNotFoundError: no such LLM here; the message says what to do.
        ConnectionError: a hub name, but no copy here and no network.

    Example:
        A file that holds what is asked for already is read, and no LLM is needed:

        >>> import medvlp
        >>> card = medvlp.load_card("phantom-derm")
        >>> shipped = medvlp.shipped_representations(card)
        >>> [shipped.provenance[fact] for fact in ("llm", "layout", "layer", "max_tokens")]
        ['smollm2', 'tokens', -1, 16]
        >>> medvlp.llm_representations(card, "smollm2", layout="token")
        Traceback (most recent call last):
        ValueError: unknown layout 'token'; did you mean 'tokens'? ...
    """
    check_kinds(llm_representations, locals())
    check_choice("layout", layout, PROMPTS)
    if layout == "layers" and layer != -1:
        raise ValueError(f"layer={layer} belongs to layout 'tokens': layout 'layers' takes every layer.")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}.")
    prompt = PROMPTS[layout] if prompt is None else prompt
    texts = _texts(card, prompt)
    source = find_llm(llm, revision)
    asked = {
        "card_hash": card.hash,
        "prompt": prompt,
        "layout": layout,
        "layer": layer if layout == "tokens" else None,
        "max_tokens": max_tokens if layout == "tokens" else None,
        "half": half,
    }
    if path is not None and os.path.exists(path):
        kept = Representations.load(path)
        if source.matches(kept.provenance) and all(kept.provenance.get(key) == asked[key] for key in asked):
            return kept

    def pick(states: Sequence[Tensor]) -> Tensor:
        """Rows of H_c (L_c, d) from all hidden states of a text, layers + 1 of (T, d)."""
        if layout == "layers":
            return torch.stack([state[-1] for state in states[1:]])  # (n_layers, d)
        if not -len(states) <= layer < len(states):
            raise ValueError(
                f"llm {source.name!r} has no layer {layer}: there are 0 (embeddings) to {len(states) - 1}, "
                f"or -1 (the last) to {-len(states)}."
            )
        return states[layer][-max_tokens:]  # (min(T, max_tokens), d)

    if path is not None:
        check_writable(Path(path).parent, "nothing was computed: the folder")
    where = find_device(device, mps=False)
    states = source.hidden_states(texts, pick, where, batch_size, progress)  # (L_c, d) each
    if half:
        states = {name: state.half().float() for name, state in states.items()}  # (L_c, d)
        if any(state.isinf().any() for state in states.values()):
            raise ValueError(f"some states of llm {source.name!r} are too large for float16; use half=False.")
    representations = Representations(
        states,
        {
            **source.facts,
            **asked,
            "texts": texts,
            "dtype": "bfloat16" if where.type == "cuda" else "float32",
            "date": datetime.now(UTC).date().isoformat(),
            "card": card.name,
        },
    )
    if path is not None:
        representations.save(path)
    return representations


def shipped_representations(card: DataCard | str) -> Representations:
    """The representations that come with the package for a packaged card: SmolLM2-135M-Instruct, "tokens".

    A packaged card with fewer classes (`DataCard.with_classes`) gets those of all its classes, too.

    Raises:
        ValueError: a card without any, or a card whose texts differ from those that the LLM read.

    Example:
        >>> import medvlp
        >>> representations = medvlp.shipped_representations("phantom-derm")
        >>> representations.dim, representations.lengths
        (576, {'melanoma': 16, 'nevus': 16})
    """
    check_kinds(shipped_representations, locals())
    name = card if isinstance(card, str) else card.name
    there = sorted(path.stem for path in shipped_folder().glob("*.safetensors"))
    if name not in there:
        raise ValueError(f"{unknown_name('card', name, there, 'the shipped LLM representations')} {GIVE}")
    representations = Representations.load(shipped_folder() / f"{name}.safetensors")
    if not isinstance(card, str) and not (
        _texts(card, representations.provenance["prompt"]).items()
        <= representations.provenance["texts"].items()
    ):
        raise ValueError(
            f"card {brief(name)} is not the packaged one: its classes or phrases differ from what the LLM "
            f"read for the shipped representations. {GIVE}"
        )
    return representations


def shipped_folder() -> Path:
    """Folder of the representations inside the package."""
    return Path(__file__).resolve().parents[1] / "assets" / "representations"


def main(llm: str = "smollm2", out: Path | None = None) -> None:
    """Make the representations that the package ships anew; those that are as they should be stay."""
    source, folder = find_llm(llm), out or shipped_folder()
    for shipped in sorted(shipped_folder().glob("*.safetensors")):
        path = folder / shipped.name
        states = llm_representations(load_card(path.stem), source, path=path, half=True, device="cpu")
        print(f"{path.name}: {len(states.states)} classes, d = {states.dim}, {path.stat().st_size:,} bytes")


def _texts(card: DataCard, prompt: str) -> dict[str, str]:
    """The text of each class, in label order."""
    named = re.findall("{([^{}]*)}", re.sub("{{|}}", "", prompt))
    for name in named:
        if name not in PLACEHOLDERS:
            unknown = unknown_name("placeholder", name, PLACEHOLDERS, "the prompt")
            raise ValueError(f"{unknown} Write {{{{ for a brace.")
    phrases = card.symptoms() if "symptoms" in named else dict.fromkeys(card.classnames, [])
    try:
        texts = {
            c: prompt.format(name=plain_name(c), modality=card.modality, symptoms="; ".join(phrases[c]))
            for c in card.classnames
        }
    except ValueError as error:
        raise ValueError(
            f"the prompt {brief(prompt)} cannot be read ({error}); write {{{{ for a brace."
        ) from None
    for one, other in combinations(texts, 2):
        if texts[one] == texts[other]:
            raise ValueError(
                f"classes {brief(one)} and {brief(other)} have the same text {brief(texts[one])}: put "
                f"{{name}} into the prompt."
            )
    return texts


if __name__ == "__main__":
    typer.run(main)
