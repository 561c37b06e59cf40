"""Prompted towers of open_clip as their equations read: all tokens, all blocks, padded to the full length.

Slow on purpose; gradients reach the prompts. Only for open_clip's own towers, causal, with a class token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.backbone.clip import Clip


def image_features(clip: Clip, images: Tensor, prompts: Tensor, before_patches: bool = False) -> Tensor:
    """(B, D), normalised, with prompts (depth, n, width) after the patches, or after the class token."""
    visual, B, n = clip.model.visual, len(images), prompts.shape[1]
    x = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, N, width)
    x = torch.cat([visual.class_embedding.expand(B, 1, -1), x], dim=1) + visual.positional_embedding

    def joined(token: Tensor, patches: Tensor, p: Tensor) -> Tensor:
        p = p.expand(B, -1, -1)
        return torch.cat([token, p, patches] if before_patches else [token, patches, p], dim=1)

    x = visual.ln_pre(joined(x[:, :1], x[:, 1:], prompts[0]))
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(prompts):
            patches = x[:, 1 + n :] if before_patches else x[:, 1:-n]
            x = joined(x[:, :1], patches, prompts[i])
        x = block(x)
    return F.normalize(visual.ln_post(x)[:, 0] @ visual.proj, dim=-1)


def text_features(clip: Clip, texts: list[str], ctx: Tensor) -> Tensor:
    """(n_cls, D), normalised, of texts whose tokens after the first are replaced by ctx (depth, n, w)."""
    text, n = clip.model.text, ctx.shape[1]
    features = []
    for ids in clip.tokenizer(texts):  # (77,)
        x = text.token_embedding(ids)  # (77, w)
        x = torch.cat([x[:1], ctx[0], x[1 + n :]]) + text.positional_embedding
        for i, block in enumerate(text.transformer.resblocks):
            if 0 < i < len(ctx):
                x = torch.cat([x[:1], ctx[i], x[1 + n :]])
            x = block(x[None], attn_mask=text.attn_mask)[0]
        features.append(F.normalize(text.ln_final(x)[ids.argmax()] @ text.text_projection, dim=-1))
    return torch.stack(features)
