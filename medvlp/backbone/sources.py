"""Where a CLIP comes from: the package, a folder, the Hugging Face hub, or open_clip's own list.

Each loader checks first that everything needed is at hand, so that a missing file or network is one
clear error at once, not a log of retries. Python code that lies beside a model is never run, whatever the
model's configuration asks for.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.hf_configs import arch_dict
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer
from torch import nn
from transformers import AutoConfig

from medvlp.backbone.formats import from_file, from_transformers
from medvlp.backbone.hub import (
    CONFIG,
    NO_CODE,
    TOWER_CONFIG,
    check_at_hand,
    first_file,
    refuse_code,
    take_along,
)
from medvlp.data.errors import brief, check_choice, listed, unknown_name
from medvlp.data.files import short

ASSETS = Path(__file__).parents[1] / "assets"
EMBEDDED = ("tiny", "tiny-cells")  # come with the package, each a folder of ASSETS
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
TOKENIZER = (*VOCABULARY, "tokenizer_config.json")
WHY = {  # by what others say of a file or a model: what it is, and what to do
    "trust_remote_code": f"it needs code of its own. {NO_CODE}.",
    "TorchScript": "it is a TorchScript archive, whose code is not run; save its state_dict()",
    "Weights only": "it holds Python objects beside tensors, which are not opened; save model.state_dict()",
    "text_model.": "transformers' names are read in a folder with their config.json: local-dir:FOLDER",
}
BERT = "text_encoder.transformer.embeddings.word_embeddings.weight"  # where UniMed-CLIP keeps one
BERTS = {  # which one, by its width
    768: "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
    1024: "microsoft/BiomedNLP-BiomedBERT-large-uncased-abstract",
}
PLACES = ("local-dir:", "hf-hub:")  # what begins so can hold anything; the other names are open_clip's own
# by process: one that is forked while a thread has its turn would wait for it for ever
_TURNS: dict[int, threading.RLock] = {}
Loaded = tuple[nn.Module, Any, dict]  # model, tokenizer, model configuration


@contextmanager
def random_turn(seed: int | None = None, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """torch's random numbers for this thread alone, from `seed`; then their state is what it was before.

    That state is the whole process's. Threads take turns, so that each draws what it would draw alone.

    Args:
        seed: Of the CPU's random numbers; None: go on from the state that is there.
        devices: GPUs whose state, too, is what it was before.
    """
    turn = _TURNS.setdefault(os.getpid(), threading.RLock())
    with turn, torch.random.fork_rng(devices):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def load_source(name: str) -> Loaded:
    """Load the open_clip model of `name` (see `load_clip`) on the CPU, with tokenizer and configuration.

    The weights are float32. The state of torch's random generator stays as it was; random weights come from
    seed 0.
    """
    with random_turn(seed=0):
        if name in EMBEDDED:
            return _load_folder(name, ASSETS / name)
        if name.startswith("local-dir:"):
            return _load_folder(name, Path(name.removeprefix("local-dir:")).expanduser())
        if name.startswith("hf-hub:"):
            return _load_folder(name, _hub_folder(name))
        return _load_file(name) if "=" in name else _load_builtin(name)


def _load_folder(name: str, folder: Path) -> Loaded:
    hub = name.startswith("hf-hub:")  # its tokenizer may be another repository's
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"clip {brief(name)}: there is no folder {short(folder)}.")
    config = folder / "open_clip_config.json"
    if not config.is_file():
        if (folder / "config.json").is_file():
            return _load_transformers(name, name.removeprefix("hf-hub:") if hub else str(folder))
        raise FileNotFoundError(f"clip {brief(name)}: {config} is missing; it says what the model is.")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise FileNotFoundError(f"clip {brief(name)}: it has no weights; {folder / WEIGHTS[0]} is missing.")
    with _explained(name, f"{config} is no open_clip configuration"):
        cfg = open_clip.get_model_config(f"local-dir:{folder}")
        text_cfg = dict(cfg["text_cfg"])
    # without it transformers would make an empty vocabulary without a word
    if text_cfg.get("hf_tokenizer_name") and not hub and not first_file(str(folder), VOCABULARY):
        raise FileNotFoundError(f"clip {brief(name)}: no tokenizer; {folder / 'tokenizer.json'} is missing.")
    refuse_code(f"clip {brief(name)}", name.removeprefix("hf-hub:") if hub else str(folder))
    if text_cfg.get("hf_model_name"):
        own = folder / "config.json"
        # that of a whole CLIP, such as a BertCLIPModel's, is not the tower's own
        if own.is_file() and not {"text_config", "vision_config"} & json.loads(own.read_text()).keys():
            text_cfg["hf_model_name"] = str(folder)
        tower = text_cfg["hf_model_name"]
        check_at_hand(name, tower, TOWER_CONFIG, f"Put the config.json of {brief(tower)} into {folder}.")
        _check_tower(name, tower)
    with _explained(name, f"the weights in {folder} cannot be loaded as {config} says"):
        where, given = f"local-dir:{folder}", {"text_cfg": text_cfg | {"hf_model_pretrained": False}}
        model = open_clip.create_model(where, force_custom_text=True, require_pretrained=True, **given)
    with _explained(name, f"the tokenizer files in {folder} cannot be read"):
        return model, _tokenizer(name if hub else f"local-dir:{folder}", text_cfg), cfg


def _load_transformers(name: str, place: str) -> Loaded:
    """A folder or repository with a CLIPModel or a SiglipModel of transformers."""
    refuse_code(f"clip {brief(name)}", place)
    check_at_hand(name, place, TRANSFORMERS_WEIGHTS, take_along(place))
    parts = [TOWER_CONFIG, PROCESSOR, TRANSFORMERS_WEIGHTS, VOCABULARY]
    files = [first_file(place, part) for part in parts]
    with _explained(name, f"{place} holds no CLIPModel or SiglipModel of transformers that can be loaded"):
        for part, file in zip(parts, files, strict=True):
            if file is None:
                raise ValueError(f"there is no {part[0]}")
        config, processor = (json.loads(Path(file).read_text(encoding="utf-8")) for file in files[:2])
        model, cfg = from_transformers(config, processor, Path(files[2]))
        # as SigLIP's own tokenizer reads, where another class of transformers stands in for it
        clean = "canonicalize" if config["model_type"] == "siglip" else "whitespace"
        cfg["text_cfg"] |= {"tokenizer_kwargs": {"clean": clean}}
        length = cfg["text_cfg"]["context_length"]
        return model, HFTokenizer(place, length, clean=clean, trust_remote_code=False), cfg


def _hub_folder(name: str) -> Path:
    """The folder of the hub's cache with a repository's configuration and weights, fetched if need be."""
    repo = name.removeprefix("hf-hub:")
    check_at_hand(name, repo, CONFIG + TOWER_CONFIG, take_along(repo))
    config = first_file(repo, CONFIG + TOWER_CONFIG)
    if config is None:
        raise FileNotFoundError(f"clip {brief(name)}: {brief(repo)} has no {CONFIG[0]}.")
    if Path(config).name in CONFIG:
        check_at_hand(name, repo, WEIGHTS, take_along(repo))
        first_file(repo, WEIGHTS)  # into the same folder
    return Path(config).parent


def _load_builtin(name: str) -> Loaded:
    """`ARCH/TAG`: an architecture and weights of open_clip's list."""
    arch, _, tag = name.rpartition("/")
    arch = arch.replace("/", "-")
    if not arch:
        raise ValueError(_no_such_clip(name))
    cfg = _architecture(name, arch)
    tags = [*open_clip.list_pretrained_tags_by_model(arch), "random"]
    check_choice("pretrained tag", tag, tags, where=f"architecture {brief(arch)}")
    source = open_clip.get_pretrained_cfg(arch, tag)
    repo, _, file = source.get("hf_hub", "").rpartition("/")
    if repo:
        check_at_hand(name, repo, (file,) if file else WEIGHTS, take_along(repo))
    quick_gelu = bool(cfg.get("quick_gelu") or source.get("quick_gelu"))
    try:
        model = open_clip.create_model(
            arch,
            None if tag == "random" else tag,
            force_custom_text=True,
            force_quick_gelu=quick_gelu,
            force_preprocess_cfg=source,
            pretrained_text=False,
            require_pretrained=tag != "random",
        )
        return model, _tokenizer(arch, cfg["text_cfg"]), cfg | {"quick_gelu": quick_gelu}
    except (OSError, RuntimeError) as error:
        raise ConnectionError(f"clip {brief(name)} cannot be loaded: {error} {take_along(repo)}") from error


def _load_file(name: str) -> Loaded:
    """`ARCH=FILE`: an architecture of open_clip and a file of weights."""
    said, _, file = name.partition("=")
    arch, path = said.removesuffix("-gelu"), Path(file).expanduser()
    cfg = _architecture(name, arch)
    if not path.is_file():
        raise FileNotFoundError(f"clip {brief(name)}: there is no file {short(path)}.")
    if arch == said and f"{arch}-quickgelu" in open_clip.list_models():
        raise ValueError(
            f"clip {brief(name)}: no file says with which activation its weights were trained, and another "
            f"one changes every feature. Write '{arch}-quickgelu={file}' for OpenAI's CLIP and what was "
            f"trained on from it, '{arch}-gelu={file}' for LAION's and most others."
        )
    tags = [open_clip.get_pretrained_cfg(arch, tag) for tag in open_clip.list_pretrained_tags_by_model(arch)]
    same = {key: value for key, value in (tags or [{}])[0].items() if all(t.get(key) == value for t in tags)}
    what = f"{short(path)} cannot be loaded as {arch}"
    with _explained(name, what, "it is no file of weights; save model.state_dict() ({})"):
        state = load_state_dict(str(path))
    if "logit_scale" not in state:
        none = "it holds no weights of a CLIP under the names that open_clip and OpenAI give"
        raise ValueError(f"clip {brief(name)}: {what}: {none}")
    text_cfg = _bert(name, path.parent, state[BERT].shape[1]) if BERT in state else cfg["text_cfg"]
    with _explained(name, what):
        model, cfg = from_file(cfg | {"text_cfg": text_cfg}, same, state)
    if BERT in state:
        place, length = text_cfg["hf_tokenizer_name"], text_cfg["context_length"]
        return model, HFTokenizer(place, length, trust_remote_code=False), cfg
    return model, _tokenizer(arch, text_cfg), cfg


@contextmanager
def _explained(name: str, what: str, otherwise: str = "{}") -> Iterator[None]:
    """Whatever broken files make torch, open_clip or transformers raise is a ValueError in words."""
    try:
        yield
    except Exception as error:
        said = str(error) or f"a value that it may not have ({type(error).__name__})"
        why = next((WHY[sign] for sign in WHY if sign in said), otherwise.format(said[:1000]))
        raise ValueError(f"clip {brief(name)}: {what}: {why}") from error


def _bert(name: str, folder: Path, width: int) -> dict:
    """The text tower of UniMed-CLIP's kind: a BERT whose files lie beside the weights, else the hub's."""
    place = str(folder) if (folder / "config.json").is_file() else BERTS.get(width, str(folder))
    for files in (TOWER_CONFIG, VOCABULARY):
        check_at_hand(name, place, files, f"Put config.json and vocab.txt of this BERT into {folder}.")
        if first_file(place, files) is None:
            raise FileNotFoundError(f"clip {brief(name)}: {files[0]} of its BERT is missing in {place}.")
    _check_tower(name, place)
    tower = {"hf_model_name": place, "hf_tokenizer_name": place, "hf_model_pretrained": False}
    read = {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": "mlp", "context_length": 256}
    return tower | read


def _architecture(name: str, arch: str) -> dict:
    """The configuration of an architecture of open_clip, whose tower and tokenizer are at hand."""
    check_choice("architecture", arch, open_clip.list_models())
    cfg = open_clip.get_model_config(arch)
    for key, files in (("hf_model_name", TOWER_CONFIG), ("hf_tokenizer_name", TOKENIZER)):
        if part := cfg["text_cfg"].get(key):
            check_at_hand(name, part, files, f"Run `hf download {part}` elsewhere and copy the cache here.")
    return cfg


def _check_tower(name: str, tower: str) -> None:
    """ValueError unless open_clip can build the text tower with code of transformers."""
    refuse_code(f"clip {brief(name)}", tower)
    with _explained(name, f"its text tower {brief(tower)} is not known"):
        kind = AutoConfig.from_pretrained(tower, trust_remote_code=False).model_type
    if kind not in arch_dict:
        raise ValueError(f"clip {brief(name)}: {unknown_name('text tower', kind, arch_dict)} {NO_CODE}.")


def _tokenizer(name: str, text_cfg: dict) -> Any:
    """The tokenizer; one of transformers runs no code of its own, whatever its `tokenizer_kwargs` say."""
    safe = {"trust_remote_code": False} if text_cfg.get("hf_tokenizer_name") else {}
    if safe or text_cfg.get("tokenizer_kwargs") or "siglip" in name.lower():
        return open_clip.get_tokenizer(name, **safe)
    return byte_pairs(text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH))


@cache
def byte_pairs(context_length: int) -> open_clip.SimpleTokenizer:
    """The tokenizer of OpenAI's CLIP, which most have. It is made once: reading its merges takes a while."""
    return open_clip.SimpleTokenizer(context_length=context_length)


def _no_such_clip(name: str) -> str:
    if name in open_clip.list_models():
        tags = [*open_clip.list_pretrained_tags_by_model(name), "random"]
        return f"clip {brief(name)} names no weights; write '{name}/TAG'. Tags: {listed(tags)}."
    if os.path.isdir(name):  # which a name of any length may be asked
        return f"clip {brief(name)} is a folder; write 'local-dir:{name}'."
    kinds = ["ARCH/TAG", "ARCH=FILE", "ARCH/random", "hf-hub:OWNER/REPO", "local-dir:FOLDER"]
    return unknown_name("clip", name, [*EMBEDDED, "clip", "large", *kinds])
