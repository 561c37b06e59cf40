"""The tour: which notebooks run, what is written, and what a failure says."""

import base64
import io

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image, ImageChops
from tour import find_notebooks, main, results_of, tidy

NOISE = (
    "import sys; print('  50%|##   | 1/2 [00:01<00:01, 1.0it/s]', end='\\r', file=sys.stderr); "
    "print('a word that matters', file=sys.stderr)"
)


def tour(*arguments) -> int:
    """Run the command; its exit status."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 03 Counting"), *cells]), path)
    return path


def code(source, *tags):
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


@pytest.fixture
def folder(tmp_path):
    cells = [
        code("n = 2\ncolour = 'red'", "parameters"),
        code(NOISE),
        code("import pathlib\npathlib.Path('../figures/n.txt').write_text(str(n));"),
        code("import pandas as pd\npd.DataFrame({'value': [n * 21]}, index=[colour])", "results"),
    ]
    return write(tmp_path / "notebooks" / "03_count.ipynb", *cells).parent


def test_tour_writes_tidy_notebooks_and_prints_their_results(folder, capsys):
    assert tour("--folder", folder) == 0

    notebook = nbformat.read(folder / "03_count.ipynb", as_version=4)
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3, 4]
    assert notebook.cells[2].outputs == [
        {"output_type": "stream", "name": "stderr", "text": "a word that matters"}
    ]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert str(folder) not in (folder / "03_count.ipynb").read_text()
    assert (folder.parent / "figures" / "n.txt").read_text() == "2"
    printed = capsys.readouterr().out
    assert "03 Counting" in printed and "42" in printed and "make lab" in printed

    first = (folder / "03_count.ipynb").read_bytes()
    assert tour("--folder", folder) == 0
    assert (folder / "03_count.ipynb").read_bytes() == first, "a second tour changes no byte"


def test_every_cell_of_results_is_shown():
    def cell(text):
        output = nbformat.v4.new_output("stream", text=text)
        return nbformat.v4.new_code_cell("", metadata={"tags": ["results"]}, outputs=[output])

    notebook = nbformat.v4.new_notebook(
        cells=[cell("one\n"), nbformat.v4.new_code_cell("2"), cell("three\n")]
    )
    assert results_of(notebook) == "    one\n\n    three"
    assert "no cell" in results_of(nbformat.v4.new_notebook())


def test_parameters_and_out_leave_the_original_alone(folder, tmp_path):
    before = (folder / "03_count.ipynb").read_bytes()
    out = tmp_path / "elsewhere"

    assert tour("--folder", folder, "--out", out, "-p", "n=5", "-p", "colour=blue") == 0

    notebook = nbformat.read(out / "notebooks" / "03_count.ipynb", as_version=4)
    assert "105" in results_of(notebook) and "blue" in results_of(notebook)
    assert (out / "figures" / "n.txt").read_text() == "5"
    assert not (folder.parent / "figures").exists()
    assert (folder / "03_count.ipynb").read_bytes() == before


def test_a_failing_notebook_stops_the_tour_and_stays_as_it_was(folder, capsys):
    bad = write(folder / "02_bad.ipynb", code("limit = 3"), code("assert limit > 3, 'too low'"))
    before = {path: path.read_bytes() for path in folder.iterdir()}

    assert tour("--folder", folder, "--jobs", 1) == 1

    said = capsys.readouterr().err
    assert "02_bad.ipynb failed in this cell:" in said
    assert "    assert limit > 3, 'too low'" in said
    assert "AssertionError: too low" in said
    assert "\x1b[" not in said
    assert {path: path.read_bytes() for path in folder.iterdir()} == before, bad


MEET = """
import os, time
from pathlib import Path
Path("{mine}").touch()
for _ in range(600):
    if Path("{other}").exists(): break
    time.sleep(0.1)
else: raise TimeoutError("alone")
assert int(os.environ["OMP_NUM_THREADS"]) == max(os.cpu_count() // 2, 1)
"""


def test_two_notebooks_run_at_a_time_each_with_its_share_of_the_cores(folder, capsys):
    for name, mine, other in (("05_meet", "a", "b"), ("06_meet", "b", "a")):
        meet = code(MEET.format(mine=mine, other=other))
        write(folder / f"{name}.ipynb", code("n = 1", "parameters"), meet)

    assert tour("--folder", folder, "--only", "05", "06") == 0

    printed = capsys.readouterr().out
    assert printed.index("05_meet: 3 cells") < printed.index("06_meet: 3 cells")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "05"], "unknown notebook '05'"),
        (["-p", "n=3"], "--out DIR"),
        (["-p", "m=3", "--out", "x"], "unknown parameter 'm'"),
        (["-p", "n", "--out", "x"], "NAME=VALUE"),
        (["--jobs", "0"], "Invalid value for '--jobs'"),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, message, capsys):
    assert tour("--folder", folder, *arguments) == 2
    assert message in capsys.readouterr().err


def test_no_notebooks_is_said(tmp_path):
    with pytest.raises(ValueError, match="no notebooks in .*clone of the repository"):
        find_notebooks(tmp_path)


def test_notebooks_come_in_order_and_only_numbered_ones(folder):
    for name in ("10_late", "00_first", "scratch"):
        write(folder / f"{name}.ipynb")
    assert [path.stem for path in find_notebooks(folder)] == ["00_first", "03_count", "10_late"]
    assert [path.stem for path in find_notebooks(folder, ["10", "00"])] == ["00_first", "10_late"]


def test_styled_tables_have_the_same_ids_in_every_run():
    """And tables of one notebook different ones: their styles hold for the whole page."""

    def outputs() -> list[str]:
        tables = [pd.DataFrame({"a": [k]}).style.format("{:.1f}").highlight_max() for k in range(2)]
        cells = [
            new_code_cell("t", outputs=[new_output("execute_result", data={"text/html": table.to_html()})])
            for table in tables
        ]
        tidy(notebook := new_notebook(cells=cells))
        return [cell.outputs[0].data["text/html"] for cell in notebook.cells]

    first, second = outputs()
    assert [first, second] == outputs()
    assert "#T_00000_row0_col0" in first and 'id="T_00000"' in first
    assert "#T_00001_row0_col0" in second and "T_00000" not in second


def png(picture):
    picture.save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_widgets_go_and_pictures_stay_in_few_bytes():
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "HBox()"}
    drawn = Image.linear_gradient("L").quantize(40).convert("RGB")
    drawn.putpixel((7, 7), (255, 0, 0))  # a colour of one point among greys
    drawing = png(drawn)
    photograph = png(Image.effect_noise((300, 200), 90).convert("RGB"))
    outputs = [
        new_output("display_data", data=widget),
        new_output("display_data", data={"image/png": drawing}, metadata={"image/png": {"width": 128}}),
        new_output("execute_result", data=widget | {"image/png": photograph}),
    ]
    notebook = new_notebook(
        cells=[new_code_cell("show()", outputs=outputs)], metadata={"widgets": {"state": 1}}
    )
    tidy(notebook)
    shown = notebook.cells[0].outputs
    kept = [["image/png"], ["text/plain", "image/jpeg"]]  # a widget's own picture, but not the widget
    assert [list(output.data) for output in shown] == kept
    assert shown[0].metadata == {"image/png": {"width": 128}}
    pixels = Image.open(io.BytesIO(base64.b64decode(shown[0].data["image/png"]))).convert("RGB")
    assert max(high for _, high in ImageChops.difference(pixels, drawn).getextrema()) < 3
    assert len(shown[1].data["image/jpeg"]) < len(photograph) / 2
    assert "widgets" not in notebook.metadata
