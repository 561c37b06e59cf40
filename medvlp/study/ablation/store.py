"""The store of a study: a folder with one small JSON file a run.

    STORE/ID.json              a run: what went in, and its results or the traceback of its failure
    STORE/tests/HASH.json      labels and group codes of a test set, once for all its runs
    STORE/locks/ID.lock        held by the process that works on the run

A file is whole or not there, and holds a hash of its content, so that damage is noticed. Stores are merged by
copying their files into one folder; without the locks.
A lock is the operating system's and ends with the process that holds it, however that ends. Several machines
may share a store where the file system has locks for all of them (NFS has; some Lustre is mounted without).
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from medvlp.data.datasets import ImageSet
from medvlp.data.errors import unknown_name
from medvlp.data.files import check_writable, read_json, write_json

KIND, TEST_KIND = "medvlp run", "medvlp test set"
REMAKE = "delete it, and the study makes it again."
DONE, FAILED = "done", "failed"
FIELDS = ("status", "settings", "given", "inputs", "finished")  # of every record
LOGITS = np.dtype("<f2")  # float16, little-endian


class RunStore:
    """Reads and writes a store; the folder is made when it is first written to."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()

    def check_writable(self) -> None:
        """Make the folder; OSError where nothing could be kept there."""
        check_writable(self.folder, "the store")

    def ids(self) -> list[str]:
        """Ids of all runs, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def read(self, run_id: str) -> dict[str, Any] | None:
        """The record of a run; None where there is none. ValueError for a damaged file."""
        path = self.folder / f"{run_id}.json"
        record = _read(path, KIND)
        if record is not None and (record.get("id") != run_id or not set(FIELDS) <= set(record)):
            raise ValueError(f"{path} is not the record of run {run_id!r}, or not all of it; delete it.")
        return record

    def write(self, run_id: str, record: dict[str, Any]) -> None:
        """Keep a run's record in place of an earlier one; a number that is not finite becomes None."""
        text = json.dumps({"kind": KIND, "id": run_id} | record, default=lambda number: number.item())
        write_json(self.folder / f"{run_id}.json", json.loads(text, parse_constant=lambda _: None))

    def read_test(self, fingerprint: str) -> tuple[np.ndarray, np.ndarray]:
        """Labels (N,) and group codes (N,) of a test set, both int64."""
        facts = _read_test_set(self.folder / "tests" / f"{fingerprint}.json")
        return np.array(facts["labels"], dtype=np.int64), np.array(facts["groups"], dtype=np.int64)

    def write_test(self, images: ImageSet) -> None:
        """Keep labels and group codes of a test set, unless they are there."""
        path = self.folder / "tests" / f"{images.fingerprint}.json"
        try:
            there = _read(path, TEST_KIND) is not None
        except ValueError:  # damaged, and here is what it held
            there = False
        if not there:
            facts = {"kind": TEST_KIND, "card": images.card.name, "classnames": images.card.classnames}
            groups = pd.factorize(np.asarray(images.groups))[0].tolist()
            write_json(path, facts | {"labels": images.labels.tolist(), "groups": groups})

    def copy_to(self, folder: str | Path, run_ids: Iterable[str]) -> "RunStore":
        """Copy these runs and their test sets to another store, and return that.

        Raises:
            FileNotFoundError: a run, or its test set, is not here.
            OSError: the other store cannot be written.
        """
        other = RunStore(folder)
        other.check_writable()
        for run_id in run_ids:
            record = self.read(run_id)
            if record is None:
                raise FileNotFoundError(f"{self.folder} has no run {run_id!r}.")
            if "test" in record:
                for one in (record, record.get("new") or record):
                    name = f"{one['test']}.json"
                    write_json(other.folder / "tests" / name, _read_test_set(self.folder / "tests" / name))
            other.write(run_id, record)
        return other

    @contextmanager
    def lock(self, run_id: str, wait: bool) -> Iterator[bool]:
        """Hold the lock of a run inside the block. False: another has it, and `wait` is False."""
        lock = FileLock(self._locks() / f"{run_id}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def begin(self, run_id: str, call: str) -> None:
        """Note that the study's call of this name works on the run, for the case that its process dies."""
        (self._locks() / f"{run_id}.begun").write_text(call)

    def end(self, run_id: str) -> None:
        """Drop the note of `begin`."""
        (self._locks() / f"{run_id}.begun").unlink(missing_ok=True)

    def has_begun(self, run_id: str, call: str) -> bool:
        """Whether this call began the run and did not end it."""
        path = self._locks() / f"{run_id}.begun"
        return path.exists() and path.read_text() == call

    def _locks(self) -> Path:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def pack(logits: np.ndarray) -> dict[str, Any]:
    """Logits (N, n_cls), as JSON can hold them: log-probabilities in float16.

    Softmax gives the same for log-probabilities as for the logits, and they are near zero where it matters,
    so float16 keeps more of them.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)  # (N, n_cls)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    logs = np.maximum(logs, np.finfo(LOGITS).min).astype(LOGITS)
    return {"shape": list(logs.shape), "float16": b64encode(logs.tobytes()).decode()}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """Probabilities (N, n_cls) in float64, from what `pack` made."""
    logs = np.frombuffer(b64decode(packed["float16"]), dtype=LOGITS).reshape(packed["shape"])
    probabilities = np.exp(logs.astype(np.float64))
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def _read(path: Path, kind: str) -> dict[str, Any] | None:
    try:
        facts, whole = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {REMAKE}") from None
    if facts.get("kind") != kind:
        wrong = unknown_name("kind of file", facts.get("kind"), [kind])
        raise ValueError(f"{path} does not belong in a store: {wrong}")
    if not whole:
        raise ValueError(f"{path} is damaged (it is not as it was written: its checksum differs); {REMAKE}")
    return facts


def _read_test_set(path: Path) -> dict[str, Any]:
    facts = _read(path, TEST_KIND)
    if facts is None:
        raise FileNotFoundError(f"{path} is missing; was it left behind when stores were merged?")
    return facts
