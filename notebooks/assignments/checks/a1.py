"""Hidden checks of A1: the contrastive loss, recall at 1, a training step."""

import numpy as np
import torch
from tasks import Assignment, Property, Task
from torch.nn.functional import normalize

DIGITS = 2


def features(rng, n: int, d: int) -> list:
    return rng.normal(size=(n, d)).round(DIGITS).tolist()


def pairs(rng) -> list[list]:
    """Draw features of images and texts, and a scale."""
    return [
        [features(rng, n, d), features(rng, n, d), s] for n, d, s in ((3, 4, 5.0), (8, 6, 14.3), (5, 16, 1.0))
    ]


def loss(image_features: torch.Tensor, text_features: torch.Tensor, scale: float) -> torch.Tensor:
    logits = scale * normalize(image_features, dim=-1) @ normalize(text_features, dim=-1).T
    normalizers = logits.logsumexp(dim=1).mean() + logits.logsumexp(dim=0).mean()
    return normalizers / 2 - logits.diagonal().mean()


def loss_reference(image_features, text_features, scale):
    both = [torch.tensor(np.array(x)).requires_grad_() for x in (image_features, text_features)]
    value = loss(*both, scale)
    value.backward()
    return (value.item(), *(x.grad.numpy() for x in both))


def equal(rng) -> list[list]:
    row = features(rng, 1, 5)
    return [[row * 6, row * 6, 10.0]]


def swapped(rng) -> list[list]:
    images, texts, scale = pairs(rng)[1]
    return [[images, texts, scale], [texts, images, scale]]


def longer(rng) -> list[list]:
    images, texts, scale = pairs(rng)[1]
    return [[images, texts, scale], [(3 * np.array(images)).tolist(), texts, scale]]


def near(rng, n: int, d: int) -> list:
    """Draw texts near their images, so that some are found and some are not; lengths differ."""
    images = rng.normal(size=(n, d))
    texts = (images + 0.8 * rng.normal(size=(n, d))) * rng.uniform(0.2, 4, size=(n, 1))
    images = images * rng.uniform(0.2, 4, size=(n, 1))
    return [images.round(DIGITS).tolist(), texts.round(DIGITS).tolist()]


def found(rng) -> list[list]:
    """Draw a few pairs, and more of which the two directions find different shares."""
    out = [near(rng, 6, 3)]
    for n, d in ((20, 4), (40, 6)):
        drawn = near(rng, n, d)
        while len(set(recall_reference(*map(np.array, drawn)))) == 1:
            drawn = near(rng, n, d)
        out.append(drawn)
    return out


def recall_reference(image_features, text_features):
    cosines = (
        normalize(torch.tensor(image_features), dim=-1) @ normalize(torch.tensor(text_features), dim=-1).T
    )
    own = torch.arange(len(cosines))
    shares = [(m.argmax(dim=1) == own).double().mean().item() for m in (cosines, cosines.T)]
    return tuple(shares)


def steps(rng) -> list[list]:
    """Draw inputs of two linear towers, which may differ in width, their weights, a scale and a rate."""
    out = []
    for n, N, M, rate in ((4, 3, 3, 0.5), (6, 4, 4, 0.1), (5, 3, 6, 0.2)):
        weights = [features(rng, width, 2) for width in (N, M)]
        out.append([features(rng, n, N), features(rng, n, M), *weights, 4.0, rate])
    return out


def step_reference(images, texts, w_image, w_text, scale, lr):
    images, texts = torch.tensor(images), torch.tensor(texts)
    weights = [torch.tensor(w).requires_grad_() for w in (w_image, w_text)]
    optimizer = torch.optim.SGD(weights, lr=lr)
    value = loss(images @ weights[0], texts @ weights[1], scale)
    value.backward()
    optimizer.step()
    return (value.item(), *(w.detach().numpy() for w in weights))


def small_steps(rng) -> list[list]:
    """The same step, of length zero and short."""
    args = steps(rng)[0]
    return [[*args[:5], 0.0], [*args[:5], 0.001]]


ASSIGNMENT = Assignment(
    name="A1",
    kind="torch",
    allowed=["torch", "math"],
    tasks=[
        Task(
            "contrastive_loss",
            5,
            pairs,
            loss_reference,
            gradient=True,
            properties=[
                Property(
                    "equal features, from which nothing can be told, cost log B.",
                    equal,
                    lambda r: np.isclose(r[0][0], np.log(6)),
                ),
                Property(
                    "exchanging images and texts changes nothing.",
                    swapped,
                    lambda r: np.isclose(r[0][0], r[1][0]),
                ),
                Property(
                    "longer vectors of the same direction change nothing.",
                    longer,
                    lambda r: np.isclose(r[0][0], r[1][0]),
                ),
            ],
        ),
        Task(
            "recall_at_1",
            3,
            found,
            recall_reference,
            properties=[
                Property(
                    "texts that equal their images are all found.",
                    lambda rng: [[x := features(rng, 7, 5), x]],
                    lambda r: np.allclose(r[0], 1),
                ),
            ],
        ),
        Task(
            "training_step",
            4,
            steps,
            step_reference,
            keeps=True,
            properties=[
                Property(
                    "at a rate of 0 the weights stay as they were; at a small one they move a little.",
                    small_steps,
                    lambda r: 0 < np.abs(np.array(r[0][1]) - np.array(r[1][1])).max() < 0.1,
                ),
            ],
        ),
    ],
)
