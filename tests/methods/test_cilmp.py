"""CILMP: equal to the authors' implementation and to a plain reading of its formula, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import load_clip
from medvlp.data.cards import DataCard
from medvlp.methods.cilmp import CILMP
from tests.backbone import small_clips

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["cilmp_equal_12_12_12", "cilmp_unequal_12_15_18", "cilmp_unequal_12_15_18_train_masks"]


class Stored(torch.nn.Module):
    """In the place of `RowDropout`: this mask at every call."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, h: torch.Tensor, n_images: int) -> torch.Tensor:
        return self.mask


def card_of(classnames: list[str]) -> DataCard:
    return DataCard.model_validate(
        {
            "name": "golden",
            "title": "X-rays",
            "modality": "a chest X-ray",
            "classes": [{"name": name} for name in classnames],
            "source": {"kind": "folder"},
        }
    )


def trained(cilmp: CILMP) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in cilmp.named_parameters() if p.requires_grad}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# --- the authors' implementation ---


class Golden:
    """The public class on a `local-dir:` model, a card with their classes, and their parameters."""

    def __init__(self, case: str, folder: Path) -> None:
        with np.load(GOLDEN / f"{case}.npz") as file:
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
            self.meta = json.loads(str(file["meta"]))
        clip = load_clip(small_clips.golden_kind(folder, GOLDEN / f"{case}.npz"), device="cpu")
        classes = self.meta["classes"]
        states = {name: self.arrays[f"in/llm/{c}"] for c, name in enumerate(classes)}
        self.cilmp = CILMP(clip, card_of(classes), states, rank=self.meta["low_rank"])
        with torch.no_grad():
            for theirs, ours in self.pairs():
                ours.copy_(self.arrays[f"param/{theirs}"])
        self.cilmp.train(self.meta["train_mode_with_masks"])
        if self.cilmp.training:
            for i, site in enumerate(self.cilmp.sites):
                for edge in ("prefix", "suffix"):
                    keep = self.arrays[f"in/dropout_keep/{self.site(i)}.{edge}_intervention.dropout"]
                    setattr(site, f"dropout_{edge}", Stored(keep / (1 - 0.1)))

    def site(self, i: int) -> str:
        return f"text_encoder.transformer.resblocks.{i}" if i else "prompt_learner"

    def pairs(self, grad: bool = False) -> list[tuple[str, torch.Tensor]]:
        """Their names with our tensors, or our tensors' gradients."""
        cilmp, found = self.cilmp, []
        value = (lambda p: p.grad) if grad else (lambda p: p)
        for i, site in enumerate(cilmp.sites):
            where = self.site(i)
            found.append((f"{where}.VPT_shallow" if i else f"{where}.ctx", value(cilmp.ctx)[i]))
            image = f"image_encoder.transformer.resblocks.{i}.VPT_shallow" if i else "image_encoder.VPT"
            found.append((image, value(cilmp.image_prompts)[i]))
            found += [(f"{where}.lora_proj.lora_{name}", value(getattr(site, name))) for name in "AB"]
            for edge in ("prefix", "suffix"):
                m, name = getattr(site, edge), f"{where}.{edge}_intervention"
                d = m.R.shape[0]
                for half, W in ((slice(0, d), m.W1), (slice(d, None), m.W2)):
                    self.arrays |= {
                        f"{kind}/{name}.{half.start}": self.arrays[key][:, half]
                        for kind in ("param", "grad", "after1")
                        if (key := f"{kind}/{name}.learned_source.weight") in self.arrays
                    }
                    found.append((f"{name}.{half.start}", value(W)))
                gate = f"{name}.image_feature_learned_weight"
                found += [
                    (f"{name}.rotate_layer.weight", value(m.R)),
                    (f"{name}.learned_source.bias", value(m.b)),
                    (f"{gate}.0.weight", value(m.G1)),
                    (f"{gate}.0.bias", value(m.c1)),
                    (f"{gate}.1.weight", value(m.G2)),
                    (f"{gate}.1.bias", value(m.c2)),
                ]
        return found


@pytest.fixture(params=CASES)
def golden(request, tmp_path) -> Golden:
    return Golden(request.param, tmp_path)


def test_logits_loss_gradients_and_a_step_equal_the_authors(golden):
    cilmp, arrays = golden.cilmp, golden.arrays
    assert sum(p.numel() for p in trained(cilmp).values()) == golden.meta["n_trainable"]
    logits = cilmp(arrays["in/images"])
    assert (logits - arrays["out/logits"]).abs().max() <= 2e-5
    loss = F.cross_entropy(logits, arrays["in/labels"])
    assert loss.item() == pytest.approx(arrays["out/loss"].item(), abs=2e-5)

    sgd = torch.optim.SGD(trained(cilmp).values(), lr=0.0025, momentum=0.9, weight_decay=5e-4)
    loss.backward()
    for theirs, grad in golden.pairs(grad=True):
        assert relative(grad, arrays[f"grad/{theirs}"]) <= 5e-5, theirs
    sgd.step()
    after = [(theirs, ours) for theirs, ours in golden.pairs() if f"after1/{theirs}" in arrays]
    for theirs, ours in after:
        assert relative(ours, arrays[f"after1/{theirs}"]) <= 5e-7, theirs
    if not golden.meta["train_mode_with_masks"]:
        assert len(after) == 12
        assert (cilmp(arrays["in/images"]) - arrays["after1/logits"]).abs().max() <= 2e-5
