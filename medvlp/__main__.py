"""`python -m medvlp cards` lists the data cards; `python -m medvlp ablate` runs a named ablation."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

if TYPE_CHECKING:  # these load torch, and the other commands need none
    import pandas as pd

    from medvlp.knowledge.representations import Representations
    from medvlp.study.ablation.papers import Ablation
    from medvlp.study.ablation.study import Study

SEVERAL = ("--cards", "--num-shots", "--seeds", "--representations")  # options that take several values
app = typer.Typer(
    help=__doc__, no_args_is_help=True, rich_markup_mode=None, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; it exits with 0 if all went well, 1 if a run failed, 2 for wrong arguments."""
    app(repeated(sys.argv[1:] if argv is None else argv, SEVERAL), prog_name="python -m medvlp")


@app.command()
def cards() -> None:
    """List the data cards: how many images each expects, under which licence, and what they are."""
    from medvlp.data.cards import list_cards, load_card

    for card in map(load_card, list_cards()):
        print(f"{card.name:<21} {card.images or 'unknown':>7}  {card.licence:<46}  {card.title}")


@app.command()
def ablate(
    name: Annotated[str | None, typer.Argument(help="which one; without it they are listed")] = None,
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="of the runs; default: runs/NAME")] = None,
    cards: Annotated[list[str] | None, typer.Option(metavar="CARD ...", help="by name or path")] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="of the images")] = None,
    clip: Annotated[str, typer.Option(metavar="NAME", help="as for load_clip")] = "tiny",
    representations: Annotated[
        list[Path] | None, typer.Option(metavar="FILE ...", help="LLM representations of the cards")
    ] = None,
    num_shots: Annotated[
        list[str] | None, typer.Option(metavar="N ...", help="training images a class, or all")
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option(metavar="N ...", help="default: 1 2 3")] = None,
    config: Annotated[
        list[str] | None, typer.Option("-c", "--config", metavar="NAME=VALUE", help="a field of TrainConfig")
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="processes")] = 1,
    metric: Annotated[str, typer.Option(metavar="NAME", help="of the tables")] = "balanced accuracy",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="write the first table, CSV")] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="copy the runs of the tables to this store")
    ] = None,
    predictions: Annotated[
        bool, typer.Option(help="whether the copy has them; without, intervals of two metrics")
    ] = True,
) -> None:
    """Make the runs of an ablation that its store lacks, and show what they found."""
    import pandas as pd

    from medvlp.data.errors import check_choice
    from medvlp.data.files import atomic_write, check_file_writable
    from medvlp.study.ablation.grid import combinations
    from medvlp.study.ablation.papers import ABLATIONS, SEEDS, overview
    from medvlp.study.ablation.store import RunStore
    from medvlp.study.ablation.study import run_ablation
    from medvlp.study.metrics import METRICS, OF_CLASSES

    with pd.option_context("display.max_columns", None, "display.width", 160, "display.max_colwidth", 100):
        if name is None:
            print(overview().to_string())
            return
        try:
            check_choice("ablation", name, ABLATIONS)
            check_choice("metric", metric, [*METRICS, *OF_CLASSES])
            ablation, fields = ABLATIONS[name], dict(parse_setting(text, "-c") for text in config or [])
            numbers = [int(text) if text.isdecimal() else text for text in num_shots or []]
            states = read_representations(representations or [], cards or ablation.cards)
            grids = ablation.on(cards, numbers, seeds or SEEDS, representations=states)
            if out:
                check_file_writable(out)
            if export:
                RunStore(export).check_writable()
            place = store or Path("runs") / name
            print(f"{ablation.question}\nAt most {len(combinations(grids))} runs, kept in {place}.")
            study = run_ablation(
                [{key: grid[key] for key in grid if key not in fields} for grid in grids],
                store=place,
                root=root,
                clip=clip,
                config={**ablation.config, **fields},
                tune=None if ablation.tune in fields else ablation.tune,
                jobs=jobs,
            )
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error)) from None
        table = show(study, ablation, metric)
        if out:
            with atomic_write(out) as part:
                table.round(6).to_csv(part, index=False)
        if export:
            study.export(export, predictions)
    raise typer.Exit(1 if len(study.failures()) else 0)


def show(study: "Study", ablation: "Ablation", metric: str) -> "pd.DataFrame":
    """Print the means, the differences from the baseline and the failures; return the table of means."""
    from medvlp.study.ablation.tables import to_markdown, wide
    from medvlp.study.metrics import METRICS

    by = ablation.by and [key for key in ablation.by if key in study.varied]
    table = study.summary(metric, by)
    print(f"\n{table.round(3).to_string(index=False)}")
    if by and {"method", "data"} <= set(table):
        others = [key for key in by if key not in ("method", "data")]
        for values, part in table.groupby(others, sort=False) if others else [(["as above"], table)]:
            cells = to_markdown(wide(part, "method", "data"))
            shown = ", ".join(map(str, values))
            print(f"\nshots {shown}: mean of the seeds ± sd [95 % over test images]\n\n{cells}")
    if metric in METRICS:
        print(f"\nAgainst {ablation.baseline}, on the same images and seeds:")
        print(study.compare(ablation.baseline, by, metric).round(3).to_string(index=False))
    failures = study.failures()
    for run, error in zip(failures["run"], failures["error"], strict=True):
        print(f"failed: {run}: {error}")
    return table


def read_representations(paths: Sequence[Path], cards: Sequence[str | Path]) -> dict[str, "Representations"]:
    """Files of LLM representations by the names of the cards whose classes they have.

    Raises:
        ValueError: a file of none of these cards, two of one, or one that cannot be read.
    """
    from medvlp.data.cards import load_card
    from medvlp.knowledge.representations import Representations

    by_card: dict[str, Representations] = {}
    loaded = [load_card(card) for card in cards] if paths else []
    for path in paths:
        states = Representations.load(path)
        fitting = [card.name for card in loaded if set(card.classnames) <= set(states.states)]
        made_for = states.provenance.get("card")  # others may have the same classes
        names = [made_for] if made_for in fitting else fitting
        if twice := [name for name in names if name in by_card]:
            raise ValueError(f"{path}: card {twice[0]!r} has representations already; give one file a card.")
        if not fitting:
            raise ValueError(
                f"{path} has the classes {', '.join(states.states)}, those of none of the cards "
                f"{', '.join(card.name for card in loaded)}."
            )
        by_card |= dict.fromkeys(names, states)
    return by_card


def repeated(argv: Sequence[str], several: Sequence[str]) -> list[str]:
    """The arguments with each option of `several` before each of its values: --seeds 1 --seeds 2."""
    words: list[str] = []
    option = None  # whose values are read
    for before, word in zip(["", *argv], argv, strict=False):
        is_value = not word.startswith("-") or word[1:].isdecimal()
        if not is_value:
            option = word if word in several else None
        words += [option, word] if is_value and option and before != option else [word]
    return words


def parse_setting(text: str, option: str) -> tuple[str, Any]:
    """Read "epochs=3" as ("epochs", 3); the value is YAML, so that lists and booleans work too."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise ValueError(f"{option} {text}: it is given as NAME=VALUE, for example {option} seed=2.")
    if re.fullmatch(r"[-+]?\d+\.?\d*[eE][-+]?\d+", value):  # a text in YAML 1.1
        return name, float(value)
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    main()
