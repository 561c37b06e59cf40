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
) -> int:
    """Make the runs of an ablation that its store lacks, and print what they found.

    Args:
        name: One of `medvlp.study.papers.ABLATIONS`; None lists them.
        store: Folder of the runs; by default runs/NAME, here.
        settings: Cards, shots and seeds, where they are not the ablation's own.
        config: Fields of TrainConfig for all runs.
        jobs: Processes.
        metric: Of the tables.

    Returns:
        The exit status: 0, or 1 if a run failed.

    Raises:
        ValueError: an unknown ablation, card or field.
    """
    from medvlp.data.names import unknown_name  # these load torch, and the other commands need none
    from medvlp.study.ablation import run_ablation
    from medvlp.study.metrics import METRICS
    from medvlp.study.papers import ABLATIONS, overview

    with pd.option_context("display.max_columns", None, "display.width", 160, "display.max_colwidth", 100):
        if name is None:
            print(overview().to_string())
            return 0
        if name not in ABLATIONS:
            raise ValueError(unknown_name("ablation", name, ABLATIONS))
        if metric not in (*METRICS, *OF_CLASSES):
            raise ValueError(unknown_name("metric", metric, [*METRICS, *OF_CLASSES]))
        ablation = ABLATIONS[name](**settings)
        place = store or Path("runs") / name
        print(f"{ablation.question}\n{ablation.n_runs} runs, kept in {place}.")
        study = run_ablation(ablation.grids, store=place, config=config, jobs=jobs)
        print(f"\n{study.summary(metric).round(3).to_string(index=False)}")
        if metric in METRICS:
            print(f"\nAgainst {ablation.baseline}, on the same images and seeds:")
            print(study.compare(ablation.baseline, metric=metric).round(3).to_string(index=False))
        failures = study.failures()
        for run, error in zip(failures["run"], failures["error"], strict=True):
            print(f"failed: {run}: {error}")
    return 1 if len(failures) else 0
