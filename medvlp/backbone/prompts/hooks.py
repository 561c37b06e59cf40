"""Learned prompts before the blocks of any text or image tower, by hooks, the tower itself unchanged.

A tower is called as always, over full sequences. While it is, hooks put the vectors where they belong; they
act in that one call only, not in others that are nested in it or run in other threads, and are removed
afterwards, also on errors.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medvlp.backbone.clip import Clip, image_transformer

PROMPTED_AT_ONCE = 2048  # texts with learned vectors whose hidden states are in memory
_REGISTERING = threading.Lock()  # two threads at once could be given the same hook number by torch


def text_blocks(clip: Clip) -> nn.ModuleList:
    """The blocks of the text tower; of a Hugging Face tower the layers of its encoder."""
    text = clip.model.text
    if isinstance(text, TextTransformer):
        return text.transformer.resblocks
    if isinstance(text, HFTextEncoder):
        encoder = getattr(text.transformer, "encoder", text.transformer)
        return next(module for module in encoder.children() if isinstance(module, nn.ModuleList))
    raise ValueError(f"the text tower of clip {clip.name!r}, {type(text).__name__}, has no known blocks.")


def image_blocks(clip: Clip) -> nn.ModuleList | nn.Sequential:
    """The blocks of the image tower.

    Raises:
        ValueError: a tower that has no tokens, such as a ResNet.
    """
    if (tower := image_transformer(clip.model)) is not None:
        return tower.transformer.resblocks if isinstance(tower, VisionTransformer) else tower.blocks
    visual = clip.model.visual
    raise ValueError(
        f"the image tower of clip {clip.name!r}, {type(getattr(visual, 'trunk', visual)).__name__}, is no "
        "vision transformer, so no learned prompts can be appended to its tokens; take another CLIP, or "
        "image_depth=0 where a method has it."
    )


def image_width(clip: Clip) -> int:
    """The width of the image tower's tokens."""
    visual = clip.model.visual
    return visual.trunk.embed_dim if isinstance(visual, TimmModel) else visual.transformer.width


def encode_deep_text(clip: Clip, tokens: Tensor, slots: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """Text features (B, n_cls, D), not normalised, with learned vectors in the slots of every text.

    vectors[0] takes the place of token embeddings (so position is added to it, and whatever else the tower
    adds to a token), vectors[i] the place of the hidden states before block i, to which nothing is added.

    Args:
        clip: The frozen model.
        tokens: (n_cls, L) token ids.
        slots: (n_cls, L) True at the M slots of all texts together.
        vectors: At most one for each block, (B, M, w), class after class; B is 1 where no image changes them.

    Raises:
        RuntimeError: a text tower that does not look its tokens up in `clip.token_embedding`.
    """
    n_cls, B, text = len(tokens), max(len(v) for v in vectors), clip.model.text
    blocks = list(text_blocks(clip))[1:] if len(vectors) > 1 else []
    of_class, position = slots.nonzero(as_tuple=True)  # (M,) each
    tokens = tokens.repeat(B, 1)  # (B * n_cls, L), and the sign by which the call is known

    def put(x: Tensor, v: Tensor) -> Tensor:
        """Replace in x, (B * n_cls, L or more, w)."""
        index = of_class * x.shape[1] + position
        flat = x.reshape(B, -1, x.shape[-1]).index_copy(1, index, v.expand(B, -1, -1).to(x.dtype))
        return flat.reshape(x.shape)

    looked_up = []

    def put_first(x: Tensor) -> Tensor:
        looked_up.append(True)
        return put(x, vectors[0])

    with _OneCall(text, tokens) as call:
        call.change_output(clip.token_embedding, put_first)
        for block, v in zip(blocks, vectors[1:], strict=False):
            call.change_input(block, lambda x, v=v: put(x, v))
        features = clip.model.encode_text(tokens, normalize=False)  # (B * n_cls, D)
    if not looked_up:
        raise RuntimeError(
            "the text tower did not look its tokens up in clip.token_embedding, so no learned vector "
            "was used; this architecture is not supported."
        )
    return features.unflatten(0, (B, n_cls))


def in_parts(encode: Callable[..., Tensor], *tensors: Tensor, texts: int = 1) -> Tensor:
    """`encode(*tensors)`, some rows at a time where they are many, each of `texts` texts: memory is bounded.

    Where gradients are wanted, too: each part's hidden states are forgotten and computed again.
    """
    at_once = max(1, PROMPTED_AT_ONCE // texts)
    parts = list(zip(*(tensor.split(at_once) for tensor in tensors), strict=True))
    if len(parts) > 1 and torch.is_grad_enabled():
        return torch.cat([checkpoint(encode, *part, use_reentrant=False) for part in parts])
    return torch.cat([encode(*part) for part in parts]) if len(parts) > 1 else encode(*tensors)


def encode_deep_images(clip: Clip, images: Tensor, prompts: Tensor) -> Tensor:
    """Image features (B, D), not normalised, with learned vectors after the patches.

    Before the first norm (`ln_pre`) prompts[0] is appended, before block i it is replaced by prompts[i], and
    after the last block it is taken away again, so that pooling sees the tokens that it always sees. Where
    blocks turn queries and keys by their places (EVA02, PE), those of prompts stay, as the class token's.

    Args:
        clip: The frozen model.
        images: (B, 3, S, S), preprocessed, in the tower's type.
        prompts: (depth, n, width), depth at most the number of blocks.
    """
    visual, blocks, n = clip.model.visual, image_blocks(clip), prompts.shape[1]
    first_norm = visual.trunk.norm_pre if isinstance(visual, TimmModel) else visual.ln_pre
    images = images.clone()  # the sign by which the call is known

    def append(x: Tensor, p: Tensor) -> Tensor:
        return torch.cat([x, p.to(x.dtype).expand(len(x), -1, -1)], dim=1)

    def stay(rope: Tensor) -> Tensor:  # (..., N, 2e), the sines and cosines of each patch's angles
        shape = (*rope.shape[:-2], n, rope.shape[-1] // 2)
        return torch.cat([rope, torch.cat([rope.new_zeros(shape), rope.new_ones(shape)], dim=-1)], dim=-2)

    with _OneCall(visual, images) as call:
        if getattr(getattr(visual, "trunk", None), "rope", None) is not None:
            for block in blocks:
                call.change_input(block, stay, "rope")
        call.change_input(first_norm, lambda x: append(x, prompts[0]))
        for block, p in zip(blocks[1:], prompts[1:], strict=False):
            call.change_input(block, lambda x, p=p: append(x[:, :-n], p))
        call.change_output(blocks[-1], lambda x: x[:, :-n])
        return clip.model.encode_image(images)


class _OneCall:
    """Hooks that act in `tower(sign)` alone, the call whose input lies where `sign` lies, of this thread."""

    def __init__(self, tower: nn.Module, sign: Tensor) -> None:
        self._tower, self._sign, self._thread = tower, sign, threading.get_ident()
        self._calls: list[bool] = []  # calls of the tower that are under way: is it the one?
        self._hooks = ExitStack()

    def __enter__(self) -> "_OneCall":
        def enter(_: nn.Module, args: tuple) -> None:
            if threading.get_ident() == self._thread:
                self._calls.append(args[0].data_ptr() == self._sign.data_ptr())

        def leave(*_: object) -> None:
            if threading.get_ident() == self._thread and self._calls:
                self._calls.pop()

        self._keep(lambda: self._tower.register_forward_pre_hook(enter))
        self._keep(lambda: self._tower.register_forward_hook(leave, always_call=True))
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def change_input(
        self, module: nn.Module, change: Callable[[Tensor], Tensor], name: str = "hidden_states"
    ) -> None:
        """Give `module` a changed argument: the one of that name, or the first."""

        def hook(_: nn.Module, args: tuple, kwargs: dict | None = None) -> tuple[tuple, dict] | None:
            if not self._now():  # so, too, another thread's call, before torch knows of the kwargs
                return None
            if name in kwargs:
                return args, kwargs | {name: change(kwargs[name])}
            return (change(args[0]), *args[1:]), kwargs

        self._keep(lambda: module.register_forward_pre_hook(hook, with_kwargs=True))

    def change_output(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """Change what `module` returns."""
        self._keep(lambda: module.register_forward_hook(lambda _, a, x: change(x) if self._now() else None))

    def _now(self) -> bool:
        return threading.get_ident() == self._thread and bool(self._calls) and self._calls[-1]

    def _keep(self, register: Callable) -> None:
        with _REGISTERING:
            handle = register()
        self._hooks.callback(_remove, handle)


def _remove(handle: torch.utils.hooks.RemovableHandle) -> None:
    with _REGISTERING:
        handle.remove()
