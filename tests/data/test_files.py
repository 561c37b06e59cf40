import pytest
import torch

from medvlp.data.files import atomic_write
from medvlp.data.tensor_files import write_tensors


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
