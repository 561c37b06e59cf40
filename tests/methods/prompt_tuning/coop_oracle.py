"""CoOp's text features as its formula reads: no hooks, one class at a time, padded to the full length."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.backbone.clip import Clip


def text_feature(clip: Clip, name: str, ctx: Tensor, position: str = "end") -> Tensor:
    """t of one class (D,), normalised, with context (M, w); of an open_clip tower with a causal mask."""
    text, M = clip.model.text, len(ctx)
    n = len(clip.tokenizer.encode(name))
    x = text.token_embedding(clip.tokenizer([f"{name}."])[0])  # (77, w): start, name, full stop, end, padding
    before = {"end": M, "middle": M // 2, "front": 0}[position]
    x = torch.cat([x[:1], ctx[:before], x[1 : 1 + n], ctx[before:], x[1 + n :]])[: len(x)]
    x = text.transformer(x[None] + text.positional_embedding, attn_mask=text.attn_mask)[0]
    end = 1 + M + n + 1  # start, context, name, full stop
    return F.normalize(text.ln_final(x)[end] @ text.text_projection, dim=-1)


def text_features(clip: Clip, names: list[str], ctx: Tensor, position: str = "end") -> Tensor:
    """t of all classes (n_cls, D); ctx (M, w) for all or (n_cls, M, w)."""
    return torch.stack(
        [text_feature(clip, name, v, position) for name, v in zip(names, _each(ctx, len(names)), strict=True)]
    )


def _each(ctx: Tensor, n_cls: int) -> Tensor:
    return ctx if ctx.ndim == 3 else ctx.expand(n_cls, -1, -1)
