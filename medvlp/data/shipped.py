"""Images that are not here, and the features that the package ships for them.

`assets/features/wbcatt` is for the images of the data folder `wbcatt`, whichever card reads them. It holds
that folder's tables, gzipped, which are read as ever, and one safetensors file: for each image its name, the
SHA-256 of its file, and the feature that one CLIP computed of it, in half precision. By the hashes the images
have the fingerprint that they have where their files are, so that studies and caches are found both ways.

`python -m medvlp.backbone.features` writes such a folder.
"""

import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.data.files import atomic_write, file_hashes, on_disk, sha256
from medvlp.data.tensor_files import read_tensors, write_tensors

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "features"
FILE, KIND = "features.safetensors", "medvlp shipped image features"


def shipped_folder(folder: str) -> Path | None:
    """What the package ships for a data folder of this name; None where that is nothing."""
    path = ASSETS / Path(folder).name
    return path if is_shipped(path) and (path / FILE).is_file() else None


def is_shipped(folder: Path) -> bool:
    """Whether a folder of images is one of the package's, which holds no images."""
    return folder.parent == ASSETS


@dataclass
class Shipped:
    """Image files that are not here; `names` are paths within the data folder, `hashes` are of the files."""

    folder: Path
    names: list[str]
    hashes: list[str]
    clip: str  # that computed their features
    how_to_get: str

    @classmethod
    def read(cls, folder: Path, how_to_get: str = "") -> "Shipped":
        """All images of a shipped folder; ValueError where its file is damaged."""
        tensors, facts = _read(folder)
        hashes = [row.tobytes().hex() for row in tensors["hashes"].numpy()]
        return cls(folder, facts["names"], hashes, facts["clip"], how_to_get)

    def image(self, i: int) -> None:
        """There is none: FileNotFoundError that says how to get it."""
        raise self.missing(f"there is no image {self.names[i]!r}")

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
    def looks(self) -> tuple:
        """The hashes of the files."""
        return (lambda rows: [self.hashes[i] for i in rows],)

    def features(self, clip: str, fingerprint: str) -> Tensor:
        """Normalised features (N, D), float32; FileNotFoundError for a CLIP that did not compute them."""
        tensors, facts = _read(self.folder)
        if facts["fingerprint"] != fingerprint:
            other = " with these weights in this precision" if clip == self.clip else ""
            raise self.missing(f"there are no features of clip {clip!r}{other}")
        place = {name: i for i, name in enumerate(facts["names"])}
        rows = torch.tensor([place[name] for name in self.names], dtype=torch.long)  # (N,)
        return F.normalize(tensors["features"][rows].float(), dim=-1)  # half precision leaves lengths near 1

    def missing(self, what: str) -> FileNotFoundError:
        """The error for something that needs pictures; `what` says what there is not."""
        return FileNotFoundError(
            f"{what}: the pictures are not here, only the features that clip {self.clip!r} computed of them. "
            f"How to get the pictures: {self.how_to_get or 'the card does not say.'} "
            "Then give load_dataset root=..., or set the environment variable MEDVLP_DATA."
        )


def _read(folder: Path) -> tuple[dict[str, Tensor], dict]:
    return read_tensors(folder / FILE, KIND, "the image features of this version of medvlp")


def write_shipped(
    name: str, source: Path, features: Tensor, facts: dict[str, Any], tables: Iterable[str]
) -> Path:
    """Write what `Shipped` reads; return the new folder.

    Args:
        name: Of the data folder, as cards have it.
        source: That folder on this machine.
        features: (N, D).
        facts: names, the N paths within the folder; clip and fingerprint of what computed the features.
        tables: Names of tables in the folder.
    """
    folder = ASSETS / Path(name).name
    hashes = b"".join(map(bytes.fromhex, file_hashes(source, facts["names"])))
    hashes = torch.frombuffer(bytearray(hashes), dtype=torch.uint8).reshape(len(features), -1)  # (N, 32)
    write_tensors(folder / FILE, {"hashes": hashes, "features": features.half()}, KIND, facts)
    for table in tables:
        with atomic_write(folder / f"{table}.gz") as part:
            part.write_bytes(gzip.compress(on_disk(source, table).read_bytes(), mtime=0))
    return folder
