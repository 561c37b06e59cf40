"""Why this class? Symptom scores of one image, and for CILMP what its intervention changes.

A symptom's score is a cosine, not a finding. Whether it says what its words say is measured on phantoms:
`medvlp.show.faithfulness`.
"""

import copy

import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from medvlp.data.errors import check_columns, check_kinds
from medvlp.data.html import Table
from medvlp.data.images import ImageSource, read_image
from medvlp.methods.base import Method, check_symptoms
from medvlp.methods.cilmp import CILMP
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import score_table
from medvlp.show.figures.basic import GREY, PALETTE, axes_beside, closed, decision_title, symptom_bars
from medvlp.study.evaluation import evaluating


def symptom_scores_table(method: Method, image: ImageSource, reference: Tensor | None = None) -> pd.DataFrame:
    """What argued for each class in one image, by the method's own terms.

    Args:
        method: `ZeroShot` with symptoms, `ViP`, or `CILMP`.
        image: A PIL image, or its normalised feature, (D,) or (1, D): the clip's, or for CILMP that of
            `method.image_features`.
        reference: For CILMP only: features of other images (N, D), such as the training images'. Their mean
            is the image that the "mean image" columns are conditioned on.

    Returns:
        ZeroShot: a row a symptom: classname, symptom, score (cosine). A class's logit is exp(logit_scale)
        times the mean of its scores.
        ViP: also weight, the merge attention, where it learns one. It is the same for every image.
        CILMP: see `intervention_table`.

    Raises:
        ValueError: a method without symptoms.

    Example:
        >>> import medvlp
        >>> from medvlp.show import symptom_scores_table
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> vip = medvlp.ViP(medvlp.load_clip("tiny"), data.card)
        >>> list(symptom_scores_table(vip, data.test.image(0)))
        ['classname', 'symptom', 'score', 'weight']
    """
    check_kinds(symptom_scores_table, {"method": method, "reference": reference})
    with evaluating(method):
        f = feature_of(method, image)  # (1, D)
        if isinstance(method, CILMP):
            return intervention_table(method, f, reference)
        check_symptoms(method)
        table = score_table(method.symptom_scores(f), method.symptoms)
        if isinstance(method, ViP) and method.aggregation == "merge":
            table["weight"] = method.merge_weights()["weight"]  # in the same order
    return table


@torch.no_grad()
def intervention_table(method: CILMP, features: Tensor, reference: Tensor | None = None) -> pd.DataFrame:
    """What CILMP's intervention changes for one image, as a row a class.

    Args:
        method: In evaluation mode.
        features: (1, D), of `method.image_features`.
        reference: (N, D), see `symptom_scores_table`.

    Returns:
        Columns classname; score and probability, the cosine f . t_c(f) and the softmax of the logits; "score
        without" and "probability without", the same with h' = h in every layer; change, score less "score
        without". With `reference` also "score mean image", the cosine f . t_c(mean f), and "own image", score
        less that: what it is worth that the prompt saw this image.
    """
    f = features.to(method.ctx)  # (1, D)

    def cosines(method: CILMP, seen: Tensor) -> Tensor:
        return (f[:, None] * method.class_features(seen)).sum(dim=-1)[0]  # (n_cls,)

    def probabilities(scores: Tensor) -> np.ndarray:
        return (method.logit_scale * scores.cpu().double()).softmax(dim=0).numpy()

    edited, plain = cosines(method, f), cosines(with_rank(method, 0), f)  # (n_cls,) each
    table = Table({"classname": method.classnames, "score": edited.cpu().numpy()})
    table["score without"] = plain.cpu().numpy()
    table["change"] = table["score"] - table["score without"]
    table["probability"], table["probability without"] = probabilities(edited), probabilities(plain)
    if reference is not None:
        mean = F.normalize(reference.to(f).mean(dim=0, keepdim=True), dim=-1)  # (1, D)
        table["score mean image"] = cosines(method, mean).cpu().numpy()
        table["own image"] = table["score"] - table["score mean image"]
    return table


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


def check_intervention(method: Method) -> None:
    """Raise ValueError for a method that edits no states."""
    if not isinstance(method, CILMP):
        raise ValueError(f"{type(method).__name__} intervenes in no representations; give a CILMP.")
    if method.config["intervention"] == "none" or not method.h_first.shape[1] + method.h_last.shape[1]:
        raise ValueError(
            "this CILMP has no intervention; build it with intervention='conditional' or 'unconditional', "
            "and a prefix_length or suffix_length above 0."
        )


def with_rank(cilmp: CILMP, kept: int) -> CILMP:
    """The same method, its edits cut to their `kept` strongest directions: see `KeptRank`.

    It shares the CLIP; what was learned is copied.

    Raises:
        ValueError: a rank outside 0 to the method's own.
    """
    if not 0 <= kept <= cilmp.config["rank"]:
        raise ValueError(f"kept must be from 0 to {cilmp.config['rank']}, the method's rank, got {kept}.")
    other = copy.deepcopy(cilmp, {id(cilmp.clip): cilmp.clip}).eval()
    for site in other.sites:
        for end in ("prefix", "suffix"):
            if getattr(site, end) is not None:
                setattr(site, end, KeptRank(getattr(site, end), kept))
    return other


def explanation_figure(
    table: pd.DataFrame,
    image: Image.Image | None = None,
    true: str | None = None,
    predicted: str | None = None,
) -> Figure:
    """The table of `symptom_scores_table` as a figure.

    Scores as bars by class; with weights, a second panel of them beside; for CILMP each class's cosine
    without the intervention (a ring), with it (a dot), and with the mean image's prompt (a cross).

    Example:
        >>> import medvlp
        >>> from medvlp.show import explanation_figure, symptom_scores_table
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> image = data.test.image(0)
        >>> len(explanation_figure(symptom_scores_table(zero, image), image).axes)
        2
    """
    check_kinds(explanation_figure, locals())
    check_columns(table, ["classname", "score"], "symptom_scores_table")
    if "score without" in table:
        return _intervention_figure(table, image, true, predicted)
    fig = symptom_bars(table, true, predicted, image)
    if "weight" not in table:
        return fig
    scores = fig.axes[-1]  # where the bars are
    width, height = fig.get_size_inches()
    fig.set_size_inches(width + 2.2, height)
    weights = scores.inset_axes((1.04, 0, 0.42, 1), sharey=scores)
    places = [bar.get_y() + bar.get_height() / 2 for bars in scores.containers for bar in bars]
    colours = [bar.get_facecolor() for bars in scores.containers for bar in bars]
    weights.barh(places, table["weight"], color=colours, height=0.75, alpha=0.6)
    counts = table.groupby("classname", sort=False)["weight"].transform("size")
    weights.plot(1 / counts, places, "|", color="black", markersize=9)
    weights.tick_params(axis="y", labelleft=False, length=0)
    weights.set_xlabel("merge weight (line: plain mean)")
    sns.despine(ax=weights)
    return fig


def _intervention_figure(
    table: pd.DataFrame, image: Image.Image | None, true: str | None, predicted: str | None
) -> Figure:
    height = max(0.5 * len(table) + 1.4, 2.2)
    fig, ax = axes_beside(image, (6.5 if image is None else 8.5, height))
    y = np.arange(len(table))
    ax.hlines(y, table["score without"], table["score"], color=GREY)
    dots = {"marker": "o", "linestyle": "none", "color": PALETTE[0]}
    ax.plot(table["score without"], y, fillstyle="none", label="without the intervention", **dots)
    ax.plot(table["score"], y, label="with it", **dots)
    if "score mean image" in table:
        ax.plot(table["score mean image"], y, "x", color=PALETTE[1], label="with the mean image's")
    ax.set_yticks(y, table["classname"])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlabel("cosine of the image with the class's prompt")
    ax.set_title(decision_title(true, predicted), fontsize=10)
    fig.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    sns.despine(ax=ax)
    return closed(fig)


def feature_of(method: Method, image: ImageSource) -> Tensor:
    """The normalised feature of one image as the method sees it, (1, D)."""
    if isinstance(image, Tensor):
        return image.reshape(1, -1).to(method.clip.device)
    pixels = method.clip.preprocess(read_image(image))[None].to(method.clip.device)  # (1, 3, S, S)
    return method.image_features(pixels)
