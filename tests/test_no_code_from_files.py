"""Nothing that is read runs code: Python is planted wherever a model's files can name it, and never runs."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import medvlp.study.saving as saving
from medvlp.backbone.clip import load_clip
from medvlp.knowledge.llms import LLM, find_llm
from medvlp.knowledge.local_llm import local_llm
from medvlp.knowledge.representations import llm_representations
from medvlp.methods.vip import ViP
from medvlp.study.saving import load, save
from tests.backbone import small_clips
from tests.knowledge.small_llm import save_llm
from tests.methods.small import make_card
from tests.study.training.small_training import CARD

CODE = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
TOKENIZER_CODE = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
ASKED = {"trust_remote_code": True}


@pytest.fixture
def trace(tmp_path, monkeypatch) -> Path:
    """Return the file that planted code would write; whoever is asked at the keyboard says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path / "trace"


def plant(folder: Path, trace: Path) -> None:
    """Put Python into a model's folder, under each name that transformers would look for."""
    for file in ("evil.py", "__init__.py", "custom_generate/generate.py"):
        (folder / file).parent.mkdir(exist_ok=True)
        text = f"open({str(trace)!r}, 'w').write('ran')\nclass Evil: pass\ndef generate(*_, **__): pass\n"
        (folder / file).write_text(text)


def change(file: Path, *keys: str, **values: object) -> None:
    """Set values in the part of a JSON file that the keys lead to."""
    whole = json.loads(file.read_text()) if file.exists() else {}
    part = whole
    for key in keys:
        part[key] = part.get(key) or {}
        part = part[key]
    part.update(values)
    file.write_text(json.dumps(whole))


CLIP_PLACES = {  # by what asks: (file, keys that lead to the part of it, what is said there)
    "tokenizer": [("tokenizer_config.json", [], {"auto_map": TOKENIZER_CODE})],
    "tokenizer, asked for": [
        ("tokenizer_config.json", [], {"auto_map": TOKENIZER_CODE, "tokenizer_class": "Evil"}),
        ("open_clip_config.json", ["model_cfg", "text_cfg", "tokenizer_kwargs"], ASKED),
    ],
    "tokenizer, left to the user": [
        ("tokenizer_config.json", [], {"auto_map": TOKENIZER_CODE, "tokenizer_class": "Evil"}),
        ("config.json", [], {"model_type": "evil"}),
        ("open_clip_config.json", ["model_cfg", "text_cfg"], {"hf_tokenizer_name": "some/tokenizer"}),
        ("open_clip_config.json", ["model_cfg", "text_cfg", "tokenizer_kwargs"], {"trust_remote_code": None}),
    ],
    "text tower": [("config.json", [], {"model_type": "evil", "auto_map": CODE} | ASKED)],
    "text tower of a known kind": [("config.json", [], {"auto_map": CODE} | ASKED)],
    "text tower of a kind that open_clip does not take": [
        ("config.json", [], {"model_type": "timm_backbone", "auto_map": {"AutoModel": "evil.Evil"}})
    ],
    "text configuration": [("open_clip_config.json", ["model_cfg", "text_cfg"], ASKED)],
    "image tower": [("open_clip_config.json", ["model_cfg", "vision_cfg"], ASKED)],
    "image tower, deep inside": [("open_clip_config.json", ["model_cfg", "vision_cfg", "act_kwargs"], ASKED)],
    "model": [("open_clip_config.json", ["model_cfg"], ASKED | {"auto_map": CODE})],
    "preprocessing": [("open_clip_config.json", ["preprocess_cfg"], ASKED)],
    "the file itself": [("open_clip_config.json", [], ASKED)],
}


@pytest.mark.parametrize(
    ("place", "where"),
    [(place, "folder") for place in CLIP_PLACES]
    + [(place, "hub") for place in CLIP_PLACES if place.startswith(("tokenizer", "text tower", "preproc"))],
)
def test_a_clip_runs_none(place, where, trace, tmp_path, monkeypatch):
    folder = tmp_path / "clip"
    left = place == "tokenizer, left to the user"  # beside a text tower that needs no config.json
    name = small_clips.openai_kind(folder) if left else small_clips.biomedclip_kind(folder)
    (folder / "vocab.txt").write_text("[UNK]")
    plant(folder, trace)
    for file, keys, values in CLIP_PLACES[place]:
        change(folder / file, *keys, **values)
    if where == "hub":
        name = as_on_the_hub(folder, tmp_path, monkeypatch)
    if place == "tokenizer":  # transformers knows a class of its own for it
        assert load_clip(name, device="cpu").encode_texts(["dark lesion"]).shape == (1, 40)
    else:
        with pytest.raises(ValueError, match=r"clip '(local-dir|hf-hub):.*(never run|text tower)"):
            load_clip(name, device="cpu")
    assert not trace.exists()


def as_on_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lay the folder out as a repository in the hub's cache, and return its name for `load_clip`."""
    cache, commit = tmp_path / "hub", "a" * 40
    repository = cache / "models--evil--clip"
    (repository / "snapshots").mkdir(parents=True)
    folder.rename(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    config = repository / "snapshots" / commit / "open_clip_config.json"
    text = json.loads(config.read_text())["model_cfg"]["text_cfg"]
    names = {key: "evil/clip" for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)}
    change(config, "model_cfg", "text_cfg", **names)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return "hf-hub:evil/clip"


def test_a_text_tower_that_transformers_knows_is_built_by_transformers(trace, tmp_path):
    name = small_clips.biomedclip_kind(tmp_path / "clip")
    expected = load_clip(name, device="cpu").encode_texts(["dark lesion"])
    plant(tmp_path / "clip", trace)
    change(tmp_path / "clip" / "config.json", auto_map=CODE)
    assert torch.equal(load_clip(name, device="cpu").encode_texts(["dark lesion"]), expected)
    assert not trace.exists()


@pytest.mark.parametrize("key", ["hf_model_name", "timm_model_name"])
def test_a_tower_from_another_folder_runs_none(key, trace, tmp_path):
    folder, other = tmp_path / "clip", tmp_path / "other"
    name = small_clips.biomedclip_kind(folder)
    other.mkdir()
    plant(other, trace)
    (folder / "config.json").rename(other / "config.json")
    change(other / "config.json", model_type="evil", architecture="evil.Evil", auto_map=CODE, **ASKED)
    part = "text_cfg" if key.startswith("hf") else "vision_cfg"
    place = f"local-dir:{other}" if part == "vision_cfg" else str(other)
    change(folder / "open_clip_config.json", "model_cfg", part, **{key: place})
    if part == "vision_cfg":
        change(folder / "open_clip_config.json", "model_cfg", "text_cfg", hf_model_name=None)
    with pytest.raises(ValueError, match="clip 'local-dir:"):
        load_clip(name, device="cpu")
    assert not trace.exists()


def test_pickled_weights_run_none(trace, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (trace,)

    name = small_clips.openai_kind(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": Evil()}, tmp_path / "clip" / "open_clip_pytorch_model.bin")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_clip(name, device="cpu")
    assert not trace.exists()


LLM_PLACES = {
    "known kind, asked for": [("config.json", [], {"auto_map": CODE} | ASKED)],
    "code from the hub": [("config.json", [], {"attn_implementation": "evil/kernel"})],
    "unknown kind": [("config.json", [], {"model_type": "evil", "auto_map": CODE} | ASKED)],
    "unknown kind, left to the user": [("config.json", [], {"model_type": "evil", "auto_map": CODE})],
    "tokenizer, asked for": [("tokenizer_config.json", [], {"auto_map": TOKENIZER_CODE} | ASKED)],
    "part of a known kind, left to the user": [
        ("config.json", [], {"model_type": "llava"}),
        ("config.json", ["vision_config"], {"model_type": "clip_vision_model"}),
        (
            "config.json",
            ["text_config"],
            {"model_type": "blip_text_model", "auto_map": {"AutoModel": "FOLDER--evil.Evil"}},
        ),
    ],
}


@pytest.mark.parametrize("place", LLM_PLACES)
def test_an_llm_runs_none(place, trace, tmp_path):
    folder = save_llm(tmp_path / "llm")
    plant(folder, trace)
    for file, keys, values in LLM_PLACES[place]:
        change(folder / file, *keys, **json.loads(json.dumps(values).replace("FOLDER", str(folder))))
    path = tmp_path / "states.safetensors"
    with pytest.raises(ValueError, match="llm 'llm'.*(never run|cannot be loaded)"):
        llm_representations(make_card(), folder, path=path, device="cpu", progress=False)
    with pytest.raises(ValueError, match="llm 'llm'.*(never run|cannot be loaded)"):
        local_llm(folder, progress=False).start()
    assert not trace.exists() and not path.exists()


def test_an_llm_that_transformers_knows_is_loaded_by_transformers(trace, tmp_path):
    folder = save_llm(tmp_path / "llm")
    plant(folder, trace)
    change(folder / "config.json", auto_map=CODE)
    change(folder / "tokenizer_config.json", trust_remote_code=True)  # names no code: left over
    for load_it, kind in ((LLM.load, "LlamaModel"), (LLM.load_writer, "LlamaForCausalLM")):
        _, model = load_it(find_llm(folder), torch.device("cpu"))
        assert type(model).__name__ == kind and not trace.exists()


# what a saved method names


@pytest.fixture
def saved(tmp_path) -> Path:
    """Return a file that names a folder, in which there is code now."""
    clip = load_clip(small_clips.biomedclip_kind(tmp_path / "clip"), device="cpu")
    save(ViP(clip, CARD), tmp_path / "vip.safetensors")
    return tmp_path / "vip.safetensors"


def test_load_opens_no_folder_that_stands_in_the_file_unless_told(saved, trace, tmp_path):
    folder = tmp_path / "clip"
    clip = load_clip(f"local-dir:{folder}", device="cpu")
    assert load(saved, trust_clip=True, device="cpu").clip is not clip
    plant(folder, trace)
    for file, keys, values in CLIP_PLACES["tokenizer, asked for"]:
        change(folder / file, *keys, **values)
    with pytest.raises(ValueError, match=r"names the clip 'local-dir:.*clip=load_clip.*trust_clip=True"):
        load(saved, device="cpu")
    with pytest.raises(ValueError, match="never run"):
        load(saved, trust_clip=True, device="cpu")
    assert load(saved, clip).clip is clip and not trace.exists()


@pytest.mark.parametrize("name", ["hf-hub:evil/clip", "local-dir:", "local-dir:~/clip", "hf-hub:"])
def test_load_opens_no_place_whatever_it_is_called(saved, name, monkeypatch):
    tensors, facts = saving.read_tensors(saved, saving.KIND, "")
    clip = facts["clip"] | {"name": name}
    saving.write_tensors(saved, tensors, saving.KIND, facts | {"clip": clip})
    monkeypatch.setattr(saving, "load_clip", lambda *_: pytest.fail("opened"))
    with pytest.raises(ValueError, match="trust_clip=True"):
        load(saved)


@pytest.mark.parametrize("name", ["tiny", "clip", "ViT-B-16-quickgelu/openai", "RN50-quickgelu/random"])
def test_load_opens_what_comes_with_medvlp_or_open_clip(saved, name, clip, monkeypatch):
    tensors, facts = saving.read_tensors(saved, saving.KIND, "")
    here = {"name": name, "precision": "fp32", "fingerprint": "another"}
    saving.write_tensors(saved, tensors, saving.KIND, facts | {"clip": here})
    monkeypatch.setattr(saving, "load_clip", lambda *_: clip)
    with pytest.raises(ValueError, match="what loads by that name is now"):
        load(saved)


def test_what_stands_in_a_saved_configuration_is_no_code(saved, trace, tmp_path):
    clip = load_clip(f"local-dir:{tmp_path / 'clip'}", device="cpu")
    tensors, facts = saving.read_tensors(saved, saving.KIND, "")
    config = facts["config"] | {"trust_remote_code": True, "auto_map": CODE}
    saving.write_tensors(saved, tensors, saving.KIND, facts | {"config": config})
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(saved, clip)
    assert not trace.exists()


def test_transformers_itself_runs_what_these_tests_plant(trace, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = save_llm(tmp_path / "llm")
    plant(folder, trace)
    change(folder / "config.json", model_type="evil", auto_map=CODE)
    with pytest.raises(AttributeError):  # the planted class is no configuration
        AutoConfig.from_pretrained(folder)
    assert trace.exists()
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
