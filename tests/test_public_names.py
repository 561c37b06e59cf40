import ast
import subprocess
import sys
from pathlib import Path

import pytest

import medvlp


@pytest.mark.parametrize("name", medvlp.__all__)
def test_every_public_name_is_there(name):
    assert getattr(medvlp, name).__name__ == name


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        AttributeError, match=r"unknown name 'load_dataste' in medvlp; did you mean 'load_dataset'"
    ):
        medvlp.load_dataste  # noqa: B018


def test_importing_medvlp_does_not_load_torch():
    code = "import sys, medvlp; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_type_checker_sees_the_same_names():
    source = Path(medvlp.__file__).read_text(encoding="utf-8")
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    declared = {alias.name for imported in block.body for alias in imported.names}
    assert declared == set(medvlp.__all__)
