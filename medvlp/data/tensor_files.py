"""One safetensors file: named tensors, and facts about them as JSON. No pickle.

Saved methods, checkpoints, cached image features and LLM representations are such files. safetensors keeps
text beside its tensors: here the file's kind, one JSON object, `facts`, and a checksum over facts and
tensors, because safetensors itself notices a file cut short, but not a changed byte.

`Blocks` are many such files in a folder, to which rows are added as they are computed. `Shipped` is the file
of image features that comes with the package, in place of images that do not.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medvlp.data.errors import brief
from medvlp.data.files import atomic_write, check_readable, sha256

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "features"  # of images that are not here
FEATURES, SHIPPED_KIND = "features.safetensors", "medvlp shipped image features"
FULL = 2**20  # bytes of a file that is not merged with others
KEY = 32  # bytes of a key, a SHA-256


@dataclass
class Blocks:
    """Rows (D,) by key, in files of many rows, each with its rows' keys, the facts and a checksum.

    A process that is killed loses what it has not written, several may work at once: files are named by
    their keys and never changed, and small ones go only when a larger one has their rows.

    Attributes:
        folder: Of these rows alone.
        what: What the files are, in a few words: their kind, and their name in warnings.
        facts: What holds of all rows, as plain JSON.
        same: The names of the facts that must be the same in every file.
    """

    folder: Path
    what: str
    facts: dict[str, Any]
    same: Iterable[str]

    def read(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """The rows that are there; files without them are not read. A damaged file goes, with a warning."""
        wanted, rows, seen = set(keys), {}, set()
        while new := set(self.folder.glob("*.safetensors")) - seen:  # files may be merged while we read
            for path in sorted(new):
                rows |= self._rows(path, wanted)
            seen |= new
        return rows

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add rows: one file of these and of all that stand in small files."""
        merged = []
        for path in self.folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # merged by another process
                if path.stat().st_size < FULL:
                    merged.append(path)
                    rows = self._rows(path) | rows
        raw = bytearray.fromhex("".join(rows))
        keys = torch.frombuffer(raw, dtype=torch.uint8).reshape(-1, KEY)  # (N, KEY)
        whole = self.folder / f"{sha256(*sorted(rows))}.safetensors"
        tensors = {"keys": keys, "rows": torch.from_numpy(np.stack(list(rows.values())))}  # rows (N, D)
        write_tensors(whole, tensors, self.what, self.facts)
        for path in merged:
            if path != whole:
                path.unlink(missing_ok=True)

    def _rows(self, path: Path, wanted: set[str] | None = None) -> dict[str, np.ndarray]:
        """The wanted rows of a file, by default all; none where it is gone or, with a warning, damaged."""
        try:
            with suppress(SafetensorError, OSError, RuntimeError), safe_open(path, framework="pt") as file:
                if wanted is not None and wanted.isdisjoint(_keys(file.get_tensor("keys"))):
                    return {}
            tensors, facts = read_tensors(path, self.what, f"a {self.what}")
            different = [name for name in self.same if facts.get(name) != self.facts[name]]
            if different:
                raise ValueError(f"its {', '.join(different)} differ")
        except FileNotFoundError:
            return {}
        except ValueError as error:
            warnings.warn(f"damaged {self.what} {path} is computed again: {error}", stacklevel=4)
            with suppress(OSError):
                path.unlink()
            return {}
        keys = _keys(tensors["keys"])
        kept = [i for i, key in enumerate(keys) if wanted is None or key in wanted]
        return dict(zip([keys[i] for i in kept], tensors["rows"].numpy()[kept], strict=True))  # rows (N, D)


def _keys(tensor: Tensor) -> list[str]:
    return tensor.numpy().tobytes().hex(" ", KEY).split()


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
    except (SafetensorError, OSError, RuntimeError) as error:
        check_readable(path, what)  # another process may have removed it meanwhile
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


@dataclass
class Shipped:
    """Image files that are not here, of which the package ships the features that one CLIP computed.

    `assets/features/wbcatt` is for the images of the data folder `wbcatt`, whichever card reads them. It has
    that folder's tables, gzipped, which are read as ever, and features.safetensors: for each image its name,
    the SHA-256 of its file, and its feature, in half precision. By the hashes these images have the
    fingerprint that they have where their files are, so that studies and caches are found both ways.

    `names` are paths within the data folder, `hashes` are of the files.
    """

    folder: Path
    names: list[str]
    hashes: list[str]
    clip: str  # that computed their features
    how_to_get: str

    @classmethod
    def read(cls, folder: Path, how_to_get: str = "") -> "Shipped":
        """All images of a shipped folder; ValueError where its file is damaged."""
        tensors, facts = _read_shipped(folder)
        return cls(folder, facts["names"], _keys(tensors["hashes"]), facts["clip"], how_to_get)

    def image(self, i: int) -> None:
        """There is none: FileNotFoundError that says how to get it."""
        raise self.missing(f"there is no image {brief(self.names[i])}")

    def take(self, rows: np.ndarray) -> "Shipped":
        """These images only."""
        return replace(self, names=[self.names[i] for i in rows], hashes=[self.hashes[i] for i in rows])

    def called(self, names: Sequence[str]) -> "Shipped":
        """The images of these names only."""
        place = {name: i for i, name in enumerate(self.names)}
        return self.take(np.array([place[name] for name in names], dtype=int))

    def content(self) -> str:
        """Hash of what is in the files, as of those that are here."""
        return sha256(*self.hashes)

    @property
    def glances(self) -> list[str]:
        """The hashes of the files."""
        return self.hashes

    def missing(self, what: str) -> FileNotFoundError:
        """The error for something that needs pictures; `what` says what there is not."""
        return FileNotFoundError(
            f"{what}: the pictures are not here, only the features that clip {self.clip!r} computed of them. "
            f"How to get the pictures: {self.how_to_get or 'the card does not say.'} "
            "Then give load_dataset root=..., or set the environment variable MEDVLP_DATA."
        )


def _read_shipped(folder: Path) -> tuple[dict[str, Tensor], dict]:
    return read_tensors(folder / FEATURES, SHIPPED_KIND, "the image features of this version of medvlp")


def shipped_features(fingerprint: str) -> dict[str, np.ndarray]:
    """What the package ships of one CLIP: normalised features (D,), float32, by the image file's hash.

    None of a CLIP that the package has no features of. ValueError where a shipped file is damaged.
    """
    found: dict[str, np.ndarray] = {}
    for path in ASSETS.glob(f"*/{FEATURES}"):
        tensors, facts = _read_shipped(path.parent)
        if facts["fingerprint"] == fingerprint:
            # half precision leaves lengths near 1
            features = F.normalize(tensors["features"].float(), dim=-1)  # (N, D)
            found |= zip(_keys(tensors["hashes"]), features.numpy(), strict=True)
    return found


def shipped_path(folder: str) -> Path:
    """Where the package has what it ships for the data folder that a card calls so, if it does."""
    return ASSETS / Path(folder).name


def is_shipped(folder: Path) -> bool:
    """Whether a folder is one of the package's, which has features in place of images."""
    return folder.parent == ASSETS and (folder / FEATURES).is_file()
