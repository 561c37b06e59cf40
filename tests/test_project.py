"""The repository itself: one source for each fact, packages that match, files that hold what they should."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
import torchvision
import yaml
from packaging.requirements import Requirement

import medvlp

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TORCH_FAMILY = ("torch", "torchvision", "triton", "nvidia", "cuda")


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def text_files() -> list[Path]:
    """Return every file that git knows, or in an unpacked archive every file that is not a cache."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    text = {".cff", ".in", ".ipynb", ".json", ".lock", ".md", ".py", ".toml", ".txt", ".yaml", ".yml", ""}
    return [path for path in paths if path.is_file() and path.suffix in text]


LOCKED = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
ASKED = {  # by name, as in the lock
    requirement.name.replace("_", "-").lower(): requirement.specifier
    for requirement in map(
        Requirement, PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
    )
}


def test_torch_torchvision_and_open_clip_work_together():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
    assert open_clip.list_models()


def test_environment_yml_installs_the_package_itself():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, torch_, torchvision_, pip, packages = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert torch_.removeprefix("py") in PROJECT["dependencies"] and torchvision_ in PROJECT["dependencies"]
    assert pip == "pip"
    constraints, package = packages["pip"]
    assert constraints == "-c requirements.lock"
    extras = re.fullmatch(r"-e \.\[(.+)\]", package).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert f"EXTRAS := {','.join(extras)}\n" in (ROOT / "Makefile").read_text(), "conda and make differ"


def test_the_lock_holds_every_dependency_but_torch_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "@" not in text and "--" not in text
    names = {requirement.name for requirement in LOCKED}
    assert not [name for name in names if name.split("-")[0] in TORCH_FAMILY]
    assert ASKED.keys() - set(TORCH_FAMILY) <= names, "run `make lock`"


def test_the_lock_agrees_with_the_lower_bounds():
    for requirement in LOCKED:
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert ASKED.get(requirement.name, requirement.specifier).contains(pin.version), requirement


@pytest.mark.parametrize("name", sorted(PROJECT["optional-dependencies"]) + ["dependencies"])
def test_each_dependency_says_why_it_is_there(name):
    block = re.search(rf"^{name} = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M).group(1)
    assert all(re.match(r'    "[^"]+", +# \S', line) for line in block.splitlines()), block


def test_the_wheel_holds_cards_assets_and_types(tmp_path):
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"medvlp/py.typed", "medvlp/__init__.pyi"} <= inside
    assert {f"medvlp/data_cards/{card.name}" for card in (ROOT / "data_cards").glob("*.md")} <= inside
    assets = [path for path in (ROOT / "medvlp" / "assets").rglob("*.*") if path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in assets} <= inside
    assert not [name for name in inside if not name.startswith(("medvlp/", "medvlp-"))]


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.search(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert medvlp.__version__ == PROJECT["version"] == citation["version"] == changes


def test_the_rooms_import_one_way():
    done = run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_machine_or_a_registry():
    words = ["/" + name + "/" for name in ("work", "farm", "root")]
    words += ["py" + "pi.org", "python" + "hosted", "download.py" + "torch.org"]
    words += ["file:" + "//", "--index" + "-url"]
    cpu_build = "CPU_PIP := --retries 2 --index" + "-url https://download.py" + "torch.org/whl/cpu\n"
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in text_files()
        for word in words
        if word in path.read_text(encoding="utf-8").replace(cpu_build, "") and path != Path(__file__)
    ]
    assert found == []


def code_lines(text: str, tree: ast.Module) -> int:
    """Count the lines without docstrings, comments and blanks."""
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and line.strip()[0] != "#" and n not in docstrings for n, line in lines)


def test_the_package_is_small():
    files = list((ROOT / "medvlp").rglob("*.py"))
    folders = {file.parent for file in files}
    assert len(files) <= 124
    for folder in folders:
        assert len(list(folder.glob("*.py"))) <= 15, (
            f"{folder}: at most 14 modules and what makes it a package"
        )
    total = sum(code_lines(text, ast.parse(text)) for text in (file.read_text() for file in files))
    assert total <= 14_000


@pytest.mark.parametrize(
    "path", sorted((ROOT / "medvlp").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_modules_are_short_and_load_nothing_unsafe(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert code_lines(text, tree) <= 270, "too long: one idea a file"
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                assert "pickle" not in [name.name for name in names], f"pickle in line {node.lineno}"
            case ast.Call(func=ast.Attribute(attr="cuda" | "load_state_dict"), keywords=keywords):
                assert node.func.attr != "cuda", f".cuda() in line {node.lineno}: use .to(device)"
                assert "strict" not in [k.arg for k in keywords], f"line {node.lineno} can hide a wrong key"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                pytest.fail(f"torch.load in line {node.lineno}: use safetensors")
            case ast.ExceptHandler(type=None):
                pytest.fail(f"bare except in line {node.lineno}")


def test_the_citation_names_the_package_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["authors"] == [{"name": "The medvlp authors"}]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    vip, cilmp = citation["references"]
    assert vip["url"].endswith("/2409.00341") and vip["authors"][0]["family-names"] == "Fang"
    assert cilmp["url"].endswith("/2511.12639") and cilmp["doi"] == "10.1109/TMI.2025.3584841"
