"""Hidden checks of A7: counterfactual shares, an AUROC both ways, shuffled claims, a fair choice."""

import numpy as np
from sklearn.metrics import roc_auc_score
from tasks import Assignment, Property, Task

DIGITS = 3
SIZES = ((3, 2, 4), (40, 3, 7), (60, 4, 9))  # images, attributes, phrases


def world(rng, n: int, K: int, M: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw attributes (n, K), the attribute that each phrase names and what it says of it, (M,) each."""
    claims = rng.permutation(np.arange(M) % K)
    return (rng.random((n, K)) < 0.5).astype(int), claims, (rng.random(M) < 0.5).astype(int)


def turned(attributes: np.ndarray) -> list[np.ndarray]:
    """Return the attributes with each one turned round: K of (n, K)."""
    K = attributes.shape[1]
    return [np.where(np.arange(K) == k, 1 - attributes, attributes) for k in range(K)]


def scores_by(rule, attributes, claims, says) -> list:
    """Return scores before and after by a rule of (attributes): the first two arguments, and the rest."""
    before, after = rule(attributes), [rule(other) for other in turned(attributes)]
    return [np.array(x).tolist() for x in (before, after, attributes, claims, says)]


def half_true(rng, n: int, K: int, M: int) -> list:
    """Draw scores that follow their claims somewhat, each phrase more or less, and each moves by chance."""
    attributes, claims, says = world(rng, n, K, M)
    follows = rng.uniform(-1, 2.5, size=M)

    def rule(attributes):
        true = attributes[:, claims] == says  # (n, M)
        return (follows * true + 0.6 * rng.normal(size=true.shape)).round(DIGITS)

    return scores_by(rule, attributes, claims, says)


def oracle(rng, sign: int = 1) -> list:
    """Draw scores that say whether the claim is true, and nothing else; or, with -1, the opposite."""
    attributes, claims, says = world(rng, 50, 4, 12)
    return scores_by(lambda a: sign * (a[:, claims] == says), attributes, claims, says)


def disease_only(rng) -> list:
    """Draw scores that know whether an image is sick, which most attributes come with, and no attribute."""
    _, claims, says = world(rng, 50, 4, 12)
    sick = rng.random((50, 1)) < 0.5
    attributes = (rng.random((50, 4)) < np.where(sick, 0.85, 0.15)).astype(int)
    of_class = np.where(sick == says, 1, -1) + 0.3 * rng.normal(size=(50, 12))
    return scores_by(lambda _: of_class, attributes, claims, says)


def gibberish(rng, n: int = 300) -> list:
    """Draw scores that move, but by chance."""
    attributes, claims, says = world(rng, n, 4, 12)
    return scores_by(lambda a: rng.normal(size=(len(a), 12)).round(DIGITS), attributes, claims, says)


def shares(rng) -> list[list]:
    """Draw a few images with two digits, and many; nothing lies on the edge of a comparison."""
    out = []
    for size in SIZES:
        drawn = half_true(rng, *size)
        while on_the_edge(drawn) or not varied(drawn):
            drawn = half_true(rng, *size)
        out.append(drawn)
    return out


def half_still(rng) -> list[list]:
    """Draw scores of images half of which do not move, and so are neither more nor wrong."""
    before, after, *rest = shares(rng)[1]
    after = np.array(after)
    after[:, ::2] = before[::2]
    return [[before, after.tolist(), *rest]]


def on_the_edge(args: list) -> bool:
    """Whether some image is so near to another outcome that rounding could decide."""
    return np.abs(edges(*map(np.array, args))).min() < 1e-5


def edges(before, after, attributes, claims, says) -> np.ndarray:
    """Follow every image by itself: how far each is from `more` and from `wrong`, (2, K, n)."""
    out = np.empty((2, len(after), len(before)))
    for k, scores in enumerate(after):
        for i, (old, new) in enumerate(zip(before, scores, strict=True)):
            signs = [1 if said == 1 - attributes[i, k] else -1 for said in says]
            matching = np.mean([signs[j] * (new[j] - old[j]) for j in np.flatnonzero(claims == k)])
            others = np.mean([abs(new[j] - old[j]) for j in np.flatnonzero(claims != k)])
            out[:, k, i] = matching - others, -matching - others
    return out


def varied(args: list) -> bool:
    """Whether some images are right and some are wrong."""
    more, wrong = shares_reference(*map(np.array, args))
    return 0 < more.mean() < 1 and wrong.max() > 0 and not np.allclose(more, wrong)


def shares_reference(before, after, attributes, claims, says):
    more, wrong = (edges(before, after, attributes, claims, says) > 0).mean(axis=2)
    return more, wrong


def net(result) -> float:
    return float(np.mean(result[0]) - np.mean(result[1]))


def one_phrase(rng, n: int, digits: int, follows: float = 0.8, claims: tuple = (0, 1)) -> list:
    """Draw one phrase's scores, which follow the claim, the class, and chance; some are equal."""
    sick = rng.random(n) < 0.5
    present = (rng.random(n) < np.where(sick, 0.8, 0.2)).astype(int)
    says = int(rng.choice(claims))

    def score(present):
        return (follows * (present == says) + 1.0 * (sick == says) + 0.7 * rng.normal(size=n)).round(digits)

    return [score(present).tolist(), score(1 - present).tolist(), present.tolist(), says]


def phrases(rng) -> list[list]:
    small = one_phrase(rng, 5, 1)
    while len(set(small[0] + small[1])) == 10 or not 0.5 < auroc_reference(*small) < 1:  # some are equal
        small = one_phrase(rng, 5, 1)
    other = [one_phrase(rng, 40, 1), one_phrase(rng, 60, 1, -0.8, (0,)), one_phrase(rng, 80, 2, 0.8, (1,))]
    return [small, *other]


def auroc_reference(before, after, present, says):
    true = np.array(present) == says
    return float(roc_auc_score(np.r_[true, ~true], np.r_[before, after]))


def of_one_phrase(args: list) -> list:
    """Take the first phrase of drawn scores, its attribute, and what it says."""
    before, after, attributes, claims, says = map(np.array, args)
    k = claims[0]
    return [before[:, 0].tolist(), after[k, :, 0].tolist(), attributes[:, k].tolist(), int(says[0])]


def orders_of(rng, draws: int, K: int) -> list:
    """Draw orders of K attributes, in none of which one keeps its place."""
    out = []
    while len(out) < draws:
        order = rng.permutation(K)
        if not np.any(order == np.arange(K)):
            out.append(order.tolist())
    return out


def controls(rng) -> list[list]:
    """Draw scores and draws of the control, three or more of which come to different nets."""
    out = []
    for (n, K, M), draws in zip(((6, 3, 5), (20, 3, 7), (30, 4, 9)), (3, 6, 6), strict=True):
        edge, nets = True, []
        while edge or len(set(nets)) < 3:
            drawn = [*half_true(rng, n, K, M), orders_of(rng, draws, K)]
            drawn.append(rng.integers(2, size=(draws, K)).tolist())
            edge = any(on_the_edge(held) for held in held_against(*drawn))
            nets = control_reference(*drawn).round(6).tolist()
        out.append(drawn)
    return out


def held_against(before, after, attributes, claims, says, orders, turns) -> list[list]:
    """Hold phrase after phrase against another attribute, once for each order."""
    held = []
    for order, turn in zip(orders, turns, strict=True):
        other = [order[claim] for claim in claims]
        said = [1 - s if turn[claim] else s for s, claim in zip(says, claims, strict=True)]
        held.append([before, after, attributes, other, said])
    return held


def control_reference(before, after, attributes, claims, says, orders, turns):
    held = held_against(before, after, attributes, claims, says, orders, turns)
    return np.array([net(shares_reference(*map(np.array, args))) for args in held])


def as_they_are(rng) -> list[list]:
    """Hold an oracle's phrases against their own attributes: as they are, and all turned."""
    args, same = oracle(rng), [[0, 1, 2, 3]]
    return [[*args, same, [[0] * 4]], [*args, same, [[1] * 4]]]


def held_against_others(rng, args: list) -> list[list]:
    return [[*args, orders_of(rng, 8, 4), rng.integers(2, size=(8, 4)).tolist()]]


def choices(rng) -> list[list]:
    """Draw whether phrases move rightly, on validation and test images; no two are equally good."""
    out = []
    for n, N, M, keep in ((6, 4, 4, 2), (60, 50, 8, 3), (150, 90, 12, 5), (20, 80, 6, 2)):
        val, test = np.zeros((1, M)), np.zeros((1, M))
        while len(set(val.sum(axis=0))) < M or the_same_choice(val, test, keep):
            rates = rng.uniform(0.3, 0.8, size=M)
            val, test = ((rng.random((rows, M)) < rates).astype(int) for rows in (n, N))
        out.append([val.tolist(), test.tolist(), keep])
    return out


def the_same_choice(val: np.ndarray, test: np.ndarray, keep: int) -> bool:
    """Whether test images, or both together, would choose phrases that are as good on the test images."""
    totals = (val.mean(axis=0), test.mean(axis=0), val.sum(axis=0) + test.sum(axis=0))
    good = [test.mean(axis=0)[np.argsort(-total)[:keep]].mean() for total in totals]
    return bool(np.isclose(good[0], good[1:]).any())


def choice_reference(val_right, test_right, keep):
    order = sorted(range(len(val_right[0])), key=lambda j: -np.sum(val_right[:, j]))
    return float(np.mean([np.mean(test_right[:, j]) for j in order[:keep]]))


def by_chance(rng) -> list[list]:
    """Draw phrases that mean nothing: each is right on half of the images."""
    return [[*rng.integers(2, size=(2, 60, 60)).tolist(), 5] for _ in range(6)]


def planted(rng) -> list[list]:
    rates = rng.permutation([0.95] * 3 + [0.5] * 9)
    val, test = ((rng.random((100, 12)) < rates).astype(int).tolist() for _ in range(2))
    return [[val, test, 3]]


ASSIGNMENT = Assignment(
    name="A7",
    kind="numpy",
    allowed=["numpy", "math"],
    tasks=[
        Task(
            "counterfactual_shares",
            4,
            lambda rng: shares(rng) + half_still(rng),
            shares_reference,
            properties=[
                Property(
                    "scores that say exactly whether their claim is true are always right, and never wrong.",
                    lambda rng: [oracle(rng)],
                    lambda r: np.allclose(r[0], [[1] * 4, [0] * 4]),
                ),
                Property(
                    "scores that say the opposite are never right, and always wrong.",
                    lambda rng: [oracle(rng, -1)],
                    lambda r: np.allclose(r[0], [[0] * 4, [1] * 4]),
                ),
                Property(
                    "scores that know only the disease are neither.",
                    lambda rng: [disease_only(rng)],
                    lambda r: np.allclose(r[0], 0),
                ),
                Property(
                    "scores that move by chance are as often right as wrong (up to 8 % of the images).",
                    lambda rng: [gibberish(rng)],
                    lambda r: abs(net(r[0])) < 0.08 and np.mean(r[0]) > 0,
                ),
            ],
        ),
        Task(
            "auroc_both_ways",
            3,
            phrases,
            auroc_reference,
            properties=[
                Property(
                    "an oracle gets 1, and one that says the opposite 0.",
                    lambda rng: [of_one_phrase(oracle(rng, sign)) for sign in (1, -1)],
                    lambda r: np.allclose(r, [1, 0]),
                ),
                Property(
                    "a score that knows only the disease gets 0.5.",
                    lambda rng: [of_one_phrase(disease_only(rng))],
                    lambda r: np.isclose(r[0], 0.5),
                ),
                Property(
                    "a score that moves by chance gets 0.5, up to 0.12.",
                    lambda rng: [of_one_phrase(gibberish(rng))],
                    lambda r: abs(r[0] - 0.5) < 0.12,
                ),
            ],
        ),
        Task(
            "shuffled_net",
            3,
            controls,
            control_reference,
            properties=[
                Property(
                    "held against its own attributes an oracle gets 1, and -1 with all claims turned.",
                    as_they_are,
                    lambda r: np.allclose(r, [[1], [-1]]),
                ),
                Property(
                    "held against other attributes an oracle is at chance, 0.",
                    lambda rng: held_against_others(rng, oracle(rng)),
                    lambda r: np.shape(r[0]) == (8,) and np.allclose(r[0], 0),
                ),
                Property(
                    "what moves by chance is at chance, up to 0.08.",
                    lambda rng: held_against_others(rng, gibberish(rng)),
                    lambda r: abs(np.mean(r[0])) < 0.08,
                ),
            ],
        ),
        Task(
            "chosen_share",
            2,
            choices,
            choice_reference,
            properties=[
                Property(
                    "the best of phrases that mean nothing are right on half of the test images (up to 5 %).",
                    by_chance,
                    lambda r: abs(np.mean(r) - 0.5) < 0.05,
                ),
                Property(
                    "phrases that are right in 19 of 20 images are found among others.",
                    planted,
                    lambda r: r[0] > 0.85,
                ),
            ],
        ),
    ],
)
