"""BiomedCoOp: which prompts are kept, and what the penalties hold the context to."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medvlp.methods.prompt_tuning.biomedcoop import BiomedCoOp, kept_prompts
from tests.methods.small import SYMPTOMS, make_card

CARD = make_card()


def authors_choice(scores: list[float], tau: float) -> list[bool]:
    """Centre on the median, divide by the median absolute deviation, standardise, compare with tau."""
    s = np.array(scores)
    z = (s - np.median(s)) / np.median(np.abs(s - np.median(s)))
    return (np.abs((z - z.mean()) / z.std(ddof=1)) <= tau).tolist()


@pytest.mark.parametrize("tau", [1.0, 1.5, 2.0])
def test_pruning_is_the_authors(tau):
    random = np.random.default_rng(0)
    pruned = 0
    for _ in range(20):
        scores = random.normal(5, 2, size=50)
        kept = kept_prompts(torch.from_numpy(scores), tau)
        assert kept.tolist() == authors_choice(scores, tau)
        pruned += int((~kept).sum())
    assert 0 < pruned < 500


def test_pruning_leaves_what_does_not_stand_out():
    assert kept_prompts(torch.tensor([1.0, 1.1, 0.9, 1.0, 1.05, 9.0]), 1.5).tolist() == [True] * 5 + [False]
    assert kept_prompts(torch.ones(6), 1.5).all()  # the median absolute deviation is 0
    assert kept_prompts(torch.ones(1), 1.5).all()
    assert kept_prompts(torch.tensor([0.0, 1.0, 100.0]), 1.5).all()  # of three none can stand out so far
    assert kept_prompts(torch.tensor([0.0, 100.0]), 1.0).all()


def test_classes_with_fewer_prompts_start_over_and_keep_their_own_mean(clip, f):
    method = BiomedCoOp(clip, CARD)
    own = [clip.encode_texts([f"{s}." for s in phrases]) for phrases in SYMPTOMS.values()]  # 3, 2, 4
    assert method.w.shape == (3, 4, clip.embed_dim)
    assert torch.allclose(method.w[0], own[0][[0, 1, 2, 0]], atol=1e-6)
    assert torch.allclose(method.w[1], own[1][[0, 1, 0, 1]], atol=1e-6)
    assert torch.allclose(method.w_mean[0], F.normalize(own[0].mean(dim=0), dim=0), atol=1e-6)
    assert method.training_logits(f)[1].isfinite().all()


def test_a_student_that_is_its_teacher_has_nothing_to_pay(clip, f):
    prompts = {c: [f"a photo of a {c}"] * 3 for c in CARD.classnames}
    method = BiomedCoOp(clip, CARD, symptoms=prompts, sccm_weight=100, kdsp_weight=100)
    assert method.training_logits(f)[1].abs().max() < 1e-4
