"""BiomedCoOp: its losses written out prompt by prompt, as the authors score, prune and distil."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip, load_clip
from medvlp.methods.prompt_tuning.biomedcoop import BiomedCoOp, kept_prompts
from medvlp.methods.prompt_tuning.coop import CoOp
from tests.backbone import small_clips
from tests.methods.prompt_tuning import coop_oracle
from tests.methods.small import SYMPTOMS, make_card

CARD = make_card()
LABELS = torch.tensor([0, 1, 2, 0, 1])
PHRASES = ["dark", "round", "ragged", "waxy", "blue and gray", "even brown color", "white dots"]
PROMPTS = {c: [f"{phrase} {c[0]}" for phrase in PHRASES] for c in CARD.classnames}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    return load_clip(small_clips.openai_kind(tmp_path_factory.mktemp("clip")), device="cpu")


def authors_choice(scores: list[float], tau: float) -> list[bool]:
    """Centre on the median, divide by the median absolute deviation, standardise, compare with tau."""
    s = np.array(scores)
    z = (s - np.median(s)) / np.median(np.abs(s - np.median(s)))
    return (np.abs((z - z.mean()) / z.std(ddof=1)) <= tau).tolist()


def test_losses_and_gradient_are_those_of_the_formula(clip, f):
    method = BiomedCoOp(clip, CARD, symptoms=PROMPTS, sccm_weight=3.0, kdsp_weight=0.5, tau=1.2)
    ctx = method.ctx.detach().clone().requires_grad_()
    t = coop_oracle.text_features(clip, CARD.classnames, ctx)  # (n_cls, D)
    w = torch.stack([clip.encode_texts([f"{p}." for p in PROMPTS[c]]) for c in CARD.classnames])

    mean = F.normalize(w.mean(dim=1), dim=-1)
    sccm = sum(((t[c] - mean[c]) ** 2).mean() for c in range(3)) / 3
    scores = [
        np.mean([max(float(f[b] @ w[c, i]) for c in range(3)) for b in range(5)]) for i in range(len(PHRASES))
    ]
    kept = authors_choice(scores, 1.2)
    assert 0 < sum(kept) < len(PHRASES)
    selected = F.normalize(w[:, kept].mean(dim=1), dim=-1)
    logits = clip.logit_scale * f @ t.T
    kdsp = []
    for b in range(5):
        q = (clip.logit_scale * selected @ f[b]).softmax(dim=0)
        kdsp.append((q * (q.log() - logits[b].softmax(dim=0).log())).sum() / 3)
    expected = 3.0 * sccm + 0.5 * torch.stack(kdsp)

    ours, penalty = method.training_logits(f)
    assert torch.equal(ours, method.logits_from_features(f))
    assert torch.allclose(method.selected_features(f), selected, atol=1e-5)
    assert penalty.shape == (5,) and penalty.min() > 0
    assert torch.allclose(penalty, expected, rtol=1e-3, atol=1e-6)
    (F.cross_entropy(logits, LABELS) + expected.mean()).backward()
    (F.cross_entropy(ours, LABELS) + penalty.mean()).backward()
    assert torch.allclose(method.ctx.grad, ctx.grad, atol=1e-4 * float(ctx.grad.abs().max()))


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


def test_without_weights_it_is_coop(clip, f):
    method, coop = (
        BiomedCoOp(clip, CARD, sccm_weight=0, kdsp_weight=0),
        CoOp(clip, CARD, ctx_init="a photo of a"),
    )
    logits, penalty = method.training_logits(f)
    assert torch.equal(logits, coop.logits_from_features(f))
    assert torch.equal(penalty, torch.zeros(5))


def test_a_student_that_is_its_teacher_has_nothing_to_pay(clip, f):
    prompts = {c: [f"a photo of a {c}"] * 3 for c in CARD.classnames}
    method = BiomedCoOp(clip, CARD, symptoms=prompts, sccm_weight=100, kdsp_weight=100)
    assert method.training_logits(f)[1].abs().max() < 1e-4


def test_the_penalties_lead_to_the_teacher(clip, f):
    method = BiomedCoOp(clip, CARD, symptoms=PROMPTS, ctx_init="", n_ctx=4, kdsp_weight=5.0)
    sgd = torch.optim.SGD([method.ctx], lr=0.005, momentum=0.9)
    penalties = []
    for _ in range(30):
        penalty = method.training_logits(f)[1].mean()
        sgd.zero_grad()
        penalty.backward()
        sgd.step()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.5 * penalties[0]


def test_what_makes_no_sense_is_an_error(clip):
    with pytest.raises(ValueError, match="kdsp_weight must be at least 0, got -1"):
        BiomedCoOp(clip, CARD, kdsp_weight=-1)
    with pytest.raises(ValueError, match=r"tau must be at least 1, .*, got 0.5"):
        BiomedCoOp(clip, CARD, tau=0.5)
    with pytest.raises(ValueError, match="no symptoms for 'nevus', 'keratosis'"):
        BiomedCoOp(clip, CARD, symptoms={"melanoma": ["dark"]})
    with pytest.raises(ValueError, match="unknown kind of knowledge 'simptoms'.*'symptoms', 'useless'"):
        BiomedCoOp(clip, CARD, knowledge="simptoms")
