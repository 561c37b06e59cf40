"""Captions for phantoms: attributes in varied words, the disease rarely and sometimes wrongly.

Web captions of medical images rarely say more than what is seen or asked; few name the diagnosis. So a
CLIP that read them knows what things look like better than what they are called. `name_rate` is how
often a caption names a disease, `wrong_rate` how often that name is another class's.
"""

import random

from medvlp.data.errors import check_kinds
from medvlp.data.phantoms.worlds import Latents, World

MENTION_PRESENT = 0.75  # chance that a caption mentions an attribute that is there,
MENTION_ABSENT = 0.6  # and one that is not
MENTION_PLAIN = 0.95  # the same in a plain caption
SHORT = 0.15  # share of captions that mention one attribute only
NAMED = ("{name}, {rest}", "{rest}, {name}", "{name} with {rest}", "{rest} in {name}")


def captions(
    world: World,
    latents: Latents,
    seed: int,
    name_rate: float = 0.0,
    wrong_rate: float = 0.2,
    plain: bool = False,
) -> list[str]:
    """One caption for each of the n latents; another seed gives other words for the same images.

    A plain caption lists nearly all attributes, in order, each in its first wording.

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
