"""Hidden checks of A5: LoReFT's edit, the edit for each image, the swap test."""

import numpy as np
from tasks import Assignment, Property, Task

DIGITS = 2
SIZES = ((2, 3, 1), (5, 8, 3))  # rows, d, r


def numbers(rng, *shape: int) -> list:
    return rng.normal(size=shape).round(DIGITS).tolist()


def length(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).sum(axis=-1, keepdims=True))


def first_axes(d: int, r: int) -> list:
    """Return an R whose directions are the first r coordinates, so that the others lie at a right angle."""
    return np.eye(d)[:, :r].tolist()


def edits(rng) -> list[list]:
    """Draw states, R, W and b; one R is orthonormal, as at the start, and two are as training leaves them."""
    out = [[numbers(rng, n, d), numbers(rng, d, r), numbers(rng, r, d), numbers(rng, r)] for n, d, r in SIZES]
    h, _, W, b = out[-1]
    return [*out, [h, np.linalg.qr(rng.normal(size=(8, 3)))[0].tolist(), W, b]]


def edit_reference(h, R, W, b):
    """Follow every row by itself, along each direction in turn."""
    edited = []
    for row in h:
        steps = [w @ row + shift - along @ row for w, shift, along in zip(W, b, R.T, strict=True)]
        edited.append(row + sum(step * along for step, along in zip(steps, R.T, strict=True)))
    return np.array(edited)


def with_constants(rng) -> list:
    """Draw four states 6 wide whose last four coordinates are 1, 2, 3 and 4."""
    return np.hstack([rng.normal(size=(4, 2)).round(DIGITS), np.tile([1.0, 2, 3, 4], (4, 1))]).tolist()


def kept_at_a_right_angle(results) -> bool:
    return np.allclose(np.array(results[0])[..., 2:], [1, 2, 3, 4])


def rank_of(difference, r: int) -> bool:
    return np.linalg.matrix_rank(np.array(difference), tol=1e-6) <= r


def two_edits(rng) -> list[list]:
    """Draw two edits of the same rows along the same two directions."""
    h, R = numbers(rng, 7, 6), numbers(rng, 6, 2)
    return [[h, R, numbers(rng, 2, 6), numbers(rng, 2)] for _ in range(2)]


def conditions(rng, images: int, n: int, d: int, r: int, D: int, **instead: list) -> list:
    """Draw states, images and the parameters of a conditional edit; `instead` gives some of them."""
    shapes = {"h": (n, d), "f": (images, D), "R": (d, r), "W1": (r, d), "W2": (r, d), "b": (r,)}
    shapes |= {"G1": (r, D), "c1": (r,), "G2": (d, r), "c2": (d,)}
    return [instead.get(name, numbers(rng, *shape)) for name, shape in shapes.items()]


def conditional_reference(h, f, R, W1, W2, b, G1, c1, G2, c2):
    """Edit in low rank: an image meets an (r, r) matrix for each row, never the width of the states."""
    edited = []
    for image in f:
        u = G1 @ image + c1
        steps = [W2 @ np.diag(row) @ G2 @ u + (W1 + W2 * c2 - R.T) @ row + b for row in h]
        edited.append([row + R @ s for row, s in zip(h, steps, strict=True)])
    return np.array(edited)


def without_a_condition(rng) -> list[list]:
    return [conditions(rng, 3, 4, 6, 2, 5), conditions(rng, 3, 4, 6, 2, 5, W2=np.zeros((2, 6)).tolist())]


def only_the_first_moves(results) -> bool:
    alive, dead = (np.ptp(np.array(r), axis=0).max() for r in results)
    return alive > 1e-3 and dead < 1e-9


def two_images_and_their_mean(rng) -> list[list]:
    f = rng.normal(size=(2, 5)).round(DIGITS)
    return [conditions(rng, 3, 4, 6, 2, 5, f=[*f.tolist(), f.mean(axis=0).tolist()])]


def weighed_by_c2(rng) -> list[list]:
    """Draw states that only c2 weighs, along two directions in which the last two coordinates are read."""
    zeros, read = np.zeros((2, 6)).tolist(), np.eye(6)[[5, 4]].tolist()
    fixed = {"h": with_constants(rng), "R": first_axes(6, 2), "W1": zeros, "W2": read, "b": [0.0, 0.0]}
    c2 = [*numbers(rng, 4), 5.0, -2.0]
    return [conditions(rng, 3, 4, 6, 2, 5, f=np.zeros((3, 5)).tolist(), c1=[0.0, 0.0], c2=c2, **fixed)]


def differ_in_rank(results) -> bool:
    one, two = np.array(results[0])
    return not np.allclose(one, two) and rank_of(one - two, 2)


def swap(rng, images: int, classes: int, D: int, strength: float, looks: int = 2) -> list:
    """Draw images, prompts that follow their image with this strength, labels, and another for each image.

    With two looks the images of a class lie on either side of nothing, as bright and dark ones might: no
    prompt that is the same for all images finds both. Those of one look are longer, and chance moves them
    more in some classes than in others, so that it matters what is brought to length one and when.
    """
    centres = np.linalg.qr(rng.normal(size=(D, D)))[0][:classes]  # (classes, D)
    labels = rng.permutation(np.arange(images) % classes)
    side = rng.choice([-1, 1][-looks:], size=(images, 1))
    f = side * centres[labels] + 0.25 * rng.normal(size=(images, D))
    follows = np.einsum("bd,cd->bc", f, centres)[..., None] * centres  # (images, classes, D)
    fixed = 0.5 * centres + 0.25 * rng.normal(size=(classes, D))
    chance = np.linspace(0, 0.6, classes)[:, None] * rng.normal(size=(images, classes, D))
    prompts = fixed + strength * follows + chance
    prompts *= np.exp(rng.uniform(0, 2, size=(images, classes, 1)) + side[..., None]) / length(prompts)
    other = rng.permutation(images)
    return [f.round(DIGITS).tolist(), prompts.round(DIGITS).tolist(), labels.tolist(), other.tolist()]


def share_right(f, prompts, labels) -> float:
    return float(np.mean((prompts / length(prompts) @ f[..., None])[..., 0].argmax(axis=1) == labels))


def swap_reference(f, prompts, labels, other):
    everyone = (prompts / length(prompts)).sum(axis=0, keepdims=True).repeat(len(f), axis=0)
    exchanged = np.stack([prompts[which] for which in other])
    return tuple(share_right(f, given, labels) for given in (prompts, exchanged, everyone))


def swaps(rng) -> list[list]:
    """Draw a small experiment with a live condition, and two large enough for wrong answers to show."""
    own, other, mean = 0, 0, 0
    while not own > other != mean < own:  # eight images can have equal shares by chance
        small = swap(rng, 8, 2, 3, 1.0)
        own, other, mean = swap_reference(*(np.array(part) for part in small))
    return [small, swap(rng, 150, 4, 6, 1.0), swap(rng, 200, 3, 5, 0.3, looks=1), its_own_counts(rng)]


def its_own_counts(rng) -> list:
    """Draw a few images for which it matters that the mean holds each image's own prompts."""
    mean = without = 0
    while mean == without:
        drawn = swap(rng, 12, 3, 4, 1.0)
        f, prompts, labels, other = (np.array(part) for part in drawn)
        _, _, mean = swap_reference(f, prompts, labels, other)
        t = prompts / length(prompts)
        without = share_right(f, t.sum(axis=0) - t, labels)
    return drawn


def dead(rng) -> list[list]:
    """Draw prompts that are the same for all images, up to their length."""
    f, _, labels, other = swap(rng, 60, 3, 5, 0.0)
    same, lengths = rng.normal(size=(3, 5)), rng.uniform(0.2, 4, size=(60, 3, 1))
    return [[f, (lengths * same).tolist(), labels, other]]


def misled(rng) -> list[list]:
    """Draw prompts that lead away from their own image's label."""
    f, _, labels, other = swap(rng, 60, 3, 5, 0.0)
    sides = np.where(np.eye(3)[labels] > 0, -1, 1)  # (60, 3)
    return [[f, (sides[..., None] * np.array(f)[:, None]).tolist(), labels, other]]


def its_own_other(rng) -> list[list]:
    f, prompts, labels, _ = swap(rng, 60, 3, 5, 1.0)
    return [[f, prompts, labels, list(range(60))]]


ASSIGNMENT = Assignment(
    name="A5",
    kind="numpy",
    allowed=["numpy", "math"],
    tasks=[
        Task(
            "loreft",
            4,
            edits,
            edit_reference,
            properties=[
                Property(
                    "what lies at a right angle to R stays as it is.",
                    lambda rng: [[with_constants(rng), first_axes(6, 2), numbers(rng, 2, 6), [0.5, -1.0]]],
                    kept_at_a_right_angle,
                ),
                Property(
                    "along an orthonormal R the state comes to lie at W h + b: at b, where W is 0.",
                    lambda rng: [
                        [numbers(rng, 4, 6), first_axes(6, 2), np.zeros((2, 6)).tolist(), [3.0, -2.0]]
                    ],
                    lambda r: np.allclose(np.array(r[0])[:, :2], [3, -2]),
                ),
                Property(
                    "two edits along the same r directions differ by a matrix of rank r at most.",
                    two_edits,
                    lambda r: rank_of(np.subtract(*r), 2) and not np.allclose(*r),
                ),
            ],
        ),
        Task(
            "conditional_edit",
            5,
            lambda rng: [conditions(rng, *s) for s in ((2, 2, 3, 1, 2), (3, 4, 8, 2, 5), (5, 3, 6, 6, 4))],
            conditional_reference,
            properties=[
                Property(
                    "what lies at a right angle to R stays as it is, for every image.",
                    lambda rng: [conditions(rng, 3, 4, 6, 2, 5, h=with_constants(rng), R=first_axes(6, 2))],
                    lambda r: np.shape(r[0]) == (3, 4, 6) and kept_at_a_right_angle(r),
                ),
                Property(
                    "the edits for two images differ, and by a matrix of rank r at most.",
                    lambda rng: [conditions(rng, 2, 7, 6, 2, 5)],
                    differ_in_rank,
                ),
                Property(
                    "the image enters by W2 alone: where W2 is 0, all images edit alike, else they do not.",
                    without_a_condition,
                    only_the_first_moves,
                ),
                Property(
                    "an image with G1 f + c1 = 0 weighs a state by c2: along an orthonormal R it comes to "
                    "lie at W2 (h * c2), where W1 and b are 0.",
                    weighed_by_c2,
                    lambda r: np.allclose(np.array(r[0])[..., :2], [4 * -2, 3 * 5]),
                ),
                Property(
                    "nothing is bent: the edit for the mean of two images is the mean of their edits.",
                    two_images_and_their_mean,
                    lambda r: np.allclose(np.mean(r[0][:2], axis=0), r[0][2]),
                ),
            ],
        ),
        Task(
            "swap_test",
            5,
            swaps,
            swap_reference,
            properties=[
                Property(
                    "a live condition is seen: where prompts were made to follow their image, one's own are "
                    "better than another's and than the mean, by a fifth of the images at least.",
                    lambda rng: [swap(rng, 200, 4, 6, 3.0)],
                    lambda r: r[0][0] > max(r[0][1:]) + 0.2,
                ),
                Property(
                    "a dead condition is seen: where all images have the same prompts, up to their length, "
                    "all three are equal.",
                    dead,
                    lambda r: len(r[0]) == 3 and np.ptp(r[0]) < 1e-9,
                ),
                Property(
                    "where its own prompts lead every image away from its label, their share is 0.",
                    misled,
                    lambda r: r[0][0] == 0,
                ),
                Property(
                    "who is exchanged with itself keeps its prompts: the first two are equal.",
                    its_own_other,
                    lambda r: np.isclose(r[0][0], r[0][1]),
                ),
            ],
        ),
    ],
)
