"""Every public name has an example in its docstring, and every example runs."""

import doctest
import inspect
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import medvlp
import medvlp.show

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = [(package, name) for package in (medvlp, medvlp.show) for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value))
def test_the_example_of_a_public_name_runs(package, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes
    public = inspect.unwrap(getattr(package, name))
    text = inspect.getdoc(public)
    example = doctest.DocTestParser().get_doctest(text, {}, name, inspect.getsourcefile(public), None)
    assert example.examples, f"{name} has no example"
    assert not any(one.options.get(doctest.SKIP) for one in example.examples), "an example that does not run"
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(example, out=said.append)
    plt.close("all")
    assert not failed, "".join(said)
    assert not list(Path().rglob("*.part"))
