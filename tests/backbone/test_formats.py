"""CLIPs in the formats that people have: architecture and file, half precision, others' configurations."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from timm.models.eva import Eva
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from medvlp.backbone.clip import load_clip
from medvlp.backbone.prompts.hooks import image_blocks
from medvlp.knowledge.llm.representations import Representations
from medvlp.methods.cilmp import CILMP
from medvlp.methods.prompt_tuning.coop import CoOp
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.saving import load, save
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.backbone import small_clips
from tests.methods.small import make_card, make_set

pytestmark = pytest.mark.usefixtures("one_thread")
CFG = {"embed_dim": 40, "vision_cfg": small_clips.VISION, "text_cfg": small_clips.TEXT}
TEXTS = ["a dermoscopy image of a dark lesion.", "opacity"]
CARD = make_card(2)
ROWS = Representations({name: torch.eye(8, 12) for name in CARD.classnames})


@pytest.fixture(autouse=True)
def architectures(monkeypatch) -> None:
    """Small ones in open_clip's list: one with GELU and with QuickGELU, one with tags of another scale."""
    known = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(known, "Small", CFG)
    monkeypatch.setitem(known, "Small-quickgelu", CFG | {"quick_gelu": True})
    monkeypatch.setitem(known, "Alone", CFG | {"init_logit_bias": -10.0})
    tags = {
        tag: {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash", "hf_hub": tag} for tag in "ab"
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Alone", tags)


@pytest.fixture(scope="module")
def original() -> open_clip.CLIP:
    """open_clip's own model, with the names that OpenAI's weights have, and QuickGELU."""
    torch.manual_seed(0)
    return open_clip.CLIP(**CFG, quick_gelu=True).eval()


def training_run(state: dict) -> dict:
    """What open_clip's training writes."""
    return {"epoch": 5, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}}


FILES = {
    "plain.pt": lambda state, file: torch.save(state, file),
    "half.pth": lambda state, file: torch.save({k: v.half() for k, v in state.items()}, file),
    "pytorch_model.bin": lambda state, file: torch.save({"state_dict": state}, file),
    "epoch_5.pt": lambda state, file: torch.save(training_run(state), file),
    "model.safetensors": lambda state, file: save_file({k: v.contiguous() for k, v in state.items()}, file),
}


@pytest.mark.parametrize("file", FILES)
def test_an_architecture_and_a_file_give_what_open_clip_gives(file, original, tmp_path):
    FILES[file](original.state_dict(), tmp_path / file)
    clip = load_clip(f"Small-quickgelu={tmp_path / file}", device="cpu")
    images, close = torch.randn(2, 3, 32, 32), 2e-3 if file == "half.pth" else 1e-5
    expected = F.normalize(original.encode_image(images), dim=-1)
    torch.testing.assert_close(clip.encode_images(images), expected, atol=close, rtol=0)
    expected = F.normalize(original.encode_text(open_clip.tokenize(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected, atol=close, rtol=0)


def test_the_activation_is_asked_for_where_it_cannot_be_known(original, tmp_path):
    file = tmp_path / "weights.pt"
    torch.save(original.state_dict(), file)
    with pytest.raises(ValueError, match=r"which activation.*'Small-quickgelu=.*'Small-gelu=.*weights.pt'"):
        load_clip(f"Small={file}")
    quick, plain = (load_clip(f"Small-{act}={file}", device="cpu") for act in ("quickgelu", "gelu"))
    assert not torch.allclose(quick.encode_texts(TEXTS), plain.encode_texts(TEXTS), atol=1e-4)
    assert quick.fingerprint != plain.fingerprint


def test_a_file_is_preprocessed_as_all_weights_of_its_architecture(tmp_path):
    torch.save(open_clip.CLIP(**CFG, init_logit_bias=-10.0).state_dict(), tmp_path / "weights.pt")
    clip = load_clip(f"Alone={tmp_path / 'weights.pt'}", device="cpu")
    assert clip.preprocess_cfg["mean"] == (0.5,) * 3 and clip.preprocess_cfg["resize_mode"] == "squash"


class Anything:
    """Some object that a file may hold."""


WRONG = {
    "a missing file": ("Small-gelu=FILE", None, "there is no file .*weights.pt"),
    "an unknown architecture": ("Smal=FILE", b"", "unknown architecture 'Smal'; did you mean 'Small'"),
    "no activation": ("Small=FILE", b"", "no file says with which activation"),
    "nothing": ("Alone=FILE", b"", "cannot be loaded as Alone"),
    "a text": ("Alone=FILE", b"weights", "cannot be loaded as Alone"),
    "a pickled object": ("Alone=FILE", Anything(), "holds Python objects .* save model.state_dict"),
    "a pickled model": ("Alone=FILE", torch.nn.Linear(2, 2), "holds Python objects .* save model.state_dict"),
    "a number": ("Alone=FILE", 3, "cannot be loaded as Alone"),
    "an empty dictionary": ("Alone=FILE", {}, "cannot be loaded as Alone"),
    "other weights": (
        "Alone=FILE",
        {"fc.weight": torch.ones(2)},
        "cannot be loaded as Alone: it holds no weights of a CLIP",
    ),
    "weights of another size": (
        "Alone=FILE",
        open_clip.CLIP(**CFG | {"embed_dim": 8}, init_logit_bias=-10.0).state_dict(),
        "cannot be loaded as Alone.*size mismatch",
    ),
    "transformers' names": (
        "Alone=FILE",
        {"logit_scale": torch.ones(()), "text_model.final_layer_norm.bias": torch.ones(2)},
        "transformers' names are read in a folder",
    ),
    "UniMed-CLIP's names": (
        "Alone=FILE",
        {"logit_scale": torch.ones(()), "text_encoder.proj.0.weight": torch.ones(2)},
        "a ViT and a BERT under UniMed-CLIP's names are not read yet",
    ),
    "a script": ("Alone=FILE", "script", "is a TorchScript archive.*save its state_dict"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_named(what, tmp_path):
    name, content, message = WRONG[what]
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif what == "a script":
        torch.jit.script(torch.nn.Linear(2, 2)).save(file)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s)clip '.*{message}|^{message}") as error:
        load_clip(name.replace("FILE", str(file)), device="cpu")
    assert len(str(error.value)) < 1500


SMALL = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip_model(folder: Path, act: str = "quick_gelu") -> CLIPModel:
    """As PubMedCLIP and PLIP are kept."""
    size = small_clips.write_sentence_tokenizer(folder, start="<s>")
    text = SMALL | {"vocab_size": size, "max_position_embeddings": 40, "eos_token_id": 1, "hidden_act": act}
    vision = SMALL | {"image_size": 32, "patch_size": 8, "hidden_act": act}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=40))


def siglip_model(folder: Path) -> SiglipModel:
    """As MedSigLIP is kept."""
    size = small_clips.write_sentence_tokenizer(folder, pad="</s>")
    text = SMALL | {"vocab_size": size, "max_position_embeddings": 32, "projection_size": 48}
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision))


def kept(make: Callable, folder: Path, **options: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = make(folder, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("make", [clip_model, partial(clip_model, act="gelu"), siglip_model])
def test_a_model_of_transformers_gives_what_transformers_gives(make, tmp_path):
    model, clip = kept(make, tmp_path), load_clip(f"local-dir:{tmp_path}", device="cpu")
    images = torch.randn(2, 3, 32, 32)
    theirs = model.get_image_features(pixel_values=images).pooler_output
    torch.testing.assert_close(clip.encode_images(images), F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)
    theirs = model.get_text_features(input_ids=clip.tokenizer(TEXTS)).pooler_output
    torch.testing.assert_close(clip.encode_texts(TEXTS), F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)
    squash = make is siglip_model
    assert clip.preprocess_cfg["resize_mode"] == ("squash" if squash else "shortest")
    assert (clip.preprocess_cfg["mean"][0] == 0.5) == squash and (clip.logit_bias != 0) == squash
    coop = CoOp(clip, CARD, ctx_init="a photo of a")
    plain = clip.encode_texts([f"a photo of a {name}." for name in CARD.plain_names])
    torch.testing.assert_close(F.cosine_similarity(coop.class_features(), plain), torch.ones(2))


@pytest.mark.parametrize("method", ["ViP", "CoOp", "CILMP"])
@pytest.mark.parametrize("where", ["file", "clip", "siglip"])
def test_methods_train_on_it_and_are_saved_and_loaded(method, where, original, tmp_path):
    name = f"local-dir:{tmp_path}"
    if where == "file":
        torch.save(original.state_dict(), tmp_path / "weights.pt")
        name = f"Small-quickgelu={tmp_path / 'weights.pt'}"
    else:
        kept(clip_model if where == "clip" else siglip_model, tmp_path)
    clip = load_clip(name, device="cpu")
    given = {"representations": ROWS} if method == "CILMP" else {}
    trained = {"ViP": ViP, "CoOp": CoOp, "CILMP": CILMP}[method](clip, CARD, **given)
    data = make_set(CARD, [0, 1] * 2)
    fit(trained, data, data, TrainConfig(epochs=1, views=0, batch_size=4), progress=False)
    save(trained, tmp_path / "method.safetensors")
    with pytest.raises(ValueError, match="names the clip '.*trust_clip=True"):
        load(tmp_path / "method.safetensors", card=CARD, **given)
    again = load(tmp_path / "method.safetensors", card=CARD, trust_clip=True, device="cpu", **given)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again.eval()(images), trained.eval()(images))


CHANGES = {
    "config.json": ({"model_type": "blip"}, "unknown model_type 'blip'"),
    "preprocessor_config.json": (
        {"resample": 0},
        "resized to 32 pixels by interpolation 2 or 3",
    ),
    "model.safetensors": (None, "there is no model.safetensors"),
    "tokenizer.json": (None, "there is no tokenizer.json"),
}


@pytest.mark.parametrize("file", CHANGES)
def test_a_model_of_transformers_that_cannot_be_loaded_says_why(file, tmp_path):
    kept(clip_model, tmp_path)
    change, message = CHANGES[file]
    if change is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | change))
    with pytest.raises(ValueError, match=f"holds no CLIPModel or SiglipModel of transformers.*{message}"):
        load_clip(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["openai_kind", "coca_kind", "sigmoid_kind", "t5_kind", "biomedclip_kind"])
def test_half_precision_works_in_every_kind_of_tower(kind, precision, tmp_path):
    name = getattr(small_clips, kind)(tmp_path)
    full, half = load_clip(name, device="cpu"), load_clip(name, device="cpu", precision=precision)
    images = torch.randn(2, 3, full.image_size, full.image_size)
    assert half.encode_images(images).dtype == half.encode_texts(TEXTS).dtype == torch.float32
    assert (half.encode_images(images) * full.encode_images(images)).sum(-1).min() > 0.999
    assert (half.encode_texts(TEXTS) * full.encode_texts(TEXTS)).sum(-1).min() > 0.999
    assert half.logit_scale == full.logit_scale


def test_the_bias_of_sigmoid_models_is_in_the_logits(tmp_path):
    clip = load_clip(small_clips.sigmoid_kind(tmp_path / "sigmoid"), device="cpu")
    method, images = ZeroShot(clip, CARD, "classnames"), torch.randn(2, 3, 32, 32)
    texts = clip.tokenizer([CARD.templates[0].replace("{}", name) for name in CARD.plain_names])
    image_features, text_features, scale, bias = clip.model(images, texts)
    torch.testing.assert_close(method(images), scale * image_features @ text_features.T + bias)
    assert clip.logit_bias == -10 and CoOp(clip, CARD)(images).max() < 0
    assert load_clip(small_clips.openai_kind(tmp_path / "openai"), device="cpu").logit_bias == 0


def test_the_configuration_of_a_whole_clip_is_not_its_text_towers(tmp_path):
    folder, tower = tmp_path / "clip", tmp_path / "bert"
    name = small_clips.biomedclip_kind(folder)
    expected = load_clip(name, device="cpu")
    tower.mkdir()
    shutil.copy(folder / "config.json", tower)
    whole = {"architectures": ["BertCLIPModel"], "text_config": {"hidden_size": 7}, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(whole))
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace("some/bert", str(tower)))
    assert torch.equal(load_clip(name, device="cpu").encode_texts(TEXTS), expected.encode_texts(TEXTS))


def test_a_tower_with_rotary_positions_is_called_what_it_is():
    tower = TimmModel("test_vit", 40, 160, pool="", proj="none")
    tower.trunk = Eva(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=2)
    clip = SimpleNamespace(name="eva", model=SimpleNamespace(visual=tower))
    with pytest.raises(ValueError, match="Eva, turns each token by its place, of which a prompt has none"):
        image_blocks(clip)


def test_a_cached_tag_whose_file_has_another_name_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    here = lambda repo, file: f"{tmp_path}/{file}" if file == "pytorch_model.bin" else None  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", here)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: (_ for _ in ()).throw(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        load_clip("ViTamin-S/datacomp1b")
