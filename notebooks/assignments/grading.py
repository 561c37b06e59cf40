"""Grades submissions: takes the functions out, has them called elsewhere, compares what comes back."""

import ast
import difflib
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import numpy as np
import pandas as pd
from tasks import HERE, REFUSED, Assignment, Task, is_text, same
from tqdm import tqdm

from medvlp.data.errors import visible
from medvlp.data.files import atomic_write

MAX_BYTES = 5_000_000  # of a submission
MEMORY = 1_000_000_000  # bytes above what the imports take
LOUD = 10_000  # printed characters that feedback mentions
KEPT = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom  # of a submission, beside constants
# In namespaces of its own the child has no network, and empty folders in place of these.
HIDE = """
while [ "$1" != -- ]; do mkdir -p "$1" && mount -t tmpfs none "$1" || exit 1; shift; done
shift; cd /; exec "$@"
"""
PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ assignment }}: {{ name }}</title>
<style>:root {color-scheme: light dark}
body {font: 1rem/1.5 sans-serif; max-width: 45rem; margin: 2rem auto; padding: 0 1rem}</style>
<h1>{{ assignment }}: {{ points }} of {{ of }} points</h1>
<p>{{ name }}</p>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
{% for task in tasks %}<h2>{{ task.name }}: {{ task.points }} of {{ task.of }}</h2>
<ul>{% for line in task.lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% endfor %}</html>
""")


def functions_of(path: Path) -> tuple[list[str], list[str]]:
    """Return a notebook's imports, constants and functions as source, and remarks on what was left out.

    Nothing else of it is ever run, so what a submission does beside its functions has no effect.
    """
    if path.stat().st_size > MAX_BYTES:
        return [], [f"The file is larger than {MAX_BYTES:,} bytes and was not read. Clear the outputs."]
    try:
        text = path.read_text(encoding="utf-8")
        cells = nbformat.reads(text, as_version=4).cells
        sources = [str(cell.source) for cell in cells if cell.cell_type == "code"]
    except Exception as error:  # whatever a damaged file makes the reader raise
        return [], [f"This is no notebook that can be read: {type(error).__name__}."]
    code, notes = [], []
    for number, source in enumerate(sources, start=1):
        lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
        try:
            body = ast.parse("\n".join(lines)).body
            code += [ast.unparse(node) for node in body if isinstance(node, KEPT) or is_constant(node)]
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            notes.append(visible(f"Code cell {number} is not Python and was left out: {error}"[:300]))
    return code, notes


def is_constant(node: ast.stmt) -> bool:
    """Whether a statement gives a name to a value without a call: to (2, 3), 1 - 0.05 / 2, a lambda."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    parts = ast.walk(node.value)
    return isinstance(node.value, ast.Lambda) or not any(isinstance(part, ast.Call) for part in parts)


def defined(code: list[str]) -> set[str]:
    """Return the names of the functions in this code."""
    return {found[1] for source in code if (found := re.search(r"^def (\w+)", source, re.MULTILINE))}


def modules_of(code: str) -> set[str]:
    """Return the modules that this code imports."""
    nodes = ast.parse(code).body
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


class Sandbox:
    """The process that runs students' functions. It gets inputs; expected values stay here."""

    def __init__(self, assignment: Assignment, hidden: list[Path]):
        self.modules = sorted({assignment.kind} | modules_of(assignment.given()))
        self.folder = tempfile.mkdtemp(prefix="medvlp-grading-")
        python = [sys.executable, "-I", "-c", (HERE / "child.py").read_text(encoding="utf-8"), *self.modules]
        folders = [str(path.resolve()) for path in hidden if path.exists()]
        apart = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
        apart += ["sh", "-c", HIDE, "sh", *folders, "--"]
        self.apart = apart if works(apart) else []
        self.command = [*self.apart, *python]
        self.process = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one task; return what the fork wrote and how it ended."""
        keep = {key: os.environ[key] for key in ("PATH", "LANG", "SYSTEMROOT") if key in os.environ}
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self.folder,
                env=keep | {"HOME": self.folder, "OMP_NUM_THREADS": "1"},
                text=True,
            )
        reply = ""
        with suppress(OSError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline()
        if not reply:
            self.stop()
            return {"text": "", "why": "brought its process down", "status": 1}
        return json.loads(reply)


def works(command: list[str]) -> bool:
    """Whether this machine lets a user make such namespaces."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare"):
        return False
    return subprocess.run([*command, "true"], capture_output=True, timeout=60).returncode == 0


def rows_of(text: str) -> tuple[dict[int, dict], dict]:
    """Read the lines of a fork, which a submission may have tampered with: results by call, and the rest."""
    results, rest = {}, {"notes": [], "whole": False, "printed": 0, "tried": []}
    for line in text.splitlines():
        with suppress(ValueError, TypeError, OverflowError, RecursionError):
            row = json.loads(line)
            if not isinstance(row, dict):
                continue
            if isinstance(row.get("call"), int):
                results.setdefault(row["call"], row)
            elif "note" in row:
                rest["notes"].append(str(row["note"]))
            elif row.get("whole"):
                rest |= {"whole": True, "printed": int(row.get("printed") or 0)}
                rest["tried"] = [str(name) for name in row.get("tried") or []]
    return results, rest


def expected(task: Task, calls: list[list]) -> list[Any]:
    """Compute the right values, on copies of the inputs."""

    def argument(value):
        return np.array(value) if isinstance(value, list) and not is_text(value) else deepcopy(value)

    return [task.reference(*map(argument, args)) for args in calls]


@cache
def questions(task: Task, seed: int) -> tuple[list[list], list[Any], list[list[list]]]:
    """Draw a task's hidden calls, compute their right values, draw each property's calls: once for all."""
    rng = np.random.default_rng([seed, sum(task.name.encode())])
    gate = task.calls(rng)
    return gate, expected(task, gate), [prop.calls(rng) for prop in task.properties]


def is_right(row: dict, value: Any) -> bool:
    """Whether a call gave this value, or refused where it should."""
    return bool(row.get("refused")) if value is REFUSED else "value" in row and same(row["value"], value)


def changed_arguments(task: Task, rows: Iterable[dict]) -> str:
    """Name the arguments that these calls changed, by what the fork says."""
    lists = [row["changed"] for row in rows if isinstance(row.get("changed"), list)]
    names = enumerate(signature(task.reference).parameters)
    return ", ".join(name for n, name in names if any(n in numbers for numbers in lists))


def grade_task(
    assignment: Assignment, task: Task, code: list[str], sandbox: Sandbox, seed: int
) -> dict[str, Any]:
    """Return a task's points and what to tell the student."""
    graded = {"name": task.name, "points": 0, "of": task.points}
    names = defined(code)
    if task.name not in names:
        near = difflib.get_close_matches(
            task.name, names - {t.name for t in assignment.tasks}, n=1, cutoff=0.5
        )
        hint = f" There is {near[0]}: was it renamed?" if near else " Was its cell deleted?"
        return graded | {"lines": [f"Missing: there is no function {task.name}.{hint}"]}
    given = {ast.unparse(node) for node in ast.parse(assignment.given()).body}
    gate, values, blocks = questions(task, seed)
    reply = sandbox.ask(
        {
            "given": assignment.given(),
            "code": [source for source in code if source not in given],
            "others": "\n\n".join(assignment.solution(t.name) for t in assignment.tasks if t is not task),
            "function": task.name,
            "calls": gate + [args for block in blocks for args in block],
            "kind": assignment.kind,
            "gradient": task.gradient,
            "allowed": assignment.allowed,
            "seconds": assignment.seconds,
            "memory": MEMORY,
        }
    )
    results, rest = rows_of(reply["text"])
    errors = {n: str(row["error"]) for n, row in results.items() if "error" in row}
    if errors and all(error.startswith("NotImplementedError") for error in errors.values()):
        return graded | {"lines": ["Missing: not written yet."]}
    right = all(is_right(results.get(n, {}), value) for n, value in enumerate(values))
    lines = [f"{'Right' if right else 'Wrong'}: the value on examples that were drawn for the grading."]
    if right and task.keeps and (changed := changed_arguments(task, results.values())):
        right, lines = False, [f"Wrong: the value is right, but it changed what it was given: {changed}."]
    first, due = len(gate), {n for n, value in enumerate(values) if value is REFUSED}
    for prop, block in zip(task.properties, blocks, strict=True):
        rows = [results.get(n, {}) for n in range(first, first + len(block))]
        first += len(block)
        holds = False
        if prop.holds is None:
            due |= set(range(first - len(block), first))
            holds = all(row.get("refused") for row in rows)
        elif all("value" in row for row in rows):
            with suppress(Exception):  # a result of another shape, which the property does not expect
                holds = bool(prop.holds([row["value"] for row in rows]))
        lines.append(f"{'Holds' if holds else 'Does not hold'}: {prop.says}")
    accidents = [error for n, error in errors.items() if not (n in due and results[n].get("refused"))]
    if accidents:
        lines.append(f"It raised {accidents[0][:400]}")
        if accidents[0].startswith("NameError"):
            lines.append("Only functions, imports and constants were taken, so no result of a call.")
    if reply["why"]:
        lines.append(f"It {reply['why']} and was stopped.")
    elif not rest["whole"]:
        lines.append("It ended its process: no result came after that.")
    if rest["printed"] > LOUD:
        lines.append(f"It printed {rest['printed']:,} characters, which were thrown away.")
    if rest["tried"]:
        lines.append(f"It tried what a submission may not do: {', '.join(sorted(set(rest['tried'])))}"[:200])
    if not right:
        lines += [f"While its code was read: {note}" for note in rest["notes"][:3]]
    return graded | {"points": task.points if right else 0, "lines": [visible(line) for line in lines]}


def grade_file(assignment: Assignment, path: Path, sandbox: Sandbox, seed: int) -> dict[str, Any]:
    """Grade one notebook."""
    code, notes = functions_of(path)
    tasks = [grade_task(assignment, task, code, sandbox, seed) for task in assignment.tasks]
    points, of = sum(t["points"] for t in tasks), sum(t["of"] for t in tasks)
    return {"assignment": assignment.name, "points": points, "of": of, "notes": notes, "tasks": tasks}


def fingerprint(assignment: Assignment, path: Path, seed: int) -> str:
    """Change when the submission, the checks, the grader or the seed does."""
    parts = [path, assignment.master, assignment.checks]
    parts += [HERE / "child.py", HERE / "grading.py", HERE / "tasks.py"]
    digests = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]
    return hashlib.sha256("\n".join([*digests, str(seed)]).encode()).hexdigest()


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file says; nothing if it is not there or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def for_spreadsheet(name: str) -> str:
    """Keep a file's name from being read as a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def notebooks_in(folder: Path) -> list[Path]:
    """Return the notebooks below a folder, but for links and hidden copies (Jupyter, Mac)."""
    paths = sorted(path for path in folder.rglob("*.ipynb") if path.is_file() and not path.is_symlink())
    return [path for path in paths if not any(x[0] == "." for x in path.relative_to(folder).parts)]


def draw_seed() -> int:
    """Draw the seed of hidden numbers."""
    return secrets.randbelow(2**31)


def grade_folder(
    assignment: Assignment, submissions: Path, out: Path, seed: int | None = None
) -> pd.DataFrame:
    """Grade every notebook below a folder that is not graded yet; write pages and `grades.csv`.

    All get the same hidden numbers: those of `seed`, or of a seed drawn once and kept in `out`.
    """
    paths = notebooks_in(submissions)
    if not paths:
        raise ValueError(f"no notebooks (*.ipynb) in {submissions}")
    kept = read_json(out / "seed.json")
    if (other := kept.get("assignment", assignment.name)) != assignment.name:
        raise ValueError(f"{out} holds the grades of {other}; give {assignment.name} a folder of its own.")
    seed = kept.get("seed", draw_seed()) if seed is None else seed
    write(out / "seed.json", json.dumps({"assignment": assignment.name, "seed": seed}))
    rows = []
    with Sandbox(assignment, [HERE, submissions, out]) as sandbox:
        if not sandbox.apart:
            print("No namespaces on this machine: files and network are kept by an audit hook alone.")
        for path in tqdm(paths, desc=assignment.name, unit="submission"):
            name = visible(path.relative_to(submissions).with_suffix("").as_posix())
            record = out / "results" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
            graded, mark = read_json(record), fingerprint(assignment, path, seed)
            if graded.get("fingerprint") != mark:
                graded = grade_file(assignment, path, sandbox, seed) | {"name": name, "fingerprint": mark}
                write(record, json.dumps(graded))
            page = out / "feedback" / f"{name}.html"
            write(page, PAGE.render(graded))
            by_task = {task["name"]: task["points"] for task in graded["tasks"]}
            rows.append({"submission": for_spreadsheet(name), "points": graded["points"], **by_task})
    table = pd.DataFrame(rows)
    write(out / "grades.csv", table.to_csv(index=False))
    return table
