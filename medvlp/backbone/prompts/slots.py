"""Learned prompt vectors in the text of an unmodified CLIP.

A text is tokenized with a placeholder word for each learned vector. While it is encoded, a forward hook on
the token embedding puts the vectors where the placeholders stand; the tower itself is never changed.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medvlp.backbone.clip import Clip

SLOT = "\0"  # stands for one learned vector in a text
PLACEHOLDERS = ("X", "Y")  # two words of one token each: where the token ids differ, there is a slot
_REGISTERING = threading.Lock()  # two threads at once could be given the same hook number by torch


def tokenize_slots(clip: Clip, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids (N, L) of texts with M `SLOT`s each, and where the slots stand, (N, M), in order.

    >>> tokenize_slots(clip, [f"{SLOT} {SLOT} dark spots.", f"{SLOT} hair {SLOT}."])[1]
    tensor([[1, 2], [1, 3]])

    Raises:
        ValueError: a text with more tokens than the tower takes, or a tokenizer that joins a slot with
            the words beside it.
    """
    n_slots = texts[0].count(SLOT)
    tokens, slots = find_slots(clip, texts, [n_slots] * len(texts))  # (N, L), (N, L)
    return tokens, slots.nonzero()[:, 1].reshape(len(texts), n_slots)  # (N, L), (N, M)


def find_slots(clip: Clip, texts: Sequence[str], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids (N, L) of texts with `counts[i]` `SLOT`s in text i, and True where a slot stands, (N, L).

    Raises:
        ValueError: as `tokenize_slots`.
    """
    tokens, others = (clip.tokenize([text.replace(SLOT, word) for text in texts]) for word in PLACEHOLDERS)
    slots = tokens != others if tokens.shape == others.shape else torch.zeros_like(tokens).bool()  # (N, L)
    for text, found, count in zip(texts, slots.sum(dim=1).tolist(), counts, strict=True):
        if found != count:
            shown = text.replace(SLOT, PLACEHOLDERS[0])
            raise ValueError(
                f"{shown!r} shows {found} of {count} places for learned vectors: the tokenizer of clip "
                f"{clip.name!r} joins {PLACEHOLDERS[0]!r} with what stands beside it."
            )
    return tokens, slots


def word_tokens(clip: Clip, words: str) -> tuple[int, Tensor]:
    """Where the words of a text begin, and the token ids (m,) of these words; none for ""."""
    _, begin = find_slots(clip, [SLOT], [1])  # (1, L)
    tokens, end = find_slots(clip, [f"{words} {SLOT}"], [1])
    start, stop = (int(slots[0].nonzero()) for slots in (begin, end))
    return start, tokens[0, start:stop].to(clip.device)


def encode_prompts(clip: Clip, tokens: Tensor, prompts: Tensor, positions: Tensor) -> Tensor:
    """Text features (N, D) of texts with learned vectors in them: float32, not normalised.

    Gradients reach `prompts`. Calls do not disturb each other, nested or in other threads.

    Args:
        clip: the frozen model.
        tokens: (N, L) token ids, as long as the longest text needs.
        prompts: (N, M, w) vectors for each text, or (M, w) for all of them, w being `clip.text_width`.
        positions: (N, M) where in its text each vector stands; what stood there is replaced.

    Raises:
        ValueError: shapes that do not fit.
        RuntimeError: a text tower that does not look its tokens up in `clip.token_embedding`.
    """
    wanted = (*positions.shape, clip.text_width)
    if len(tokens) != len(positions) or tuple(prompts.shape) not in (wanted, wanted[1:]):
        raise ValueError(
            f"prompts {tuple(prompts.shape)} do not fit tokens {tuple(tokens.shape)} and positions "
            f"{tuple(positions.shape)}; clip {clip.name!r} wants prompts {wanted} or {wanted[1:]}."
        )
    tokens = tokens.clone()  # this call is known by its own tokens
    with _replaced(clip.token_embedding, tokens, prompts.expand(wanted), positions):
        return clip.model.encode_text(tokens, normalize=False).float()  # (N, D)


@contextmanager
def _replaced(embedding: nn.Embedding, tokens: Tensor, prompts: Tensor, positions: Tensor) -> Iterator[None]:
    """While inside, `embedding(tokens)` has `prompts` at `positions`; for other tokens it is as it was."""
    index = positions[..., None].expand_as(prompts)  # (N, M, w)
    used = False

    def replace(_: nn.Module, inputs: tuple, x: Tensor) -> Tensor | None:
        nonlocal used
        if inputs[0].data_ptr() != tokens.data_ptr():  # another call's
            return None
        used = True
        return x.scatter(1, index, prompts.to(x.dtype))  # (N, L, w)

    with _REGISTERING:
        hook = embedding.register_forward_hook(replace)
    try:
        yield
        if not used:
            raise RuntimeError(
                "the text tower did not look its tokens up in clip.token_embedding, so no learned vector "
                "was used; this architecture is not supported."
            )
    finally:
        with _REGISTERING:
            hook.remove()
