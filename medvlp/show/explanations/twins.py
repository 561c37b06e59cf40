"""Phantoms with one attribute turned round, as a method scores them.

Each image is drawn again with one attribute changed and everything else, noise included, as it was
(`Latents.flip`). So whatever changes in a score was caused by that attribute. Attributes that come with each
other in a class cannot stand in for one another, as they can in a collection of images.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.backbone.features import image_features
from medvlp.data.errors import check_kinds
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet, PhantomSet
from medvlp.data.phantoms.worlds import Latents, Rendered, World
from medvlp.methods.base import Method, Reading, check_symptoms, load_own_tensors, own_tensors
from medvlp.study.evaluation import evaluating, predict_logits

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
Claims = Mapping[str, tuple[str, bool]]  # {phrase: (the attribute it names, whether it says present)}


def claims_of(world: World, symptoms: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, bool]]:
    """What each symptom claims, by the world's wordings: {phrase: (attribute, whether it says present)}.

    Phrases that are no wording of the world claim nothing and are left out.

    Example:
        >>> import medvlp
        >>> from medvlp.show import claims_of
        >>> claims_of(medvlp.get_world("derm"), {"nevus": ["a plain interior", "something else"]})
        {'a plain interior': ('dots', False)}
    """
    check_kinds(claims_of, locals())
    claims = {}
    for phrase in dict.fromkeys(phrase for phrases in symptoms.values() for phrase in phrases):
        try:
            k, present = world.reading(phrase)
        except ValueError:
            continue
        claims[phrase] = (world.attributes[k].name, present)
    return claims


def flip(images: PhantomSet, attribute: str) -> PhantomSet:
    """The same phantoms, each with this attribute turned round; their labels stay.

    ValueError for an unknown attribute, or images that are no phantoms.

    Example:
        >>> import medvlp
        >>> from medvlp.show import flip
        >>> images = medvlp.load_dataset("phantom-derm", num_shots=2).test
        >>> changed = flip(images, "veil").attributes != images.attributes  # (N, K)
        >>> bool(changed["veil"].all()), int(changed.sum().sum()) == len(images)
        (True, True)
    """
    check_kinds(flip, locals())
    latents = phantoms(images).latents.flip(images.world.index(attribute))
    size = images.image(0).width
    return replace(images, store=Rendered(images.world, latents, size))


@dataclass(frozen=True, eq=False)
class Flips:
    """N phantoms as they are and with each of K attributes turned round, as one method sees them.

    Attributes:
        latents: Of the images as they are.
        classnames: The method's classes.
        symptoms: The M symptoms, a row each: classname, symptom; None for a method without symptoms.
        scores: (1 + K, N, M), of the images as they are, and then with attribute k turned round; or None.
        logits: (1 + K, N, n_cls), likewise.
    """

    world: World
    latents: Latents
    classnames: list[str]
    symptoms: pd.DataFrame | None
    scores: np.ndarray | None
    logits: np.ndarray

    def present(self, k: int) -> np.ndarray:
        """Whether attribute k is there in the images as they are, (N,)."""
        return self.latents.attributes[:, k].numpy()

    @property
    def phrases(self) -> list[str]:
        """The different phrases among the symptoms; several classes may list the same."""
        return [] if self.symptoms is None else list(dict.fromkeys(self.symptoms["symptom"]))

    def moves(self) -> np.ndarray:
        """Each phrase's change of score with each attribute, the mean over its classes: (phrases, K, N)."""
        change = self.scores[1:] - self.scores[:1]  # (K, N, M)
        codes = pd.factorize(self.symptoms["symptom"])[0]  # (M,)
        return np.stack([change[:, :, codes == i].mean(axis=2) for i in range(codes.max() + 1)])


def flip_all(method: Method, images: PhantomSet, n_images: int | None = 500, seed: int = 1) -> Flips:
    """Score `n_images` phantoms, drawn by `seed` (None: all), as they are and with each attribute flipped.

    Features come from the cache where they were computed before; a bar over two seconds.

    Raises:
        ValueError: images that are no phantoms, or of other classes than the method's.

    Example:
        >>> import medvlp
        >>> from medvlp.show import flip_all
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> flip_all(zero, data.test, n_images=5).scores.shape  # 1 + 8 attributes, images, symptoms
        (9, 5, 16)
    """
    check_kinds(flip_all, locals())
    images = some(phantoms(images), n_images, seed)
    images.check(method.card, type(method).__name__)
    if method.keeps_image_tower:
        return flips_of_features(method, images, flip_features(method.clip, images))
    parts = tqdm(with_flips(images), desc="flip attributes", unit="attribute", leave=False, delay=2)
    logits = np.stack([predict_logits(method, part, Reading(progress=False)).numpy() for part in parts])
    return Flips(images.world, images.latents, method.card.classnames, None, None, logits)


def flip_features(clip: Clip, images: PhantomSet) -> list[Tensor]:
    """Features of the phantoms as they are, and with each attribute turned round: 1 + K of (N, D)."""
    parts = tqdm(with_flips(images), desc="flip attributes", unit="attribute", leave=False, delay=2)
    return [encode(clip, part) for part in parts]


def flips_of_features(method: Method, images: PhantomSet, features: Sequence[Tensor]) -> Flips:
    """What `flip_all` makes of these images, all of them, from their `flip_features`."""
    images.check(method.card, type(method).__name__)
    classnames, symptoms = method.card.classnames, method.symptoms
    scores, logits = [], []
    with evaluating(method):
        for f in features:
            f = f.to(method.clip.device)  # (N, D)
            logits.append(method.logits_from_features(f).float().cpu().numpy())  # (N, n_cls)
            if symptoms is not None:
                by_class = method.symptom_scores(f)
                scores.append(torch.cat(list(by_class.values()), dim=1).float().cpu().numpy())  # (N, M)
    if not scores:
        return Flips(images.world, images.latents, classnames, None, None, np.stack(logits))
    rows = [(name, phrase) for name, phrases in symptoms.items() for phrase in phrases]
    table = Table(rows, columns=["classname", "symptom"])
    return Flips(images.world, images.latents, classnames, table, np.stack(scores), np.stack(logits))


def phantoms(images: ImageSet | None) -> PhantomSet:
    """The images, if they are phantoms; else ValueError."""
    if not isinstance(images, PhantomSet):
        raise ValueError(
            "faithfulness is measured where attributes are known: give phantoms, such as "
            "load_dataset('phantom-derm').test, or, where nothing is turned round, images of a card with "
            "attributes."
        )
    return images


def some(images: ImageSet, n_images: int | None, seed: int) -> ImageSet:
    """`n_images` of them, or all where there are no more; in their order."""
    if n_images is not None and n_images < 1:
        raise ValueError(f"n_images is {n_images}; give at least 1, or None for all.")
    if n_images is None or n_images >= len(images):
        return images
    return images.subset(np.sort(np.random.default_rng(seed).permutation(len(images))[:n_images]))


def with_flips(images: PhantomSet) -> list[PhantomSet]:
    """The images as they are, and with each attribute turned round; drawn when looked at."""
    return [images, *(flip(images, attribute.name) for attribute in images.world.attributes)]


def encode(clip: Clip, images: PhantomSet) -> Tensor:
    """Features (N, D), from the cache or into it; phantoms are drawn in this process."""
    return image_features(clip, images, num_workers=0, progress=False).features


def gibberish(phrases: Sequence[str], seed: int = 1) -> dict[str, str]:
    """A nonsense phrase in place of each, {phrase: nonsense}, no two alike.

    They are as long as the phrases, but dealt out anew: else a score that knows only how long a text is would
    tell "present" from "absent" wherever one takes more words.

    Example:
        >>> from medvlp.show import gibberish
        >>> nonsense = gibberish(["black dots", "a blue-white veil"], seed=1)
        >>> sorted(len(words.split()) for words in nonsense.values())
        [2, 3]
    """
    check_kinds(gibberish, locals())
    draws = random.Random(seed)
    phrases = list(dict.fromkeys(phrases))
    lengths = [len(phrase.split()) for phrase in phrases]
    draws.shuffle(lengths)

    def word() -> str:
        return "".join(draws.choice(CONSONANTS) + draws.choice(VOWELS) for _ in range(draws.choice((2, 3))))

    nonsense: dict[str, str] = {}
    for phrase, length in zip(phrases, lengths, strict=True):
        while (words := " ".join(word() for _ in range(length))) in [*nonsense.values(), *phrases]:
            continue
        nonsense[phrase] = words
    return nonsense


def with_symptoms(method: Method, symptoms: Mapping[str, Sequence[str]]) -> Method:
    """The same method with other symptoms: its configuration and what it has learned stay.

    Args:
        method: `ZeroShot` with symptoms, or `ViP`, whose learned context and merge prompt then read the new
            symptoms without any training.
        symptoms: {classname: [phrase, ...]}, at least one for every class.

    Raises:
        ValueError: a method without symptom scores; symptoms that the method does not take.

    Example:
        >>> import medvlp
        >>> from medvlp.show import with_symptoms
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"))
        >>> with_symptoms(zero, {"melanoma": ["black dots"], "nevus": ["a clean rim"]}).symptoms["nevus"]
        ['a clean rim']
    """
    check_kinds(with_symptoms, locals())
    check_symptoms(method)
    config = method.config | {"symptoms": {name: list(phrases) for name, phrases in symptoms.items()}}
    other = type(method)(method.clip, method.card, **config)
    load_own_tensors(other, own_tensors(method), f"the trained {type(method).__name__}")
    return other.eval()


def with_nonsense(method: Method, seed: int) -> tuple[Method, dict[str, str]]:
    """The same method with a `gibberish` phrase in place of each symptom, and which stands for which."""
    nonsense = gibberish([phrase for phrases in method.symptoms.values() for phrase in phrases], seed)
    lists = {name: [nonsense[phrase] for phrase in phrases] for name, phrases in method.symptoms.items()}
    return with_symptoms(method, lists), nonsense
