"""Low-rank interventions on hidden states, after LoReFT, and their form conditioned on an image.

Nothing that these modules compute for a batch of images needs to be as wide as the hidden states: what an
image changes has rank r. `forward` is the equation, d wide; `projected` gives A h' without leaving rank r.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def between(X: Tensor, rows: Tensor, Y: Tensor) -> Tensor:
    """X diag(row) Y for every row: (a, d), (..., d), (d, b) -> (..., a, b).

    One matrix product with all products of a row of X and a column of Y, so nothing of (..., a, d) is held.
    """
    products = X[:, None] * Y.T  # (a, b, d)
    return (rows @ products.flatten(0, 1).T).unflatten(-1, products.shape[:2])  # (..., a, b)


class Orthonormal(nn.Module):
    """The columns of a tall matrix made orthonormal: Q of X = QU, with a positive diagonal in U.

    A parametrization that keeps R^T R = I in training. Weight decay shrinks X, which leaves Q as it is.
    (torch's own `orthogonal` needs a d x d matrix, or, in its Householder form, no weight decay.)
    """

    def forward(self, X: Tensor) -> Tensor:
        """(d, r) -> (d, r)."""
        Q, U = torch.linalg.qr(X)
        return Q * U.diagonal().sign()

    def right_inverse(self, Q: Tensor) -> Tensor:
        """What is kept for a matrix: itself."""
        return Q


def _linear_start(n_inputs: int, generator: torch.Generator | None, *shape: int) -> nn.Parameter:
    """Drawn as torch's `nn.Linear` with so many inputs draws its weight and bias."""
    bound = 1 / sqrt(n_inputs)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


class _Intervention(nn.Module):
    """What the interventions share: R (d, r), orthonormal at the start, and h' = h + R s in low rank."""

    def __init__(self, d: int, rank: int, orthonormal: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank must be at least 1, got {rank}.")
        if rank > d:
            raise ValueError(f"the rank must be at most the width of the hidden states, {d}, got {rank}.")
        self.R = nn.Parameter(nn.init.orthogonal_(torch.empty(d, rank), generator=generator))
        if orthonormal:
            parametrize.register_parametrization(self, "R", Orthonormal())

    def edit(self, h: Tensor, f: Tensor | None = None) -> Tensor:
        """Give s of rows h, rank wide; each intervention has its own."""
        raise NotImplementedError

    def projected(self, A: Tensor, h: Tensor, f: Tensor | None = None, m: Tensor | None = None) -> Tensor:
        """A (m * h'), with m a dropout mask over 1 - p, or None: (a, d), (..., d) -> (..., a) or (B, ..., a).

            A diag(m) h' = A diag(m) h + (A diag(m) R) s

        which holds nothing d wide for each image, unless the mask itself is one for each image: m may be
        (..., d), shared by the batch, or (B, ..., d).
        """
        if m is not None and m.ndim > h.ndim:
            return (m * self(h, f)) @ A.T
        s = self.edit(h, f)  # (..., r) or (B, ..., r)
        if m is None:
            return h @ A.T + s @ (A @ self.R).T
        return (m * h) @ A.T + torch.einsum("...ar,...r->...a", between(A, m, self.R), s)


class LoReFT(_Intervention):
    r"""Low-rank linear subspace intervention on a hidden state h.

        h' = h + R (W h + b - R^T h)                                             (d,)

    Within the r directions of R the state becomes W h + b (for orthonormal R, which it is at the start);
    orthogonal to them it stays. Wu et al., "ReFT: Representation Finetuning for Language Models", NeurIPS
    2024, arXiv 2404.03592, who keep R orthonormal; CILMP does not, `orthonormal=True` does.

    Args:
        d: Width of a hidden state.
        rank: r.
        orthonormal: Keep R^T R = I in training, too.
        generator: Of the random start; by default torch's own.

    Attributes:
        R: (d, r), orthonormal at the start.
        W: (r, d), with `b` drawn as by `nn.Linear`.
        b: (r,).

    Raises:
        ValueError: a rank below 1 or above d.
    """

    def __init__(
        self, d: int, rank: int, *, orthonormal: bool = False, generator: torch.Generator | None = None
    ) -> None:
        """Draw the weights; see the class."""
        super().__init__(d, rank, orthonormal, generator)
        self.W = _linear_start(d, generator, rank, d)
        self.b = _linear_start(d, generator, rank)

    def forward(self, h: Tensor, f: Tensor | None = None) -> Tensor:
        """h' of rows h: (..., d) -> (..., d). The image feature f changes nothing."""
        s = h @ self.W.T + self.b - h @ self.R  # (..., r)
        return h + s @ self.R.T

    def edit(self, h: Tensor, f: Tensor | None = None) -> Tensor:
        """s = (W - R^T) h + b: (..., d) -> (..., r)."""
        return h @ (self.W.T - self.R) + self.b


class ConditionalLoReFT(_Intervention):
    r"""LoReFT conditioned on an image feature f, the core of CILMP.

        g(f) = G2 (G1 f + c1) + c2                                               (d,), no nonlinearity
        s    = W1 h + W2 (h * g(f)) + b - R^T h                                  (r,)
        h'   = h + R s                                                           (d,)

    Du et al., IEEE TMI 44(12), 2025, arXiv 2511.12639. Since g(f) has rank r, with u = G1 f + c1,

        s = [W2 diag(h) G2] u + (W1 + W2 diag(c2) - R^T) h + b

    in which an image meets an (r, r) matrix for each row h, and never the width d: `edit`.

    Args:
        d: Width of a hidden state.
        rank: r.
        feature_dim: D, length of f.
        orthonormal: Keep R^T R = I in training, too; the paper does not.
        condition_scale: What W2 and G2 are multiplied with at the start; the authors' is 1.
        generator: Of the random start; by default torch's own.

    Attributes:
        R: (d, r), orthonormal at the start.
        W1: (r, d), with `W2` and `b` drawn as one `nn.Linear` of [h, h * g(f)], 2d wide.
        W2: (r, d).
        b: (r,).
        G1: (r, D), with `c1` drawn as by `nn.Linear`.
        c1: (r,).
        G2: (d, r), with `c2` drawn as by `nn.Linear`.
        c2: (d,).

    Raises:
        ValueError: a rank below 1 or above d.
    """

    def __init__(
        self,
        d: int,
        rank: int,
        feature_dim: int,
        *,
        orthonormal: bool = False,
        condition_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw the weights; see the class."""
        super().__init__(d, rank, orthonormal, generator)
        self.W1 = _linear_start(2 * d, generator, rank, d)
        self.W2 = _linear_start(2 * d, generator, rank, d)
        self.b = _linear_start(2 * d, generator, rank)
        self.G1 = _linear_start(feature_dim, generator, rank, feature_dim)
        self.c1 = _linear_start(feature_dim, generator, rank)
        self.G2 = _linear_start(rank, generator, d, rank)
        self.c2 = _linear_start(rank, generator, d)
        for of_the_condition in (self.W2, self.G2):
            of_the_condition.data *= condition_scale

    def forward(self, h: Tensor, f: Tensor) -> Tensor:
        """h' of rows h for each image: (..., d), (B, D) -> (B, ..., d)."""
        g = (f @ self.G1.T + self.c1) @ self.G2.T + self.c2  # (B, d)
        g = g.reshape(len(f), *[1] * (h.ndim - 1), -1)  # (B, ..., d)
        s = h @ self.W1.T + (h * g) @ self.W2.T + self.b - h @ self.R  # (B, ..., r)
        return h + s @ self.R.T

    def edit(self, h: Tensor, f: Tensor) -> Tensor:
        """s of rows h for each image, without leaving rank r: (..., d), (B, D) -> (B, ..., r)."""
        u = f @ self.G1.T + self.c1  # (B, r)
        K = between(self.W2, h, self.G2)  # (..., r, r), W2 diag(h) G2
        rest = h @ (self.W1 + self.W2 * self.c2 - self.R.T).T + self.b  # (..., r)
        return torch.einsum("...sr,br->b...s", K, u) + rest


class RowDropout(nn.Module):
    """Dropout on whole hidden states, as a mask m to multiply them with: 0 or 1 / (1 - p), each at random.

    Drawn anew at each call in training, from torch's generator; None in evaluation.

    Args:
        p: Chance of a zero.
        per_image: A mask for every image, as CILMP's authors draw them; else one for the batch, whose draws
            have the same distribution for each image, and which leaves `projected` in low rank.

    Raises:
        ValueError: p outside 0 <= p < 1.
    """

    def __init__(self, p: float, per_image: bool = False) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {p}.")
        self.p, self.per_image = p, per_image

    def forward(self, h: Tensor, n_images: int) -> Tensor | None:
        """m for rows h (..., d): (..., d), or (n_images, ..., d); None where nothing is dropped."""
        if not self.training or self.p == 0:
            return None
        shape = (n_images, *h.shape) if self.per_image else h.shape
        return h.new_empty(shape).bernoulli_(1 - self.p).div_(1 - self.p)

    def extra_repr(self) -> str:
        """What distinguishes it, for `print`."""
        return f"p={self.p}, per_image={self.per_image}"


class EditedRows(nn.Module):
    """The rows of every class for one text block, edited and brought to the text width: tokens = B A h'.

    h' is h for the rows in the middle, and the output of `prefix` or `suffix`, with dropout, for the rows at
    the edges. A leads from the LLM's width to rank r, B from r to the text width w, both without bias.

    Attributes:
        prefix: The intervention on the first rows; None where there are none to edit.
        suffix: The one on the last rows, likewise.
        dropout_prefix: Draws the masks of the first rows.
        dropout_suffix: Draws those of the last rows.
        A: (r, d), Kaiming-uniform with a = sqrt(5) at the start, as is `B`.
        B: (w, r).
    """

    def __init__(
        self,
        prefix: nn.Module | None,
        suffix: nn.Module | None,
        dropout: tuple[float, bool],
        d: int,
        rank: int,
        w: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.prefix, self.suffix = prefix, suffix
        self.dropout_prefix, self.dropout_suffix = RowDropout(*dropout), RowDropout(*dropout)
        self.A, self.B = (
            nn.Parameter(nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=generator))
            for shape in ((rank, d), (w, rank))
        )

    def forward(self, first: Tensor, middle: Tensor, last: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the edges (B or 1, n_cls, P + S, w), and of the middle (M, w).

        Args:
            first: (n_cls, P, d), of each class the first rows.
            middle: (M, d), all classes' rows in the middle.
            last: (n_cls, S, d).
            f: (B, D), the normalised image features.
        """
        edges = [middle.new_zeros(len(first), 0, len(self.A))]  # of no rows
        if self.prefix is not None:
            edges.append(self.prefix.projected(self.A, first, f, self.dropout_prefix(first, len(f))))
        if self.suffix is not None:
            edges.append(self.suffix.projected(self.A, last, f, self.dropout_suffix(last, len(f))))
        B = max(len(rows) if rows.ndim == 4 else 1 for rows in edges)
        rank_wide = torch.cat([rows.expand(B, *rows.shape[-3:]) for rows in edges], dim=2)
        return rank_wide @ self.B.T, middle @ self.A.T @ self.B.T
