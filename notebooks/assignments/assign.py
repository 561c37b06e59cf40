"""Assignments: `build` makes what students get, `grade` grades a folder of what they hand in."""

import re
import sys
from pathlib import Path
from typing import Annotated

import nbformat
import numpy as np
import typer
from gradescope import write_package
from grading import expected, grade_folder, write
from tasks import BEGIN, END, Task, is_text, load_assignment

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def without_solution(source: str, task: str) -> str:
    """Put an error that says what is missing in place of the lines between the marks."""
    pattern = rf"^([ \t]*){BEGIN}\n.*?^[ \t]*{END}$"
    return re.sub(pattern, rf'\1raise NotImplementedError("write {task}")', source, flags=re.S | re.M)


def as_code(value: object, kind: str) -> str:
    """Write an argument of a visible test as Python."""
    if is_text(value) or not isinstance(value, list):
        return repr(value)
    if kind == "numpy":
        return f"np.array({value})"
    return f"torch.tensor({value}" + (", dtype=torch.float64)" if np.array(value).dtype == float else ")")


def shown(value: object) -> object:
    """Write an expected result with as many places as a reader needs."""
    if is_text(value):
        return value
    if isinstance(value, tuple):
        return tuple(shown(part) for part in value)
    return np.asarray(value, dtype=float).round(6).tolist()


def visible_test(task: Task, kind: str, seed: int) -> str:
    """Return a cell that compares the student's function with one value, for numbers of this seed."""
    args = task.calls(np.random.default_rng(seed))[0]
    value = expected(task, [args])[0]
    if task.gradient:
        value = value[0]
    lines = [f"# Check {task.name}. The grading draws other examples."]
    lines += [f"got = {task.name}(", *(f"    {as_code(arg, kind)}," for arg in args), ")"]
    lines += [f"check(got, {shown(value)!r})"]
    return "\n".join(lines)


def student_version(name: str, seed: int) -> nbformat.NotebookNode:
    """Return the notebook for students: no solution, and visible tests with numbers of this seed."""
    assignment = load_assignment(name)
    cells = []
    for cell in assignment.cells():
        if "instructor" in cell.metadata.get("tags", []):
            continue
        task = next((t for t in assignment.tasks if f"def {t.name}(" in cell.source), None)
        if cell.cell_type == "code" and task:
            cells.append(nbformat.v4.new_code_cell(without_solution(cell.source, task.name)))
            cells.append(nbformat.v4.new_code_cell(visible_test(task, assignment.kind, seed)))
        else:
            new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
            cells.append(new(cell.source))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="the assignment, such as A6")],
    out: Annotated[Path, typer.Argument(help="the folder to write the students' notebook into")],
    seed: Annotated[int, typer.Option(help="of the visible tests' numbers; another year, another seed")] = 1,
) -> None:
    """Write the notebook that students get."""
    notebook = student_version(name, seed)
    nbformat.validate(notebook)
    path = out / f"{load_assignment(name).name}.ipynb"
    write(path, nbformat.writes(notebook) + "\n")
    print(f"Wrote {path}. It holds no solution. To grade: assign.py grade {name} SUBMISSIONS OUT")


@app.command()
def grade(
    name: Annotated[str, typer.Argument(help="the assignment, such as A6")],
    submissions: Annotated[Path, typer.Argument(help="a folder of notebooks, one a student")],
    out: Annotated[Path, typer.Argument(help="where grades.csv and the feedback pages go")],
    seed: Annotated[int | None, typer.Option(help="of the hidden numbers; by default drawn once")] = None,
) -> None:
    """Grade a folder of submissions; run again after a stop, it goes on where it was."""
    table = grade_folder(load_assignment(name), submissions, out, seed)
    print(table.to_string(index=False))
    print(f"Wrote {out / 'grades.csv'} and a page a student in {out / 'feedback'}")


@app.command()
def gradescope(
    name: Annotated[str, typer.Argument(help="the assignment, such as A6")],
    out: Annotated[Path, typer.Argument(help="the folder to write the package into")],
    seed: Annotated[int | None, typer.Option(help="of the hidden numbers; by default drawn")] = None,
) -> None:
    """Write the package with which Gradescope grades an assignment."""
    print(f"Wrote {write_package(name, out, seed)}. It holds the solutions: upload it as the autograder.")


@app.command()
def build_project(
    out: Annotated[Path, typer.Argument(help="the folder to write P, for students, and P-key.csv into")],
    seed: Annotated[int | None, typer.Option(help="of the images; by default drawn")] = None,
) -> None:
    """Write the project's images and text, and the key with the hidden labels."""
    import project  # here, for it brings PyTorch

    key = project.build_project(out, seed)
    print(f"Wrote {key.parent / 'P'}, for students. Keep {key}.")
    print(f"To grade: assign.py grade-project {key} SUBMISSIONS OUT")


@app.command()
def grade_project(
    key: Annotated[Path, typer.Argument(help="P-key.csv, beside the folder P that was built with it")],
    submissions: Annotated[Path, typer.Argument(help="folders with card.md, predictions.csv and the rest")],
    out: Annotated[Path, typer.Argument(help="where grades.csv and the feedback pages go")],
) -> None:
    """Grade a folder of projects, but for the reports' points."""
    import project  # here, for it brings PyTorch

    print(project.grade_projects(key, submissions, out).to_string(index=False))
    print(f"Wrote {out / 'grades.csv'} and a page a student in {out / 'feedback'}")


def main() -> None:
    """Run one command; what is wrong is said in a line."""
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
