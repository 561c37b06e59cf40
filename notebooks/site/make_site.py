"""The site: `python notebooks/site/make_site.py OUT` makes pages of what is committed and runs no notebook.

Notebooks, Markdown and figures are copied to a folder for the time of the build. Pages of the public names
and the students' versions of the assignments are added; then Sphinx, set by `conf.py`, writes HTML into OUT.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import site_pages
from sphinx.cmd.build import build_main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "assignments"))
from assign import student_version  # noqa: E402

COPIED = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "figures/*"),
    *("notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "notebooks/*.md", "notebooks/assignments/*.md"),
    "data_cards/*.md",
    *("medvlp/assets/*/README.md", "tests/*/README.md", "medvlp/study/ablation/study.py"),
]


def gather(folder: Path) -> None:
    """Put all that the site is made of into a folder."""
    shutil.copytree(HERE / "text", folder, dirs_exist_ok=True)
    for path in (path for pattern in COPIED for path in sorted(ROOT.glob(pattern))):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    for master in sorted((ROOT / "notebooks/assignments").glob("A*.ipynb")):
        nbformat.write(student_version(master.stem, seed=1), folder / "notebooks/assignments" / master.name)
    lectures = site_pages.lectures(ROOT)
    for name, text in site_pages.api(lectures).items():
        path = folder / f"{name}.rst"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def build(out: Path, *options: str) -> int:
    """Build the site into `out`; 0 if all went well."""
    with tempfile.TemporaryDirectory() as scratch:
        source, trees = Path(scratch, "source"), Path(scratch, "trees")
        gather(source)
        return build_main(["-c", str(HERE), "-d", str(trees), *options, str(source), str(out)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder for the HTML; other options are Sphinx's")
    arguments, options = parser.parse_known_args()
    sys.exit(build(arguments.out, *options))
