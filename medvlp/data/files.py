"""Files that are either whole or not there, what they are called and hold: names, hashes, rows of tables."""

import csv
import errno
import hashlib
import io
import os
import secrets
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from medvlp.data.errors import unknown_name

DELIMITERS = ",;\t|"  # between the columns of a table


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


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading bytes; OSError for what is none: reading a pipe would wait for ever."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, no file", str(path))
    if not status.st_size:
        raise OSError(errno.ENODATA, "the file is empty", str(path))
    return open(path, "rb")


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


def printable(name: str | Path) -> str:
    r"""A file's name or path as text that can be printed: what is not UTF-8 becomes \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_table(file: Path, columns: dict[str, str | None]) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row's line in the file and its values by role ("path", "label", ...), stripped.

    Columns are parted by comma, semicolon, tab or |: by what the header has most of the columns with. What
    stands beyond the header's columns is the row's "too many"; commas at the end of a line are not.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        tables = {mark: _rows(text, mark) for mark in DELIMITERS}
        headers = {mark: [composed(name) for name in next(rows)[1]] for mark, rows in tables.items()}
        wanted = {role: composed(column) for role, column in columns.items() if column}
        mark = max(DELIMITERS, key=lambda mark: len(set(headers[mark]) & set(wanted.values())))
        header = headers[mark]
        for role, column in wanted.items():
            if column not in header:
                hint = unknown_name("column", column, header, where=str(file))
                raise ValueError(f"{hint} Name the {role} column in the card.")
        place = {role: header.index(column) for role, column in wanted.items()}
        for line, row in tables[mark]:
            values = {role: row[i] if i < len(row) else "" for role, i in place.items()}
            extra = ", ".join(filter(None, row[len(header) :]))
            yield line, dict.fromkeys(columns, "") | values | {"too many": extra}
    except (OSError, UnicodeError, StopIteration, csv.Error) as error:
        reason = "it is empty" if isinstance(error, StopIteration) else error
        raise ValueError(f"cannot read the table {file}: {reason}. Save it as CSV in UTF-8.") from error


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table that are not blank, each with the line where it begins."""
    reader, line = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True), 1
    for row in reader:
        if any(row):
            yield line, [value.strip() for value in row]
        line = reader.line_num + 1
