"""Hidden checks of A4: context before a text, the merge prompt, ViP's logits, a training loop."""

from math import cos, pi

import numpy as np
import torch
from tasks import Assignment, Property, Task
from torch.nn.functional import cross_entropy, normalize

DIGITS = 2
SOS, EOS = 7, 8  # as in CLIP, [EOS] has the largest number; 0 fills up
SCALES = (7.0, 9.0, 8.0)
WARMUP, MOMENTUM, DECAY = 1e-5, 0.9, 5e-4


def numbers(rng, *shape: int, scale: float = 1.0) -> list:
    return (scale * rng.normal(size=shape)).round(DIGITS).tolist()


def tensor(value) -> torch.Tensor:
    return torch.tensor(np.array(value))


def texts(rng, n: int, longest: int) -> list:
    """Draw n texts [SOS] words [EOS] of 1 to `longest` words, filled up; both lengths are among them."""
    rows = np.zeros((n, longest + 3), dtype=int)
    counts = rng.integers(1, longest + 1, size=n)
    counts[rng.permutation(n)[:2]] = 1, longest
    for row, count in zip(rows, counts, strict=True):
        row[: count + 2] = [SOS, *rng.integers(1, SOS, size=count), EOS]
    return rows.tolist()


def contexts(rng) -> list[list]:
    """Draw texts and context, shared by all and one for each."""
    out = []
    for n, longest, M, w in ((2, 2, 2, 3), (4, 3, 3, 5), (3, 4, 1, 4)):
        tokens, table = texts(rng, n, longest), numbers(rng, EOS + 1, w)
        out.append([tokens, numbers(rng, M, w), table])
        out.append([tokens, numbers(rng, n, M, w), table])
    return out


def unfilled(rng) -> list[list]:
    """Draw texts whose longest is not filled up, with another number for [EOS]."""
    tokens = np.array(texts(rng, 3, 3))[:, :-1]
    tokens[tokens == EOS] = EOS + 4
    return [[tokens.tolist(), numbers(rng, 2, 4), numbers(rng, EOS + 5, 4)]]


def context_reference(tokens, ctx, table):
    """Build each text's rows one by one."""
    x, eos = [], []
    for n, row in enumerate(tokens.tolist()):
        own = ctx[n] if ctx.ndim == 3 else ctx
        x.append([table[row[0]], *own, *(table[token] for token in row[1:])])
        eos.append(row.index(max(row)) + len(own))
    return np.array(x), np.array(eos)


def numbered(rng) -> list[list]:
    """Draw texts whose embeddings are the tokens' own numbers, and a context of -1 and -2."""
    return [[[[SOS, 3, 1, EOS, 0], [SOS, 5, EOS, 0, 0]], [[-1.0], [-2.0]], [[float(n)] for n in range(9)]]]


def stays_in_order(results) -> bool:
    x = np.array(results[0][0])[..., 0]
    return x.tolist() == [[SOS, -1, -2, 3, 1, EOS, 0], [SOS, -1, -2, 5, EOS, 0, 0]]


def shared_and_repeated(rng) -> list[list]:
    tokens, ctx, table = contexts(rng)[0]
    return [[tokens, ctx, table], [tokens, [ctx] * len(tokens), table]]


def merges(rng) -> list[list]:
    return [
        [numbers(rng, C, m, D), numbers(rng, C, D), *(numbers(rng, D, D) for _ in range(2))]
        for C, m, D in ((2, 3, 3), (3, 3, 5), (4, 6, 2))
    ]


def merge_reference(T, g, Wq, Wk):
    """Merge class after class, symptom after symptom."""
    merged = []
    for symptoms, own in zip(tensor(T), tensor(g), strict=True):
        scores = [(tensor(Wq) @ own) @ (tensor(Wk) @ symptom) / len(own) ** 0.5 for symptom in symptoms]
        shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
        merged.append(own + sum(share * symptom for share, symptom in zip(shares, symptoms, strict=True)))
    return torch.stack(merged).numpy()


def without_questions(rng) -> list[list]:
    """Draw symptoms whose mean is (1, 2), and g = (10, 20), with Wq = 0."""
    away = rng.normal(size=(3, 4, 2)).round(DIGITS)
    T = np.concatenate([away, 2 * np.array([1.0, 2.0]) - away], axis=1)
    return [[T.tolist(), [[10.0, 20.0]] * 3, [[0.0, 0.0]] * 2, numbers(rng, 2, 2)]]


def of_one_symptom(rng) -> list[list]:
    return [[[[[1.0, 2.0]]] * 3, [[10.0, 20.0]] * 3, numbers(rng, 2, 2), numbers(rng, 2, 2)]]


def other_order(rng) -> list[list]:
    T, *rest = merges(rng)[1]
    return [[T, *rest], [[symptoms[::-1] for symptoms in T], *rest]]


def one_class_changed(rng) -> list[list]:
    """Draw two classes, of which the second has other symptoms the second time."""
    T, *rest = merges(rng)[0]
    return [[T, *rest], [[T[0], numbers(rng, 3, 3)], *rest]]


def vip(rng, C: int, m: int, longest: int, M: int, w: int, D: int) -> list:
    """Draw texts, a table, a tower, and a start of what is learned: the arguments from `tokens` to `Wk`."""
    tokens = np.reshape(texts(rng, C * m, longest), (C, m, -1)).tolist()
    learned = [numbers(rng, *shape, scale=0.5) for shape in ((M, w), (C, D), (D, D), (D, D))]
    return [tokens, numbers(rng, EOS + 1, w), numbers(rng, 3, w, D), *learned]


def images(rng, C: int, n: int, D: int, noise: float = 0.5) -> list:
    """Draw image features, not of length one, and their labels."""
    labels = rng.permutation(np.arange(n) % C)
    f = np.eye(D)[labels] + noise * rng.normal(size=(n, D)) / D**0.5
    return [(f * rng.uniform(0.5, 3, size=(n, 1))).round(DIGITS).tolist(), labels.tolist()]


def asked(rng) -> list[list]:
    """Draw images, what ViP reads, and what it has learned; each call has another scale."""
    sizes = (2, 2, 2, 1, 2, 3), (3, 3, 2, 2, 4, 5), (2, 4, 3, 3, 3, 4)
    return [
        [images(rng, size[0], n, size[-1])[0], *vip(rng, *size), scale]
        for size, n, scale in zip(sizes, (3, 5, 4), SCALES, strict=True)
    ]


def logits_of(f, tokens, table, tower, ctx, g, Wq, Wk, scale) -> torch.Tensor:
    """Read every text by itself, up to its end."""
    T = []
    for row in np.reshape(tokens, (-1, np.shape(tokens)[-1])).tolist():
        ids = row[: row.index(EOS) + 1]
        x = torch.cat([table[ids[:1]], ctx, table[ids[1:]]])  # (L, w)
        scores = (x @ tower[1]) @ (x[-1] @ tower[0]) / tower.shape[-1] ** 0.5  # (L,)
        T.append(scores.softmax(dim=0) @ (x @ tower[2]))
    scores = (g @ Wq.T)[:, None] * (torch.stack(T).reshape(len(g), -1, g.shape[-1]) @ Wk.T)  # (C, m, D)
    shares = (scores.sum(dim=-1) / g.shape[-1] ** 0.5).softmax(dim=1)  # (C, m)
    t = g + (shares[..., None] * torch.stack(T).reshape(*shares.shape, -1)).sum(dim=1)
    return scale * normalize(f, dim=-1) @ normalize(t, dim=-1).T


def logits_reference(f, tokens, table, tower, ctx, g, Wq, Wk, scale):
    floats = [tensor(x).requires_grad_() for x in (f, table, tower, ctx, g, Wq, Wk)]
    value = logits_of(floats[0], tokens, *floats[1:], scale)
    value.sum().backward()
    return (value.detach().numpy(), *(x.grad.numpy() for x in floats))


def filled_up(rng) -> list[list]:
    f, tokens, *rest = asked(rng)[1]
    longer = np.pad(tokens, [(0, 0), (0, 0), (0, 2)]).tolist()
    return [[f, tokens, *rest], [f, longer, *rest]]


def runs(rng) -> list[list]:
    """Draw runs of training; in the last two the best epoch lies in the middle, where training goes on."""
    out, epochs = [run(rng, (2, 2, 1, 1, 2, 2), 4, 3, (2, 2, 2), 0.2)], 6
    for size, lr in (((2, 2, 2, 2, 3, 4), 0.3), ((3, 2, 2, 1, 4, 5), 0.2)):
        best = lowest = 0
        while not 2 <= best <= epochs - 2 or lowest == best:
            drawn = run(rng, size, 8, 6, (epochs, 2, 4), lr)
            train_losses, val_losses, *_ = train_reference(*drawn)
            best, lowest = int(np.argmin(val_losses)), int(np.argmin(train_losses))
        out.append(drawn)
    return out


def run(rng, size, n: int, n_val: int, batches: tuple, lr: float, noise: float = 1.0) -> list:
    """Draw a run of training with (epochs, steps, images in a step)."""
    C, D = size[0], size[-1]
    E, S, B = batches
    rows = [rng.permutation(np.arange(S * B) % n).reshape(S, B).tolist() for _ in range(E)]
    sets = [*images(rng, C, n, D, noise), *images(rng, C, n_val, D, noise)]
    return [*sets, rows, *vip(rng, *size), 8.0, lr]


def train_reference(f, labels, val_f, val_labels, batches, tokens, table, tower, ctx, g, Wq, Wk, scale, lr):
    """Write out what SGD with momentum does."""
    f, labels, val_f, val_labels, table, tower = map(tensor, (f, labels, val_f, val_labels, table, tower))
    learned = [tensor(x) for x in (ctx, g, Wq, Wk)]
    speeds = [torch.zeros_like(x) for x in learned]
    train_losses, val_losses, kept = [], [], []
    for e, epoch in enumerate(np.array(batches).tolist()):
        rate = lr / 2 * (1 + cos(pi * (e - 1) / len(batches))) if e else WARMUP
        losses = []
        for rows in epoch:
            for x in learned:
                x.requires_grad_()
            loss = cross_entropy(logits_of(f[rows], tokens, table, tower, *learned, scale), labels[rows])
            slopes = torch.autograd.grad(loss, learned)
            losses.append(loss.item())
            learned = [x.detach() for x in learned]
            slopes = [slope + DECAY * x for slope, x in zip(slopes, learned, strict=True)]
            speeds = [MOMENTUM * v + slope for v, slope in zip(speeds, slopes, strict=True)]
            learned = [x - rate * v for x, v in zip(learned, speeds, strict=True)]
        train_losses.append(float(np.mean(losses)))
        val_logits = logits_of(val_f, tokens, table, tower, *learned, scale)
        val_losses.append(cross_entropy(val_logits, val_labels).item())
        kept.append([x.numpy() for x in learned])
    return (np.array(train_losses), np.array(val_losses), *kept[int(np.argmin(val_losses))])


def new_world(rng) -> list[list]:
    return [run(rng, (3, 2, 2, 2, 4, 5), 12, 6, (8, 3, 4), 0.1, noise=0.3)]


def of_one_epoch(rng) -> list[list]:
    """Draw the same single epoch at two rates."""
    one = run(rng, (2, 2, 2, 2, 3, 4), 8, 4, (1, 2, 4), 0.1)
    return [one, [*one[:-1], 0.5]]


def misled(rng) -> list[list]:
    """Draw a run whose validation labels are the wrong ones; the context starts at 0.25."""
    f, labels, *_, rows, tokens, table, tower, ctx, g, Wq, Wk, scale, lr = run(
        rng, (2, 2, 2, 2, 3, 4), 8, 4, (5, 2, 4), 0.2, noise=0.1
    )
    ctx = np.full_like(ctx, 0.25).tolist()
    g = numbers(rng, 2, 4, scale=0.05)
    wrong = [1 - label for label in labels]
    return [[f, labels, f, wrong, rows, tokens, table, tower, ctx, g, Wq, Wk, scale, lr]]


def misled_in_part(rng) -> list[list]:
    """Draw such a run whose validation loss, above 1, rises from the start on, and falls in between."""
    while True:
        drawn = misled(rng)
        _, _, f, labels, _, tokens, *floats, scale, _ = drawn[0]
        start = cross_entropy(logits_of(tensor(f), tokens, *map(tensor, floats), scale), tensor(labels))
        _, val_losses, *_ = train_reference(*drawn[0])
        if 1 < start < val_losses[0] == val_losses.min() and np.any(np.diff(val_losses) < 0):
            return drawn


ASSIGNMENT = Assignment(
    name="A4",
    kind="torch",
    allowed=["torch", "math"],
    tasks=[
        Task(
            "with_context",
            4,
            lambda rng: contexts(rng) + unfilled(rng),
            context_reference,
            properties=[
                Property(
                    "the context stands between [SOS] and the words, whose order stays.",
                    numbered,
                    stays_in_order,
                ),
                Property(
                    "the end of a text moves with its words, and not to the end of what fills it up.",
                    numbered,
                    lambda r: list(r[0][1]) == [5, 4],
                ),
                Property(
                    "a context that all share is the same as one for each text, all alike.",
                    shared_and_repeated,
                    lambda r: r[0] == r[1],
                ),
            ],
        ),
        Task(
            "merge",
            5,
            merges,
            merge_reference,
            properties=[
                Property(
                    "with Wq = 0 nothing is asked: g and the plain mean of the symptoms come out.",
                    without_questions,
                    lambda r: np.allclose(r[0], [11, 22]),
                ),
                Property(
                    "where a class has one symptom, g and this symptom come out.",
                    of_one_symptom,
                    lambda r: np.allclose(r[0], [11, 22]),
                ),
                Property(
                    "the order of the symptoms does not matter.", other_order, lambda r: np.allclose(*r)
                ),
                Property(
                    "other symptoms of one class leave the other class as it was.",
                    one_class_changed,
                    lambda r: np.allclose(r[0][0], r[1][0]) and not np.allclose(r[0][1], r[1][1]),
                ),
            ],
        ),
        Task(
            "vip_logits",
            3,
            asked,
            logits_reference,
            gradient=True,
            properties=[
                Property(
                    "no logit is larger than the scale.",
                    asked,
                    lambda r: all(np.abs(x[0]).max() <= s for x, s in zip(r, SCALES, strict=True)),
                ),
                Property(
                    "how far texts are filled up does not matter.",
                    filled_up,
                    lambda r: np.allclose(r[0][0], r[1][0]),
                ),
                Property(
                    "the derivatives pass through the tower to the context.",
                    asked,
                    lambda r: all(np.abs(np.array(x[4], dtype=float)).max() > 1e-9 for x in r),
                ),
            ],
        ),
        Task(
            "train",
            6,
            lambda rng: runs(rng) + misled_in_part(rng),
            train_reference,
            keeps=True,
            properties=[
                Property(
                    "the loss falls on images of a new world.", new_world, lambda r: r[0][0][-1] < r[0][0][0]
                ),
                Property(
                    "a single epoch is the warm-up, whose rate is not lr.",
                    of_one_epoch,
                    lambda r: all(np.allclose(a, b) for a, b in zip(*r, strict=True)),
                ),
                Property(
                    "where validation gets worse from the first epoch on, that epoch's numbers are kept.",
                    misled,
                    lambda r: np.abs(np.array(r[0][2]) - 0.25).max() < 1e-3 and r[0][1][-1] > r[0][1][0],
                ),
            ],
        ),
    ],
)
