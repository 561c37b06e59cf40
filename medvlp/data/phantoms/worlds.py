"""Phantom worlds: images whose visual attributes, and so whose best possible accuracy, are known.

A world draws a class y evenly, each attribute a_k independently with P(a_k | y), and an image from the
attributes and from nuisance that tells nothing of the class. So the posterior is naive Bayes, exactly:

    P(y | a)  is proportional to  prod_k P(a_k | y)

Attributes differ in how much they tell; some tell nothing although a textbook lists them. That is
the point: the plain mean over a list of symptoms is then not the best rule, and weights can be learned.
Nothing here is medical evidence.

Captions put attributes in varied words, and the disease rarely and sometimes wrongly. Web captions of medical
images rarely say more than what is seen or asked; few name the diagnosis. So a CLIP that read them knows what
things look like better than what they are called.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from medvlp.data.errors import check_choice, check_kinds
from medvlp.data.files import sha256
from medvlp.data.phantoms.drawing import DRAWING, Draws, draw_cxr, draw_derm, draw_fundus

CHUNK = 64  # images drawn at a time: small enough to stay in the processor's cache
MENTION_PRESENT = 0.75  # chance that a caption mentions an attribute that is there,
MENTION_ABSENT = 0.6  # and one that is not
MENTION_PLAIN = 0.95  # the same in a plain caption
SHORT = 0.15  # share of captions that mention one attribute only
NAMED = ("{name}, {rest}", "{rest}, {name}", "{name} with {rest}", "{rest} in {name}")


@dataclass(frozen=True)
class Attribute:
    """One thing that can be seen, how often each class shows it, and how people say it.

    The first wording of each tuple is the plainest; captions draw among all of them.
    """

    name: str
    probability: tuple[float, ...]  # P(present | class), in the order of the classes
    present: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Latents:
    """What n images are made of: labels (n,), attributes (n, K) bool, seeds (n,) of the nuisance."""

    labels: Tensor
    attributes: Tensor
    seeds: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> "Latents":
        return Latents(self.labels[index], self.attributes[index], self.seeds[index])

    def with_attribute(self, k: int, value: bool | Tensor) -> "Latents":
        """The same images but for attribute k, which becomes `value` (a bool, or (n,) bool)."""
        attributes = self.attributes.clone()
        attributes[:, k] = value
        return replace(self, attributes=attributes)

    def flip(self, k: int) -> "Latents":
        """The same images but for attribute k: gone where it was there, there where it was not.

        Labels and seeds stay, so position, light and noise do, too; the label is no longer drawn with these
        attributes. `world.posterior(latents.flip(k).attributes)` is what the best rule says now.
        """
        return self.with_attribute(k, ~self.attributes[:, k])


@dataclass(frozen=True)
class World:
    """Classes, attributes and the pictures that they make."""

    name: str
    classnames: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    openings: tuple[str, ...]  # how a caption may begin
    draw: Callable[[dict[str, Tensor], Draws], Tensor]

    @cached_property
    def probability(self) -> Tensor:
        """P(present | class), (n_cls, K) float64."""
        return torch.tensor([a.probability for a in self.attributes], dtype=torch.float64).T.contiguous()

    def index(self, attribute: str) -> int:
        """The column of an attribute. ValueError names the choices."""
        names = [a.name for a in self.attributes]
        check_choice("attribute", attribute, names, f"the {self.name} world")
        return names.index(attribute)

    def sample(self, n: int, seed: int) -> Latents:
        """Draw n images' latents; the first n of a longer draw are not the same images."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(len(self.classnames), (n,), generator=generator)
        chance = torch.rand(n, len(self.attributes), dtype=torch.float64, generator=generator)
        seeds = torch.randint(2**62, (n,), generator=generator)
        return Latents(labels, chance < self.probability[labels], seeds)

    def render(self, latents: Latents, size: int = 64) -> Tensor:
        """Draw the images: (n, 3, size, size) uint8. The same latents give the same pixels."""
        if size < 16:
            raise ValueError(f"phantoms need at least 16 pixels a side, got {size}.")
        images = torch.empty(len(latents), 3, size, size, dtype=torch.uint8)
        for start in range(0, len(latents), CHUNK):
            part = latents[start : start + CHUNK]
            present = part.attributes.float()[:, :, None, None]  # (chunk, K, 1, 1)
            on = {a.name: present[:, k] for k, a in enumerate(self.attributes)}
            images[start : start + CHUNK] = self.draw(on, Draws(part.seeds, size))
        return images

    def posterior(self, attributes: Tensor) -> Tensor:
        """P(class | attributes) by Bayes' rule: (n, K) bool -> (n, n_cls) float64."""
        present = attributes.to(torch.float64)
        log_likelihood = present @ self.probability.log().T + (1 - present) @ (1 - self.probability).log().T
        return log_likelihood.softmax(dim=1)

    def bayes_rule(self) -> tuple[Tensor, Tensor]:
        """Weights (K, n_cls) and bias (n_cls,) of the best rule: the posterior is softmax(a weights + bias).

        `shifted.rule_accuracy(*world.bayes_rule())` is what the best rule of one world is worth in another.
        """
        p = self.probability  # (n_cls, K)
        return (p.log() - (1 - p).log()).T, (1 - p).log().sum(dim=1)

    def traded(self, name: str, trades: Sequence[tuple[str, str]]) -> "World":
        """A shifted world: in each pair of attributes, each takes the probabilities of the other.

        Classes, pictures and words stay. Only which signs tell the classes apart changes, so that the best
        possible accuracy is the same, of another rule. ValueError for an unknown attribute.
        """
        attributes = list(self.attributes)
        for one, other in trades:
            i, j = self.index(one), self.index(other)
            first, second = attributes[i], attributes[j]
            attributes[i] = replace(first, probability=second.probability)
            attributes[j] = replace(second, probability=first.probability)
        return replace(self, name=name, attributes=tuple(attributes))

    def _every_pattern(self) -> tuple[Tensor, Tensor]:
        """All 2^K attribute patterns (2^K, K) and P(pattern | class) (2^K, n_cls)."""
        k = len(self.attributes)
        patterns = (torch.arange(2**k)[:, None] >> torch.arange(k)) & 1  # (2^K, K)
        p = self.probability[None]  # (1, n_cls, K)
        likelihood = torch.where(patterns[:, None].bool(), p, 1 - p).prod(dim=2)
        return patterns.bool(), likelihood

    def bayes_accuracy(self) -> float:
        """The best accuracy that any rule can reach from the attributes, summed over all patterns."""
        _, likelihood = self._every_pattern()
        return (likelihood.max(dim=1).values.sum() / len(self.classnames)).item()

    def rule_accuracy(self, weights: Tensor, bias: Tensor | float = 0.0) -> float:
        """Exact accuracy of argmax(a weights + bias); weights (K, n_cls); ties are shared."""
        patterns, likelihood = self._every_pattern()
        scores = patterns.to(torch.float64) @ weights.to(torch.float64) + bias  # (2^K, n_cls)
        best = (scores >= scores.max(dim=1, keepdim=True).values - 1e-9).to(torch.float64)
        chosen = best / best.sum(dim=1, keepdim=True)
        return ((likelihood * chosen).sum() / len(self.classnames)).item()

    def reading(self, phrase: str) -> tuple[int, bool]:
        """Which attribute a wording is about, and whether it says present. ValueError suggests wordings."""
        wordings = {
            words: (k, present)
            for k, a in enumerate(self.attributes)
            for present, group in ((True, a.present), (False, a.absent))
            for words in group
        }
        check_choice("wording", phrase, wordings, f"the {self.name} world")
        return wordings[phrase]

    def plain_accuracy(self, symptoms: dict[str, list[str]]) -> float:
        """Exact accuracy of the plain mean over symptoms, each seen perfectly.

        `symptoms` maps every class to wordings of this world (as `card.symptoms()` does): a class scores
        the share of its symptoms that are true of the image. Learned weights can do better.
        """
        weights = torch.zeros(len(self.attributes), len(self.classnames), dtype=torch.float64)
        bias = torch.zeros(len(self.classnames), dtype=torch.float64)
        for c, name in enumerate(self.classnames):
            for phrase in symptoms[name]:
                k, present = self.reading(phrase)
                weights[k, c] += (1 if present else -1) / len(symptoms[name])
                bias[c] += (0 if present else 1) / len(symptoms[name])
        return self.rule_accuracy(weights, bias)


class Rendered:
    """Phantoms, rendered a chunk at a time when first looked at and kept as uint8.

    Data loader workers do not share what they render, so read phantoms with num_workers=0.
    """

    def __init__(self, world: World, latents: Latents, size: int) -> None:
        self.world, self.latents, self.size = world, latents, size
        self._chunks: dict[int, Tensor] = {}

    def image(self, i: int) -> Image.Image:
        """Image i, PIL RGB."""
        number, place = divmod(i, CHUNK)
        if number not in self._chunks:
            part = self.latents[number * CHUNK : (number + 1) * CHUNK]
            self._chunks[number] = self.world.render(part, size=self.size)  # (CHUNK, 3, size, size)
        return Image.fromarray(self._chunks[number][place].permute(1, 2, 0).contiguous().numpy())

    def take(self, rows: np.ndarray) -> "Rendered":
        """These phantoms only, not rendered yet."""
        return Rendered(self.world, self.latents[torch.from_numpy(rows)], self.size)

    @property
    def glances(self) -> list[int]:
        """The seeds, which no two phantoms share."""
        return self.latents.seeds.tolist()

    @property
    def hashes(self) -> list[str]:
        """Of what each image follows from: `content` of it alone."""
        return [self.take(np.array([i])).content() for i in range(len(self.latents))]

    def content(self) -> str:
        """Hash of what the images follow from: the way of drawing, the world, the size and the latents.

        Not of pixels: between processors a few of them differ by 1, and it is the same data set.
        """
        latents = (self.latents.labels, self.latents.attributes, self.latents.seeds)
        return sha256(
            str(DRAWING), self.world.name, str(self.size), *(tensor.numpy().tobytes() for tensor in latents)
        )


DRAWINGS = {"derm": draw_derm, "cxr": draw_cxr, "fundus": draw_fundus}


@cache
def get_world(name: str) -> World:
    """The world of this name, as worlds.yaml describes it. ValueError names the choices.

    Example:
        >>> import medvlp
        >>> world = medvlp.get_world("derm")
        >>> latents = world.sample(4, seed=1)
        >>> world.render(latents, size=64).shape
        torch.Size([4, 3, 64, 64])
        >>> f"{world.bayes_accuracy():.2f}"
        '0.83'
    """
    file = resources.files("medvlp.data.phantoms") / "worlds.yaml"
    worlds = yaml.safe_load(file.read_text(encoding="utf-8"))
    check_choice("phantom world", name, worlds)
    entry = worlds[name]
    if "shift_of" in entry:
        return get_world(entry["shift_of"]).traded(name, entry["trades"])
    attributes = tuple(
        Attribute(key, tuple(a["probability"]), tuple(a["present"]), tuple(a["absent"]))
        for key, a in entry["attributes"].items()
    )
    return World(name, tuple(entry["classnames"]), attributes, tuple(entry["openings"]), DRAWINGS[name])


def captions(
    world: World,
    latents: Latents,
    seed: int,
    name_rate: float = 0.0,
    wrong_rate: float = 0.2,
    plain: bool = False,
) -> list[str]:
    """One caption for each of the n latents; another seed gives other words for the same images.

    A plain caption lists nearly all attributes, in order, each in its first wording. `name_rate` is how often
    a caption names a disease, `wrong_rate` how often that name is another class's.

    ValueError if a rate is not between 0 and 1.

    Example:
        >>> import medvlp
        >>> world = medvlp.get_world("derm")
        >>> words = medvlp.captions(world, world.sample(2, seed=1), seed=1, plain=True)
        >>> "black dots" in words[0], len(words)
        (True, 2)
    """
    check_kinds(captions, locals())
    for rate in (name_rate, wrong_rate):
        if not 0 <= rate <= 1:
            raise ValueError(f"name_rate and wrong_rate are between 0 and 1, got {rate}.")
    words = random.Random(seed)
    describe = _plain if plain else _varied
    rows = zip(latents.labels.tolist(), latents.attributes.tolist(), strict=True)
    return [
        _named(world, label, describe(world, present, words), words, name_rate, wrong_rate)
        for label, present in rows
    ]


def _plain(world: World, present: list[bool], words: random.Random) -> str:
    pairs = [pair for pair in zip(world.attributes, present, strict=True) if words.random() < MENTION_PLAIN]
    return ", ".join((a.present if there else a.absent)[0] for a, there in pairs)


def _varied(world: World, present: list[bool], words: random.Random) -> str:
    order = list(range(len(present)))
    words.shuffle(order)
    if words.random() < SHORT:
        mentioned = order[:1]
    else:
        chance = {True: MENTION_PRESENT, False: MENTION_ABSENT}
        mentioned = [k for k in order if words.random() < chance[present[k]]] or order[:1]
    wordings = [world.attributes[k].present if present[k] else world.attributes[k].absent for k in mentioned]
    phrases = words.choice((", ", " and ", "; ")).join(words.choice(options) for options in wordings)
    return f"{words.choice(world.openings)} {phrases}".strip()


def _named(
    world: World, label: int, rest: str, words: random.Random, name_rate: float, wrong_rate: float
) -> str:
    if words.random() >= name_rate:
        return rest
    others = [name for c, name in enumerate(world.classnames) if c != label]
    name = words.choice(others) if words.random() < wrong_rate else world.classnames[label]
    return words.choice(NAMED).format(name=name, rest=rest)
