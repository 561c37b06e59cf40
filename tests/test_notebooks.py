"""Every notebook opens, reads and closes in the same way, was committed executed, and runs."""

import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from tour import run_notebook
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks/solutions").glob("*.ipynb"))
PAGES = (
    "README.md",
    "figures/README.md",
    "CONTRIBUTING.md",
    "notebooks/glossary.md",
    "notebooks/researcher.md",
    "notebooks/teacher.md",
    "notebooks/assignments/README.md",
)
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|work|tmp|Users|mnt|opt|usr|private|content)/|\b[A-Z]:\\\\?\w"
)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_of_both = pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *SOLUTIONS], ids=lambda path: str(path.relative_to(ROOT / "notebooks"))
)


def cells(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def headings(path: Path) -> list[str]:
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    return re.findall(r"^#{1,3} +(.+?)\s*$", prose, flags=re.MULTILINE)


def code_lines(cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]


def texts(cell) -> list[str]:
    """Its source and its outputs, without pictures."""
    printed = [output.get("text", "") for output in cell.outputs]
    data = [item for output in cell.outputs for item in output.get("data", {}).items()]
    return [cell.source, *printed, *(str(value) for mime, value in data if not mime.startswith("image/"))]


@each_notebook
def test_is_a_valid_notebook_with_a_title_and_the_usual_sections(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    found = headings(path)
    assert "What you will learn" in found and "Cost" in found
    assert found.index("Cost") < 4, "what it teaches and what it costs belong at the start"
    last = ["Summary", "Exercises", "References"]
    assert [heading for heading in found if heading in last] == last
    assert found[-1] == "References"


@each_notebook
def test_has_one_parameters_cell_and_says_which_cells_are_results(path):
    tags = [tag for cell in cells(path, "code") for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1
    assert tags.count("results") >= 1


@each_of_both
def test_was_committed_executed_from_top_to_bottom_without_errors_or_warnings(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert not [output for output in cell.outputs if output.output_type == "error"]
        said = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr")
        assert "Warning" not in said, said


@each_of_both
def test_names_no_absolute_path_and_is_small(path):
    for cell in cells(path, "code"):
        for text in texts(cell):
            assert not ABSOLUTE_PATH.search(text), ABSOLUTE_PATH.search(text)
    size = path.stat().st_size
    assert size <= 400_000, f"{size:,} bytes: draw fewer or smaller figures"


@each_of_both
def test_is_more_prose_than_code_in_short_cells(path):
    code = cells(path, "code")
    longest = max(code, key=lambda cell: len(cell.source.splitlines()))
    assert len(longest.source.splitlines()) <= 30, longest.source
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    words = len(prose.partition("\n## References\n")[0].split())
    ratio = words / sum(len(code_lines(cell)) for cell in code)
    least = 4 if path in NOTEBOOKS else 0
    assert least <= ratio <= 14, f"{ratio:.1f} words of prose per line of code"


def links(path: Path) -> list[str]:
    """Files that the markdown of a notebook, or a page of markdown, links to by a relative path."""
    if path.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in cells(path, "markdown"))
    else:
        text = path.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.split("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *SOLUTIONS, *map(ROOT.joinpath, PAGES)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_pictures_and_links_exist(path):
    missing = [link for link in links(path) if not (path.parent / link).exists()]
    assert not missing, missing
    assert links(path) or path.name == "CONTRIBUTING.md"


@each_notebook
def test_opens_with_a_link_to_the_glossary_and_leads_to_the_next_notebook(path):
    assert "](glossary.md)" in cells(path, "markdown")[0].source
    following = NOTEBOOKS[NOTEBOOKS.index(path) + 1 :]
    summary = next(c.source for c in cells(path, "markdown") if "## Summary" in c.source)
    summary = summary.split("## Summary")[1].split("## Exercises")[0]
    if following:
        assert f"]({following[0].name})" in summary.partition("**Next:**")[2], following[0].name


@each_notebook
def test_each_exercise_has_a_solution_that_says_what_must_hold(path):
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    exercises = prose.partition("\n## Exercises\n")[2].partition("\n## References\n")[0]
    assert f"](solutions/{path.name})" in exercises and "<details>" not in prose
    claims: dict[str, int] = {}  # by the number of the solution: how many asserts its cells have
    for cell in nbformat.read(path.parent / "solutions" / path.name, as_version=4).cells:
        if cell.cell_type == "markdown" and (heading := re.match(r"## (\d+)\. ", cell.source)):
            number = heading[1]
            claims[number] = 0
        elif cell.cell_type == "code" and claims:
            claims[number] += len(re.findall(r"^ *assert ", cell.source, re.MULTILINE))
    assert list(claims) == re.findall(r"^(\d+)\. ", exercises, re.MULTILINE)
    assert all(claims.values()), claims


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_run(path, tmp_path, monkeypatch):
    """In this process, which has its libraries loaded; each lecture has a kernel of its own."""
    monkeypatch.chdir(tmp_path)
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}), ipython_dir=str(tmp_path))
    for cell in cells(path, "code"):
        shell.run_cell(cell.source).raise_error()


@pytest.mark.slow
@pytest.mark.notebook
@each_notebook
def test_runs(path, tmp_path):
    notebook = run_notebook(path, tmp_path / "notebooks" / path.name)
    results = next(c for c in notebook.cells if "results" in c.metadata.get("tags", []))
    assert "text/html" in results.outputs[-1].data, "the results cell ends with a DataFrame"


@pytest.mark.parametrize("text", ["'/home/x/a.png'", "/tmp/x", r"C:\Users", "see /home/.cache"])
def test_absolute_paths_are_recognised(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["../figures/a.png", "https://example.org/home/x", "and/or", "B: x"])
def test_other_text_is_not_taken_for_an_absolute_path(text):
    assert not ABSOLUTE_PATH.search(text)
