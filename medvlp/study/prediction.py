"""An image, a prediction."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.data.errors import check_kinds, visible
from medvlp.data.html import Table
from medvlp.data.images import ImageError, image_suffixes, read_image
from medvlp.methods.base import Method
from medvlp.methods.zero_shot import score_table
from medvlp.study.evaluation import evaluating


@dataclass(frozen=True)
class Prediction:
    """The probabilities of one image, and its symptom scores if the method has them.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> prediction = medvlp.predict(medvlp.ZeroShot(clip, data.card), data.test.image(0))
        >>> prediction.symptom_scores.columns.tolist()
        ['classname', 'symptom', 'score']
    """

    probabilities: pd.Series  # by classname, in label order
    symptom_scores: pd.DataFrame | None  # classname, symptom, score
    id: str = ""  # the file's path, its name where a folder or upload was given; pixels have none

    @property
    def classname(self) -> str:
        """The most probable class."""
        return str(self.probabilities.idxmax())

    def __repr__(self) -> str:
        """The class and every probability; a teaching tool's answer, not a diagnosis."""
        listed = ", ".join(f"{name} {p:.3f}" for name, p in self.probabilities.items())
        return visible(f"Prediction({self.classname!r}: {listed})")


class Predictions(list[Prediction]):
    """The predictions of several images, in order."""

    def table(self) -> pd.DataFrame:
        """One row an image: id, predicted, confidence, and P(classname) for each class, as in a report."""
        rows = [
            {"id": one.id, "predicted": one.classname, "confidence": one.probabilities.max()}
            | {f"P({name})": p for name, p in one.probabilities.items()}
            for one in self
        ]
        return Table(rows)


def predict(method: Method, image: Any) -> Prediction | Predictions:
    """Classify an image, or several, as `method` sees them: not a diagnosis.

    Args:
        method: A `Method`.
        image: A file's path; its bytes, or the file opened for reading them; a PIL image; an array (H, W),
            (H, W, 3) or, with alpha, (H, W, 4), of integers of 8 or 16 bits, or of floats within 0..1; a
            tensor with the channels first. Several: a list or tuple of these, a folder's path (for the images
            right in it, by name), or the value of an ipywidgets FileUpload. How each is read,
            `medvlp.data.images.read_image` says.

    Returns:
        The prediction; of several images a list of them, in order, whose `table()` can be saved:
        `predict(method, "folder").table().to_csv("predictions.csv", index=False)`.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: a file that is empty, broken or no image; an array of another shape or range; a folder
            without images.

    Example:
        >>> import medvlp, numpy as np
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero, image = medvlp.ZeroShot(clip, data.card), data.test.image(0)
        >>> medvlp.predict(zero, image).classname in data.card.classnames
        True
        >>> one, other = medvlp.predict(zero, [image, np.asarray(image)])
        >>> bool((one.probabilities == other.probabilities).all())
        True
        >>> medvlp.predict(zero, [image] * 3).table().columns.tolist()
        ['id', 'predicted', 'confidence', 'P(melanoma)', 'P(nevus)']
    """
    check_kinds(predict, {"method": method})
    several = _several(image)
    with evaluating(method):
        if several is None:
            return _predict(method, image, _name(image))
        bar = tqdm(several, desc="predict", unit="image", leave=False, delay=2)
        return Predictions(_predict(method, one, name) for name, one in bar)


def _several(images: Any) -> list[tuple[str, Any]] | None:
    """The images of a list, a folder or an upload, each with its name; None where it is one image."""
    if isinstance(images, list | tuple):
        return [(_name(image), image) for image in images]
    if not isinstance(images, str | os.PathLike) or not os.path.isdir(images):
        return None
    suffixes = image_suffixes()
    files = (path for path in Path(images).iterdir() if not path.name.startswith("."))
    files = sorted(path for path in files if path.suffix.lower() in suffixes)
    if not files:
        raise ImageError(f"there are no images in the folder {images}.")
    return [(path.name, path) for path in files]


def _name(image: Any) -> str:
    """What a file or an upload is called; nothing for pixels."""
    if isinstance(image, Mapping):
        return image.get("name", "")
    return str(image) if isinstance(image, str | os.PathLike) else ""


def _predict(method: Method, image: Any, name: str) -> Prediction:
    if isinstance(image, Mapping) and "content" in image:  # an upload
        image = BytesIO(image["content"])
        image.name = name or "of an upload"
    clip = method.clip
    pixels = clip.preprocess(read_image(image))[None].to(clip.device)  # (1, 3, H, W)
    symptom_scores = None
    if method.symptoms is None:
        logits = method(pixels)  # (1, n_cls)
    else:
        features = method.image_features(pixels)  # (1, D)
        logits = method.logits_from_features(features)
        symptom_scores = score_table(method.symptom_scores(features), method.symptoms)
    return Prediction(class_probabilities(method, logits), symptom_scores, visible(name))


def class_probabilities(method: Method, logits: Tensor) -> pd.Series:
    """P(class) by classname, in label order, from one image's logits (1, n_cls)."""
    values = logits[0].cpu().double().softmax(dim=0).numpy()  # (n_cls,); a GPU may have no float64
    classnames = pd.Index(method.card.classnames, name="classname")
    return pd.Series(values, index=classnames, name="probability")
