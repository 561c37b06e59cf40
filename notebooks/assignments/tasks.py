"""What an assignment is made of: tasks with points, the value that gates them, properties as feedback."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import numpy as np

HERE = Path(__file__).parent
BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
TOLERANCE = 1e-6  # relative
ROUNDING = 2e-6  # of the largest number, and no more than the checks that students see allow
REFUSED = "refused: a ValueError"  # what a reference returns where a right answer raises a ValueError


@dataclass(frozen=True)
class Property:
    """Something that every right answer has: told to the student, worth no points."""

    says: str
    calls: Callable[[np.random.Generator], list[list]]  # the arguments, call by call
    holds: Callable[[list[Any]], bool] | None = None  # of the results; None: each call raises a ValueError


@dataclass(frozen=True, eq=False)
class Task:
    """One function to write. All its points go to whoever computes `reference` on numbers never seen."""

    name: str
    points: int
    calls: Callable[[np.random.Generator], list[list]]
    reference: Callable[..., Any]
    gradient: bool = False  # compare the derivatives, too; `reference` then returns them after the value
    keeps: bool = False  # a right answer leaves its arguments as they were
    properties: list[Property] = field(default_factory=list)


@dataclass(frozen=True)
class Assignment:
    """A master notebook `NAME.ipynb` and its hidden checks `checks/NAME.py`."""

    name: str
    tasks: list[Task]
    kind: str  # of the arguments: "numpy", "torch", or "json" for text and lists of text
    allowed: list[str]  # modules that a submission may import
    seconds: float = 20.0  # for one task

    @property
    def master(self) -> Path:
        return HERE / f"{self.name}.ipynb"

    @property
    def checks(self) -> Path:
        return HERE / "checks" / f"{self.name.lower()}.py"

    def cells(self) -> list:
        return cells_of(self.master)

    def given(self) -> str:
        """Return the code that the master notebook gives, in its cell tagged `given`."""
        return next(c.source for c in self.cells() if "given" in c.metadata.get("tags", []))

    def solution(self, task: str) -> str:
        """Return the instructor's cell for this task."""
        return next(c.source for c in self.cells() if c.cell_type == "code" and f"def {task}(" in c.source)


@cache
def cells_of(master: Path) -> list:
    """Read a master notebook once."""
    return nbformat.read(master, as_version=4).cells


@cache
def load_assignment(name: str) -> Assignment:
    """Return an assignment by its name; raise a ValueError that lists the names if there is none."""
    known = sorted(path.stem.upper() for path in (HERE / "checks").glob("a*.py"))
    if name.upper() not in known:
        raise ValueError(f"there is no assignment {name!r}; there are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(
        f"checks_{name.lower()}", HERE / "checks" / f"{name.lower()}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ASSIGNMENT


def is_text(value: Any) -> bool:
    """Whether this is a text or a list of texts, which stays as it is; lists of numbers become arrays."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(x, str) for x in value))


def same(value: Any, expected: Any) -> bool:
    """Whether a result is the expected text, or has its shape and, up to rounding, its numbers."""
    if is_text(expected):
        return value == expected
    if isinstance(expected, tuple):
        return (
            isinstance(value, list)
            and len(value) == len(expected)
            and all(same(a, b) for a, b in zip(value, expected, strict=True))
        )
    try:
        value, expected = np.asarray(value, dtype=float), np.asarray(expected, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return False
    atol = max(1e-9, ROUNDING * min(1, np.abs(expected).max(initial=0)))
    return value.shape == expected.shape and np.allclose(value, expected, rtol=TOLERANCE, atol=atol)
