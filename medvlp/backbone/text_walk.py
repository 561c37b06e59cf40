"""Learned prompts in the layers of open_clip's causal text tower, with only the work that is read later."""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn

from medvlp.backbone.blocks import finish, project, standard


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


def can_walk_text(text: nn.Module) -> bool:
    """Whether `TextWalk` knows this tower: open_clip's own, causal, read at the end of text."""
    return (
        isinstance(text, TextTransformer)
        and text.attn_mask is not None
        and text.cls_emb is None
        and text.pool_type in ("argmax", "eos")
        and standard(text.transformer)
    )


class Ragged(nn.Module):
    """Rows of all classes in one list, class after class, and the same filled up to the longest class.

    Filled up is with zeros, written, not left over; what reads them must give them no weight.
    """

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        there = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
        self.register_buffer("there", there, persistent=False)  # (n_cls, longest)
        self.register_buffer("places", there.flatten().nonzero()[:, 0], persistent=False)  # (n,)

    def fill_up(self, rows: Tensor) -> Tensor:
        """(..., n, w) -> (..., n_cls, longest, w)."""
        x = rows.new_zeros(*rows.shape[:-2], self.there.numel(), rows.shape[-1])
        x[..., self.places, :] = rows
        return x.unflatten(-2, self.there.shape)

    def in_one_list(self, x: Tensor) -> Tensor:
        """(..., n_cls, longest, w) -> (..., n, w)."""
        return x.flatten(-3, -2).index_select(-2, self.places)


class TextWalk(nn.Module):
    """Text features of `[SOS] ctx rows name . [EOS]`, with ctx and rows replaced before the first blocks.

    What becomes of replaced positions is overwritten before the next block, so in blocks 0 .. depth-2 they
    are keys and values only, and queries and MLP are left to the positions that live on: name, full stop and
    end of text. In the causal tower the start of text depends on nothing, so it is computed once. The context
    has neither batch nor class axis, the middle rows of a class have no batch axis. From block depth-1 on,
    the last whose input is replaced, all positions are computed; where that is the tower's last block, the
    end of text alone.

    Classes differ in the numbers of their rows and of their name's tokens. Linear maps see all classes in one
    list; only attention sees them class by class, filled up with zeros that have no weight.

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
        is_end = tokens == (tokens.amax(dim=1, keepdim=True) if text.pool_type == "argmax" else text.eos_id)
        ends = is_end.int().argmax(dim=1, keepdim=True)  # (n_cls, 1), positions
        last = slots.sum(dim=1, keepdim=True)  # (n_cls, 1), positions of the last slots
        place = torch.arange(tokens.shape[1], device=tokens.device)  # (L,)
        if not torch.equal(slots, (place > 0) & (place <= last)):
            raise ValueError("the slots of a text must follow its start-of-text token, one after another.")
        live = (place > last) & (place <= ends)  # (n_cls, L)
        edge = slots & (place > n_ctx) & ((place <= n_ctx + n_prefix) | (place > last - n_suffix))
        middle = slots & (place > n_ctx) & ~edge
        self.live_tokens, self.middles = Ragged(live.sum(dim=1)), Ragged(middle.sum(dim=1))
        self.middle_counts, self.live_counts = middle.sum(dim=1).tolist(), live.sum(dim=1).tolist()

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
        self._buffer("ends", (ends - last - 1)[:, 0])  # (n_cls,), among the live tokens of the class

        n_cls, T = self.live_tokens.there.shape
        longest = self.middles.there.shape[1]
        hidden = torch.zeros(n_cls, 1, T, 1 + n_ctx + longest + n_prefix + n_suffix + T, dtype=torch.bool)
        hidden[..., 1 + n_ctx : 1 + n_ctx + longest] = ~self.middles.there.cpu()[:, None, None]
        hidden[..., -T:] = torch.ones(T, T, dtype=torch.bool).triu(1)  # later ones; those filled up are later
        self._buffer("hidden", hidden.to(tokens.device))  # (n_cls, 1, T, K), what a live token does not see

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
            x = self._all_positions(blocks[depth - 1 :], text.attn_mask, x, shared, edges)  # (B, n_cls, w)
        x = text.ln_final(x)
        if isinstance(text.text_projection, nn.Linear):
            return text.text_projection(x)
        return x if text.text_projection is None else x @ text.text_projection

    def _before(self, i: int, vectors: SlotVectors) -> tuple[Tensor, Tensor]:
        """Rows before block i: start, context and middles (1 + n_ctx + M, w); edges (B, n_cls, P + S, w)."""
        ctx, edges, middle = (v.to(self.live) for v in vectors)
        if i == 0:  # later ones enter without positions
            ctx, edges = ctx + self.ctx_positions, edges + self.edge_positions
            middle = middle + self.middle_positions
        return torch.cat([self.starts[i : i + 1], ctx, middle]), edges

    def _block(
        self, block: ResidualAttentionBlock, x: Tensor, shared: Tensor, edges: Tensor, ends_only: bool = False
    ) -> Tensor:
        """Live tokens (B, N, w) after a block, or of them only the ends of text, (B, n_cls, w)."""
        w = x.shape[-1]
        qkv = self.live_tokens.fill_up(project(block, block.ln_1(x), "qkv"))  # (B, n_cls, T, 3w)
        q, kv = qkv.tensor_split([w], dim=-1)
        kv_edges = project(block, block.ln_1(edges), "kv")  # (B, n_cls, P + S, 2w)
        B = max(len(x), len(edges))
        own = torch.cat([kv_edges.expand(B, -1, -1, -1), kv.expand(B, -1, -1, -1)], dim=2)
        kv_shared = project(block, block.ln_1(shared), "kv")  # (1 + n_ctx + M, 2w)
        common, middle = kv_shared.tensor_split([1 + self.n_ctx])
        common = common.expand(len(self.ends), -1, -1)  # (n_cls, 1 + n_ctx, 2w)
        kv_shared = torch.cat([common, self.middles.fill_up(middle)], dim=1)  # (n_cls, K_shared, 2w)
        if not ends_only:
            attended = _attend(q, own, kv_shared, self.hidden, block.attn.num_heads)  # (B, n_cls, T, w)
            return finish(block, x, self.live_tokens.in_one_list(attended))
        classes = torch.arange(len(self.ends), device=x.device)
        x = self.live_tokens.fill_up(x)[:, classes, self.ends]  # (B, n_cls, w)
        q = q[:, classes, self.ends, None]  # (B, n_cls, 1, w)
        hidden = self.hidden[classes, :, self.ends, None]  # (n_cls, 1, 1, K)
        attended = _attend(q, own, kv_shared, hidden, block.attn.num_heads)
        return finish(block, x, attended[:, :, 0])

    def _all_positions(
        self, blocks: nn.ModuleList, mask: Tensor, x: Tensor, shared: Tensor, edges: Tensor
    ) -> Tensor:
        """The ends of text (B, n_cls, w) after blocks that compute every position."""
        B = max(len(x), len(edges))
        common, middle = shared.tensor_split([1 + self.n_ctx])  # (1 + n_ctx, w), (M, w)
        by_class = zip(
            edges.expand(B, -1, -1, -1).unbind(1),  # (B, P + S, w)
            middle.split(self.middle_counts),  # (M_c, w)
            x.expand(B, -1, -1).split(self.live_counts, dim=1),  # (B, T_c, w)
            strict=True,
        )
        texts = []
        for edge, rows, live in by_class:
            first, last = edge[:, : self.n_prefix], edge[:, self.n_prefix :]
            pieces = [common.expand(B, -1, -1), first, rows.expand(B, -1, -1), last, live]
            texts.append(torch.cat(pieces, dim=1))  # (B, length of the text, w)
        lengths = [text.shape[1] for text in texts]
        L = max(lengths)
        x = torch.stack([F.pad(text, (0, 0, 0, L - text.shape[1])) for text in texts], dim=1)
        x = x.flatten(0, 1)  # (B * n_cls, L, w); what fills up is later than the end of text, so not seen
        for block in blocks:
            x = block(x, attn_mask=mask[:L, :L])
        x = x.unflatten(0, (B, -1))  # (B, n_cls, L, w)
        return torch.stack([x[:, c, length - 1] for c, length in enumerate(lengths)], dim=1)


def _attend(q: Tensor, own: Tensor, shared: Tensor, hidden: Tensor, heads: int) -> Tensor:
    """Attention to keys of each image and keys shared by the images, without copying these for each image.

    Args:
        q: (B, n_cls, T, w), the queries; B here and in `own` may be 1.
        own: (B, n_cls, K_own, 2w), keys and values.
        shared: (n_cls, K_shared, 2w), keys and values.
        hidden: (n_cls, 1, T, K_shared + K_own), True where a query does not see a key.
        heads: Number of heads.

    Returns:
        (B, n_cls, T, w).
    """
    q = q.unflatten(-1, (heads, -1)) / sqrt(q.shape[-1] // heads)  # (B, n_cls, T, heads, e)
    k, v = own.unflatten(-1, (2, heads, -1)).unbind(-3)  # (B, n_cls, K_own, heads, e)
    k_shared, v_shared = shared.unflatten(-1, (2, heads, -1)).unbind(-3)  # (n_cls, K_shared, heads, e)
    to_shared = torch.einsum("bcthe,ckhe->bchtk", q, k_shared)
    to_own = torch.einsum("bcthe,bckhe->bchtk", q, k)
    to_shared = to_shared.expand(len(to_own), -1, -1, -1, -1)
    weights = torch.cat([to_shared, to_own], dim=-1).masked_fill(hidden, -inf).softmax(dim=-1)
    on_shared, on_own = weights.tensor_split([shared.shape[1]], dim=-1)
    read = torch.einsum("bchtk,ckhe->bcthe", on_shared, v_shared)
    return (read + torch.einsum("bchtk,bckhe->bcthe", on_own, v)).flatten(-2)
