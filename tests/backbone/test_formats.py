"""CLIPs in the formats that people have: architecture and file, half precision, others' configurations."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from medvlp.backbone import sources
from medvlp.backbone.clip import load_clip
from medvlp.backbone.prompts.hooks import encode_deep_images, image_blocks
from medvlp.backbone.sources import BERT
from medvlp.knowledge.representations import Representations
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


def write_archive(state: dict[str, torch.Tensor], file: Path) -> None:
    """A TorchScript archive with these tensors under these names."""
    model = torch.nn.Module()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        place = model
        for parent in parents:
            if parent not in place._modules:
                place.add_module(parent, torch.nn.Module())
            place = place.get_submodule(parent)
        place.register_buffer(last, tensor)
    torch.jit.script(model).save(file)


def test_what_is_said_of_openais_archives_leads_to_a_file_that_loads(original, tmp_path):
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}  # OpenAI keeps these, too
    state = {name: tensor.half() for name, tensor in original.state_dict().items()}
    write_archive(state | {k: torch.tensor(v) for k, v in numbers.items()}, tmp_path / "ViT-S.pt")
    with pytest.raises(ValueError, match="TorchScript archive, whose code is not run; save its state_dict"):
        load_clip(f"Small-quickgelu={tmp_path / 'ViT-S.pt'}")
    torch.save(torch.jit.load(tmp_path / "ViT-S.pt").state_dict(), tmp_path / "weights.pt")
    clip = load_clip(f"Small-quickgelu={tmp_path / 'weights.pt'}", device="cpu")
    images = torch.randn(2, 3, 32, 32)
    expected = F.normalize(original.encode_image(images), dim=-1)
    torch.testing.assert_close(clip.encode_images(images), expected, atol=2e-3, rtol=0)
    expected = F.normalize(original.encode_text(open_clip.tokenize(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected, atol=2e-3, rtol=0)


class ViTAndBert(torch.nn.Module):
    """The model of UniMed-CLIP (its src/open_clip/model.py), small: two layers on BERT's class token."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.visual = open_clip.CLIP(**CFG, quick_gelu=True).visual
        self.text_encoder = torch.nn.Module()
        self.text_encoder.transformer = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
        layers = torch.nn.Linear(48, 44, bias=False), torch.nn.GELU(), torch.nn.Linear(44, 40, bias=False)
        self.text_encoder.proj = torch.nn.Sequential(*layers)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.5))

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding="max_length", max_length=60, return_tensors="pt")
        states = self.text_encoder.transformer(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return self.text_encoder.proj(states[:, 0])


def vit_and_bert(folder: Path) -> ViTAndBert:
    """As UniMed-CLIP and MMKD-CLIP are kept, with the files of the BERT beside."""
    small_clips.write_bert(folder)
    torch.manual_seed(0)
    model = ViTAndBert(folder).eval()
    state = training_run(model.state_dict())
    old = {"module.text_encoder.transformer.embeddings.position_ids": torch.arange(64)[None]}
    torch.save(state | {"state_dict": old | state["state_dict"]}, folder / "weights.pt")
    return model


def test_a_vit_and_a_bert_give_what_they_give_themselves(tmp_path):
    model = vit_and_bert(tmp_path)
    clip = load_clip(f"Small-quickgelu={tmp_path / 'weights.pt'}", device="cpu")
    images = torch.randn(2, 3, 32, 32)
    expected = F.normalize(model.visual(images), dim=-1)
    torch.testing.assert_close(clip.encode_images(images), expected, atol=1e-5, rtol=0)
    expected = F.normalize(model.encode_text(TEXTS), dim=-1)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected, atol=1e-5, rtol=0)
    assert clip.context_length == 256 and clip.logit_scale == pytest.approx(12.18, abs=0.01)


@pytest.mark.parametrize("file", ["config.json", "tokenizer", "proj", "code"])
def test_a_vit_and_a_bert_of_which_a_part_is_missing_or_asks_for_code(file, tmp_path, monkeypatch):
    vit_and_bert(tmp_path)
    name = f"Small-quickgelu={tmp_path / 'weights.pt'}"
    monkeypatch.setitem(sources.BERTS, 48, "some/bert")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if file == "config.json":
        (tmp_path / file).unlink()
        with pytest.raises(
            ConnectionError, match="needs config.json of 'some/bert'.*Put config.json and vocab"
        ):
            load_clip(name)
    elif file == "code":
        config = json.loads((tmp_path / "config.json").read_text())
        asks = {"auto_map": {"AutoModel": "evil.Evil"}, "trust_remote_code": True}
        (tmp_path / "config.json").write_text(json.dumps(config | asks))
        with pytest.raises(ValueError, match="config.json asks for trust_remote_code"):
            load_clip(name)
    elif file == "tokenizer":
        for part in ("tokenizer.json", "vocab.txt"):
            (tmp_path / part).unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match="tokenizer.json of its BERT is missing in"):
            load_clip(name)
    else:
        state = torch.load(tmp_path / "weights.pt")["state_dict"]
        torch.save({key: part for key, part in state.items() if "proj.2" not in key}, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match="(?s)cannot be loaded as Small-quickgelu.*Missing key.*proj.2"):
            load_clip(name)


class Anything:
    """Some object that a file may hold."""


NO_WEIGHTS = "cannot be loaded as Alone: it is no file of weights; save model.state_dict"
WRONG = {
    "a missing file": ("Small-gelu=FILE", None, "there is no file .*weights.pt"),
    "an unknown architecture": ("Smal=FILE", b"", "unknown architecture 'Smal'; did you mean 'Small'"),
    "no activation": ("Small=FILE", b"", "no file says with which activation"),
    "nothing": ("Alone=FILE", b"", NO_WEIGHTS),
    "a text": ("Alone=FILE", b"weights", "cannot be loaded as Alone: .*save model.state_dict"),
    "a pickled object": ("Alone=FILE", Anything(), "holds Python objects .* save model.state_dict"),
    "a pickled model": ("Alone=FILE", torch.nn.Linear(2, 2), "holds Python objects .* save model.state_dict"),
    "a number": ("Alone=FILE", 3, NO_WEIGHTS),
    "an empty dictionary": ("Alone=FILE", {}, NO_WEIGHTS),
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
    "a BERT of unknown width, without its files": (
        "Alone=FILE",
        {"logit_scale": torch.ones(()), BERT: torch.ones(9, 48)},
        "config.json of its BERT is missing in",
    ),
    "text positions of another length": (
        "Alone=FILE",
        open_clip.CLIP(**CFG | {"text_cfg": {**small_clips.TEXT, "context_length": 32}}).state_dict(),
        "cannot be loaded as Alone.*size mismatch",
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
@pytest.mark.parametrize("where", ["file", "clip", "siglip", "bert", "resized", "eva"])
def test_methods_train_on_it_and_are_saved_and_loaded(method, where, original, tmp_path):
    name = f"Small-quickgelu={tmp_path / 'weights.pt'}"
    match where:
        case "file" | "resized":
            torch.save(original.state_dict(), tmp_path / "weights.pt")
            name += "@48" if where == "resized" else ""
        case "bert":
            vit_and_bert(tmp_path)
        case "eva":
            name = small_clips.eva_kind(tmp_path)
        case _:
            kept(clip_model if where == "clip" else siglip_model, tmp_path)
            name = f"local-dir:{tmp_path}"
    clip = load_clip(name, device="cpu")
    given = {"representations": ROWS} if method == "CILMP" else {}
    trained = {"ViP": ViP, "CoOp": CoOp, "CILMP": CILMP}[method](clip, CARD, **given)
    data = make_set(CARD, [0, 1] * 2)
    fit(trained, data, data, TrainConfig(epochs=1, views=0, batch_size=4), progress=False)
    save(trained, tmp_path / "method.safetensors")
    with pytest.raises(ValueError, match="names the clip '.*trust_clip=True"):
        load(tmp_path / "method.safetensors", card=CARD, **given)
    again = load(tmp_path / "method.safetensors", card=CARD, trust_clip=True, device="cpu", **given)
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
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
    assert half.logit_scale == full.logit_scale and half.fingerprint != full.fingerprint
    assert half.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]


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


@pytest.mark.parametrize("kind", ["test_eva01", "test_eva02", "test_pe"])
def test_prompts_in_an_eva_tower_have_no_place(kind, tmp_path):
    clip = load_clip(small_clips.eva_kind(tmp_path, kind), device="cpu")
    trunk, n = clip.model.visual.trunk, 3
    assert image_blocks(clip) is trunk.blocks and (trunk.rope is None) == (kind == "test_eva01")
    images, prompts = torch.randn(2, 3, 32, 32), torch.randn(2, n, 48)
    x, rope = trunk._pos_embed(trunk.patch_embed(images))
    x, prompts_here = trunk.norm_pre(x), [trunk.norm_pre(prompts[0]), prompts[1]]
    for block, p in zip(trunk.blocks, prompts_here, strict=True):  # behind the class token no place is turned
        block.attn.num_prefix_tokens = 1 + n
        x = block(torch.cat([x[:, :1], p.expand(2, -1, -1), x[:, -16:]], dim=1), rope=rope)
        block.attn.num_prefix_tokens = 1
    x = torch.cat([x[:, :1], x[:, -16:]], dim=1)
    expected = clip.model.visual.head(trunk.forward_head(trunk.norm(x)))
    torch.testing.assert_close(encode_deep_images(clip, images, prompts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["openai_kind", "eva_kind", "coca_kind"])
def test_images_of_another_size_as_open_clip_has_them(kind, tmp_path):
    name = getattr(small_clips, kind)(tmp_path)
    clip = load_clip(name, device="cpu")
    size = 3 * clip.image_size // 2
    larger = load_clip(f"{name}@{size}", device="cpu")
    theirs = open_clip.create_model(
        name, force_image_size=size, force_custom_text=True, require_pretrained=True
    )
    images = torch.randn(2, 3, size, size)
    expected = F.normalize(theirs.eval().encode_image(images), dim=-1)
    torch.testing.assert_close(larger.encode_images(images), expected, atol=1e-5, rtol=0)
    assert f"images of {size} pixels (positions resized from {clip.image_size})" in repr(larger)
    assert larger.preprocess(Image.new("RGB", (40, 80))).shape == (3, size, size)
    assert larger.fingerprint != clip.fingerprint
    assert load_clip(f"{name}@{clip.image_size}", device="cpu").fingerprint == clip.fingerprint


def test_a_file_keeps_the_size_that_its_weights_were_trained_for(tmp_path):
    vision = small_clips.VISION | {"image_size": 48}
    model = open_clip.CLIP(**CFG | {"vision_cfg": vision}, init_logit_bias=-10.0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = load_clip(f"Alone={tmp_path / 'weights.pt'}", device="cpu")
    images = torch.randn(2, 3, 48, 48)
    expected = F.normalize(model.encode_image(images), dim=-1)
    torch.testing.assert_close(clip.encode_images(images), expected, atol=1e-5, rtol=0)
    assert clip.image_size == 48 and "resized" not in repr(clip)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN50-quickgelu/random@448", "its image tower is ModifiedResNet; leave out @448"),
        ("tiny@100", "must be a multiple of 8 pixels, not 100"),
        ("tiny@0", "must be a multiple of 8 pixels, not 0"),
    ],
)
def test_an_image_size_that_cannot_be(name, message):
    with pytest.raises(ValueError, match=f"clip '{name}'.*{message}"):
        load_clip(name)


def test_a_cached_tag_whose_file_has_another_name_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    here = lambda repo, file: f"{tmp_path}/{file}" if file == "pytorch_model.bin" else None  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", here)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: (_ for _ in ()).throw(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        load_clip("ViTamin-S/datacomp1b")
