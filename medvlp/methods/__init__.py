"""Ways to turn a frozen CLIP into a classifier, one a file, and `METHODS`, all of them by name.

A new method is one file in this folder and one line in `medvlp/__init__.pyi`.
"""

import ast
from collections import UserDict
from functools import cached_property
from importlib import import_module, resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class _Methods(UserDict[str, str]):
    """{name: class}; a class is imported when it is asked for."""

    def __init__(self) -> None:
        """Nothing is read yet."""

    @cached_property
    def data(self) -> dict[str, str]:
        """{name: module}, by the lines of the stub that import from this folder."""
        stub = ast.parse((resources.files("medvlp") / "__init__.pyi").read_text(encoding="utf-8"))
        lines = [line for line in stub.body if isinstance(line, ast.ImportFrom) and "methods." in line.module]
        homes = {one.name: f"medvlp.{line.module}" for line in lines for one in line.names}
        return {name: home for name, home in homes.items() if home != "medvlp.methods.base"}

    def __getitem__(self, name: str) -> "type[nn.Module]":
        return getattr(import_module(self.data[name]), name)


METHODS = _Methods()
