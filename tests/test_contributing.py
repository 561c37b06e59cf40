"""The method that CONTRIBUTING.md shows works by its file and its line alone."""

import ast
import re
import sys
from pathlib import Path

import pytest
import torch

import medvlp
from medvlp.methods import METHODS
from medvlp.study.training.config import TrainConfig
from tests.study.training.small_training import CARD, small_sets

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILE, LINE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def biases(tmp_path, monkeypatch):
    """The file as it is printed, in a folder of its own, and the line as it is printed, in the stub."""
    home, name = re.fullmatch(r"from \.(\S+) import (\w+)\n", LINE).groups()
    home = f"medvlp.{home}"
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / f"{home.rsplit('.')[-1]}.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(medvlp.methods, "__path__", [*medvlp.methods.__path__, str(folder)])
    monkeypatch.setitem(METHODS.data, name, home)
    yield name
    sys.modules.pop(home, None)


def test_the_example_trains_saves_loads_and_predicts(biases, clip, tmp_path):
    train, val = small_sets()
    method = METHODS[biases](clip, CARD)
    before = medvlp.evaluate(method, train, n_bootstrap=10).table()["value"]["accuracy"]
    history = medvlp.fit(method, train, val, TrainConfig(epochs=8, lr=1.0, batch_size=6), progress=False)
    assert len(history) == 8 and method.b.abs().max() > 0
    medvlp.save(method, tmp_path / "biases.safetensors")
    again = medvlp.load(tmp_path / "biases.safetensors", clip=clip, card=CARD)
    assert type(again).__name__ == biases and torch.equal(again.b, method.b)
    after = medvlp.evaluate(again, train, n_bootstrap=10).table()["value"]["accuracy"]
    assert after >= before
    shown = medvlp.predict(again, train.image(0))
    assert shown.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_its_recipe_is_what_fit_uses(biases):
    config = medvlp.recipe(METHODS[biases])
    assert (config.epochs, config.lr, config.batch_size) == (10, 0.1, 32)


def test_the_file_keeps_the_rules_that_modules_keep():
    assert max(map(len, FILE.splitlines())) <= 110
    for node in ast.walk(ast.parse(FILE)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            assert ast.get_docstring(node), node
