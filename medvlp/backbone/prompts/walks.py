"""Learned prompts in the blocks of open_clip's own towers, with only the work that is read later.

`walk_image` goes through an image tower, `encode_text_prompts` through a causal text tower, and `TextWalk`
through one with many vectors in every block. They take open_clip's standard residual attention block apart:

    x = x + ls_1(out_proj(attention(ln_1(x))));   x = x + ls_2(mlp(ln_2(x)))
"""

from collections.abc import Sequence
from itertools import groupby
from math import inf, sqrt
from types import EllipsisType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import encode_deep_images, encode_deep_text, in_parts


def can_walk_image(visual: nn.Module) -> bool:
    """Whether `walk_image` knows this tower: open_clip's own, of standard blocks, read at its class token."""
    return (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and _standard(visual.transformer)
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
    prompts = [visual.ln_pre(prompts[0]), *prompts[1:]]
    x = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, N, width)
    start = visual.class_embedding.to(x).expand(len(x), 1, -1)  # (B, 1, width)
    x = torch.cat([start, x], dim=1) + visual.positional_embedding.to(x)  # (B, 1 + N, width)
    x, blocks, depth = visual.ln_pre(visual.patch_dropout(x)), visual.transformer.resblocks, len(prompts)
    for block, p in zip(blocks[: depth - 1], prompts, strict=False):
        x = _block(block, x, p)
    x = torch.cat([x, prompts[-1].to(x).expand(len(x), -1, -1)], dim=1)  # (B, 1 + N + n, width)
    for block in blocks[depth - 1 : -1]:
        x = block(x)
    x = visual.ln_post(_class_token(blocks[-1], x))  # (B, width)
    return x if visual.proj is None else x @ visual.proj


def _block(block: ResidualAttentionBlock, x: Tensor, p: Tensor) -> Tensor:
    """x (B, L, width) after a block in which it also reads p (n, width)."""
    y = block.ln_1(x)
    kv_p = _project(block, block.ln_1(p), "kv").expand(len(x), -1, -1)  # (B, n, 2 width)
    kv = torch.cat([_project(block, y, "kv"), kv_p], dim=1)  # (B, L + n, 2 width)
    return _finish(block, x, _attend(_project(block, y, "q"), kv, block.attn.num_heads))


def _class_token(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """The class token after a block: (B, L, width) -> (B, width)."""
    y = block.ln_1(x)
    attended = _attend(_project(block, y[:, :1], "q"), _project(block, y, "kv"), block.attn.num_heads)
    return _finish(block, x[:, :1], attended)[:, 0]


def _attend(q: Tensor, kv: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Every query reads all keys, or those up to its own: (B, L, width), (B, K, 2 width) -> (B, L, width)."""
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, L, e)
    k, v = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, K, e) each
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def can_walk_text(text: nn.Module) -> bool:
    """Whether this text tower can be walked: open_clip's own, causal, read at the end of text."""
    return (
        isinstance(text, TextTransformer)
        and text.attn_mask is not None
        and text.cls_emb is None
        and text.pool_type in ("argmax", "eos")
        and _standard(text.transformer)
    )


def encode_prompts(clip: Clip, tokens: Tensor, slots: Tensor, prompts: Tensor) -> Tensor:
    """Text features (N, D), float32, not normalised, of texts with learned vectors before the first block.

    Args:
        clip: The frozen model.
        tokens: (N, L) token ids.
        slots: (N, L) True at the M slots of each text.
        prompts: (N, M, w) vectors for each text, or (M, w) for all of them, w being `clip.text_width`.

    Raises:
        ValueError: shapes that do not fit, or a text with more or fewer slots than the first.
        RuntimeError: as `encode_deep_text`.
    """
    counts = slots.sum(dim=1).tolist()  # N numbers
    for row, count in enumerate(counts):
        if count != counts[0]:
            raise ValueError(f"slots of text 0: {counts[0]}, of text {row}: {count}; all must have as many.")
    wanted = (len(slots), counts[0], clip.text_width)
    if tokens.shape != slots.shape or tuple(prompts.shape) not in (wanted, wanted[1:]):
        raise ValueError(
            f"prompts {tuple(prompts.shape)} do not fit tokens {tuple(tokens.shape)} and slots "
            f"{tuple(slots.shape)}; clip {clip.name!r} wants prompts {wanted} or {wanted[1:]}."
        )

    def encode(tokens: Tensor, slots: Tensor, prompts: Tensor) -> Tensor:
        return encode_text_prompts(clip, tokens, slots, [prompts.flatten(0, 1)[None]])[0].float()

    return in_parts(encode, tokens, slots, prompts.expand(wanted))


def encode_text_prompts(clip: Clip, tokens: Tensor, slots: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """What `encode_deep_text` gives: text features (B, n_cls, D), not normalised, with vectors in the slots.

    A tower that is known (`can_walk_text`) is walked, and of its last block only the end of text is worked
    out; another one is read by hooks.

    Args:
        clip: The frozen model.
        tokens: (n_cls, L) token ids.
        slots: (n_cls, L) True at the M slots of all texts together.
        vectors: At most one for each block, (B, M, w), class after class; B is 1 where no image changes them.

    Raises:
        RuntimeError: a tower read by hooks that does not look its tokens up in `clip.token_embedding`.
    """
    text = clip.model.text
    if not can_walk_text(text):
        return encode_deep_text(clip, tokens, slots, vectors)
    blocks, (n_cls, L), B = text.transformer.resblocks, tokens.shape, max(len(v) for v in vectors)
    dtype, rows = text.transformer.get_cast_dtype(), slots.flatten().nonzero()[:, 0]  # (M,)
    x = text.token_embedding(tokens).to(dtype).flatten(0, 1).expand(B, -1, -1)  # (B, n_cls * L, w)
    for i, block in enumerate(blocks):
        if i < len(vectors):
            v = vectors[i].to(x).expand(B, -1, -1)  # (B, M, w)
            x = x.reshape(B, n_cls * L, -1).index_copy(1, rows, v).view(B * n_cls, L, -1)
        if i == 0:
            x = x + text.positional_embedding[:L].to(dtype)
        if block is not blocks[-1]:
            x = _causal(block, x)
    ends = torch.arange(len(x), device=x.device), _ends(text, tokens).repeat(B)  # (B * n_cls,) each
    return _leave(text, _causal(blocks[-1], x, ends)).unflatten(0, (B, n_cls))


def _causal(block: ResidualAttentionBlock, x: Tensor, here: EllipsisType | tuple = ...) -> Tensor:
    """Texts (N, L, w), or some places of them, after a block; each token reads those up to its own."""
    q, kv = _project(block, block.ln_1(x), "qkv").tensor_split([x.shape[-1]], dim=-1)
    return _finish(block, x[here], _attend(q, kv, block.attn.num_heads, causal=True)[here])


def _ends(text: TextTransformer, tokens: Tensor) -> Tensor:
    """Where each text ends, (N,), of token ids (N, L)."""
    last = tokens.amax(dim=1, keepdim=True) if text.pool_type == "argmax" else text.eos_id
    return (tokens == last).int().argmax(dim=1)


def _leave(text: TextTransformer, x: Tensor) -> Tensor:
    """Features of ends of text: (..., w) -> (..., D)."""
    x, projection = text.ln_final(x), text.text_projection
    if isinstance(projection, nn.Linear):
        return projection(x)
    return x if projection is None else x @ projection


class SlotVectors(NamedTuple):
    """What stands in the slots of all classes' texts before one block.

    Attributes:
        ctx: (n_ctx, w), the context, shared by images and classes.
        edges: (B, n_cls, P + S, w), the first P and the last S rows of each class; B is 1 where no image
            changes them.
        middle: (M, w), the rows between them, class after class, shared by the images.
    """

    ctx: Tensor
    edges: Tensor
    middle: Tensor


class Group(NamedTuple):
    """Classes of the same lengths, which attention sees at once.

    Attributes:
        classes: Where they are among all classes, in the walk's order.
        live: Where their live tokens are, and `middle` where their middle rows are, in lists of all classes'.
        n_cls: How many classes, each of T live tokens and M middle rows.
    """

    classes: slice
    live: slice
    middle: slice
    n_cls: int
    T: int
    M: int

    def of_live(self, x: Tensor) -> Tensor:
        """The group's part of all live tokens: (B, N, w) -> (B, n_cls, T, w)."""
        return x[:, self.live].unflatten(1, (self.n_cls, self.T))

    def of_middle(self, x: Tensor) -> Tensor:
        """The group's part of all middle rows: (M, w) -> (n_cls, M, w)."""
        return x[self.middle].unflatten(0, (self.n_cls, self.M))


class TextWalk(nn.Module):
    """Text features of `[SOS] ctx rows name . [EOS]`, with ctx and rows replaced before the first blocks.

    What becomes of replaced positions is overwritten before the next block, so in blocks 0 .. depth-2 they
    are keys and values only, and queries and MLP are left to the positions that live on: name, full stop and
    end of text. In the causal tower the start of text depends on nothing, so it is computed once. The context
    has neither batch nor class axis, the middle rows of a class have no batch axis. From block depth-1 on,
    the last whose input is replaced, all positions are computed; where that is the tower's last block, the
    end of text alone.

    Classes differ in the numbers of their rows and of their name's tokens. Linear maps see all classes in one
    list, attention those of the same lengths at once. Nothing is ever filled up to the longest.

    Args:
        text: The tower; see `can_walk_text`. Each call is given it again: it is no part of this module.
        tokens: (n_cls, L) token ids, with placeholders in the slots.
        slots: (n_cls, L) True at the n_ctx + L_c slots of each class, which follow the start of text.
        n_ctx: The number of context vectors.
        n_prefix: P, how many of a class's first rows are edges.
        n_suffix: S, how many of its last rows are.
    """

    def __init__(
        self, text: TextTransformer, tokens: Tensor, slots: Tensor, n_ctx: int, n_prefix: int, n_suffix: int
    ) -> None:
        super().__init__()
        self.n_ctx, self.n_prefix = n_ctx, n_prefix
        ends = _ends(text, tokens)[:, None]  # (n_cls, 1), positions
        last = slots.sum(dim=1, keepdim=True)  # (n_cls, 1), positions of the last slots
        place = torch.arange(tokens.shape[1], device=tokens.device)  # (L,)
        if not torch.equal(slots, (place > 0) & (place <= last)):
            raise ValueError("the slots of a text must follow its start-of-text token, one after another.")
        live = (place > last) & (place <= ends)  # (n_cls, L)
        edge = slots & (place > n_ctx) & ((place <= n_ctx + n_prefix) | (place > last - n_suffix))
        middle = slots & (place > n_ctx) & ~edge
        self.live_counts, self.middle_counts = live.sum(dim=1).tolist(), middle.sum(dim=1).tolist()

        lengths = list(zip(self.live_counts, self.middle_counts, strict=True))
        order = sorted(range(len(tokens)), key=lengths.__getitem__)  # the walk's order of classes
        self.groups = _groups([lengths[c] for c in order])
        rows = torch.arange(sum(self.middle_counts)).split(self.middle_counts)
        self._buffer("order", torch.tensor(order, device=tokens.device))
        self._buffer("given_order", self.order.argsort())
        self._buffer("middle_order", torch.cat([rows[c] for c in order]).to(tokens.device))
        tokens, live, edge, middle = (x[self.order] for x in (tokens, live, edge, middle))

        with torch.no_grad():
            dtype = text.transformer.get_cast_dtype()
            positions = text.positional_embedding[: len(place)].to(dtype)  # (L, w)
            x = text.token_embedding(tokens).to(dtype) + positions  # (n_cls, L, w)
            starts = [x[:1, :1]]  # (1, 1, w), the start of text before each block
            for block in text.transformer.resblocks[:-1]:
                starts.append(block(starts[-1]))
            edge_positions = positions.expand_as(x)[edge].unflatten(0, (len(x), -1))
        self._buffer("starts", torch.cat(starts)[:, 0])  # (layers, w)
        self._buffer("live", x[live][None])  # (1, N, w)
        self._buffer("ctx_positions", positions[1 : 1 + n_ctx])  # (n_ctx, w)
        self._buffer("edge_positions", edge_positions)  # (n_cls, P + S, w)
        self._buffer("middle_positions", positions.expand_as(x)[middle])  # (M, w)

    def _buffer(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.detach().clone(), persistent=False)

    def forward(self, text: TextTransformer, vectors: Sequence[SlotVectors]) -> Tensor:
        """Text features (B, n_cls, D), not normalised, with vectors[i] in the slots before block i."""
        blocks, depth = text.transformer.resblocks, len(vectors)
        x = self.live  # (1, N, w), and (B, N, w) after the first block
        for i, block in enumerate(blocks[: depth - 1]):
            x = self._block(block, x, *self._before(i, vectors[i]))
        shared, edges = self._before(depth - 1, vectors[-1])
        if depth == len(blocks):
            x = self._block(blocks[-1], x, shared, edges, ends_only=True)  # (B, n_cls, w)
        else:
            x = self._all_positions(blocks[depth - 1 :], x, shared, edges)  # (B, n_cls, w)
        return _leave(text, x[:, self.given_order])

    def _before(self, i: int, vectors: SlotVectors) -> tuple[Tensor, Tensor]:
        """Rows before block i: start, context and middles (1 + n_ctx + M, w); edges (B, n_cls, P + S, w)."""
        ctx, edges, middle = (v.to(self.live) for v in vectors)
        edges, middle = edges[:, self.order], middle[self.middle_order]
        if i == 0:  # later ones enter without positions
            ctx, edges = ctx + self.ctx_positions, edges + self.edge_positions
            middle = middle + self.middle_positions
        return torch.cat([self.starts[i : i + 1], ctx, middle]), edges

    def _block(
        self, block: ResidualAttentionBlock, x: Tensor, shared: Tensor, edges: Tensor, ends_only: bool = False
    ) -> Tensor:
        """Live tokens (B, N, w) after a block, or of them only the ends of text, (B, n_cls, w)."""
        B, w = max(len(x), len(edges)), x.shape[-1]
        q, kv = _project(block, block.ln_1(x), "qkv").tensor_split([w], dim=-1)  # (B, N, w), (B, N, 2w)
        kv_edges = _project(block, block.ln_1(edges), "kv")  # (B, n_cls, P + S, 2w)
        kv_shared = _project(block, block.ln_1(shared), "kv")  # (1 + n_ctx + M, 2w)
        common, middle = kv_shared.tensor_split([1 + self.n_ctx])
        attended, ends = [], []
        for group in self.groups:
            of_group = kv_edges[:, group.classes], group.of_live(kv)  # (B, g, P + S, 2w), (B, g, T, 2w)
            own = torch.cat([part.expand(B, -1, -1, -1) for part in of_group], dim=2)
            by_class = common.expand(group.n_cls, -1, -1), group.of_middle(middle)
            keys = torch.cat(by_class, dim=1)  # (g, 1 + n_ctx + M, 2w)
            queries = group.of_live(q)[:, :, -1:] if ends_only else group.of_live(q)
            read = _attend_causal(queries, own, keys, block.attn.num_heads)  # (B, g, T, w)
            attended.append(read.flatten(1, 2))
            ends.append(group.of_live(x)[:, :, -1])  # (B, g, w)
        x = torch.cat(ends, dim=1) if ends_only else x
        return _finish(block, x, torch.cat(attended, dim=1))

    def _all_positions(self, blocks: nn.ModuleList, x: Tensor, shared: Tensor, edges: Tensor) -> Tensor:
        """The ends of text (B, n_cls, w) after blocks that compute every position, the last only these."""
        B, P = max(len(x), len(edges)), self.n_prefix
        common, middle = shared.tensor_split([1 + self.n_ctx])  # (1 + n_ctx, w), (M, w)
        ends = []
        for group in self.groups:
            edge = edges[:, group.classes]  # (B, g, P + S, w)
            pieces = common, edge[:, :, :P], group.of_middle(middle), edge[:, :, P:], group.of_live(x)
            texts = torch.cat([y.expand(B, group.n_cls, -1, -1) for y in pieces], dim=2)  # (B, g, L, w)
            y = texts.flatten(0, 1)  # (B * g, L, w)
            for block in blocks[:-1]:
                y = _causal(block, y)
            ends.append(_causal(blocks[-1], y, (slice(None), -1)).unflatten(0, (B, -1)))
        return torch.cat(ends, dim=1)


def _groups(lengths: list[tuple[int, int]]) -> list[Group]:
    """Runs of equal (live tokens, middle rows) among the classes."""
    groups, c, t, m = [], 0, 0, 0
    for (T, M), run in groupby(lengths):
        n = len(list(run))
        groups.append(Group(slice(c, c + n), slice(t, t + n * T), slice(m, m + n * M), n, T, M))
        c, t, m = c + n, t + n * T, m + n * M
    return groups


def _attend_causal(q: Tensor, own: Tensor, shared: Tensor, heads: int) -> Tensor:
    """Causal attention to keys of each image and keys shared by the images, without copying these.

    The queries are those of the last T keys; none sees a key after its own.

    Args:
        q: (B, n_cls, T, w), the queries; B here and in `own` may be 1.
        own: (B, n_cls, K_own, 2w), keys and values.
        shared: (n_cls, K_shared, 2w), keys and values.
        heads: Number of heads.

    Returns:
        (B, n_cls, T, w).
    """
    T, K = q.shape[2], shared.shape[1] + own.shape[2]
    later = torch.ones(T, K, dtype=torch.bool, device=q.device).triu(K - T + 1)  # (T, K)
    q = q.unflatten(-1, (heads, -1)) / sqrt(q.shape[-1] // heads)  # (B, n_cls, T, heads, e)
    k, v = own.unflatten(-1, (2, heads, -1)).unbind(-3)  # (B, n_cls, K_own, heads, e)
    k_shared, v_shared = shared.unflatten(-1, (2, heads, -1)).unbind(-3)  # (n_cls, K_shared, heads, e)
    to_shared = torch.einsum("bcthe,ckhe->bchtk", q, k_shared)
    to_own = torch.einsum("bcthe,bckhe->bchtk", q, k)
    to_shared = to_shared.expand(len(to_own), -1, -1, -1, -1)
    weights = torch.cat([to_shared, to_own], dim=-1).masked_fill(later, -inf).softmax(dim=-1)
    on_shared, on_own = weights.tensor_split([shared.shape[1]], dim=-1)
    read = torch.einsum("bchtk,ckhe->bcthe", on_shared, v_shared)
    return (read + torch.einsum("bchtk,bckhe->bcthe", on_own, v)).flatten(-2)


def _standard(transformer: Transformer) -> bool:
    """Whether every block is of the kind that these functions take apart."""
    return all(
        type(block) is ResidualAttentionBlock
        and not hasattr(block, "ln_1_kv")
        and block.attn.in_proj_weight is not None
        and block.attn.bias_k is None
        and not block.attn.add_zero_attn
        for block in transformer.resblocks
    )


def _project(block: ResidualAttentionBlock, y: Tensor, parts: str) -> Tensor:
    """Queries, keys, values ("q", "kv" or "qkv") of y = ln_1(x): (..., w) -> (..., w for each part)."""
    attn = block.attn
    start, stop = "qkv".index(parts[0]) * attn.embed_dim, ("qkv".index(parts[-1]) + 1) * attn.embed_dim
    bias = None if attn.in_proj_bias is None else attn.in_proj_bias[start:stop]
    return F.linear(y, attn.in_proj_weight[start:stop], bias)


def _finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """The block's output where its heads, side by side, have attended to `attended`: (..., w) -> (..., w)."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
