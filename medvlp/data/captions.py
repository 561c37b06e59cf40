"""Captions for phantoms: attributes in varied words, the disease rarely and sometimes wrongly.

Web captions of medical images rarely say more than what is seen or asked; few name the diagnosis. So a
CLIP that read them knows what things look like better than what they are called. `name_rate` is how
often a caption names a disease, `wrong_rate` how often that name is another class's.
"""

import random

from medvlp.data.phantoms import Latents, World

MENTION_PRESENT = 0.75  # chance that a caption mentions an attribute that is there,
MENTION_ABSENT = 0.5  # and one that is not
SHORT = 0.2  # share of captions that mention one attribute only
NAMED = ("{name}, {rest}", "{rest}, {name}", "{name} with {rest}", "{rest} in {name}")


def captions(
    world: World, latents: Latents, seed: int, name_rate: float = 0.0, wrong_rate: float = 0.2
) -> list[str]:
    """One caption for each of the n latents; another seed gives other words for the same images.

    ValueError if a rate is not between 0 and 1.
    """
    for rate in (name_rate, wrong_rate):
        if not 0 <= rate <= 1:
            raise ValueError(f"name_rate and wrong_rate are between 0 and 1, got {rate}.")
    words = random.Random(seed)
    rows = zip(latents.labels.tolist(), latents.attributes.tolist(), strict=True)
    return [_caption(world, label, present, words, name_rate, wrong_rate) for label, present in rows]


def _caption(
    world: World, label: int, present: list[bool], words: random.Random, name_rate: float, wrong_rate: float
) -> str:
    order = list(range(len(present)))
    words.shuffle(order)
    if words.random() < SHORT:
        mentioned = order[:1]
    else:
        chance = {True: MENTION_PRESENT, False: MENTION_ABSENT}
        mentioned = [k for k in order if words.random() < chance[present[k]]] or order[:1]
    phrases = [
        words.choice(world.attributes[k].present if present[k] else world.attributes[k].absent)
        for k in mentioned
    ]
    rest = f"{words.choice(world.openings)} {words.choice((', ', ' and ', '; ')).join(phrases)}".strip()
    if words.random() >= name_rate:
        return rest
    others = [name for c, name in enumerate(world.classnames) if c != label]
    name = words.choice(others) if words.random() < wrong_rate else world.classnames[label]
    return words.choice(NAMED).format(name=name, rest=rest)
