"""Models in other formats, read as data, become open_clip's: transformers', OpenAI's, UniMed-CLIP's.

What their weights are called, and what stands where in their configurations, is in `assets/clip_names.yaml`.
"""

import re
from collections.abc import Mapping
from functools import partial, reduce
from math import isqrt
from operator import getitem
from pathlib import Path
from typing import Any

import torch
import yaml
from open_clip import CustomTextCLIP
from open_clip.coca_model import CoCa
from open_clip.convert import convert_state_dict
from open_clip.factory import load_state_dict
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import CLIPConfig, SiglipConfig

from medvlp.data.errors import brief, check_choice, listed

NAMES = Path(__file__).parents[1] / "assets" / "clip_names.yaml"
CONFIGS = {"clip": CLIPConfig, "siglip": SiglipConfig}
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # timm's names
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def from_transformers(facts: dict, processor: dict, weights: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and its configuration as open_clip has it.

    Args:
        facts: What stands in config.json.
        processor: What stands in preprocessor_config.json.
        weights: model.safetensors or pytorch_model.bin.

    Raises:
        ValueError: another model, or one that open_clip has nothing like; the message says why.
        RuntimeError: weights that do not fit.
    """
    check_choice("model_type", facts.get("model_type"), CONFIGS)
    table = _names(facts["model_type"])
    cfg = _filled(table["model_cfg"], _forms(CONFIGS[facts["model_type"]].from_dict(facts).to_dict()))
    vision = dict(cfg["vision_cfg"])
    preprocess = _preprocessing(processor, vision["image_size"])
    trunk = vision.pop("trunk", None)
    model = CustomTextCLIP(**cfg | {"vision_cfg": vision})
    if trunk:
        norm = partial(nn.LayerNorm, **vision["norm_kwargs"])
        model.visual.trunk = VisionTransformer(**trunk, norm_layer=norm)
    _finish(model, preprocess, load_state_dict(str(weights)), table["rules"])
    return model, cfg


def from_file(cfg: dict, preprocess: dict, state: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    """The model of an architecture with the weights of a file, and its configuration.

    Its images have the size that the weights were trained for, whatever that of the architecture is.

    Args:
        cfg: The configuration of the architecture.
        preprocess: Fields of open_clip's `PreprocessCfg`, over its own.
        state: The weights, as open_clip, OpenAI or UniMed-CLIP name them.

    Raises:
        RuntimeError: weights that do not fit.
    """
    vision, text = cfg["vision_cfg"], cfg["text_cfg"] | {"hf_model_pretrained": False}
    positions = state.get("visual.positional_embedding")  # (1 + squares, width)
    if positions is not None:
        vision = vision | {"image_size": isqrt(len(positions) - 1) * vision["patch_size"]}
    cfg = {key: part for key, part in cfg.items() if key != "custom_text"}
    cfg |= {"vision_cfg": vision, "text_cfg": text}
    model = CoCa(**cfg) if "multimodal_cfg" in cfg else CustomTextCLIP(**cfg)
    _finish(model, preprocess, convert_state_dict(model, state), _names("file")["rules"])
    return model, cfg


def _names(format: str) -> dict[str, Any]:
    return yaml.safe_load(NAMES.read_text(encoding="utf-8"))[format]


def _finish(model: nn.Module, preprocess: dict, state: Mapping[str, Tensor], rules: list) -> None:
    """Say how images are preprocessed, and load the weights under open_clip's names."""
    own = PreprocessCfg(size=model.visual.image_size)
    set_model_preprocess_cfg(model, merge_preprocess_dict(own, preprocess))
    model.load_state_dict(_named(state, sum(rules, [])))


def _named(state: Mapping[str, Tensor], rules: list) -> dict[str, Tensor]:
    """The weights as open_clip names and shapes them."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            if new is None and re.search(pattern, name):
                break
            name = re.sub(pattern, new or "", name)
        else:
            named[name] = tensor
    for name in sorted((name for name in named if "#" in name), key=lambda name: "qkv".find(name[-1])):
        tensor, (plain, change) = named.pop(name), name.split("#")
        match change:
            case "T":
                named[plain] = tensor.T
            case "0":
                named[plain] = tensor.reshape(())
            case "1":
                named[plain] = tensor[None]
            case "q+kv":
                named[plain.format("q")], named[plain.format("kv")] = tensor.tensor_split([len(tensor) // 3])
            case _:  # q, k, v
                named[plain] = torch.cat([named.get(plain, tensor[:0]), tensor])
    return named


def _forms(config: dict[str, Any]) -> dict[str, Any]:
    """transformers' configuration, and what open_clip's has of it in another form."""
    text, vision = config["text_config"], config["vision_config"]
    acts = {text["hidden_act"], vision["hidden_act"]}
    if len(acts) > 1 or not acts <= ACTIVATIONS.keys():
        raise ValueError(f"hidden_act is {listed(sorted(acts))}; both need one of {listed(ACTIVATIONS)}")
    act = ACTIVATIONS[text["hidden_act"]]
    for part in (text, vision):
        part["mlp_ratio"] = (part["intermediate_size"] + 0.5) / part["hidden_size"]  # cut by open_clip
        part["act_kwargs"] = {"approximate": "tanh"} if act == "gelu_tanh" else None
    vision["head_width"] = vision["hidden_size"] // vision["num_attention_heads"]
    # with eos_token_id 2, of old files, transformers too takes the largest token
    text["pool_type"] = "argmax" if text.get("eos_token_id") == 2 else "eos"
    return config | {"quick_gelu": act == "quick_gelu", "act": act}


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    """A template of `clip_names.yaml` with the values whose names stand behind = in it."""
    if isinstance(template, dict):
        return {key: _filled(part, values) for key, part in template.items()}
    if isinstance(template, str) and template.startswith("="):
        return reduce(getitem, template[1:].split("."), values)
    return template


def _preprocessing(facts: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """open_clip's preprocessing that does what an image processor of transformers does."""
    facts = facts.get("image_processor", facts)
    size, crop = facts["size"], facts.get("do_center_crop") and facts["crop_size"]
    squash = isinstance(size, dict) and "height" in size
    sides = [[*part.values()] if isinstance(part, dict) else [part] for part in (size, crop) if part]
    steps = [facts.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize")]
    known = facts["resample"] in INTERPOLATIONS and (squash or crop) and all(steps)
    if {*sum(sides, [])} != {image_size} or not known:
        raise ValueError(
            f"images must be resized to {image_size} pixels by interpolation 2 or 3, cropped, scaled to 1 "
            f"and normalised, as open_clip can; it is {brief(dict(facts))}"
        )
    interpolation, resize_mode = INTERPOLATIONS[facts["resample"]], "squash" if squash else "shortest"
    scale = {"mean": facts["image_mean"], "std": facts["image_std"]}
    return scale | {"interpolation": interpolation, "resize_mode": resize_mode}
