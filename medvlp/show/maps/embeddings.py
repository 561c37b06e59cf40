"""Embeddings: what a method and its images are in feature space, as vectors and a table of what each one is.

Collect before and after training by calling a collector twice, with another `stage`; put everything that is
to be seen in one map together with `Embeddings.concat`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import ImageLoader, image_features
from medvlp.data.errors import check_choice, check_columns, check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet
from medvlp.methods.base import Method, check_symptoms
from medvlp.methods.cilmp import CILMP
from medvlp.show.explanations.scores import check_intervention
from medvlp.study.evaluation import evaluating

COLUMNS = ["method", "stage", "what", "modality", "classname", "text", "image"]
_IMAGES = 32  # images at once where every image has class features of its own, or a prompted tower


@dataclass(frozen=True, eq=False)
class Embeddings:
    """N points in one space of D dimensions.

    Attributes:
        vectors: (N, D) float32.
        points: N rows, index 0 to N - 1: method, stage (as you called it), what ("image", "class", "symptom",
            "LLM row"), modality ("image", "text", "weights" or "LLM"), classname (in label order), text (of a
            symptom, or which row of an LLM), image (its number in the image set, or missing).

    Raises:
        ValueError: vectors that are no matrix, not finite, zero, or of another number than the points.

    Example:
        >>> import medvlp
        >>> from medvlp.show import Embeddings, class_points, symptom_points
        >>> vip = medvlp.ViP(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"))
        >>> both = Embeddings.concat([class_points(vip), symptom_points(vip)])
        >>> both
        Embeddings(18 points of ... dimensions: 2 class, 16 symptom)
    """

    vectors: np.ndarray
    points: pd.DataFrame

    def __post_init__(self) -> None:
        check_kinds(Embeddings.__init__, {"self": self, "points": self.points})
        vectors = np.asarray(self.vectors, dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(self.points):
            raise ValueError(
                f"vectors of shape {vectors.shape} do not fit a table of {len(self.points)} points; "
                "give one row for each point."
            )
        lengths = np.linalg.norm(vectors, axis=1)  # (N,)
        broken = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(broken):
            raise ValueError(
                f"{len(broken)} vectors are zero or not finite, the first is point {broken[0]}; "
                "they have no direction and no place in a map."
            )
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "points", self.points.reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        counts = self.points["what"].value_counts(sort=False) if "what" in self.points else {}
        listed = ", ".join(f"{n} {what}" for what, n in counts.items())
        return f"Embeddings({len(self)} points of {self.vectors.shape[1]} dimensions: {listed})"

    def take(self, rows: Sequence[int] | np.ndarray | pd.Series) -> "Embeddings":
        """These points only: numbers, or a mask (N,) such as `e.points["what"] == "image"`."""
        chosen = np.arange(len(self))[np.asarray(rows)]
        return Embeddings(self.vectors[chosen], self.points.iloc[chosen])

    def centred(self, by: str = "modality") -> "Embeddings":
        """Each point less the mean of its group, which closes the gap between modalities; see `modality_gap`.

        What is left are directions within a modality, and no longer cosines of images with texts. A group
        needs two points that differ.
        """
        check_choice("column", by, self.points.columns, "the points")
        means = pd.DataFrame(self.vectors).groupby(self.points[by]).transform("mean")  # (N, D)
        return Embeddings(self.vectors - means.to_numpy(), self.points)

    @classmethod
    def concat(cls, parts: Sequence["Embeddings"]) -> "Embeddings":
        """The points of all parts, which must have the same number of dimensions."""
        if not parts:
            raise ValueError("there are no embeddings to put together.")
        widths = {part.vectors.shape[1] for part in parts}
        if len(widths) > 1:
            listed = ", ".join(map(str, sorted(widths)))
            raise ValueError(f"points of {listed} dimensions lie in different spaces; make a map of each.")
        points = pd.concat([part.points for part in parts], ignore_index=True)
        return cls(np.concatenate([part.vectors for part in parts]), points)


def image_points(method: Method | Clip, images: ImageSet, stage: str = "") -> Embeddings:
    """The features of images as a CLIP, or a method's own image tower, sees them: one point an image.

    Methods that leave the image tower as it is (ZeroShot, CoOp, ViP...) have the CLIP's features, which come
    from the cache. Those with prompts in it (VPT, IVLP, MaPLe, PromptSRC, CILMP) or an adapter behind it
    (CLIPAdapter) have their own.

    Example:
        >>> import medvlp
        >>> from medvlp.show import image_points
        >>> images = medvlp.load_dataset("phantom-derm", num_shots=2).test.subset(range(5))
        >>> image_points(medvlp.load_clip("tiny"), images).points["method"].tolist()
        ['CLIP', 'CLIP', 'CLIP', 'CLIP', 'CLIP']
    """
    check_kinds(image_points, locals())
    features, of_method = _image_features(method, images)
    name = type(method).__name__ if of_method else "CLIP"
    labels = images.labels.numpy()  # (N,)
    columns = {"stage": stage, "what": "image", "modality": "image", "image": np.arange(len(images))}
    return _embeddings(features, name, images.card.classnames, labels, columns)


def class_points(method: Method, images: ImageSet | None = None, stage: str = "") -> Embeddings:
    """What a method holds an image against: one point a class, or one an image and class.

    These are `class_features` (CoOp and its family, ViP's merged features), the frozen text features
    (ZeroShot, VPT, TipAdapter, CLIPAdapter), or learned weights (TextProbe, LinearProbe: modality
    "weights"). Methods whose texts depend on the image (CoCoOp, CILMP) need `images`, and give each image a
    point for every class; for another method images change nothing.

    Raises:
        ValueError: a method without class features, or one that needs images.

    Example:
        >>> import medvlp
        >>> from medvlp.show import class_points
        >>> coop = medvlp.CoOp(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"))
        >>> class_points(coop).points["classname"].tolist()
        ['melanoma', 'nevus']
    """
    check_kinds(class_points, locals())
    classnames, name = method.card.classnames, type(method).__name__
    columns: dict[str, object] = {"stage": stage, "what": "class", "modality": "text"}
    if method.conditional:
        if images is None:
            raise ValueError(f"the class features of {name} differ from image to image; give images.")
        f, _ = _image_features(method, images)  # (N, D)
        with evaluating(method):
            bar = _bar(f.to(method.clip.device).split(_IMAGES), "class features")
            features = torch.cat([method.class_features(part).cpu() for part in bar]).flatten(0, 1)
        columns["image"] = np.repeat(np.arange(len(images)), len(classnames))
    else:
        with evaluating(method):
            features, columns["modality"] = method.class_features(), method.modality  # (n_cls, D)
    labels = np.tile(np.arange(len(classnames)), len(features) // len(classnames))
    return _embeddings(features, name, classnames, labels, columns)


def symptom_points(method: Method, stage: str = "") -> Embeddings:
    """The features of a method's symptoms, normalised, one point each: ZeroShot's plain, ViP's with context.

    Raises:
        ValueError: a method without symptom features.

    Example:
        >>> import medvlp
        >>> from medvlp.show import symptom_points
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"))
        >>> symptom_points(zero).points["text"].iloc[0]
        'a blue-white veil'
    """
    check_kinds(symptom_points, locals())
    check_symptoms(method)
    symptoms = method.symptoms
    with evaluating(method):
        features = F.normalize(method.symptom_features(), dim=-1)  # (M, D)
    labels = np.repeat(np.arange(len(symptoms)), [len(phrases) for phrases in symptoms.values()])
    text = [phrase for phrases in symptoms.values() for phrase in phrases]
    columns = {"stage": stage, "what": "symptom", "modality": "text", "text": text}
    return _embeddings(features, type(method).__name__, list(symptoms), labels, columns)


def llm_points(method: CILMP, images: ImageSet, site: int = 0) -> Embeddings:
    """CILMP's LLM representations before and after the intervention, in the LLM's own space.

    Stage "before intervention" has a point for every edited row h of a class; "after intervention" one for
    h' of every image and row. Rows that are not edited are left out. The text says which row it is, "prefix"
    or "suffix" and its place.

    Args:
        method: A CILMP whose intervention is not "none".
        images: Whose features the interventions are given.
        site: The text block, from 0.

    Raises:
        ValueError: no intervention, or an unknown site.

    Example:
        >>> import medvlp
        >>> from medvlp.show import llm_points
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> cilmp = medvlp.CILMP(medvlp.load_clip("tiny"), data.card)
        >>> llm_points(cilmp, data.test.subset(range(2))).points["stage"].unique().tolist()
        ['before intervention', 'after intervention']
    """
    check_kinds(llm_points, locals())
    check_intervention(method)
    if not 0 <= site < len(method.sites):
        raise ValueError(f"site must be from 0 to {len(method.sites) - 1}, the edited blocks, got {site}.")
    block = method.sites[site]
    edits = {"prefix": (block.prefix, method.h_first), "suffix": (block.suffix, method.h_last)}
    f, _ = _image_features(method, images)  # (N, D)
    f, parts = f.to(method.ctx), []
    for end, (edit, h) in edits.items():  # h (n_cls, P, d)
        if edit is None:
            continue
        with evaluating(method):
            edited = edit(h, f)  # (N, n_cls, P, d), or (n_cls, P, d) where no image matters
        for stage, rows in (("before intervention", h[None]), ("after intervention", edited)):
            rows = rows if rows.ndim == 4 else rows[None]
            n, n_cls, n_rows, _ = rows.shape
            labels = np.tile(np.repeat(np.arange(n_cls), n_rows), n)
            columns = {"stage": stage, "what": "LLM row", "modality": "LLM"}
            columns["text"] = [f"{end} {i + 1}" for i in range(n_rows)] * (n * n_cls)
            if n == len(images) and stage == "after intervention":
                columns["image"] = np.repeat(np.arange(n), n_cls * n_rows)
            parts.append(_embeddings(rows.flatten(0, 2), "CILMP", method.classnames, labels, columns))
    return Embeddings.concat(parts)


def modality_gap(embeddings: Embeddings) -> pd.DataFrame:
    """How far apart the modalities lie, one row a pair of them.

    `gap` is the distance between their centroids on the unit sphere, from 0 to 2 (Liang et al., "Mind the
    Gap", NeurIPS 2022, arXiv 2203.02053); `between`, `within_first` and `within_second` are mean cosines of
    their points. CLIP's images and texts usually lie in two cones, so that any text is further from an image
    than every other image is: a map then shows modalities before it shows classes.

    Example:
        >>> import medvlp
        >>> from medvlp.show import Embeddings, image_points, modality_gap, symptom_points
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> points = [image_points(zero, data.train), symptom_points(zero)]
        >>> modality_gap(Embeddings.concat(points))[["first", "second"]].to_numpy().tolist()
        [['image', 'text']]
    """
    check_kinds(modality_gap, locals())
    check_columns(embeddings.points, ["modality"], "image_points")
    unit = embeddings.vectors / np.linalg.norm(embeddings.vectors, axis=1, keepdims=True)  # (N, D)
    modality = embeddings.points["modality"]
    of = {name: unit[modality == name] for name in sorted(modality.unique())}  # (n, D) each
    centroids = {name: vectors.mean(axis=0, dtype=float) for name, vectors in of.items()}  # (D,) each
    within = {name: _mean_cosine(centroids[name], len(vectors)) for name, vectors in of.items()}
    rows = [
        (a, b, np.linalg.norm(centroids[a] - centroids[b]), centroids[a] @ centroids[b], within[a], within[b])
        for a, b in combinations(centroids, 2)
    ]
    return Table(rows, columns=["first", "second", "gap", "between", "within_first", "within_second"])


def _mean_cosine(centroid: np.ndarray, n: int) -> float:
    """Mean cosine of n unit vectors with each other, but not with themselves, from their mean (D,)."""
    return (n * (centroid @ centroid) - 1) / (n - 1) if n > 1 else np.nan


def _embeddings(
    features: Tensor, method: str, classnames: Sequence[str], labels: np.ndarray, columns: dict[str, object]
) -> Embeddings:
    """Features with their table; `columns` may lack text and image."""
    values = {"method": method, "text": "", "image": pd.NA} | columns
    points = Table(values, index=range(len(labels)))
    points["classname"] = pd.Categorical.from_codes(labels, categories=list(classnames))
    points["image"] = points["image"].astype("Int64")
    return Embeddings(features.detach().float().cpu().numpy(), points[COLUMNS])


def _image_features(method: Method | Clip, images: ImageSet) -> tuple[Tensor, bool]:
    """Features (N, D) on the CPU, and whether they are the method's own and not the CLIP's."""
    clip = method if isinstance(method, Clip) else method.clip
    if isinstance(method, Method) and not method.keeps_image_tower:
        loader = ImageLoader.in_order(clip, images, _IMAGES, num_workers=0)
        with evaluating(method):
            bar = _bar(loader, "image features")
            return torch.cat([method.image_features(x.to(clip.device)).cpu() for x, _ in bar]), True
    features = image_features(clip, images).features  # (N, D)
    if isinstance(method, Clip):
        return features, False
    with evaluating(method):
        features = features.to(clip.device)
        adapted = method.adapted(features)
    return adapted.cpu(), adapted is not features


def _bar(batches: Sequence, what: str) -> tqdm:
    return tqdm(batches, desc=what, unit="batch", leave=False, delay=2)
