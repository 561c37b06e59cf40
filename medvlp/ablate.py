"""`python -m medvlp ablate`: a named ablation from its grids to its tables, in one command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

OF_CLASSES = ("base accuracy", "new accuracy", "harmonic mean")  # what base_to_new adds to the metrics


def ablate(
    name: str | None,
    store: Path | None,
    settings: dict[str, Sequence[Any]],
    config: dict[str, Any],
    jobs: int,
    metric: str,
    out: Path | None,
    export: Path | None,
) -> int:
    """Make the runs of an ablation that its store lacks, and print what they found.

    Args:
        name: One of `medvlp.study.ablation.papers.ABLATIONS`; None lists them.
        store: Folder of the runs; by default runs/NAME, here.
        settings: Cards, shots and seeds, where they are not the ablation's own.
        config: Fields of TrainConfig for all runs.
        jobs: Processes.
        metric: Of the tables.
        out: A file for the first table, as CSV.
        export: A folder for a store with the study's runs alone, such as those that were chosen.

    Returns:
        The exit status: 0, or 1 if a run failed.

    Raises:
        ValueError: an unknown ablation, card or field.
        OSError: a place that cannot be written; nothing was run.
    """
    from medvlp.data.errors import unknown_name  # these load torch, and the other commands need none
    from medvlp.data.files import atomic_write, check_writable
    from medvlp.study.ablation.papers import ABLATIONS, overview
    from medvlp.study.ablation.store import RunStore
    from medvlp.study.ablation.study import run_ablation
    from medvlp.study.ablation.tables import to_markdown, wide
    from medvlp.study.metrics import METRICS

    with pd.option_context("display.max_columns", None, "display.width", 160, "display.max_colwidth", 100):
        if name is None:
            print(overview().to_string())
            return 0
        if name not in ABLATIONS:
            raise ValueError(unknown_name("ablation", name, ABLATIONS))
        if metric not in (*METRICS, *OF_CLASSES):
            raise ValueError(unknown_name("metric", metric, [*METRICS, *OF_CLASSES]))
        if out and out.is_dir():
            raise OSError(f"{out} is a folder; name a file for the table.")
        ablation = ABLATIONS[name](**settings)
        if out:
            check_writable(out.parent)
        if export:
            RunStore(export).check_writable()
        place = store or Path("runs") / name
        grids = [{key: grid[key] for key in grid if key not in config} for grid in ablation.grids]
        tune = None if ablation.tune in config else ablation.tune
        print(f"{ablation.question}\nAt most {ablation.n_runs} runs, kept in {place}.")
        recipe = {**ablation.config, **config}
        study = run_ablation(grids, store=place, config=recipe, tune=tune, jobs=jobs)
        by = ablation.by and [key for key in ablation.by if key in study.varied]
        table = study.summary(metric, by)
        print(f"\n{table.round(3).to_string(index=False)}")
        if by and {"method", "data"} <= set(table):
            for shots, part in (
                table.groupby("shots", sort=False) if "shots" in table else [("as above", table)]
            ):
                cells = to_markdown(wide(part, "method", "data"))
                print(f"\nshots {shots}: mean of the seeds ± sd [95 % over test images]\n\n{cells}")
        if out:
            with atomic_write(out) as part:
                table.round(6).to_csv(part, index=False)
        if export:
            study.store.copy_to(export, study.runs["run"])
        if metric in METRICS:
            print(f"\nAgainst {ablation.baseline}, on the same images and seeds:")
            compared = study.compare(ablation.baseline, by, metric)
            print(compared.round(3).to_string(index=False))
        failures = study.failures()
        for run, error in zip(failures["run"], failures["error"], strict=True):
            print(f"failed: {run}: {error}")
    return 1 if len(failures) else 0
