"""Files that are either whole or not there, and hashes of what is in them."""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there only if the block succeeds.

    A crash or an error leaves `path` as it was, and several processes may write
    the same file at once: the last whole one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    part.touch()
    mode = part.stat().st_mode  # as any new file: safetensors alone lets only the owner read its files
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(part, mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: str | Path, what: str = "the folder") -> None:
    """Make a folder; OSError that names it where nothing can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{what} {folder} cannot be written ({error.strerror}).") from None


def cache_folder() -> Path:
    """Where what can be made again is kept: the environment's MEDVLP_CACHE, or ~/.cache/medvlp."""
    return Path(os.environ.get("MEDVLP_CACHE") or Path.home() / ".cache" / "medvlp").expanduser()


def sha256(*parts: bytes | str) -> str:
    """Hex SHA-256 of the parts, each preceded by its length so that they cannot run together."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()
