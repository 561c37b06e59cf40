import pytest

from medvlp.data.phantoms.worlds import DRAWINGS, captions, get_world


@pytest.mark.parametrize("name", list(DRAWINGS))
def test_captions_say_what_is_there(name):
    world = get_world(name)
    latents = world.sample(400, seed=4)
    mentions = 0
    for caption, present in zip(captions(world, latents, seed=1), latents.attributes.tolist(), strict=True):
        body = caption
        for opening in sorted(world.openings, key=len, reverse=True):
            if opening and body.startswith(opening):
                body = body[len(opening) :].strip()
                break
        phrases = [p for part in body.split("; ") for p in _known(world, part)]
        mentions += len(phrases)
        for k, said in phrases:
            assert present[k] == said, caption
    assert mentions > 3 * len(latents)


def _known(world, part):
    """The attribute states that a caption's part is made of: wordings joined by commas or `and`."""
    wordings = [w for a in world.attributes for w in (*a.present, *a.absent)]
    found, rest = [], part
    while rest:
        fits = [w for w in wordings if rest == w or rest.startswith((w + ", ", w + " and "))]
        assert fits, f"{rest!r} of {part!r}"
        wording = max(fits, key=len)
        found.append(world.reading(wording))
        rest = rest[len(wording) :].removeprefix(", ").removeprefix(" and ")
    return found


def test_names_come_at_their_rate_and_wrong_at_theirs():
    world = get_world("cxr")
    latents = world.sample(8000, seed=1)
    named = wrong = 0
    texts = captions(world, latents, 2, name_rate=0.25)
    for caption, label in zip(texts, latents.labels.tolist(), strict=True):
        said = [c for c, name in enumerate(world.classnames) if name in caption]
        named += bool(said)
        wrong += bool(said) and said != [label]
    assert named / 8000 == pytest.approx(0.25, abs=0.02)
    assert wrong / named == pytest.approx(0.2, abs=0.04)


def test_no_name_at_rate_zero_and_same_words_for_the_same_seed():
    world = get_world("fundus")
    latents = world.sample(500, seed=1)
    first = captions(world, latents, seed=7)
    assert not any("retinopathy" in caption for caption in first)
    assert first == captions(world, latents, seed=7) != captions(world, latents, seed=8)


def test_a_rate_is_a_share():
    world = get_world("derm")
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        captions(world, world.sample(2, 0), seed=1, name_rate=1.5)
