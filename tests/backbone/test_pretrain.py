import math
from dataclasses import replace

import pytest
import torch

from medvlp.backbone.clip import load_clip
from medvlp.backbone.pretrain import (
    Muon,
    PretrainConfig,
    _optimisers,
    new_clip,
    normalise,
    pretrain,
    save_clip,
)
from medvlp.backbone.pretrain_annotated import AnnotatedConfig
from medvlp.data.phantoms.worlds import get_world

SHORT = PretrainConfig(
    worlds=("derm",), n_images=256, steps=40, batch_size=48, plain=1.0, warmup=10, seed=3, bf16=False
)


@pytest.fixture(scope="module")
def short_run():
    return pretrain(SHORT, progress=False)


@pytest.mark.slow
def test_the_loss_starts_at_chance_and_falls(short_run):
    _, history = short_run
    chance = math.log(SHORT.batch_size)
    assert history["loss"][0] == pytest.approx(chance, abs=0.4)
    assert history["loss"].tail(5).mean() < chance - 0.1
    assert history["accuracy"].tail(10).mean() > 2 / SHORT.batch_size


def test_the_same_seed_gives_the_same_weights():
    few = replace(SHORT, steps=4, warmup=2)
    (one, history), (other, again) = (pretrain(few, progress=False) for _ in range(2))
    assert history.equals(again)
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key]), key
    assert not torch.equal(new_clip(3).model.visual.proj, new_clip(4).model.visual.proj)


def test_a_trained_clip_is_frozen_and_survives_the_disk(short_run, tmp_path):
    clip, _ = short_run
    assert not any(p.requires_grad for p in clip.parameters())
    save_clip(clip, tmp_path, {"steps": SHORT.steps})
    loaded = load_clip(f"local-dir:{tmp_path}", device="cpu")
    world = get_world("derm")
    images = normalise(world.render(world.sample(8, 1)))
    assert torch.allclose(
        clip.encode_images(images), loaded.encode_images(images), atol=2e-3
    )  # half precision
    texts = ["black dots.", "a smooth regular border, one uniform brown color"]
    assert torch.allclose(clip.encode_texts(texts), loaded.encode_texts(texts), atol=2e-3)
    assert not list(tmp_path.glob("*.part"))


def test_normalise_is_the_clips_own_preprocessing():
    from torchvision.transforms.functional import to_pil_image

    clip = new_clip()
    world = get_world("fundus")
    images = world.render(world.sample(2, 1))  # (2, 3, 64, 64) bytes
    expected = torch.stack([clip.preprocess(to_pil_image(image)) for image in images])
    assert torch.allclose(normalise(images), expected, atol=1e-6)


def test_each_weight_is_stepped_by_one_optimiser_and_only_matrices_of_blocks_by_muon():
    clip, vector = new_clip(), torch.nn.Parameter(torch.zeros(3))
    muon, adamw = _optimisers(clip.model, SHORT, [vector])
    stepped = [
        id(p) for optimiser in (muon, adamw) for group in optimiser.param_groups for p in group["params"]
    ]
    assert sorted(stepped) == sorted(map(id, [*clip.model.parameters(), vector]))
    shapes = {tuple(p.shape) for group in muon.param_groups for p in group["params"]}
    assert isinstance(muon, Muon) and shapes == {
        *((3 * n, n) for n in (128, 64)),
        *((n, n) for n in (128, 64)),
        *((4 * n, n) for n in (128, 64)),
        *((n, 4 * n) for n in (128, 64)),
    }
    decayed = {id(p) for group in adamw.param_groups if group["weight_decay"] for p in group["params"]}
    assert id(clip.model.visual.conv1.weight) in decayed and id(clip.model.logit_scale) not in decayed


@pytest.mark.parametrize(("dtype", "off"), [(torch.bfloat16, 0.0), (torch.float32, 1e-4)])
def test_muon_is_torchs_own_in_any_precision(dtype, off):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(size)) for size in ((8, 4), (4, 8), (8, 4), (6, 6))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, 2e-3, 0.1, dtype)
    reference = torch.optim.Muon(theirs, 2e-3, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        muon.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        assert (p - q).abs().max() <= off, p.shape


def test_a_diverging_run_says_what_to_try():
    with pytest.raises(FloatingPointError, match="try a lower lr"):
        pretrain(PretrainConfig(("derm",), 64, 20, 16, lr=1e25, warmup=1, bf16=False), progress=False)


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
        ({"neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_products_in_bfloat16_only_where_the_processor_has_them(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert PretrainConfig().bf16 is native
    used = []
    autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda *a, enabled: used.append(enabled) or autocast(*a, enabled=enabled)
    )
    pretrain(PretrainConfig(("derm",), n_images=8, steps=1, batch_size=4), progress=False)
    assert used == [native]
    for config in (PretrainConfig(), AnnotatedConfig()):
        muon, _ = _optimisers(new_clip().model, config, [])
        assert muon.dtype == (torch.bfloat16 if native else torch.float32)


def test_products_that_torch_is_told_to_leave_alone_count_as_none(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert PretrainConfig().bf16 is False


def test_a_torch_that_cannot_tell_counts_as_a_processor_without(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert PretrainConfig().bf16 is False
