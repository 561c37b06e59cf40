"""Every figure names its maker, the maker exists and draws it, and the list of figures is complete."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FIGURES = sorted((ROOT / "figures").glob("*.png"))
SAVED = re.compile(r"""save_figure\(.*?["'](\w+)["'],\s*HERE\)""", re.DOTALL)
ROW = re.compile(
    r"^\| \[(\w+)\]\((\w+\.png)\) \| .+? \| (?:\[.+?\]\(\.\./(.+?)\)|`(.+?)`) \| .*\|$", re.MULTILINE
)


def source(figure: Path) -> str:
    with Image.open(figure) as image:
        return image.info["Source"]


def saved_by(notebook: Path) -> list[str]:
    cells = nbformat.read(notebook, as_version=4).cells
    return [name for cell in cells if cell.cell_type == "code" for name in SAVED.findall(cell.source)]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda path: path.stem)
def test_names_a_maker_that_exists_and_draws_it(figure):
    maker = source(figure)
    if maker.startswith("python -m "):
        spec = importlib.util.find_spec(maker.removeprefix("python -m "))
        assert f'"{figure.stem}"' in Path(spec.origin).read_text(encoding="utf-8")
    else:
        assert figure.stem in saved_by(ROOT / maker)


def test_every_figure_that_a_notebook_saves_is_here_and_no_two_save_the_same():
    notebooks = (ROOT / "notebooks").glob("[0-9]*.ipynb")
    names = [name for path in notebooks for name in saved_by(path)]
    assert len(names) == len(set(names)) > 0
    assert set(names) <= {figure.stem for figure in FIGURES}


def test_the_list_of_figures_has_each_once_with_its_maker():
    rows = ROW.findall((ROOT / "figures/README.md").read_text(encoding="utf-8"))
    assert sorted(f"{name}.png" for name, *_ in rows) == [figure.name for figure in FIGURES]
    for name, file, notebook, command in rows:
        assert file == f"{name}.png"
        assert source(ROOT / "figures" / file) == (notebook or command)
