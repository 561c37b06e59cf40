"""A fingerprint holds everything that changes a feature, whichever configuration it stands in."""

import json
from dataclasses import asdict

import pytest
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from transformers import BertConfig

from medvlp.backbone.clip import Clip, load_clip
from tests.backbone import small_clips

PLACES = {"hf_model_name", "hf_model_pretrained", "hf_tokenizer_name"}  # what is there counts, not where
NO_FEATURE = {"_name_or_path", "transformers_version", "dtype", "architectures", "output_attentions"}
NO_FEATURE |= {"model_type"}  # the class itself


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Clip:
    return load_clip(small_clips.biomedclip_kind(tmp_path_factory.mktemp("bert")), device="cpu")


def other(value: object) -> object:
    return value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else f"not {value}"


def fingerprint(clip: Clip) -> str:
    vars(clip).pop("fingerprint", None)
    return clip.fingerprint


@pytest.mark.parametrize("part", ["vision_cfg", "text_cfg", "model", "preprocess", "tower"])
def test_every_field_of_every_configuration_counts(bert, part, monkeypatch):
    before = fingerprint(bert)
    match part:
        case "vision_cfg" | "text_cfg":
            fields = asdict(CLIPVisionCfg() if part == "vision_cfg" else CLIPTextCfg()) | bert.model_cfg[part]
            target = bert.model_cfg[part]
        case "model":
            fields, target = dict.fromkeys(["embed_dim", "quick_gelu", "init_logit_bias"]), bert.model_cfg
        case "preprocess":
            fields, target = asdict(PreprocessCfg()), bert.preprocess_cfg
        case "tower":
            fields, target = BertConfig().to_dict(), vars(bert.model.text.config)
    fields = {name: value for name, value in fields.items() if name not in PLACES | NO_FEATURE}
    missed = []
    for name, value in fields.items():
        with monkeypatch.context() as patch:
            patch.setitem(target, name, other(target.get(name, value)))
            missed += [name] if fingerprint(bert) == before else []
    assert len(fields) >= 3 and missed == [] and fingerprint(bert) == before


def loaded(folder, **changes: object) -> str:
    """The fingerprint of the BERT clip with values of its tower's config.json changed."""
    name = small_clips.biomedclip_kind(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return load_clip(name, device="cpu").fingerprint


def test_a_changed_file_of_the_text_tower_is_another_clip(bert, tmp_path):
    assert loaded(tmp_path / "same", transformers_version="4.1") == bert.fingerprint
    assert loaded(tmp_path / "eps", layer_norm_eps=1e-3) != bert.fingerprint


def test_a_tokenizer_that_differs_in_words_that_are_not_tried_is_another(bert, tmp_path):
    name = small_clips.biomedclip_kind(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("pneumonia", "pneumonie"))
    changed = load_clip(name, device="cpu")
    assert changed.tokenize(["pneumonia"]).tolist() != bert.tokenize(["pneumonia"]).tolist()
    assert changed.fingerprint != bert.fingerprint
