"""Hidden checks of A6: intervals and tests."""

import numpy as np
from scipy import stats
from tasks import Assignment, Property, Task


def runs(rng) -> list[list]:
    """Draw the results of a few seeds: accuracies, and losses, which may be above 1."""
    results = [rng.normal(0.8, 0.05, size=n) for n in (3, 5, 12)]
    return [[x.round(3).tolist()] for x in (*results, rng.normal(3, 0.5, size=4))]


def t_reference(values):
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return float(low), float(high)


def simulated(rng) -> list[list]:
    """Draw two seeds many times, evenly: by chance alone the share would be known too badly."""
    both = np.stack(np.meshgrid(np.arange(40), np.arange(40)), axis=-1).reshape(-1, 2)  # (1600, 2)
    return [[pair.tolist()] for pair in stats.norm.ppf((both + rng.random(2)) / 40, loc=0.7, scale=0.1)]


def t_covers(results) -> bool:
    """Whether it is 95 %; with the standard deviation divided by S it would be 93 %."""
    share = np.mean([low <= 0.7 <= high for low, high in results])
    return 0.94 <= share <= 0.96


def pairs(rng, n: int = 12, draws: int = 20) -> list:
    """Draw right and wrong answers of two methods that mostly agree, and rows to draw the images by."""
    a = rng.random(n) < 0.7
    b = np.where(rng.random(n) < 0.6, a, rng.random(n) < 0.6)
    return [a.astype(int).tolist(), b.astype(int).tolist(), rng.integers(n, size=(draws, n)).tolist()]


def second_better(rng) -> list:
    """Draw many images, whose quantiles are rarely equal to a neighbour."""
    a, b, rows = pairs(rng, 300, 60)
    return [b, a, rows]


def bootstrap_reference(a, b, rows):
    differences = [float(np.mean(a[row]) - np.mean(b[row])) for row in rows]
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def twice_the_same(rng) -> list[list]:
    a, _, rows = pairs(rng)
    return [[a, a, rows]]


def both_ways(rng) -> list[list]:
    a, b, rows = pairs(rng)
    return [[a, b, rows], [b, a, rows]]


def answers(rng) -> list[list]:
    """Draw right and wrong answers; the methods differ by little, by much, and not at all."""
    out = [pairs(rng, n)[:2] for n in (12, 40, 200)]
    a = (rng.random(30) < 0.5).astype(int)
    out += [[a.tolist(), a.tolist()], [[1, 1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1]]]
    out += [[[1] * 8 + [0] * 20, [0] * 8 + [1] * 20]]  # the second wins
    return [*out, [[1, 0, 1, 0, 1, 1], [0, 1, 0, 1, 1, 1]]]


def mcnemar_reference(a, b):
    won, lost = int(np.sum((a == 1) & (b == 0))), int(np.sum((a == 0) & (b == 1)))
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def swapped(rng) -> list[list]:
    a, b, _ = pairs(rng, 60)
    return [[a, b], [b, a]]


def null(rng) -> list[list]:
    """Draw pairs of methods that are equally good."""
    return [[(rng.random(60) < 0.5).astype(int).tolist() for _ in range(2)] for _ in range(250)]


def p_values(rng) -> list[list]:
    small = rng.uniform(0.001, 0.05, size=4).round(4)
    mixed = np.concatenate([rng.uniform(0.001, 0.03, size=3), rng.uniform(0.3, 0.9, size=3)]).round(4)
    near = np.array([0.03, 0.01, 0.011, 0.012])  # a later product falls below an earlier one
    drawn = [[rng.permutation(p).tolist()] for p in (small, mixed, near, rng.random(10))]
    return [*drawn, [[0.02, 0.2, 0.02, 0.03]]]  # two are equal


def holm_reference(p):
    """Take the largest of the steps up to each p value, whose factor counts those that are not smaller."""
    return np.array([min(1, max((p >= q).sum() * q for q in p[p <= x])) for x in p])


def turned(rng) -> list[list]:
    p = rng.uniform(0.001, 0.2, size=7)
    return [[p.tolist()], [p[::-1].tolist()]]


ASSIGNMENT = Assignment(
    name="A6",
    kind="numpy",
    allowed=["numpy", "math"],
    tasks=[
        Task(
            "t_interval",
            3,
            runs,
            t_reference,
            properties=[
                Property("in simulations 95 % of the intervals hold the true mean.", simulated, t_covers),
            ],
        ),
        Task(
            "paired_bootstrap",
            3,
            lambda rng: [pairs(rng), pairs(rng, 30, 40), pairs(rng, 50, 100), second_better(rng)],
            bootstrap_reference,
            properties=[
                Property(
                    "a method does not differ from itself: the interval is 0 to 0.",
                    twice_the_same,
                    lambda r: np.allclose(r[0], 0),
                ),
                Property(
                    "exchanging the methods turns the interval's sign.",
                    both_ways,
                    lambda r: np.allclose(r[0], [-r[1][1], -r[1][0]]),
                ),
            ],
        ),
        Task(
            "mcnemar_p",
            3,
            answers,
            mcnemar_reference,
            properties=[
                Property(
                    "exchanging the methods changes nothing.", swapped, lambda r: np.isclose(r[0], r[1])
                ),
                Property(
                    "where nothing differs, at most 5 % of the p values (and 3 % for luck) are below 0.05.",
                    null,
                    lambda r: np.mean(np.array(r) < 0.05) <= 0.08 and max(r) <= 1,
                ),
            ],
        ),
        Task(
            "holm_p",
            3,
            p_values,
            holm_reference,
            properties=[
                Property(
                    "the order of the p values does not matter.",
                    turned,
                    lambda r: np.allclose(r[0], r[1][::-1]),
                ),
                Property(
                    "no corrected value is above 1.",
                    lambda rng: [[rng.uniform(0.4, 0.99, size=5).tolist()]],
                    lambda r: max(r[0]) <= 1,
                ),
            ],
        ),
    ],
)
