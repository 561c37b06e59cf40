"""The parts of a standard residual attention block of open_clip, for walks that need only some of its work.

x = x + ls_1(out_proj(attention(ln_1(x))));   x = x + ls_2(mlp(ln_2(x)))
"""

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor


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
