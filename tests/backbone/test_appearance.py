"""Looks: what may change does, within its bounds, and nothing else."""

import math

import pytest
import torch

from medvlp.backbone.appearance import Looks, turn_hue

NONE = {
    field: 0.0 for field in ("scale", "stain", "hue", "saturation", "brightness", "contrast", "blur", "shift")
}


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


def draw(images, seed=1, **changes):
    looks = Looks(**(NONE | {"turned": False, "untouched": 0.0} | changes))
    return looks.draw(images, images.shape[-1], torch.Generator().manual_seed(seed))


def test_without_changes_an_image_stays_as_it_is(images):
    assert torch.allclose(draw(images), images, atol=2e-3)


@pytest.mark.parametrize("field", sorted(NONE))
def test_each_property_changes_by_itself_and_by_seed(images, field):
    changed = draw(images, **{field: 5.0 if field in ("hue", "blur") else 0.3})
    assert changed.shape == images.shape and changed.isfinite().all()
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed - images).abs().mean() > 0.005
    assert torch.equal(changed, draw(images, **{field: 5.0 if field in ("hue", "blur") else 0.3}))
    assert not torch.equal(changed, draw(images, seed=2, **{field: 5.0 if field in ("hue", "blur") else 0.3}))


def test_brightness_is_a_factor_within_its_bounds(images):
    factors = (draw(images, brightness=0.1) / images).clamp(max=2).flatten(1).median(dim=1).values
    assert (factors.log().abs() <= 0.1 + 1e-2).all() and factors.std() > 0.01


def test_colours_may_stay_untouched_while_the_pose_changes(images):
    turned = draw(images, turned=True, hue=40.0, stain=0.5, untouched=1.0)
    inner = images[..., 8:24, 8:24].mean((2, 3))
    assert not torch.allclose(turned, images, atol=0.05)
    assert torch.allclose(turned[..., 8:24, 8:24].mean((2, 3)), inner, atol=0.12)


def test_a_third_of_a_turn_exchanges_the_channels(images):
    third = torch.full((len(images),), 2 * math.pi / 3)
    assert torch.allclose(turn_hue(images, third), images[:, [2, 0, 1]], atol=1e-5)
    assert torch.allclose(turn_hue(turn_hue(images, third), -third), images, atol=1e-5)
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert torch.allclose(turn_hue(grey, third / 2), grey, atol=1e-5)


def test_a_smaller_picture_comes_from_a_larger_copy(images):
    looks = Looks(**NONE, turned=False, untouched=1.0)
    smaller = looks.draw(images, 24, torch.Generator())
    assert smaller.shape == (6, 3, 24, 24)
    assert torch.allclose(smaller.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.02)
