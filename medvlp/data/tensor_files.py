"""One safetensors file: named tensors, and facts about them as JSON. No pickle.

Saved methods, checkpoints, cached image features and LLM representations are such files. safetensors keeps
text beside its tensors: here the file's kind, one JSON object, `facts`, and a checksum over facts and
tensors, because safetensors itself notices a file cut short, but not a changed byte.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medvlp.data.files import atomic_write, check_readable, sha256


def write_tensors(path: str | Path, tensors: dict[str, Tensor], kind: str, facts: dict[str, Any]) -> None:
    """Write tensors and facts whole, or leave the file that is there as it was.

    Args:
        path: The file; its folder is made.
        tensors: Tensors by name.
        kind: What the file is, in a few words: `read_tensors` refuses another kind.
        facts: What else there is to say, as plain JSON.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(facts, ensure_ascii=False)
    with atomic_write(path) as part:
        save_file(tensors, part, {"kind": kind, "facts": text, "sha256": _checksum(text, tensors)})


def read_tensors(path: str | Path, kind: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file of this kind; `what` says in errors what the file should be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or something else.
    """
    path = Path(path)
    check_readable(path, what)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged, or not {what}: {error}.") from error
    if "facts" not in metadata or "kind" not in metadata:
        raise ValueError(f"{path} is not {what}: it is a safetensors file of another program.")
    if metadata["kind"] != kind:
        raise ValueError(f"{path} is not {what}: it is a {metadata['kind']}.")
    if metadata.get("sha256") != _checksum(metadata["facts"], tensors):
        raise ValueError(f"{path} is damaged: its content does not have the checksum it was written with.")
    return tensors, json.loads(metadata["facts"])


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    parts: list[bytes | str] = [text]
    for name, tensor in sorted(tensors.items()):
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), raw]
    return sha256(*parts)
