"""`python -m medvlp tour` runs the notebooks, `ablate` a named ablation; `cards` lists the data cards."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from medvlp.ablate import ablate
from medvlp.tour import check_parameter, find_notebooks, tour


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
    run.add_argument(
        "--jobs", type=positive, default=2, metavar="N", help="run N notebooks at a time (default: 2)"
    )
    run.add_argument("--folder", type=Path, default=Path("notebooks"), help="where the notebooks are")
    study = commands.add_parser("ablate", help="run a named ablation and show what it found")
    study.add_argument("name", nargs="?", help="which one; without it they are listed")
    study.add_argument("--store", type=Path, metavar="DIR", help="where runs are kept (default: runs/NAME)")
    study.add_argument("--cards", nargs="+", metavar="CARD", help="data sets, by name or path of their card")
    study.add_argument("--shots", nargs="+", type=shots, metavar="N", help="images a class, or all")
    study.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: 1 2 3")
    study.add_argument(
        "-c", "--config", action="append", default=[], metavar="NAME=VALUE", help="a field of TrainConfig"
    )
    study.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes (default: 1)")
    study.add_argument("--metric", default="balanced accuracy", help="of the tables")
    study.add_argument("--out", type=Path, metavar="FILE", help="write the table of means and intervals, CSV")
    study.add_argument("--export", type=Path, metavar="DIR", help="copy the runs of the tables to this store")
    arguments = parser.parse_args(argv)
    if arguments.command == "cards":
        return cards()
    if arguments.command == "ablate":
        given = {key: getattr(arguments, key) for key in ("cards", "shots", "seeds")}
        settings = {key: value for key, value in given.items() if value is not None}
        try:
            config = dict(parse_parameter(text, "-c") for text in arguments.config)
            return ablate(
                arguments.name,
                arguments.store,
                settings,
                config,
                arguments.jobs,
                arguments.metric,
                arguments.out,
                arguments.export,
            )
        except (ValueError, OSError) as error:
            study.error(str(error))
    try:
        paths = find_notebooks(arguments.folder, arguments.only)
        parameters = dict(parse_parameter(text) for text in arguments.parameter)
        if parameters and arguments.out is None:
            raise ValueError("-p changes the notebooks: say with --out DIR where to write the changed ones.")
        for name in parameters:
            check_parameter(name, paths)
    except ValueError as error:
        run.error(str(error))
    return tour(paths, arguments.out, parameters, arguments.jobs)


def cards() -> int:
    """Print name and title of every data card."""
    from medvlp.data.cards import list_cards, load_card

    for name in list_cards():
        print(f"{name:<24}{load_card(name).title}")
    return 0


def positive(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1.")
    return int(text)


def shots(text: str) -> int | str:
    """Read a whole number from 1, or "all"."""
    return text if text == "all" else positive(text)


def parse_parameter(text: str, option: str = "-p") -> tuple[str, Any]:
    """Read "epochs=3" as ("epochs", 3); the value is YAML, so that lists and booleans work too."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise ValueError(f"{option} {text}: it is given as NAME=VALUE, for example {option} seed=2.")
    if re.fullmatch(r"[-+]?\d+\.?\d*[eE][-+]?\d+", value):  # a text in YAML 1.1
        return name, float(value)
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    sys.exit(main())
