"""CILMP: equal to the authors' implementation and to a plain reading of its formula, and what it refuses."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.prompts import hooks
from medvlp.data.cards import DataCard
from medvlp.knowledge.representations import Representations
from medvlp.methods.base import own_tensors
from medvlp.methods.cilmp import CILMP
from medvlp.methods.interventions import ConditionalLoReFT
from medvlp.study.training.callbacks import Callback
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.backbone import small_clips
from tests.methods import cilmp_oracle
from tests.methods.small import make_card, make_set, trained

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


# --- a plain reading, in float64 ---

CARD = make_card()
D_LLM = 24


@pytest.fixture(scope="module")
def clip64(tmp_path_factory) -> Clip:
    """Two heads in each tower, three text and two image layers, embed_dim 40 unlike the text width 48."""
    return double(load_clip(small_clips.open_clip_kind(tmp_path_factory.mktemp("clip")), device="cpu"))


def double(clip: Clip) -> Clip:
    clip.double()
    clip.dtype = torch.float64
    return clip


def draw_states(lengths: list[int], d: int = D_LLM, card: DataCard = CARD) -> dict[str, torch.Tensor]:
    drawn = [torch.randn(n, d, generator=torch.Generator().manual_seed(c)) for c, n in enumerate(lengths)]
    return dict(zip(card.classnames, drawn, strict=True))


def draw_images(clip: Clip, n: int = 2) -> torch.Tensor:
    size = (n, 3, clip.image_size, clip.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(clip.dtype)


def build(clip: Clip, lengths: list[int], **switches) -> CILMP:
    """In the clip's precision, evaluating, every learned tensor away from where it starts."""
    cilmp = CILMP(clip, CARD, draw_states(lengths), **{"rank": 3, "dropout": 0.5} | switches)
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in trained(cilmp).values():
            p.add_(torch.randn(p.shape, generator=random) * 0.1)
    return cilmp.to(clip.dtype).eval()


def values(cilmp: CILMP, logits: torch.Tensor) -> list[torch.Tensor]:
    """Logits, and the gradients of a loss that weighs each of them differently."""
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).reshape(logits.shape)
    return [logits, *torch.autograd.grad((logits * weights).sum(), list(trained(cilmp).values()))]


def assert_equal(cilmp: CILMP, ours: torch.Tensor, plain: torch.Tensor, tolerance: float = 1e-9) -> None:
    names = ["logits", *trained(cilmp)]
    for name, a, b in zip(names, values(cilmp, ours), values(cilmp, plain), strict=True):
        assert b.norm() > 0, name
        assert relative(a, b) <= tolerance, name


def oracle(cilmp: CILMP, lengths: list[int], keep: list | None = None) -> torch.Tensor:
    states = [h.to(cilmp.clip.dtype) for h in draw_states(lengths).values()]
    return cilmp_oracle.logits(cilmp, states, draw_images(cilmp.clip), keep)


LENGTHS = {
    "12/15/12": [12, 15, 12],
    "15/12/15": [15, 12, 15],
    "equal": [12, 12, 12],
    "different": [8, 13, 10],
    "no middle": [8, 8, 8],
}


@pytest.mark.parametrize("intervention", ["conditional", "unconditional", "none"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_logits_and_gradients_equal_a_plain_reading(clip64, lengths, depth, intervention):
    cilmp = build(clip64, lengths, depth=depth, intervention=intervention)
    assert_equal(cilmp, cilmp(draw_images(clip64)), oracle(cilmp, lengths))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_padding_is_never_read(clip64, lengths, monkeypatch):
    images = draw_images(clip64)
    cilmp = build(clip64, lengths)
    expected = values(cilmp, cilmp(images))
    assert (cilmp.tokens == 0).any(), "names differ in their tokens, so texts are padded"
    poisoned = clip64.token_embedding.weight.detach().clone()
    poisoned[0] = torch.nan  # what texts are padded with
    poisoned[cilmp.tokens[cilmp.slots]] = torch.nan  # what stands for learned vectors
    monkeypatch.setitem(clip64.token_embedding._parameters, "weight", torch.nn.Parameter(poisoned, False))
    cilmp = build(clip64, lengths)
    for a, b in zip(values(cilmp, cilmp(images)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "switches",
    [
        {"image_depth": 1},
        {"image_depth": 2, "n_image_ctx": 1},
        {"n_ctx": 2},
        {"prefix_length": 0},
        {"suffix_length": 0, "prefix_length": 8},
        {"prefix_length": 5, "suffix_length": 3},
        {"orthonormal": True},
        {"logit_scale": 3.0},
    ],
    ids=str,
)
def test_every_switch_equals_a_plain_reading(clip64, switches):
    lengths = [8, 13, 10]
    cilmp = build(clip64, lengths, **switches)
    assert_equal(cilmp, cilmp(draw_images(clip64)), oracle(cilmp, lengths))


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("intervention", ["conditional", "unconditional"])
@pytest.mark.parametrize("per_image", [False, True])
def test_dropout_equals_a_plain_reading_with_its_masks(clip64, depth, intervention, per_image):
    lengths = [8, 13, 10]
    cilmp = build(clip64, lengths, depth=depth, intervention=intervention, dropout_per_image=per_image)
    torch.manual_seed(5)
    cilmp.train()
    keep = []
    for site in cilmp.sites:
        masks = site.dropout_prefix(cilmp.h_first, 2), site.dropout_suffix(cilmp.h_last, 2)
        assert all(m.ndim == 3 + per_image and set(m.unique().tolist()) == {0, 2} for m in masks)
        keep.append(masks)
    torch.manual_seed(5)  # the same draws, in the same order
    assert_equal(cilmp, cilmp(draw_images(clip64)), oracle(cilmp, lengths, keep))
    assert relative(cilmp(draw_images(clip64)), cilmp.eval()(draw_images(clip64))) > 1e-3


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_hooks_equal_the_walks(clip64, monkeypatch, depth):
    cilmp = build(clip64, [8, 13, 10], depth=depth, image_depth=min(depth, 2))
    walked = cilmp(draw_images(clip64))
    cilmp.walk = None
    monkeypatch.setattr("medvlp.backbone.prompts.walks.can_walk_image", lambda visual: False)
    assert_equal(cilmp, cilmp(draw_images(clip64)), walked)


# --- parts ---


def test_blocks_and_tokens_equal_the_authors(golden, monkeypatch):
    """By hooks, which compute every position as the authors do; a walk computes what is read of them."""
    cilmp, arrays, seen = golden.cilmp, golden.arrays, {"text": [], "vision": []}
    monkeypatch.setattr("medvlp.backbone.prompts.walks.can_walk_image", lambda visual: False)
    cilmp.walk = None
    towers = {"text": cilmp.clip.model.text, "vision": cilmp.clip.model.visual}
    for name, tower in towers.items():
        for block in tower.transformer.resblocks:
            block.register_forward_hook(lambda _, args, x, to=seen[name]: to.append(x))
    f = cilmp.image_features(arrays["in/images"])
    assert torch.allclose(f, arrays["out/image_features_normalized"], atol=2e-6)
    t = cilmp.class_features(f)
    assert torch.allclose(t, arrays["out/text_features_normalized"], atol=2e-6)
    for i in range(3):
        assert torch.allclose(seen["vision"][i], arrays[f"out/vision_block/{i}"], atol=2e-5)
        L = seen["text"][i].shape[1]
        ends = torch.tensor(golden.meta["eot"]).repeat(4)  # what comes later is padding, which nothing reads
        theirs, ours = arrays[f"out/text_block/{i}"][:, :L], seen["text"][i]
        read = torch.arange(L) <= ends[:, None]
        assert torch.allclose(ours[read], theirs[read], atol=2e-5)
        assert cilmp.classnames == golden.meta["classes"]
        for c, rows in enumerate(cilmp._by_class(cilmp.slot_vectors(f, i))):
            rows = rows[:, len(cilmp.ctx[i]) :]
            assert torch.allclose(rows, arrays[f"out/llm_tokens/{i}"][:, c, : rows.shape[1]], atol=2e-5)


def test_prompts_move_from_image_to_image_where_they_are_conditional(clip):
    f = F.normalize(torch.randn(3, clip.embed_dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    for intervention, moves in (("conditional", True), ("unconditional", False), ("none", False)):
        cilmp = build(clip, [8, 13, 10], intervention=intervention)
        t = cilmp.class_features(f)
        assert t.shape == (3, 3, clip.embed_dim)
        assert torch.allclose(t.norm(dim=-1), torch.ones(3, 3))
        assert ((t[0] - t[1]).norm() > 1e-4) == moves
        rows = cilmp._by_class(cilmp.slot_vectors(f, 1))[cilmp.classnames.index("nevus")]
        rows = rows[:, len(cilmp.ctx[1]) :].expand(3, -1, -1)
        assert rows.shape == (3, 13, clip.text_width)
        changed = (rows[0] - rows[1]).norm(dim=-1) > 1e-6
        assert changed.tolist() == [moves] * 4 + [False] * 5 + [moves] * 4


def test_the_image_feature_carries_gradient(clip64):
    cilmp = build(clip64, [8, 13, 10])
    f = cilmp.image_features(draw_images(clip64))
    assert f.requires_grad
    t = cilmp.class_features(f)[..., 0].sum()
    assert torch.autograd.grad(t, cilmp.image_prompts)[0].norm() > 0


def test_without_image_prompts_features_are_the_clips_own_and_can_be_kept(clip):
    cilmp = build(clip, [8, 13, 10], image_depth=0)
    images = draw_images(clip)
    f = cilmp.image_features(images)
    assert torch.equal(f, clip.encode_images(images))
    assert torch.allclose(cilmp.logits_from_features(f), cilmp(images))
    again = copy.deepcopy(cilmp)
    with torch.no_grad():
        again.ctx.mul_(-9)
    assert not torch.allclose(again.logits_from_features(f), cilmp.logits_from_features(f))
    assert torch.allclose(again.logits_from_features(f), again(images))
    assert not build(clip, [8, 13, 10]).keeps_image_tower and cilmp.keeps_image_tower


def test_a_resnet_is_trained_without_image_prompts(tmp_path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    cfg = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": small_clips.TEXT}
    clip = load_clip(small_clips.write_clip(tmp_path, cfg), device="cpu")
    with pytest.raises(ValueError, match="another CLIP, or image_depth=0"):
        CILMP(clip, CARD, draw_states([8, 13, 10]))
    cilmp = CILMP(clip, CARD, draw_states([8, 13, 10]), image_depth=0)
    cilmp(draw_images(clip)).sum().backward()
    assert all(p.grad.norm() > 0 for p in trained(cilmp).values())


def bert_logits(cilmp: CILMP, lengths: list[int], images: torch.Tensor) -> torch.Tensor:
    """A plain reading for a BERT text tower and a timm image tower, a text at a time."""
    clip, rows = cilmp.clip, []
    trunk, text = clip.model.visual.trunk, clip.model.text
    for image in images:
        x = trunk._pos_embed(trunk.patch_embed(image[None]))
        n = x.shape[1]
        for i, block in enumerate(trunk.blocks):
            prompt = cilmp.image_prompts[min(i, len(cilmp.image_prompts) - 1)][None]
            x = block(torch.cat([x[:, :n], prompt], dim=1) if i < len(cilmp.image_prompts) else x)
        f = F.normalize(clip.model.visual.head(trunk.forward_head(trunk.norm(x[:, :n])))[0], dim=-1)
        for name, h in draw_states(lengths).items():
            ids = clip.tokenizer([" ".join(["X"] * (4 + len(h)) + [name]) + "."])
            ids = ids[:, : int((ids != 0).sum())]  # no padding
            vectors = [
                torch.cat([cilmp.ctx[i], cilmp_oracle.rows_of(cilmp, h.to(clip.dtype), i, f, None)])
                for i in range(len(cilmp.sites))
            ]
            stop = 1 + len(vectors[0])
            x = clip.token_embedding(ids)
            x = torch.cat([x[:, :1], vectors[0][None], x[:, stop:]], dim=1)
            x = text.transformer.embeddings(inputs_embeds=x)
            for i, layer in enumerate(text.transformer.encoder.layer):
                if 0 < i < len(vectors):
                    x = torch.cat([x[:, :1], vectors[i][None], x[:, stop:]], dim=1)
                x = layer(x)
            rows.append(cilmp.logit_scale * f @ F.normalize(text.proj(x[:, 0])[0], dim=-1))
    return torch.stack(rows).unflatten(0, (len(images), -1))


@pytest.mark.parametrize(
    "switches", [{}, {"depth": 1, "image_depth": 3}, {"intervention": "unconditional"}], ids=str
)
def test_bert_and_timm_towers_equal_a_plain_reading(tmp_path, switches):
    clip = double(load_clip(small_clips.biomedclip_kind(tmp_path), device="cpu"))
    lengths = [8, 13, 10]
    cilmp = build(clip, lengths, **switches)
    assert cilmp.ctx.shape == (switches.get("depth", 2), 4, 48)  # a layer of the encoder each
    images = draw_images(clip)
    assert_equal(cilmp, cilmp(images), bert_logits(cilmp, lengths, images))


@pytest.mark.parametrize("kind", ["openai_kind", "eos_kind", "siglip_kind", "coca_kind", "biomedclip_kind"])
def test_any_tower_learns(tmp_path, kind):
    clip = load_clip(getattr(small_clips, kind)(tmp_path), device="cpu")
    cilmp = CILMP(clip, CARD, draw_states([8, 13, 10])).train()
    F.cross_entropy(cilmp(draw_images(clip)), torch.tensor([0, 1])).backward()
    assert all(p.grad.norm() > 0 for p in trained(cilmp).values())
    assert all(p.grad is None for p in clip.parameters())


# --- padding and memory ---


def test_a_class_does_not_depend_on_the_lengths_of_others(clip64):
    a, b = (build(clip64, lengths) for lengths in ([8, 13, 10], [8, 40, 10]))
    images = draw_images(clip64)
    assert torch.allclose(a(images)[:, [0, 2]], b(images)[:, [0, 2]], rtol=1e-10)
    assert not torch.allclose(a(images)[:, 1], b(images)[:, 1], rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_rows_of_nan_reach_their_own_class_alone(clip64, depth):
    cilmp = build(clip64, [8, 13, 10], depth=depth)
    images = draw_images(clip64)
    before = cilmp(images)
    cilmp.h_middle[:5] = torch.nan  # all of them nevus: the first class has no rows in the middle
    after = cilmp(images)
    assert after[:, 1].isnan().all()
    assert torch.allclose(after[:, [0, 2]], before[:, [0, 2]], rtol=1e-12)


@pytest.mark.parametrize("d", [97, 193])
def test_nothing_kept_for_the_backward_pass_grows_with_width_times_batch(clip, d):
    kept = []
    cilmp = CILMP(clip, CARD, draw_states([8, 13, 10], d), rank=2).train()
    f = torch.randn(11, clip.embed_dim, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cilmp.class_features(f)
    wide = [t for t in kept if d in t.shape]
    assert wide
    assert all(
        11 not in t.shape and t.numel() <= 21 * d for t in wide
    )  # at most all rows in the middle, once


def test_memory_does_not_grow_with_images_times_classes(clip, monkeypatch):
    cilmp = CILMP(clip, CARD, draw_states([8, 13, 10], 97), rank=2, dropout=0.0).train()
    f = F.normalize(torch.randn(11, clip.embed_dim), dim=-1)

    def read(at_once: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Class features, a gradient, and the numbers kept for the backward pass."""
        monkeypatch.setattr(hooks, "PROMPTED_AT_ONCE", at_once)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            t = cilmp.class_features(f)
            cilmp.zero_grad()
            t[..., 0].sum().backward()
        return t.detach(), cilmp.sites[0].A.grad, sum(kept)

    whole, in_twos = read(11 * 3), read(2 * 3)
    assert in_twos[2] < whole[2] / 10
    torch.testing.assert_close(in_twos[0], whole[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(in_twos[1], whole[1], atol=1e-5, rtol=1e-4)


# --- precision ---


def test_half_precision_towers_and_autocast_agree_within_their_error(tmp_path):
    name = small_clips.open_clip_kind(tmp_path)
    clip, half = load_clip(name, "cpu"), load_clip(name, "cpu", precision="bf16")
    images = draw_images(clip)
    for switches in ({}, {"depth": 1, "image_depth": 1}, {"image_depth": 0}):
        exact = build(clip, [8, 13, 10], **switches)
        low = CILMP(half, CARD, draw_states([8, 13, 10]), **{"rank": 3, "dropout": 0.5} | switches).eval()
        with torch.no_grad():
            for a, b in zip(trained(low).values(), trained(exact).values(), strict=True):
                a.copy_(b)
        expected = exact(images)
        with torch.autocast("cpu", torch.bfloat16):
            cast = exact(images)
        for found in (low(images), cast):
            assert found.dtype == torch.float32
            assert (found - expected).abs().max() <= 0.02 * exact.logit_scale  # of cosines
        F.cross_entropy(cast, torch.tensor([0, 1])).backward()
        grads = [p.grad for p in trained(exact).values()]
        assert all(g.dtype == torch.float32 and g.isfinite().all() and g.norm() > 0 for g in grads)


# --- what is learned ---


def test_vit_b_16_has_as_many_learned_numbers_as_the_authors(vit_b_16):
    cilmp = CILMP(vit_b_16, CARD, draw_states([8, 13, 10], 4096))
    counts = {name: p.numel() for name, p in trained(cilmp).items()}
    assert sum(counts.values()) == 3_846_528
    assert counts["ctx"] == 24_576
    assert counts["image_prompts"] == 36_864
    assert sum(n for name, n in counts.items() if name.endswith((".A", ".B"))) == 442_368
    assert len(cilmp.sites) == 12


def test_the_start(clip):
    cilmp = CILMP(clip, CARD, draw_states([8, 13, 10]))
    words = clip.token_embedding(clip.tokenizer(["a photo of a"])[0, 1:5])
    assert torch.equal(cilmp.ctx[0], words)
    assert cilmp.ctx[1:].std().item() == pytest.approx(0.02, rel=0.15)
    assert cilmp.image_prompts.std().item() == pytest.approx(0.02, rel=0.15)
    many = CILMP(clip, CARD, draw_states([8, 13, 10]), n_ctx=6)
    assert many.ctx[0].std().item() == pytest.approx(0.02, rel=0.15)
    site = cilmp.sites[1]
    assert site.A.abs().max().item() == pytest.approx(D_LLM**-0.5, rel=0.1)
    assert site.B.abs().max().item() == pytest.approx(8**-0.5, rel=0.1)
    assert torch.allclose(site.prefix.R.T @ site.prefix.R, torch.eye(8), atol=1e-5)
    assert not torch.equal(site.prefix.R, cilmp.sites[0].prefix.R)


def test_torchs_seed_decides_the_dropout(clip):
    cilmp, logits = CILMP(clip, CARD, draw_states([8, 13, 10])).train(), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        logits.append(cilmp(draw_images(clip)))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_shipped_representations_are_known_by_their_fingerprint(clip, monkeypatch):
    shipped = Representations(draw_states([8, 13, 10]))
    monkeypatch.setattr("medvlp.methods.cilmp.shipped_representations", lambda card: shipped)
    a = CILMP(clip, CARD)
    assert torch.equal(CILMP(clip, CARD, shipped.fingerprint).h_middle, a.h_middle)
    with pytest.raises(
        ValueError, match=r"wanted are 012345, those that ship .* 'lesions' are .*; pass the rep"
    ):
        CILMP(clip, CARD, "012345")


# --- errors ---


def test_a_representation_that_does_not_fit_says_by_how_much(clip):
    room = 77 - len(clip.tokenize(["X X X X nevus."])[0])
    assert CILMP(clip, CARD, draw_states([8, room, 9])).lengths["nevus"] == room
    said = f"class 'nevus', with 4 context vectors and a representation of {room + 1} rows: .* has 78 tokens"
    with pytest.raises(ValueError, match=f"{said}.*takes at most 77"):
        CILMP(clip, CARD, draw_states([8, room + 1, 9]))


def test_images_of_another_shape_are_named(clip):
    cilmp = build(clip, [8, 9, 10])
    with pytest.raises(ValueError, match=r"wants floats of B x 3 x 32 x 32, got 1 x 3 x 16 x 16 of torch"):
        cilmp(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"got 1 x 3 x 32 x 32 of torch.uint8; use clip.preprocess"):
        cilmp(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_missing_class_is_named(clip):
    states = draw_states([8, 9, 10])
    states["nevi"] = states.pop("nevus")
    with pytest.raises(ValueError, match="unknown class 'nevus'.* did you mean 'nevi'"):
        CILMP(clip, CARD, states)


def test_no_edges_need_no_rows(clip):
    assert (
        CILMP(clip, CARD, draw_states([1, 2, 1]), intervention="none")
        .eval()(draw_images(clip))
        .isfinite()
        .all()
    )


# --- training ---


def test_fit_resumes_to_the_same_weights_with_dropout(clip, tmp_path):
    train, val = make_set(CARD, [0, 1, 2] * 3), make_set(CARD, [0, 1, 2], "val", seed=1)

    class Stop(Callback):
        def on_epoch_end(self, method, epoch, row):
            if epoch == 2:
                raise RuntimeError("killed")

    class Go(Stop):
        def on_epoch_end(self, method, epoch, row):
            pass

    Go.__name__ = "Stop"  # a run is known by its callbacks
    config = TrainConfig(epochs=3, batch_size=4, views="fresh", keep="last", num_workers=0)
    found = []
    for callbacks in ([[Go()]], [[Stop()], [Go()]]):
        cilmp = CILMP(clip, CARD, draw_states([8, 13, 10]))
        for callback in callbacks:
            try:
                path = tmp_path / f"{len(callbacks)}.safetensors"
                fit(cilmp, train, val, config, checkpoint=path, callbacks=callback, progress=False)
            except RuntimeError:
                cilmp = CILMP(clip, CARD, draw_states([8, 13, 10]))
        found.append(own_tensors(cilmp))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    start = own_tensors(CILMP(clip, CARD, draw_states([8, 13, 10])))
    assert all(not torch.equal(found[0][name], start[name]) for name in start)


def test_the_condition_starts_as_many_times_larger_as_is_asked_and_the_rest_as_it_was():
    small, large = (
        ConditionalLoReFT(12, 3, 8, condition_scale=scale, generator=torch.Generator().manual_seed(1))
        for scale in (1.0, 30.0)
    )
    for name, value in small.state_dict().items():
        times = 30 if name in ("W2", "G2") else 1
        assert torch.equal(large.state_dict()[name], times * value), name
