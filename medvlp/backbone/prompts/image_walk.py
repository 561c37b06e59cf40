"""Learned prompts in the layers of open_clip's image tower, with only the work that the class token needs.

It takes open_clip's standard residual attention block apart:

    x = x + ls_1(out_proj(attention(ln_1(x))));   x = x + ls_2(mlp(ln_2(x)))
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import encode_deep_images


def can_walk_image(visual: nn.Module) -> bool:
    """Whether `walk_image` knows this tower: open_clip's own, of standard blocks, read at its class token."""
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and standard(visual.transformer)
    )


def encode_image_prompts(clip: Clip, images: Tensor, prompts: Tensor) -> Tensor:
    """Image features (B, D), not normalised, with learned prompts after the patches, in layer after layer.

    Args:
        clip: The frozen model; its tower is walked where `can_walk_image`, else read by hooks.
        images: (B, 3, S, S), preprocessed.
        prompts: (depth, n, width).

    Raises:
        ValueError: images of another shape or type than `clip.preprocess` makes.
    """
    images = clip.checked(images)
    if can_walk_image(clip.model.visual):
        return walk_image(clip.model.visual, images, prompts)
    return encode_deep_images(clip, images, prompts)


def walk_image(visual: VisionTransformer, images: Tensor, prompts: Tensor) -> Tensor:
    """Image features (B, D), not normalised, with learned prompts after the patches.

    The prompts of block 0 are appended after positions were added, before `ln_pre`; before each block
    i < depth they are replaced by that block's own. In the first depth - 1 blocks what becomes of them is
    replaced, so they are keys and values only; in the last block the class token alone has a query.

    Args:
        visual: The tower; see `can_walk_image`.
        images: (B, 3, S, S), in the tower's type.
        prompts: (depth, n, width).
    """
    prompts = prompts.to(images)  # (depth, n, width)
    blocks, depth = visual.transformer.resblocks, len(prompts)
    x = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, N, width)
    start = visual.class_embedding.to(x).expand(len(x), 1, -1)  # (B, 1, width)
    x = torch.cat([start, x], dim=1) + visual.positional_embedding.to(x)  # (B, 1 + N, width)
    x = visual.ln_pre(visual.patch_dropout(x))
    for i in range(depth - 1):
        p = visual.ln_pre(prompts[0]) if i == 0 else prompts[i]  # (n, width)
        x = _block(blocks[i], x, p)
    p = visual.ln_pre(prompts[0]) if depth == 1 else prompts[-1]
    x = torch.cat([x, p.to(x).expand(len(x), -1, -1)], dim=1)  # (B, 1 + N + n, width)
    for block in blocks[depth - 1 : -1]:
        x = block(x)
    x = visual.ln_post(_class_token(blocks[-1], x))  # (B, width)
    return x if visual.proj is None else x @ visual.proj


def _block(block: ResidualAttentionBlock, x: Tensor, p: Tensor) -> Tensor:
    """x (B, L, width) after a block in which it also reads p (n, width)."""
    y = block.ln_1(x)
    kv_p = project(block, block.ln_1(p), "kv").expand(len(x), -1, -1)  # (B, n, 2 width)
    kv = torch.cat([project(block, y, "kv"), kv_p], dim=1)  # (B, L + n, 2 width)
    return finish(block, x, _attend(project(block, y, "q"), kv, block.attn.num_heads))


def _class_token(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """The class token after a block: (B, L, width) -> (B, width)."""
    y = block.ln_1(x)
    attended = _attend(project(block, y[:, :1], "q"), project(block, y, "kv"), block.attn.num_heads)
    return finish(block, x[:, :1], attended)[:, 0]


def _attend(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """Every query reads all keys: (B, L, width), (B, K, 2 width) -> (B, L, width)."""
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, L, e)
    k, v = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, K, e) each
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def standard(transformer: Transformer) -> bool:
    """Whether every block is of the kind that these functions take apart."""
    return all(
        type(block) is ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and block.attn.in_proj_weight is not None
        and block.attn.bias_k is None
        and not block.attn.add_zero_attn
        for block in transformer.resblocks
    )


def project(block: ResidualAttentionBlock, y: Tensor, parts: str) -> Tensor:
    """Queries, keys, values ("q", "kv" or "qkv") of y = ln_1(x): (..., w) -> (..., w for each part)."""
    attn = block.attn
    start, stop = "qkv".index(parts[0]) * attn.embed_dim, ("qkv".index(parts[-1]) + 1) * attn.embed_dim
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias[start:stop]
    return F.linear(y, attn.in_proj_weight[start:stop], bias)


def finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """The block's output where its heads, side by side, have attended to `attended`: (..., w) -> (..., w)."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
