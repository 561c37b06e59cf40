"""Makes the runs of a plan that a store lacks, on joblib's workers, of which any may die."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from medvlp.study.ablation.plan import Run, settled
from medvlp.study.ablation.run import BUSY, Workshop, execute, record_of
from medvlp.study.ablation.store import DONE, FAILED

DIED = (
    "The process that worked on this run died, and again when it worked on this run alone. Most often memory "
    "ran out; look into the system's log."
)
PATIENCE = 3  # deaths of workers that worked on no run


def make(runs: Sequence[Run], over: Sequence[str], workshop: Workshop, jobs: int | None) -> list[Run]:
    """Make the runs that the store lacks, and those that failed before.

    Args:
        runs: The plan.
        over: Keys whose values are chosen, see `keys_to_choose`. The first seed tries all of their values,
            the others have what it chose.
        workshop: Where the runs are made and kept.
        jobs: Processes; None is what `joblib.parallel_config` says, else one, this process.

    Returns:
        The runs; where values were chosen, only those that have them.
    """
    first = [run for run in runs if not over or run.protocol.seed == runs[0].protocol.seed]
    _make_all(first, workshop, jobs)
    if not over:
        return first
    losses = {}
    for run in first:
        record = workshop.store.read(run.id)
        if record and record["status"] == DONE:
            loss = record["validation"]["loss"]  # None where it was no number
            losses[run.id] = math.inf if loss is None else loss
    chosen, tried = settled(runs, over, losses), {run.id for run in first}
    _make_all([run for run in chosen if run.id not in tried], workshop, jobs)
    return chosen


def _make_all(runs: Sequence[Run], workshop: Workshop, jobs: int | None) -> None:
    """Make every run that is not done, under one progress bar."""
    failed_before, to_do = {}, []
    for run in runs:
        record = workshop.store.read(run.id)
        if record is None or record["status"] == FAILED:
            to_do.append(run)
            failed_before[run.id] = record and record["finished"]
    counts = {DONE: 0, FAILED: 0}
    before, shown = len(runs) - len(to_do), workshop.progress and len(runs) > 0
    with tqdm(total=len(runs), initial=before, desc="study", unit="run", disable=not shown) as bar:

        def tell(status: str) -> None:
            counts[status] += 1
            bar.set_postfix({"failed": counts[FAILED]} if counts[FAILED] else {}, refresh=False)
            bar.update()

        try:
            # runs that another process makes now are waited for when all others are made
            busy = _make_free(to_do, workshop, jobs, failed_before, tell, wait=False)
            _make_free(busy, workshop, jobs, failed_before, tell, wait=True)
        except KeyboardInterrupt:
            kept = f"{before + sum(counts.values())} of {len(runs)} runs are kept"
            tqdm.write(f"interrupted: {kept}; the same call goes on from there.")
            raise


def _make_free(
    runs: Sequence[Run],
    workshop: Workshop,
    jobs: int | None,
    failed_before: dict[str, str | None],
    tell: Callable[[str], None],
    wait: bool,
) -> list[Run]:
    """Make the runs that no other process makes, or with `wait` all; return those that were busy."""

    def work(some: Iterable[Run], wait: bool) -> Iterable[tuple[str, str]]:
        """Ids and states of runs as they end."""
        tasks = [delayed(_work)(run, workshop, failed_before[run.id], wait) for run in some]
        return Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)

    left, busy, suspects, unexplained = {run.id: run for run in runs}, [], [], 0
    while left:
        try:
            for run_id, status in work(left.values(), wait):
                run = left.pop(run_id)
                busy.append(run) if status == BUSY else tell(status)
        except _deaths():
            # what a dead worker had begun is made later, alone: it may be what kills
            begun = [run_id for run_id in left if workshop.store.has_begun(run_id, workshop.call)]
            unexplained += not begun
            if unexplained > PATIENCE:
                raise
            suspects += [left.pop(run_id) for run_id in begun]
    for run in suspects:
        try:
            ((_, status),) = work([run], wait=True)
        except _deaths():
            status = FAILED
            with workshop.store.lock(run.id, wait=True):
                workshop.store.write(run.id, record_of(run, FAILED, None, {"traceback": DIED}))
                workshop.store.end(run.id)
        tell(status)
    return busy


def _work(run: Run, *args: object) -> tuple[str, str]:
    return run.id, execute(run, *args)


def _deaths() -> tuple[type[BaseException], ...]:
    """What joblib raises when a worker has died: loky at once, Dask when a run has outlived several."""
    dask = sys.modules.get("distributed")
    return (BrokenProcessPool,) if dask is None else (BrokenProcessPool, dask.KilledWorker)
