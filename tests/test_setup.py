"""`make setup` picks PyTorch's build by the machine; nothing is installed here, and no network is asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
# One script stands for uv, nvidia-smi, uname and Python. It notes how it was called, and its answers are set
# by variables: whether PyTorch's index answers, whether what it gave can be imported and is without CUDA.
TOOL = """#!/bin/sh
echo "${0##*/} $*" >> calls
case "${0##*/} $*" in
  nvidia-smi*) exit $NVIDIA_SMI ;;
  uname*) echo $SYSTEM ;;
  *sys.executable*) echo "$PWD/bin/python3" ;;
  *"-m venv"* | "uv venv"*) mkdir -p .venv/bin && cp "$PWD/bin/python3" .venv/bin/python ;;
  *--torch-backend=cpu* | *whl/cpu*) exit $INDEX ;;
  *"cuda is None"*) exit $IMPORT ;;
esac
"""
ANSWERS = {"NVIDIA_SMI": "9", "SYSTEM": "Linux", "INDEX": "0", "IMPORT": "0"}  # a laptop with Linux, no GPU
CPU = {"uv": "--torch-backend=cpu torch torchvision", "pip": "/whl/cpu torch torchvision"}


@pytest.fixture(params=["uv", "pip"])
def machine(tmp_path, request):
    """A folder with the files of set-up, and on PATH the tools that it needs, with uv or without."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("rm", "cat", "mkdir", "cp"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    for name in ["python3", "uname", "nvidia-smi"] + ["uv"] * (request.param == "uv"):
        (tmp_path / "bin" / name).write_text(TOOL)
        (tmp_path / "bin" / name).chmod(0o755)

    def setup(*variables: str, **answers: str) -> tuple[list[str], str]:
        """Return what was installed and uninstalled, and what was said."""
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            [shutil.which("make"), "setup", *variables],
            cwd=tmp_path,
            env={"PATH": str(tmp_path / "bin")} | ANSWERS | answers,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        calls = (tmp_path / "calls").read_text().splitlines()
        return [call for call in calls if "install" in call], done.stdout

    setup.cpu, setup.folder = CPU[request.param], tmp_path
    return setup


def is_package(call: str) -> bool:
    return "-c requirements.lock -e .[" in call and "cpu" not in call


def test_without_a_gpu_the_cpu_build_comes_first_and_stays(machine):
    (torch, package, llm), said = machine()
    assert torch.endswith(machine.cpu) and is_package(package) and "--no-deps" in llm
    assert "CPU build" in said and "default build" not in said
    if "uv " in package:  # pip does so by itself; without it every new process reads all sources anew
        assert all("--compile-bytecode" in call for call in (torch, package, llm))


def test_a_machine_without_nvidia_smi_has_no_gpu(machine):
    (machine.folder / "bin" / "nvidia-smi").unlink()
    assert machine()[0][0].endswith(machine.cpu)


@pytest.mark.parametrize("trouble", ["INDEX", "IMPORT"])
def test_without_the_index_or_a_match_the_default_build_comes_with_one_line(machine, trouble):
    """IMPORT: other indexes in pip's settings gave builds that do not match, or one with CUDA."""
    (torch, away, package, _), said = machine(**{trouble: "1"})
    assert torch.endswith(machine.cpu) and is_package(package)
    assert " uninstall " in away and away.endswith(" torch torchvision")
    (line,) = [line for line in said.splitlines() if "default build" in line]
    assert "GB" in line and "no GPU here will use" in line


@pytest.mark.parametrize(
    ("variables", "answers"),
    [
        ([], {"NVIDIA_SMI": "0"}),
        ([], {"SYSTEM": "Darwin"}),  # the default build is without CUDA there
        (["GPU=yes"], {}),
        ([], {"UV_TORCH_BACKEND": "cu128"}),
    ],
    ids=["gpu", "mac", "asked for", "chosen for uv"],
)
def test_else_the_build_is_left_to_the_installer(machine, variables, answers):
    (package, _), said = machine(*variables, **answers)
    assert is_package(package) and "CPU build" not in said


def test_an_environment_keeps_its_build(machine):
    machine()
    assert machine()[0] == []
    later = (machine.folder / ".venv" / ".medvlp-ready").stat().st_mtime + 10
    os.utime(machine.folder / "pyproject.toml", (later, later))
    (package, _), said = machine()
    assert is_package(package) and "CPU build" not in said


@pytest.mark.parametrize(("set_by_user", "passed_on"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5")])
def test_what_make_starts_waits_asleep_unless_told_otherwise(set_by_user, passed_on):
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | set_by_user
    rule = "include Makefile\nshow: ; @echo $$GOMP_SPINCOUNT\n"
    show = subprocess.run(
        ["make", "-s", "-f", "-", "show"], input=rule, cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert show.stdout.strip() == passed_on
