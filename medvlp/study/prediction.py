"""One image, one prediction."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from medvlp.data.images import read_image
from medvlp.methods.base import Method, check_method
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

    @property
    def classname(self) -> str:
        """The most probable class."""
        return str(self.probabilities.idxmax())

    def __repr__(self) -> str:
        """The class and every probability; a teaching tool's answer, not a diagnosis."""
        listed = ", ".join(f"{name} {p:.3f}" for name, p in self.probabilities.items())
        return f"Prediction({self.classname!r}: {listed})"


def predict(method: Method, image: str | Path | Image.Image) -> Prediction:
    """Classify one image, a file or a PIL image, as `method` sees it: not a diagnosis.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is empty, broken or no image.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(clip, data.card)
        >>> medvlp.predict(zero, data.test.image(0)).classname in data.card.classnames
        True
    """
    check_method(method)
    image = read_image(image)
    clip = method.clip
    symptom_scores = None
    with evaluating(method):
        pixels = clip.preprocess(image)[None].to(clip.device)  # (1, 3, H, W)
        if method.symptoms is None:
            logits = method(pixels)  # (1, n_cls)
        else:
            features = method.image_features(pixels)  # (1, D)
            logits = method.logits_from_features(features)
            symptom_scores = score_table(method.symptom_scores(features), method.symptoms)
    probabilities = logits[0].double().softmax(dim=0).cpu().numpy()  # (n_cls,)
    classnames = pd.Index(method.card.classnames, name="classname")
    return Prediction(pd.Series(probabilities, index=classnames, name="probability"), symptom_scores)
