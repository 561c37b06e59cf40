import errno
import os
import re
from pathlib import Path

import pytest
import torch

from medvlp.data.files import atomic_write
from medvlp.data.tensor_files import read_tensors, write_tensors
from medvlp.knowledge.symptoms.sets import SymptomSet
from medvlp.study.saving import load


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as part:
        part.write_text("first")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_write(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first" and [one.name for one in path.parent.iterdir()] == ["a.txt"]


def test_files_can_be_read_by_whom_any_new_file_can(tmp_path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "tensors", {"a": torch.ones(2)}, "a test's", {})
    assert (tmp_path / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def strange_paths(folder):
    """Paths at which no file is read or written: below a file, a pipe, a folder, a name of 5,000 letters."""
    (folder / "file").write_text("x")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    return folder / "file" / "below", folder / "pipe", folder / "folder", folder / ("x" * 5000)


@pytest.mark.parametrize(
    "read", [lambda path: read_tensors(path, "a test's", "tensors"), load, SymptomSet.load]
)
def test_what_cannot_be_read_is_said_and_never_waited_for(tmp_path, read):
    for path in strange_paths(tmp_path):
        with pytest.raises(
            (FileNotFoundError, ValueError), match="there is no file|is damaged, or not"
        ) as caught:
            read(path)
        assert str(path)[:100] in str(caught.value)


def test_a_file_that_may_not_be_read_is_said_to_be_so(tmp_path, monkeypatch):
    write_tensors(tmp_path / "mine", {"a": torch.ones(2)}, "a test's", {})

    def refused(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(ValueError, match="mine is damaged, or not tensors: Permission denied"):
        read_tensors(tmp_path / "mine", "a test's", "tensors")


def test_what_cannot_be_written_is_named_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    where = re.escape(f"{tmp_path}/file/new/a.txt cannot be written: {tmp_path}/file is a file, no folder.")
    with pytest.raises(OSError, match=where), atomic_write(tmp_path / "file" / "new" / "a.txt"):
        raise AssertionError("the block must not begin")
    (tmp_path / "folder").mkdir()
    directory = r"folder cannot be written \(Is a directory\)"
    with pytest.raises(OSError, match=directory), atomic_write(tmp_path / "folder") as part:
        part.write_text("text")
    with pytest.raises(OSError, match=r"aaa.* cannot be written .File name too long") as caught:
        write_tensors(tmp_path / ("a" * 5000), {"a": torch.ones(2)}, "a test's", {})
    assert len(str(caught.value)) < 1000

    def read_only(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", read_only)
        denied = r"a.txt cannot be written \(Permission denied\). Give another path"
        with pytest.raises(OSError, match=denied), atomic_write(tmp_path / "a.txt"):
            raise AssertionError("the block must not begin")
    with pytest.raises(OSError, match="No space left on device"), atomic_write(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
