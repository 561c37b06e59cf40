"""`python -m medvlp tour` runs the notebooks; `python -m medvlp cards` lists the data cards."""

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from medvlp.data.files import atomic_write
from medvlp.data.names import unknown_name

PROGRESS_BAR = re.compile(r"\d+%\||\d+it \[|\[\d+:\d\d")  # how a line of tqdm looks
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class NotebookError(Exception):
    """A notebook that did not run to its end; the message says where and why."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0 well, 1 a notebook failed, 2 wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m medvlp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("cards", help="list the data cards")
    run = commands.add_parser("tour", help="run the notebooks in order and show their results")
    run.add_argument("--only", nargs="+", metavar="NN", help="run only the notebooks whose names begin so")
    run.add_argument("--out", type=Path, metavar="DIR", help="write to DIR/notebooks and DIR/figures")
    run.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="change a parameter"
    )
    run.add_argument("--folder", type=Path, default=Path("notebooks"), help="where the notebooks are")
    arguments = parser.parse_args(argv)
    if arguments.command == "cards":
        return cards()
    try:
        paths = find_notebooks(arguments.folder, arguments.only)
        parameters = dict(parse_parameter(text) for text in arguments.parameter)
        if parameters and arguments.out is None:
            raise ValueError("-p changes the notebooks: say with --out DIR where to write the changed ones.")
        for name in parameters:
            check_parameter(name, paths)
    except ValueError as error:
        run.error(str(error))
    return tour(paths, arguments.out, parameters)


def cards() -> int:
    """Print name and title of every data card."""
    from medvlp.data.cards import list_cards, load_card

    for name in list_cards():
        print(f"{name:<20}{load_card(name).title}")
    return 0


def tour(paths: list[Path], out: Path | None = None, parameters: dict[str, Any] | None = None) -> int:
    """Run the notebooks in order, write each that succeeded, print their results; stop at a failure."""
    if "MEDVLP_DATA" in os.environ:  # the notebooks run in another folder
        os.environ["MEDVLP_DATA"] = os.path.abspath(os.environ["MEDVLP_DATA"])
    report = []
    for path in paths:
        start = time.perf_counter()
        target = path if out is None else out / "notebooks" / path.name
        try:
            notebook = run_notebook(path, target, parameters)
        except NotebookError as error:
            print(f"\n{error}\n\n{target} was left as it was.", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"\nStopped. {target} was left as it was.", file=sys.stderr)
            return 1
        seconds = time.perf_counter() - start
        print(f"{path.stem}: {len(notebook.cells)} cells, {seconds:.0f} s", flush=True)
        report.append(f"{title_of(notebook)}\n{results_of(notebook)}")
    print("\nResults\n=======\n\n" + "\n\n".join(report))
    first = paths[0].name if out is None else target.with_name(paths[0].name)
    print(f"\nNext: `make lab` opens the notebooks; begin with {first} and change its parameters cell.")
    return 0


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


def parse_parameter(text: str) -> tuple[str, Any]:
    """Read "epochs=3" as ("epochs", 3); the value is YAML, so that lists and booleans work too."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise ValueError(f"-p {text}: a parameter is given as NAME=VALUE, for example -p seed=2.")
    return name, yaml.safe_load(value)


def check_parameter(name: str, paths: list[Path]) -> None:
    """Raise a ValueError unless a notebook has this parameter."""
    known = sorted({parameter for path in paths for parameter in parameters_of(path)})
    if name not in known:
        raise ValueError(unknown_name("parameter", name, known))


def parameters_of(path: Path) -> list[str]:
    """Return the names that the notebook's cell tagged `parameters` assigns."""
    import papermill

    return list(papermill.inspect_notebook(read(path)))


def read(path: Path) -> Any:
    """Read a notebook, as one for this Python's kernel whatever it was written with."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def run_notebook(path: Path, target: Path | None = None, parameters: dict[str, Any] | None = None) -> Any:
    """Run a notebook in a fresh kernel and write it, tidied, to `target` (default: in place).

    It runs in the folder of `target`, beside which a folder `figures` is made. Parameters that
    it does not have are passed over. Nothing is written unless every cell succeeded.
    Returns the notebook (an nbformat node); raises NotebookError with the failed cell and its traceback.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    target = path if target is None else target
    target.parent.mkdir(parents=True, exist_ok=True)
    (target.parent.resolve().parent / "figures").mkdir(exist_ok=True)
    own = {name: value for name, value in (parameters or {}).items() if name in parameters_of(path)}
    bar = {
        "desc": path.stem,
        "bar_format": "{desc}: cell {n_fmt} of {total_fmt}, {elapsed}",
        "leave": False,
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
            extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
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


def is_noise(output: Any) -> bool:
    """Strip progress bars from a stream of errors; say whether nothing is left, or only a widget's name."""
    if output.output_type == "stream" and output.name == "stderr":
        lines = re.split(r"[\r\n]", output.text)
        output.text = "\n".join(line for line in lines if line.strip() and not PROGRESS_BAR.search(line))
        return not output.text
    return output.output_type in ("display_data", "execute_result") and WIDGET in output.data


def title_of(notebook: Any) -> str:
    """Return the first heading, without its marks."""
    return notebook.cells[0].source.strip().splitlines()[0].lstrip("# ").strip()


def results_of(notebook: Any) -> str:
    """Return the last output of the cell tagged `results` as text, or a word that there is none."""
    for cell in notebook.cells:
        if "results" in cell.metadata.get("tags", []) and cell.outputs:
            output = cell.outputs[-1]
            return indented(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return indented("(no cell tagged results)")


def indented(text: str) -> str:
    """Return the text with four spaces before each line."""
    return "\n".join(f"    {line}".rstrip() for line in text.rstrip().splitlines())


def without_colour(text: str) -> str:
    """Return the text without the terminal's colour codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


if __name__ == "__main__":
    sys.exit(main())
