"""CILMP's edit of the LLM's states cut to a lower rank, image by image, to see what its directions do."""

import copy

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.methods.cilmp import CILMP
from medvlp.study.evaluation import evaluating


class KeptRank(nn.Module):
    r"""An intervention of whose edit only the k strongest directions are kept, for each image anew.

        E = S R^T = U diag(sigma) V^T                                            (n, d), rank at most r
        H' = H + U_k diag(sigma_k) V_k^T

    E are the edits R s of all n rows of all classes, of one image. The first k terms of their singular value
    decomposition are the closest to E of all matrices of rank k (Eckart & Young 1936). Nothing d wide is
    decomposed: with R = Q T and Q orthonormal, E = (S T^T) Q^T.

    Args:
        intervention: `LoReFT` or `ConditionalLoReFT`, as trained.
        kept: k; 0 leaves the rows as they are, r is the intervention itself.
    """

    def __init__(self, intervention: nn.Module, kept: int) -> None:
        super().__init__()
        self.intervention, self.kept = intervention, kept

    def edits(self, h: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """The kept edits of rows h (n_cls, P, d), as x (B or 1, n_cls, P, r) and Q (d, r): x Q^T."""
        s = self.intervention.edit(h, f)  # (B, n_cls, P, r), without B where no image plays a part
        Q, T = torch.linalg.qr(self.intervention.R)  # (d, r), (r, r)
        x = (s @ T.T).reshape(-1, h.shape[0] * h.shape[1], s.shape[-1])  # (B, n, r)
        V = torch.linalg.svd(x, full_matrices=False).Vh[:, : self.kept]  # (B, k, r)
        return (x @ V.mT @ V).unflatten(1, h.shape[:2]), Q

    def projected(self, A: Tensor, h: Tensor, f: Tensor, m: Tensor | None = None) -> Tensor:
        """A h' as an intervention's own `projected`, (B, n_cls, P, a); ValueError in training."""
        if m is not None:
            raise ValueError("an intervention cut to a lower rank is for looking, not for training.")
        x, Q = self.edits(h, f)
        return h @ A.T + x @ (A @ Q).T


def with_rank(cilmp: CILMP, kept: int) -> CILMP:
    """The same method, its edits cut to their `kept` strongest directions: see `KeptRank`.

    It shares the CLIP; what was learned is copied.

    Raises:
        ValueError: another method, one without intervention, or a rank outside 0 to its own.
    """
    check_intervention(cilmp)
    if not 0 <= kept <= cilmp.config["rank"]:
        raise ValueError(f"kept must be from 0 to {cilmp.config['rank']}, the method's rank, got {kept}.")
    other = copy.deepcopy(cilmp, {id(cilmp.clip): cilmp.clip}).eval()
    for site in other.sites:
        if site.prefix is not None:
            site.prefix = KeptRank(site.prefix, kept)
        if site.suffix is not None:
            site.suffix = KeptRank(site.suffix, kept)
    return other


def check_intervention(method: nn.Module) -> None:
    """Raise ValueError for a method that edits no states."""
    if not isinstance(method, CILMP):
        raise ValueError(f"{type(method).__name__} intervenes in no representations; give a CILMP.")
    if method.config["intervention"] == "none" or not method.h_first.shape[1] + method.h_last.shape[1]:
        raise ValueError(
            "this CILMP has no intervention; build it with intervention='conditional' or 'unconditional', "
            "and a prefix_length or suffix_length above 0."
        )


def rank_effect(cilmp: CILMP, images: Tensor, kept: int) -> pd.DataFrame:
    """What the edit, cut to a rank, does to each class of one image.

    Args:
        cilmp: A method with an intervention.
        images: (1, 3, S, S), one preprocessed image.
        kept: The rank that is kept, from 0 (no edit) to the method's own.

    Returns:
        One row a class: classname, kept, probability, angle (in degrees, between the class's text feature
        and that without edit) and edit (length of the edits as a share of that of the rows edited, over all
        blocks).

    Raises:
        ValueError: as `with_rank`.
    """
    plain, cut = with_rank(cilmp, 0), with_rank(cilmp, kept)
    with evaluating(cut):
        f = cut.image_features(images)  # (1, D)
        t, t_plain = cut.class_features(f)[0], plain.class_features(f)[0]  # (n_cls, D)
        logits = cut.logit_scale * f.to(t) @ t.T  # (1, n_cls)
        chord = (F.normalize(t.double(), dim=1) - F.normalize(t_plain.double(), dim=1)).norm(
            dim=1
        )  # (n_cls,)
        lengths = _lengths(cut, f.to(t))  # (n_cls,)
    return pd.DataFrame(
        {
            "classname": cilmp.classnames,
            "kept": kept,
            "probability": logits[0].double().softmax(dim=0).cpu().numpy(),
            "angle": (2 * (chord / 2).asin()).rad2deg().cpu().numpy(),
            "edit": lengths.cpu().numpy(),
        }
    )


def _lengths(cut: CILMP, f: Tensor) -> Tensor:
    """Length of the kept edits over all blocks as a share of that of the rows, by class: (n_cls,)."""
    edited = rows = torch.zeros(len(cut.classnames), device=f.device)
    for site in cut.sites:
        for part, h in ((site.prefix, cut.h_first), (site.suffix, cut.h_last)):
            if part is not None:
                x, _ = part.edits(h, f)  # (1, n_cls, P, r), in orthonormal coordinates
                edited = edited + x[0].square().sum(dim=(1, 2))
                rows = rows + h.square().sum(dim=(1, 2))
    return (edited / rows).sqrt()
