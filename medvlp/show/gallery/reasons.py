"""What stood behind a decision: symptoms, nearest training images, and on phantoms the attribute that misled.

Each function gives a tidy table about the images `rows` of a set; its column `image` is the place in the set.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet, PhantomSet
from medvlp.methods.base import Method
from medvlp.methods.vip import ViP
from medvlp.study.evaluation import evaluating

SYMPTOMS = ["image", "classname", "symptom", "score", "usual", "weight", "argued"]
NEIGHBOURS = ["image", "rank", "neighbour", "cosine", "classname"]
_AT_ONCE = 512  # images compared with the training images at a time


def symptom_evidence(
    method: Method, features: Tensor, rows: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> pd.DataFrame:
    """How much each symptom of the true and of the predicted class argued for its class.

    A class scores the weighted mean of its symptoms' cosines. Some phrases have a high cosine with every
    image, so what a phrase says of one image is how far its cosine lies above the usual one:

        argued = weight * (score - usual)

    For ZeroShot these add up: the class's mean cosine is that of the average image plus the sum of argued.
    For ViP's merge prompt the weights are its attention, which leaves the lengths of the symptoms' features
    out. That choice is ours; the papers show the bare cosines.

    Args:
        method: has `symptoms`, `symptom_scores`, and perhaps `merge_weights`.
        features: (N, D) normalised image features of the whole set.
        rows: (n,) the images in question.
        labels: (N,) true labels.
        predicted: (N,) predicted labels.

    Returns:
        A row an image, class (its true and its predicted one) and symptom, with the columns `SYMPTOMS`, for
        each image and class by argued, falling. score is the cosine, usual its mean over all N images.
    """
    with evaluating(method):
        scores = method.symptom_scores(features.to(method.clip.device))  # {classname: (N, m_c)}
    weights = _weights(method)
    parts = []
    for label, (name, phrases) in enumerate(method.symptoms.items()):
        cosines = scores[name].cpu().double().numpy()  # (N, m_c)
        images = rows[(labels[rows] == label) | (predicted[rows] == label)]
        columns = {
            "image": np.repeat(images, len(phrases)),
            "classname": name,
            "symptom": list(phrases) * len(images),
            "score": cosines[images].ravel(),
            "usual": np.tile(cosines.mean(axis=0), len(images)),
            "weight": np.tile(weights[name], len(images)),
        }
        parts.append(Table(columns))
    table = pd.concat(parts, ignore_index=True)
    table["argued"] = table["weight"] * (table["score"] - table["usual"])
    return table.sort_values(["image", "classname", "argued"], ascending=[True, True, False], kind="stable")


def _weights(method: Method) -> dict[str, np.ndarray]:
    """The weight of each symptom in its class's score, (m_c,) by class."""
    if isinstance(method, ViP) and method.aggregation == "merge":
        by_class = method.merge_weights().groupby("classname")["weight"]
        return {name: weights.to_numpy() for name, weights in by_class}
    return {name: np.full(len(phrases), 1 / len(phrases)) for name, phrases in method.symptoms.items()}


def nearest_images(
    features: Tensor, names: Sequence[str], train_features: Tensor, train_names: Sequence[str], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `n` nearest training images by cosine; those of the same name are left out.

    Args:
        features: (B, D) normalised.
        names: B names: ids, so that no image is its own neighbour, or groups, so that no patient is.
        train_features: (N, D) normalised.
        train_names: N names.
        n: at most N.

    Returns:
        places (B, n) in the training set and cosines (B, n), falling; cosine -inf and a place without meaning
        where there were not `n` images of another name.
    """
    codes = torch.from_numpy(pd.factorize(np.array([*names, *train_names], dtype=object))[0])
    codes, train_codes = codes[: len(names)], codes[len(names) :]  # (B,), (N,)
    n = min(n, len(train_names))
    places, cosines = [torch.empty(0, n, dtype=torch.long)], [torch.empty(0, n)]
    for chunk, code in zip(features.split(_AT_ONCE), codes.split(_AT_ONCE), strict=True):
        near = chunk @ train_features.T  # (b, N)
        near[code[:, None] == train_codes] = -torch.inf
        best = near.topk(n, dim=1)
        places.append(best.indices)
        cosines.append(best.values)
    return torch.cat(places).numpy(), torch.cat(cosines).numpy()


def neighbour_table(
    rows: np.ndarray, places: np.ndarray, cosines: np.ndarray, train: ImageSet
) -> pd.DataFrame:
    """What `nearest_images` found for the images `rows`: a row a neighbour, with the columns `NEIGHBOURS`."""
    n, names = places.shape[1], np.array(train.card.classnames, dtype=object)
    columns = {
        "image": np.repeat(rows, n),
        "rank": np.tile(np.arange(1, n + 1), len(rows)),
        "neighbour": places.ravel(),
        "cosine": cosines.ravel(),
        "classname": names[train.labels.numpy()[places.ravel()]],
    }
    table = Table(columns, columns=NEIGHBOURS)
    return table[np.isfinite(table["cosine"])].reset_index(drop=True)


def misled_by(images: PhantomSet, rows: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """On phantoms: which attribute's true value argues most for the predicted class against the true one.

    By the world's own rule, attribute k with value a_k argues by log P(a_k | predicted) - log P(a_k | true).

    Args:
        images: phantoms.
        rows: (n,) the images in question.
        predicted: (N,) predicted labels of all images.

    Returns:
        A row an image, in the order of `rows`:
        misled_by: such as "veil absent"; None where no attribute argues for the predicted class, so that
            nothing in the image excuses the method.
        evidence: how much it argues, in nats (0 where there is none).
        best_rule: the class that the world's best rule names from the true attributes. Where this is wrong
            as well, no method could be expected to be right.
    """
    world, classnames = images.world, images.card.classnames
    p = world.probability[[world.classnames.index(name) for name in classnames]]  # (n_cls, K)
    present = images.latents.attributes[torch.from_numpy(rows)]  # (n, K)
    log_p = torch.where(present[:, None], p.log(), (1 - p).log())  # (n, n_cls, K)
    each, true = torch.arange(len(rows)), images.labels[torch.from_numpy(rows)]
    argues = log_p[each, torch.from_numpy(predicted[rows])] - log_p[each, true]  # (n, K)
    most, which = argues.max(dim=1)
    names = [
        f"{world.attributes[k].name} {'present' if shown[k] else 'absent'}" if nats > 0 else None
        for k, nats, shown in zip(which.tolist(), most.tolist(), present.tolist(), strict=True)
    ]
    best = log_p.sum(dim=2).argmax(dim=1).tolist()
    return Table(
        {
            "misled_by": pd.Series(names, dtype=object),
            "evidence": most.clamp(min=0).numpy(),
            "best_rule": pd.Series([classnames[label] for label in best], dtype=object),
        }
    )
