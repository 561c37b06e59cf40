"""The tour: the notebooks run from top to bottom, in fresh kernels, and written tidy; `make tour`."""

import base64
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import nbformat
import papermill
import typer
from joblib import Parallel, delayed, parallel_config
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from medvlp.__main__ import parse_setting, repeated
from medvlp.data.errors import unknown_name
from medvlp.data.files import atomic_write
from medvlp.data.html import small_file

PROGRESS_BAR = re.compile(r"\d+%\||\d+it \[|\[\d+:\d\d")  # how a line of tqdm looks
WIDGET = "application/vnd.jupyter.widget-view+json"
STYLE_ID = re.compile(r"\bT_[0-9a-f]{5}(?=[_\" ])")  # of a table styled by pandas
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class NotebookError(Exception):
    """A notebook that did not run to its end; the message says where and why."""


def find_notebooks(folder: Path, only: list[str] | None = None) -> list[Path]:
    """Return the numbered notebooks of a folder in order, or those that begin with one of `only`."""
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    if not paths:
        raise ValueError(
            f"no notebooks in {folder}: run in a clone of the repository, or name their --folder."
        )
    for start in only or []:
        if not any(path.name.startswith(start) for path in paths):
            raise ValueError(unknown_name("notebook", start, [path.stem for path in paths]))
    return [path for path in paths if not only or path.name.startswith(tuple(only))]


def check_parameter(name: str, paths: list[Path]) -> None:
    """Raise a ValueError unless a notebook has this parameter."""
    known = sorted({parameter for path in paths for parameter in parameters_of(path)})
    if name not in known:
        raise ValueError(unknown_name("parameter", name, known))


def parameters_of(path: Path) -> list[str]:
    """Return the names that the notebook's cell tagged `parameters` assigns."""
    return list(papermill.inspect_notebook(read(path)))


def read(path: Path) -> Any:
    """Read a notebook, as one for this Python's kernel whatever it was written with."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def run_notebook(
    path: Path, target: Path | None = None, parameters: dict[str, Any] | None = None, row: int = 0
) -> Any:
    """Run a notebook in a fresh kernel and write it, tidied, to `target` (default: in place).

    It runs in the folder of `target`; beside a folder `notebooks` one for `figures` is made. Parameters that
    it does not have are passed over. Nothing is written unless every cell succeeded.
    Returns the notebook (an nbformat node); raises NotebookError with the failed cell and its traceback.
    """
    target = path if target is None else target
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent.resolve().name == "notebooks":
        (target.parent.resolve().parent / "figures").mkdir(exist_ok=True)
    own = {name: value for name, value in (parameters or {}).items() if name in parameters_of(path)}
    bar = {
        "desc": path.stem,
        "bar_format": "{desc}: cell {n_fmt} of {total_fmt}, {elapsed}",
        "leave": False,
        "position": row,  # of the bar in the terminal
        "disable": None,  # silent where there is no terminal
    }
    try:
        notebook = papermill.execute_notebook(
            read(path),
            None,
            parameters=own,
            progress_bar=bar,
            cwd=target.parent.resolve(),
            start_timeout=300,  # seconds; a busy machine is slow to start a kernel
            extra_arguments=[
                "--IPKernelApp.log_level=50"
            ],  # it reports the interrupt that ends it as an error
        )
    except PapermillExecutionError as error:
        shown = "\n".join(error.traceback) or f"{error.ename}: {error.evalue}"
        raise NotebookError(
            f"{path.name} failed in this cell:\n\n{indented(error.source)}\n\n{without_colour(shown)}"
        ) from None
    except DeadKernelError:
        raise NotebookError(f"{path.name}: its kernel died, most often because memory ran out.") from None
    tidy(notebook)
    with atomic_write(target) as part:
        nbformat.write(notebook, part)
    return notebook


def tidy(notebook: Any) -> None:
    """Drop what differs between two equal runs: times, paths, versions, progress bars, widget state."""
    notebook.metadata = METADATA
    for cell in notebook.cells:
        for name in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(name, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_noise(output)]
            for output in cell.outputs:
                keep_picture(output)
    number_styles(notebook)


def is_noise(output: Any) -> bool:
    """Strip progress bars from a stream of errors; say whether nothing is left, or only a widget's name."""
    if output.output_type == "stream" and output.name == "stderr":
        lines = re.split(r"[\r\n]", output.text)
        output.text = "\n".join(line for line in lines if line.strip() and not PROGRESS_BAR.search(line))
        return not output.text
    data = output.get("data", {})
    return WIDGET in data and not any(kind.startswith("image/") for kind in data)


def keep_picture(output: Any) -> None:
    """Of a widget that brings a picture of itself, keep the picture: the widget is gone with its kernel.

    It and the figures are kept as small files.
    """
    data = output.get("data", {})
    data.pop(WIDGET, None)
    if "image/png" in data:
        kind, file = small_file(Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))))
        data[kind] = base64.b64encode(file).decode()
        if "image/png" in output.metadata:  # its width on the page
            output.metadata[kind] = output.metadata.pop("image/png")


def number_styles(notebook: Any) -> None:
    """Give tables that pandas has styled, whose ids are random, ids that are the same in every run."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    tables = [output.data for output in outputs if "text/html" in output.get("data", {})]
    names = dict.fromkeys(name for table in tables for name in STYLE_ID.findall(table["text/html"]))
    numbers = {name: f"T_{i:05x}" for i, name in enumerate(names)}
    for table in tables:
        table["text/html"] = STYLE_ID.sub(lambda found: numbers[found.group()], table["text/html"])


def title_of(notebook: Any) -> str:
    """Return the first heading, without its marks."""
    return notebook.cells[0].source.strip().splitlines()[0].lstrip("# ").strip()


def results_of(notebook: Any) -> str:
    """Return the last output of each cell tagged `results` as text, or a word that there is none."""
    cells = [cell for cell in notebook.cells if "results" in cell.metadata.get("tags", []) and cell.outputs]
    outputs = [cell.outputs[-1] for cell in cells]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n\n".join(map(indented, texts)) or indented("(no cell tagged results)")


def indented(text: str) -> str:
    """Return the text with four spaces before each line."""
    return "\n".join(f"    {line}".rstrip() for line in text.rstrip().splitlines())


def without_colour(text: str) -> str:
    """Return the text without the terminal's colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def tour(
    paths: list[Path], out: Path | None = None, parameters: dict[str, Any] | None = None, jobs: int = 2
) -> int:
    """Run the notebooks, `jobs` at a time, write each that succeeded, print their results.

    Each job has its share of the machine's cores. At a failure no more are begun.
    """
    if "MEDVLP_DATA" in os.environ:  # the notebooks run in another folder
        os.environ["MEDVLP_DATA"] = os.path.abspath(os.environ["MEDVLP_DATA"])
    targets = [path if out is None else out / "notebooks" / path.name for path in paths]
    jobs = min(jobs, len(paths))
    threads = max((os.cpu_count() or 1) // jobs, 1)
    tasks = [
        delayed(timed)(path, target, parameters, i % jobs)
        for i, (path, target) in enumerate(zip(paths, targets, strict=True))
    ]
    report = []
    try:
        with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads):
            # one by one to whoever is free, and back in their order
            for notebook, seconds in Parallel(return_as="generator", pre_dispatch=jobs)(tasks):
                print(f"{paths[len(report)].stem}: {len(notebook.cells)} cells, {seconds:.0f} s", flush=True)
                report.append(f"{title_of(notebook)}\n{results_of(notebook)}")
    except NotebookError as error:
        print(f"\n{error}\n\nIt was left as it was.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. What was running was left as it was.", file=sys.stderr)
        return 1
    print("\nResults\n=======\n\n" + "\n\n".join(report))
    print(f"\nNext: `make lab` opens the notebooks; begin with {targets[0]} and change its parameters cell.")
    return 0


def timed(path: Path, target: Path, parameters: dict[str, Any] | None, row: int) -> tuple[Any, float]:
    """Return `run_notebook`'s notebook and the seconds that it took."""
    start = time.perf_counter()
    notebook = run_notebook(path, target, parameters, row)
    return notebook, time.perf_counter() - start


app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    only: Annotated[
        list[str] | None, typer.Option(metavar="NN ...", help="only the notebooks whose names begin so")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write to DIR/notebooks and DIR/figures")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="change a parameter")
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="notebooks at a time")] = 2,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="where the notebooks are")] = Path("notebooks"),
) -> None:
    """Run the notebooks in order and show their results."""
    try:
        paths = find_notebooks(folder, only)
        parameters = dict(parse_setting(text, "-p") for text in parameter or [])
        if parameters and out is None:
            raise ValueError("-p changes the notebooks: say with --out DIR where to write the changed ones.")
        for name in parameters:
            check_parameter(name, paths)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(tour(paths, out, parameters, jobs))


def main(argv: Sequence[str]) -> None:
    """Run the command; it exits with 0 if all went well, 1 if a notebook failed, 2 for wrong arguments."""
    app(repeated(argv, ["--only"]), prog_name="python notebooks/tour.py")


if __name__ == "__main__":
    main(sys.argv[1:])
