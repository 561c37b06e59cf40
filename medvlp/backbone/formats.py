"""Models in other formats become open_clip's: transformers', OpenAI's, UniMed-CLIP's; their code never runs.

What their weights are called, and what stands where in their configurations, is in `assets/clip_names.yaml`.
What lies in a folder or a repository is looked at here, too.
"""

import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from http.client import HTTPException
from math import isqrt
from operator import getitem
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import torch
import yaml
from huggingface_hub.errors import HFValidationError
from open_clip import CustomTextCLIP
from open_clip.coca_model import CoCa
from open_clip.convert import convert_state_dict
from open_clip.factory import load_state_dict
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import CLIPConfig, SiglipConfig
from transformers.utils import cached_file

from medvlp.data.errors import brief, check_choice, listed

CONFIG, TOWER_CONFIG = ("open_clip_config.json",), ("config.json",)
NO_CODE = "Python code that comes with a model is never run here"
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
        raise ValueError(
            f"hidden_act is {listed(sorted(acts))}; both towers must have one of {listed(ACTIVATIONS)}"
        )
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


def first_file(place: str, files: Sequence[str], revision: str | None = None) -> str | None:
    """Where the first of these files is that a folder or a repository has."""
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    return next(filter(None, (cached_file(place, file, revision=revision, **quiet) for file in files)), None)


def check_at_hand(name: str, repo: str, files: Sequence[str], way_on: str, timeout: float = 5.0) -> None:
    """Return if one of `files` of `repo` is in the local cache or the hub answers.

    Args:
        name: the clip that was asked for, for the message.
        repo: a hub repository, or a local folder (always at hand).
        files: names of which one is enough.
        way_on: what to do without them, a sentence.
        timeout: seconds that the hub has to answer in.

    Raises:
        ValueError: `repo` can be neither.
        ConnectionError: neither; it says what was wanted, where a copy was looked for and the ways on.
    """
    if os.path.isdir(repo):  # which a name of any length may be asked
        return
    try:
        if any(isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str) for file in files):
            return
    except HFValidationError:
        raise ValueError(
            f"clip {brief(name)}: {brief(repo)} is no folder here, and no name of a repository on the hub."
        ) from None
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        answers: list[bool] = []  # from a thread: a timeout is for each byte, and a server may drip
        ask = Thread(
            target=lambda: answers.append(_answers(huggingface_hub.constants.ENDPOINT, timeout)), daemon=True
        )
        ask.start()
        ask.join(2 * timeout)
        if any(answers):
            return
    raise ConnectionError(
        f"clip {brief(name)} needs {' or '.join(files)} of {brief(repo)}. The Hugging Face hub cannot be "
        f"reached, and its cache ({huggingface_hub.constants.HF_HUB_CACHE}) holds no copy. {way_on} "
        "load_clip('tiny') comes with the package and needs no network."
    )


def take_along(repo: str) -> str:
    """What to do without a network: bring the repository as a folder."""
    return (
        f"Without a network: run `hf download {repo} --local-dir FOLDER` elsewhere, copy FOLDER here and use "
        "load_clip('local-dir:FOLDER')."
    )


def _answers(address: str, timeout: float) -> bool:
    """Whether `address` answers at all; an error page or an unknown certificate is an answer."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, HTTPException):
        return False


def refuse_code(who: str, place: str, revision: str | None = None) -> None:
    """Look whether the configurations of a model ask for code of its own.

    Whoever loads the model passes `trust_remote_code=False`, too: then transformers takes its own class where
    it has one, and refuses where it has none.

    Args:
        who: the model that was asked for, for the message.
        place: a folder, or a repository on the hub.
        revision: branch, tag or commit there.

    Raises:
        ValueError: one of them does, or is no JSON; the message names the file.
    """
    for file in (*CONFIG, *TOWER_CONFIG, "tokenizer_config.json"):
        path = first_file(place, [file], revision)
        if path is None:
            continue
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{who}: {path} is damaged ({error}).") from None
        # transformers ignores this word in files of its own: without code beside it, it was left over there
        trusts = any(_values(config, "trust_remote_code"))
        if trusts and (file in CONFIG or any(_values(config, "auto_map"))):
            raise ValueError(f"{who}: {path} asks for trust_remote_code. {NO_CODE}; take the entry away.")
        kernels = [*_values(config, "attn_implementation"), *_values(config, "_attn_implementation")]
        if any("/" in str(kernel) for kernel in kernels):
            raise ValueError(f"{who}: {path} asks for attn_implementation {kernels[0]!r}. {NO_CODE}.")


def why_not(error: Exception) -> str:
    """What transformers says of a model that it does not load, without its advice to run the model's code."""
    return f"it needs code of its own. {NO_CODE}." if "trust_remote_code" in str(error) else str(error)


def _values(config: Any, key: str) -> Iterator[Any]:
    """Every value that stands under `key`, however deep."""
    if isinstance(config, dict):
        yield from (value for name, value in config.items() if name == key)
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _values(part, key)
