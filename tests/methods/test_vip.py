"""ViP: equal to the authors' implementation, and the properties that its formula has."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.prompts import hooks
from medvlp.data.cards import DataCard
from medvlp.methods.vip import ViP, merge
from tests.backbone import small_clips
from tests.methods.small import SYMPTOMS, make_card, trained

CARD = make_card()
THEIR_NAMES = {"ctx": "ctx", "g": "learnable_token", "Wq": "q_proj.weight", "Wk": "k_proj.weight"}
KINDS = ["openai_kind", "siglip_kind", "eos_kind", "coca_kind", "biomedclip_kind"]


def shake(vip: ViP) -> ViP:
    """Move every learned tensor away from its start, where attention is nearly uniform."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in trained(vip).values():
            p.add_(torch.randn(p.shape, generator=random) * (0.3 if p.shape[-1] == 40 else 1.0))
    return vip


def raw(clip: Clip, texts: list[str]) -> torch.Tensor:
    """Text features (N, D) as the tower gives them, from full sequences."""
    return clip.model.encode_text(clip.tokenizer(texts), normalize=False)


# --- the authors' implementation ---


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(small_clips.GOLDEN) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}


@pytest.fixture(scope="module")
def meta() -> dict:
    with np.load(small_clips.GOLDEN) as file:
        return json.loads(str(file["meta"]))


@pytest.fixture
def their_vip(tmp_path, golden, meta) -> ViP:
    """The public class on a `local-dir:` model, a card with their classes, and their parameters."""
    classes = [{"name": c, "knowledge": {"symptoms": meta["symptoms"][c]}} for c in meta["classes"]]
    card = DataCard.model_validate(
        {
            "name": "golden",
            "title": "X-rays",
            "modality": "a chest X-ray",
            "classes": classes,
            "source": {"kind": "folder"},
        }
    )
    clip = load_clip(small_clips.golden_kind(tmp_path), device="cpu")
    vip = ViP(clip, card, n_ctx=meta["n_ctx"], csc=meta["csc"], position=meta["class_token_position"])
    assert set(trained(vip)) == set(THEIR_NAMES)
    with torch.no_grad():
        for ours, theirs in THEIR_NAMES.items():
            getattr(vip, ours).copy_(golden[f"param/{theirs}"])
    return vip


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_logits_loss_gradients_and_a_step_equal_the_authors(their_vip, golden):
    logits = their_vip(golden["in/images"])
    assert (logits - golden["out/logits"]).abs().max() <= 2e-5
    loss = F.cross_entropy(logits, golden["in/labels"])
    assert loss.item() == pytest.approx(golden["out/loss"].item(), abs=2e-5)

    sgd = torch.optim.SGD(trained(their_vip).values(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    loss.backward()
    for ours, theirs in THEIR_NAMES.items():
        assert relative(getattr(their_vip, ours).grad, golden[f"grad/{theirs}"]) <= 5e-5, ours
    sgd.step()
    for ours, theirs in THEIR_NAMES.items():
        after = golden[f"after1/{theirs}"]
        assert relative(getattr(their_vip, ours), after) <= 5e-7, ours
        step = relative(
            getattr(their_vip, ours) - golden[f"param/{theirs}"], after - golden[f"param/{theirs}"]
        )
        assert step <= 5e-4, ours  # of the change alone: the weights' own rounding is part of it
    assert (their_vip(golden["in/images"]) - golden["after1/logits"]).abs().max() <= 2e-5


def test_the_parts_equal_the_authors(their_vip, golden, meta):
    T = torch.cat([golden["out/symptom_features/0"], golden["out/symptom_features/1"]])
    assert torch.allclose(their_vip.symptom_features(), T, atol=2e-5)
    assert torch.allclose(
        their_vip.class_features(), golden["out/merged_text_features_normalized"], atol=2e-6
    )
    ids = torch.cat([golden["in/token_ids/0"], golden["in/token_ids/1"]])
    assert torch.equal(their_vip.tokens, ids[:, : their_vip.tokens.shape[1]])
    assert their_vip.tokens.shape[1] == 1 + max(max(ends) for ends in meta["eot"].values())
    weights = their_vip.merge_weights()
    assert weights.symptom.tolist() == [s for c in meta["classes"] for s in meta["symptoms"][c]]
    theirs = torch.cat([golden["out/merge_attention/0"], golden["out/merge_attention/1"]]).flatten()
    assert weights.weight.tolist() == pytest.approx(theirs.tolist(), abs=1e-6)


def test_cached_features_give_the_logits_of_the_images(their_vip, golden):
    f = F.normalize(golden["out/image_features"], dim=-1)
    assert torch.allclose(their_vip.logits_from_features(f), golden["out/logits"], atol=2e-5)


# --- the formula ---


def test_merge_is_the_formula_written_out():
    random = torch.Generator().manual_seed(0)
    T, g = torch.randn(2, 3, 5, generator=random), torch.randn(2, 5, generator=random)
    Wq, Wk = torch.randn(2, 5, 5, generator=random)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    t, attention = merge(T, g, Wq, Wk, mask)
    for c, m in ((0, 3), (1, 2)):
        scores = [float((Wq @ g[c]) @ (Wk @ T[c, i])) / math.sqrt(5) for i in range(m)]
        weights = np.exp(scores) / np.exp(scores).sum()
        assert attention[c, :m].tolist() == pytest.approx(weights, rel=1e-4)
        by_hand = g[c] + sum(float(w) * T[c, i] for i, w in enumerate(weights))
        assert torch.allclose(t[c], by_hand, atol=1e-5)
    assert attention[1, 2] == 0


def test_gradients_of_the_merge_are_right_where_classes_are_filled_up():
    random = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4), (2, 4), (4, 4), (4, 4)]
    T, g, Wq, Wk = (torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in shapes)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.autograd.gradcheck(lambda *tensors: merge(*tensors, mask)[0], (T, g, Wq, Wk))


def test_identical_symptoms_merge_to_their_feature_plus_the_merge_prompt(clip):
    alike = {name: ["dark round spots"] * 3 for name in CARD.classnames}
    vip = shake(ViP(clip, CARD, symptoms=alike))
    expected = F.normalize(vip.g + vip.symptom_features()[:1], dim=-1)
    assert torch.allclose(vip.class_features(), expected, atol=1e-5)
    assert vip.merge_weights().weight.tolist() == pytest.approx([1 / 3] * 9, abs=1e-5)


@pytest.mark.parametrize("aggregation", ["merge", "mean", "max"])
def test_the_order_of_symptoms_does_not_matter(clip, f, aggregation):
    turned = {name: phrases[::-1] for name, phrases in SYMPTOMS.items()}
    a = shake(ViP(clip, CARD, aggregation=aggregation))
    b = shake(ViP(clip, CARD, aggregation=aggregation, symptoms=turned))
    assert torch.allclose(a.logits_from_features(f), b.logits_from_features(f), atol=1e-4)


def test_numbers_made_to_merge_grow_no_faster_than_the_classes(clip, monkeypatch):
    class Counting(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            self.made += sum(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    def made(n_cls: int) -> int:
        classes = [{"name": f"kind {i}", "knowledge": {"symptoms": ["a sign"]}} for i in range(n_cls)]
        vip = ViP(clip, DataCard.model_validate(CARD.model_dump() | {"classes": classes}))
        T = torch.randn(n_cls, clip.embed_dim, requires_grad=True)
        monkeypatch.setattr(vip, "symptom_features", lambda: T)
        with Counting() as counting:
            vip.class_features().sum().backward()
        return counting.made

    assert made(80) < 5 * made(20)


@pytest.mark.parametrize("aggregation", ["merge", "mean", "max"])
def test_a_class_does_not_depend_on_how_many_symptoms_others_have(clip, aggregation):
    def build(nevus):
        given = {**SYMPTOMS, "nevus": nevus}
        return shake(ViP(clip, CARD, aggregation=aggregation, symptoms=given, csc=False))

    few, many = build(["round shape"]), build(["round shape", *map(str, range(8))])
    t_few, t_many = few.class_features(), many.class_features()
    assert torch.allclose(t_few[[0, 2]], t_many[[0, 2]], atol=1e-5)
    assert (t_few[1] - t_many[1]).norm() > 1e-3
    F.cross_entropy(few.logits_from_features(t_few.detach()), torch.arange(3)).backward()
    assert all(p.grad.isfinite().all() for p in trained(few).values())


def test_merge_weights_are_what_the_merge_uses(clip):
    vip = shake(ViP(clip, CARD))
    table = vip.merge_weights()
    assert list(table.columns) == ["classname", "symptom", "weight"]
    assert {c: g.symptom.tolist() for c, g in table.groupby("classname", sort=False)} == SYMPTOMS
    assert table.groupby("classname").weight.sum().tolist() == pytest.approx([1, 1, 1])
    w = torch.tensor(table.weight[:3].tolist())
    by_hand = F.normalize(vip.g[0] + w @ vip.symptom_features()[:3], dim=-1)
    assert torch.allclose(vip.class_features()[0], by_hand, atol=1e-5)


# --- context and positions ---


@pytest.mark.parametrize(
    ("position", "pattern"),
    [("end", "one two three {}."), ("middle", "one {} two three."), ("front", "{} one two three.")],
)
@pytest.mark.parametrize("csc", [False, True])
def test_context_of_known_words_reads_as_these_words(clip, position, pattern, csc):
    vip = ViP(clip, CARD, n_ctx=3, position=position, csc=csc)
    words = clip.token_embedding(clip.tokenize(["one two three"])[0, 1:4])  # (3, w)
    with torch.no_grad():
        vip.ctx.copy_(words)
    texts = [pattern.format(symptom) for phrases in SYMPTOMS.values() for symptom in phrases]
    assert torch.allclose(vip.symptom_features(), raw(clip, texts), atol=1e-5)


@pytest.mark.parametrize(("aggregation", "reduce"), [("mean", torch.mean), ("max", torch.amax)])
def test_without_context_and_merge_prompt_it_is_zero_shot(clip, f, aggregation, reduce):
    vip = ViP(clip, CARD, context=False, aggregation=aggregation)
    assert not trained(vip)
    classes = [reduce(raw(clip, [f"{s}." for s in phrases]), dim=0) for phrases in SYMPTOMS.values()]
    expected = F.normalize(torch.stack(classes), dim=-1)
    assert torch.allclose(vip.class_features(), expected, atol=1e-5)
    assert torch.allclose(vip.logits_from_features(f), clip.logit_scale * f @ expected.T, atol=1e-4)


def test_symptoms_without_context_are_read_in_parts(clip, monkeypatch):
    whole, encode_text, sizes = ViP(clip, CARD, context=False), clip.model.encode_text, []
    counted = lambda tokens, **how: sizes.append(len(tokens)) or encode_text(tokens, **how)  # noqa: E731
    monkeypatch.setattr(clip.model, "encode_text", counted)
    monkeypatch.setattr(hooks, "PROMPTED_AT_ONCE", 4)
    assert torch.allclose(ViP(clip, CARD, context=False).plain_features, whole.plain_features, atol=1e-5)
    assert sizes == [4, 4, 1]


def test_symptom_scores_are_cosines_with_the_prompted_symptoms(clip, f):
    vip = shake(ViP(clip, CARD))
    scores = vip.symptom_scores(f)
    assert {name: s.shape for name, s in scores.items()} == {
        "melanoma": (5, 3),
        "nevus": (5, 2),
        "keratosis": (5, 4),
    }
    expected = F.cosine_similarity(f[2], vip.symptom_features()[4], dim=0)
    assert scores["nevus"][2, 1].item() == pytest.approx(expected.item(), abs=1e-5)


# --- what is learned ---


def test_sizes_and_spread_at_the_start(clip):
    vip = ViP(clip, CARD, n_ctx=16)
    assert {name: tuple(p.shape) for name, p in trained(vip).items()} == {
        "ctx": (16, 48),  # the text width
        "g": (3, 40),
        "Wq": (40, 40),
        "Wk": (40, 40),
    }
    assert vip.ctx.std().item() == pytest.approx(0.02, rel=0.1)
    assert vip.g.std().item() == pytest.approx(0.02, rel=0.25)
    assert vip.Wq.std().item() == pytest.approx(math.sqrt(2 / 80), rel=0.1)  # Xavier normal


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_tower(tmp_path, kind):
    clip = load_clip(getattr(small_clips, kind)(tmp_path), device="cpu")
    vip = ViP(clip, CARD)
    images = torch.randn(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    logits = vip(images)
    assert torch.allclose(logits, vip.logits_from_features(clip.encode_images(images)), atol=1e-3)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad.norm() > 0 for p in trained(vip).values())
    texts = [f"a dark {s}." for phrases in SYMPTOMS.values() for s in phrases]
    words = clip.tokenize(["a dark"])[0]
    known = ViP(clip, CARD, n_ctx=2, aggregation="mean")
    start = int(known.slots[0].nonzero()[0])  # 1 after a start-of-text token
    with torch.no_grad():
        known.ctx.copy_(clip.token_embedding(words[start : start + 2]))
    T = F.normalize(known.symptom_features(), dim=-1)
    assert torch.allclose(T, clip.encode_texts(texts), atol=1e-5)


# --- errors ---


def test_too_many_tokens_name_class_symptom_and_limit(clip):
    given = {**SYMPTOMS, "nevus": ["round shape", "very " * 72 + "round shape"]}
    assert ViP(clip, CARD, context=False, symptoms=given).symptoms == given  # 77 tokens with 4 less
    with pytest.raises(
        ValueError, match=r"class 'nevus', symptom 'very .*, with 4 context vectors: .* has 81 tokens"
    ):
        ViP(clip, CARD, symptoms=given)
    with pytest.raises(ValueError, match="takes at most 77"):
        ViP(clip, CARD, symptoms=given)


def test_a_class_without_symptoms_is_named_with_the_kinds_it_has(clip):
    card = CARD.model_copy(deep=True)
    del card.classes[1].knowledge["symptoms"]
    with pytest.raises(ValueError, match="class 'nevus' has no phrases of kind 'symptoms'; it has 'useless'"):
        ViP(clip, card)


def test_there_are_weights_of_a_merge_only(clip):
    with pytest.raises(ValueError, match="aggregation='max' learns no weights"):
        ViP(clip, CARD, aggregation="max").merge_weights()


def test_images_of_another_size_are_an_error(clip):
    with pytest.raises(ValueError, match="wants floats of B x 3 x 32 x 32, got 1 x 3 x 64 x 64"):
        ViP(clip, CARD)(torch.zeros(1, 3, 64, 64))
