"""CILMP as its description reads: image by image, class by class, row by row, d wide, all tokens, all blocks.

Slow on purpose. The parameters are those of a `CILMP`; nothing else of it is used. Gradients reach them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.methods.cilmp import CILMP
from medvlp.methods.interventions import LoReFT


def edited(intervention, h: Tensor, f: Tensor) -> Tensor:
    """h' of one row h (d,) for one image feature f (D,)."""
    i = intervention
    if isinstance(i, LoReFT):
        return h + i.R @ (i.W @ h + i.b - i.R.T @ h)
    g = i.G2 @ (i.G1 @ f + i.c1) + i.c2  # (d,)
    return h + i.R @ (i.W1 @ h + i.W2 @ (h * g) + i.b - i.R.T @ h)


def rows_of(cilmp: CILMP, states: Tensor, site: int, f: Tensor, keep: tuple | None) -> Tensor:
    """tokens = B A h' of one class's rows (L_c, d), for one image: (L_c, w).

    `keep` has the masks of the first and the last rows, already over 1 - p, (P, d) and (S, d).
    """
    s = cilmp.sites[site]
    P, S = cilmp.config["prefix_length"], cilmp.config["suffix_length"]
    if cilmp.config["intervention"] == "none":
        P = S = 0
    rows = []
    for j, h in enumerate(states):
        if j < P:
            h = edited(s.prefix, h, f)
            h = h if keep is None else h * keep[0][j]
        elif j >= len(states) - S:
            h = edited(s.suffix, h, f)
            h = h if keep is None else h * keep[1][j - (len(states) - S)]
        rows.append(s.B @ (s.A @ h))
    return torch.stack(rows)


def image_feature(cilmp: CILMP, image: Tensor) -> Tensor:
    """f of one image (3, S, S): (D,), normalised."""
    visual, prompts = cilmp.clip.model.visual, cilmp.image_prompts
    x = visual.conv1(image[None]).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(1, 1, -1), x], dim=1) + visual.positional_embedding
    n = x.shape[1]
    x = visual.ln_pre(torch.cat([x, prompts[0][None]], dim=1))
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(prompts):
            x = torch.cat([x[:, :n], prompts[i][None]], dim=1)
        x = block(x)
    return F.normalize((visual.ln_post(x)[:, 0] @ visual.proj)[0], dim=-1)


def text_feature(cilmp: CILMP, name: str, rows: list[Tensor]) -> Tensor:
    """t of one class with these rows (L_c, w) before each block: (D,), normalised."""
    clip, ctx = cilmp.clip, cilmp.ctx
    text, n_ctx, n_rows = clip.model.text, ctx.shape[1], len(rows[0])
    ids = clip.tokenizer([" ".join(["H"] * (n_ctx + n_rows) + [name]) + "."]).to(clip.device)  # (1, 77)
    x = text.token_embedding(ids)[0]  # (77, w)
    start, stop = 1 + n_ctx, 1 + n_ctx + n_rows
    x = torch.cat([x[:1], ctx[0], rows[0], x[stop:]]) + text.positional_embedding
    for i, block in enumerate(text.transformer.resblocks):
        if 0 < i < len(ctx):
            x = torch.cat([x[:1], ctx[i], rows[i], x[stop:]])
            assert len(x) == clip.context_length and start + n_rows == stop
        x = block(x[None], attn_mask=text.attn_mask)[0]
    return F.normalize(text.ln_final(x)[ids[0].argmax()] @ text.text_projection, dim=-1)


def logits(cilmp: CILMP, states: list[Tensor], images: Tensor, keep: list | None = None) -> Tensor:
    """(B, n_cls) of images (B, 3, S, S), the classes' representations being `states`, (L_c, d) each.

    `keep[site]` has two masks over 1 - p, (n_cls, P, d) and (n_cls, S, d), or for each image
    (B, n_cls, P, d) and (B, n_cls, S, d).
    """
    out = []
    for b, image in enumerate(images):
        f = image_feature(cilmp, image)
        for c, (name, h) in enumerate(zip(cilmp.classnames, states, strict=True)):
            rows = []
            for site in range(len(cilmp.sites)):
                of_class = None
                if keep is not None:
                    of_class = tuple(m[b, c] if m.ndim == 4 else m[c] for m in keep[site])
                rows.append(rows_of(cilmp, h, site, f, of_class))
            out.append(cilmp.logit_scale * f @ text_feature(cilmp, name, rows))
    return torch.stack(out).unflatten(0, (len(images), -1))
