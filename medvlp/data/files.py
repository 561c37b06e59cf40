"""Files: written whole or not at all, their names and hashes, and JSON."""

import errno
import hashlib
import json
import os
import secrets
import stat
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tqdm.auto import tqdm

from medvlp.data.errors import visible

BAR_SECONDS = 2  # before work on many files shows a bar
UNSETTLED_NS = 2 * 10**9  # a file that changed in this time may change again, and its time stay the same

CHECKSUM = "sha256"  # the last entry of a JSON file that `write_json` wrote


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there only if the block succeeds.

    A crash or an error leaves `path` as it was, and several processes may write
    the same file at once: the last whole one stays.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # as any new file: safetensors alone lets only the owner read its files
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(part, mode)
        os.replace(part, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


class _OnlyTried(Exception):
    """Ends an attempt to write."""


def check_file_writable(path: str | Path) -> None:
    """Make the file's folder; OSError where the file could not be written. It stays as it is."""
    if os.path.isdir(path):
        raise OSError(f"{path} is a folder; give the name of a file.")
    with suppress(_OnlyTried), atomic_write(path):
        raise _OnlyTried


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading bytes; OSError for what is none: reading a pipe would wait for ever."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, no file", str(path))
    return open(path, "rb")


def check_readable(path: str | Path, what: str) -> None:
    """FileNotFoundError where there is no file; ValueError where it cannot be read, so is not `what`."""
    try:
        open_regular(path).close()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FileNotFoundError(f"there is no file {path}; expected {what}.") from None
    except OSError as error:
        raise ValueError(f"{short(path)} is damaged, or not {what}: {error.strerror}.") from None


def check_writable(folder: str | Path, what: str = "the folder") -> None:
    """Make a folder; OSError that names it where nothing can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error, f"{what} ") from error


def _unwritable(path: str | Path, error: OSError, what: str = "") -> OSError:
    """The error for a file or folder that cannot be written: which, why, and what to do."""
    with suppress(OSError):
        above = [folder for folder in (Path(path), *Path(path).parents) if folder.exists()]
        if above and above[0] != Path(path) and not above[0].is_dir():
            why = f"{above[0]} is a file, no folder"
            return OSError(f"{what}{short(path)} cannot be written: {why}. Give another path.")
    why = error.strerror or error
    return OSError(f"{what}{short(path)} cannot be written ({why}). Give another path, or make it writable.")


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


def file_hashes(folder: Path, names: Sequence[str]) -> list[str]:
    """SHA-256 of what is in each file, `names` being paths within `folder`.

    Each file is read once: its hash is kept in the cache folder, and is right as long as the file's size, its
    times (of its content and of the file, which no program sets) and its inode are the same.

    Raises:
        OSError: a file that is not there or cannot be read.
    """
    memory = cache_folder() / "file_hashes" / f"{sha256(printable(folder.resolve()))[:32]}.json"
    known, states = _read_hashes(memory) if names else {}, []
    for name in names:
        info = os.stat(path := os.path.join(folder, name))
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "it is a folder or a pipe, not a file", path)
        states.append([info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino])
    now = time.time_ns()
    new = [i for i, name in enumerate(names) if known.get(name, [None])[0] != states[i]]
    hashes = in_threads(file_hash, [os.path.join(folder, names[i]) for i in new], "hashing files")
    fresh = {names[i]: [states[i], one] for i, one in zip(new, hashes, strict=True)}
    settled = {name: one for name, one in fresh.items() if max(one[0][1:3]) < now - UNSETTLED_NS}
    if settled:
        text = json.dumps(_read_hashes(memory) | settled)  # another process may have written since
        with suppress(OSError), atomic_write(memory) as part:  # where nothing can be kept, it costs time only
            part.write_text(f"{sha256(text)}\n{text}", encoding="utf-8")
    known |= fresh
    return [known[name][1] for name in names]


def _read_hashes(memory: Path) -> dict[str, list]:
    """What `file_hashes` keeps, {name: [state of the file, hash]}; {} where that is missing or damaged."""
    try:
        checksum, _, text = memory.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeError):
        return {}
    return json.loads(text) if checksum == sha256(text) else {}


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file as other tools give it."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_threads(work: Callable, items: Sequence, what: str) -> list:
    """`work` of each item, in their order; a bar where it takes long. Waiting for files is what it is for."""
    size = max(1, min(100, len(items) // 32))  # a thread's turn has a price
    turns = [items[i : i + size] for i in range(0, len(items), size)]
    bar = tqdm(total=len(items), desc=what, unit="file", delay=BAR_SECONDS, leave=False)
    done = []
    with bar, ThreadPoolExecutor() as pool:
        for results in pool.map(lambda turn: [work(item) for item in turn], turns):
            done += results
            bar.update(len(results))
    return done


def composed(text: Any) -> Any:
    """Text with é as one letter (NFC), as most systems write it; macOS's names have two (NFD)."""
    return unicodedata.normalize("NFC", text) if isinstance(text, str) and not text.isascii() else text


def as_word(text: str) -> str:
    """What two ways of writing one name have in common: upper or lower case, é as one letter or two."""
    return composed(text.strip().casefold())


def on_disk(folder: Path, name: str) -> Path:
    """The path of `name` in a folder, as it is spelled there; as it is given, where nothing is there.

    Names from other systems have \\ between folders, or é as two letters where the disk has one.
    """
    for text in dict.fromkeys((name, name.replace("\\", "/"))):
        for spelled in dict.fromkeys((text, composed(text), unicodedata.normalize("NFD", text))):
            if os.path.exists(os.path.join(folder, spelled)):
                return Path(folder, spelled)
    return Path(folder, name)


def short(path: str | Path) -> str:
    """A path of a length that an error can show."""
    text = visible(printable(path))
    return text if len(text) <= 400 else f"{text[:200]}...{text[-100:]}"


def printable(name: str | Path) -> str:
    r"""A file's name or path as text that can be printed: what is not UTF-8 becomes \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def write_json(path: str | Path, facts: dict[str, Any]) -> None:
    """Write readable JSON, with a hash of its content as last entry, whole or not at all."""
    text = _json({**facts, CHECKSUM: sha256(_json(facts))})
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> tuple[dict[str, Any], bool]:
    """What a JSON file holds, without its hash, and whether it is as `write_json` wrote it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        facts = json.loads(text)
    except RecursionError:
        raise ValueError("it is too deep") from None
    if not isinstance(facts, dict):
        raise ValueError(f"it holds a {type(facts).__name__}, no object")
    checksum = facts.pop(CHECKSUM, None)
    # the text, too: of an entry that stands there twice JSON keeps one
    return facts, checksum == sha256(_json(facts)) and text == _json({**facts, CHECKSUM: checksum})


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False, allow_nan=False, indent=1)
