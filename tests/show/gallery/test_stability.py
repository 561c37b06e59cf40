"""Harmless changes: what they do to an image, and which decisions they turn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medvlp import Method
from medvlp.show import stability
from medvlp.show.gallery.doubtful import harmless_changes
from tests.methods.small import make_card, make_set, set_of


class Rule(Method):
    """A method whose logits are a function of the pixels."""

    def __init__(self, clip, card, rule):
        super().__init__(clip, card, locals())
        self.rule = rule

    def forward(self, images):
        return self.rule(images)


def left_or_right(images: torch.Tensor) -> torch.Tensor:
    """Class 0 where the left half is the brighter, class 1 where the right half is."""
    half = images.shape[-1] // 2
    halves = images[..., :half], images[..., half:]
    return torch.stack([part.mean(dim=(1, 2, 3)) for part in halves], dim=1)


def test_each_change_does_what_its_name_says(clip):
    size = clip.image_size
    step = max(1, round(size / 32))
    changes = harmless_changes(clip, make_card())
    mean, std = (torch.tensor(clip.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = (pixels - mean) / std
    right = changes[f"shifted {step} pixels right"](images)
    assert torch.equal(right[..., step:], images[..., :-step])
    assert torch.equal(right[..., :step], images[..., :1].expand_as(right[..., :step]))
    up = changes[f"shifted {step} pixels up"](images)
    assert torch.equal(up[..., :-step, :], images[..., step:, :])
    assert torch.equal(changes["mirrored"](images)[..., 0], images[..., -1])
    for name, factor in (("10% brighter", 1.1), ("10% darker", 0.9)):
        changed = changes[name](images) * std + mean
        assert torch.allclose(changed, (pixels * factor).clamp(max=1), atol=1e-5)
    assert len(changes) == 7


def test_a_chest_is_not_mirrored(clip):
    chest = make_card().model_copy(update={"modality": "a Chest X-ray"})
    assert "mirrored" not in harmless_changes(clip, chest)


def test_decisions_that_a_change_turns_are_found_and_named(clip):
    card = make_card(2)
    pixels = np.full((4, 32, 32, 3), 100, dtype=np.uint8)
    pixels[0, :, :10] = 200  # brighter on the left
    pixels[1, :, -10:] = 200
    pixels[2] = pixels[0]
    pixels[3, :4] = 200  # the same on both sides, so class 0 stays
    images = set_of(card, np.array([0, 1, 1, 0]), pixels)
    found = stability(Rule(clip, card, left_or_right), images)
    assert sorted(found.table["image"]) == [0, 1, 2]
    notes = found.table.set_index("image")["note"]
    assert notes[0] == "nevus when mirrored" and notes[1] == "melanoma when mirrored"
    assert found.table.set_index("image")["correct"].to_dict() == {0: True, 1: True, 2: False}
    assert "3 of 4 decisions flip" in found.title


def test_own_changes_are_tried_in_evaluation_mode_and_the_mode_comes_back(clip):
    card = make_card()
    seen = SimpleNamespace(training=set())

    def rule(images):
        seen.training.add(method.training)
        return torch.stack([images.mean(dim=(1, 2, 3)) * k for k in (1.0, 0.0, -1.0)], dim=1)

    method = Rule(clip, card, rule).train()
    found = stability(method, make_set(card, [0, 1, 2]), changes={"negative": lambda images: -images})
    assert len(found) == 3 and found.table["note"].str.endswith("when negative").all()
    assert seen.training == {False} and method.training


def test_bad_input_is_refused(clip):
    card = make_card()
    method = Rule(clip, card, left_or_right)
    with pytest.raises(ValueError, match="no change to try"):
        stability(method, make_set(card, [0]), changes={})
    with pytest.raises(ValueError, match="build both from one card"):
        stability(method, make_set(make_card(2), [0]))
