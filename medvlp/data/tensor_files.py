"""One safetensors file: named tensors, and facts about them as JSON. No pickle.

safetensors keeps text beside its tensors. Here that is one JSON object, `facts`, and a checksum over
both, because safetensors itself notices a file cut short, but not a changed byte.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medvlp.data.files import atomic_write, sha256


def write_tensors(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts whole, or leave the file that is there as it was."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(facts, ensure_ascii=False)
    with atomic_write(path) as part:
        save_file(tensors, part, {"facts": text, "sha256": _checksum(text, tensors)})


def read_tensors(path: str | Path, kind: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file whose facts say `kind`; `what` says in errors what the file should be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected {what}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged, or not {what}: {error}.") from error
    text = metadata.get("facts")
    if text is None:
        raise ValueError(f"{path} is not {what}: it is a safetensors file of another program.")
    if metadata.get("sha256") != _checksum(text, tensors):
        raise ValueError(f"{path} is damaged: its content does not have the checksum it was written with.")
    facts = json.loads(text)
    if facts["kind"] != kind:
        raise ValueError(f"{path} is not {what}: it is a {facts['kind']}.")
    return tensors, facts


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    parts: list[bytes | str] = [text]
    for name, tensor in sorted(tensors.items()):
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        parts += [name, str(tensor.dtype), str(tuple(tensor.shape)), raw]
    return sha256(*parts)
