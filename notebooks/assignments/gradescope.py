"""Gradescope: `write_package` makes what a teacher uploads; there, this program grades one notebook."""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from grading import Sandbox, draw_seed, grade_file, notebooks_in, write
from tasks import HERE, load_assignment

from medvlp.data.files import atomic_write

ROOT = HERE.parents[1]
# Runs once, as root, on Gradescope's Ubuntu. uv finds or fetches a Python that is new enough.
SETUP = """#!/bin/sh
set -e
root=${1:-/autograder}
apt-get update
apt-get install -y python3-venv
python3 -m venv "$root/uv"
"$root/uv/bin/pip" install uv
"$root/uv/bin/uv" venv --python '>=3.11' "$root/venv"
"$root/uv/bin/uv" pip install --python "$root/venv" --torch-backend=cpu \\
  -c "$root/source/requirements.lock" nbformat "$root"/source/medvlp-*.whl
"""
# Runs for each submission.
RUN = """#!/bin/sh
root=${1:-/autograder}
exec "$root/venv/bin/python" "$root/source/assignments/gradescope.py" NAME SEED "$root"
"""


def write_package(name: str, out: Path, seed: int | None = None) -> Path:
    """Write `out/NAME-gradescope.zip`. All submissions get the hidden numbers of `seed`, drawn by default."""
    assignment = load_assignment(name)
    run = RUN.replace("NAME", assignment.name).replace("SEED", str(draw_seed() if seed is None else seed))
    files = [assignment.master, assignment.checks, *HERE.glob("*.py")]
    path = out / f"{assignment.name}-gradescope.zip"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
    with (
        tempfile.TemporaryDirectory() as built,
        atomic_write(path) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as package,
    ):
        subprocess.run([*build, built], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        package.writestr("setup.sh", SETUP)
        package.writestr("run_autograder", run)
        for file in [ROOT / "requirements.lock", *Path(built).glob("*.whl")]:
            package.write(file, file.name)
        for file in files:
            package.write(file, Path("assignments") / file.relative_to(HERE))
    return path


def grade_submission(name: str, seed: int, root: Path) -> None:
    """Grade the one notebook in `root/submission`; write `root/results/results.json` for Gradescope."""
    assignment = load_assignment(name)
    paths = notebooks_in(root / "submission")
    result = {"score": 0, "output": f"Hand in one notebook. Here are {len(paths)}."}
    if len(paths) == 1:
        with Sandbox(assignment, [root / part for part in ("source", "submission", "results")]) as sandbox:
            graded = grade_file(assignment, paths[0], sandbox, seed)
        tests = [
            {"name": task["name"], "score": task["points"], "max_score": task["of"]}
            | {"output": "\n".join(task["lines"]), "output_format": "text"}
            for task in graded["tasks"]
        ]
        result = {"output": "\n".join(graded["notes"]), "tests": tests}
    write(root / "results" / "results.json", json.dumps({"output_format": "text"} | result))


if __name__ == "__main__":
    grade_submission(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
