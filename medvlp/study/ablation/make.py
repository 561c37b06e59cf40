"""Makes the runs of a plan that a store lacks, on joblib's workers, of which any may die."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from medvlp.study.ablation.plan import Run, settled
from medvlp.study.ablation.run import BUSY, execute, failure
from medvlp.study.ablation.store import DONE, FAILED, RunStore

DIED = (
    "The process that worked on this run died, and again when it worked on this run alone. Most often memory "
    "ran out; look into the system's log."
)
PATIENCE = 3  # deaths of workers that worked on no run


def make(
    runs: Sequence[Run],
    over: Sequence[str],
    store: RunStore,
    jobs: int | None,
    cache_dir: Path,
    progress: bool,
) -> list[Run]:
    """Make the runs that the store lacks, and those that failed before.

    Args:
        runs: The plan.
        over: Keys whose values are chosen, see `keys_to_choose`. The first seed tries all of their values,
            the others have what it chose.
        store: Where records go.
        jobs: Processes; None is what `joblib.parallel_config` says, else one, this process.
        cache_dir: Of the image features.
        progress: Show a bar.

    Returns:
        The runs; where values were chosen, only those that have them.
    """
    first = [run for run in runs if not over or run.seed == runs[0].seed]
    _make_all(first, store, jobs, cache_dir, progress)
    if not over:
        return first
    losses = {}
    for run in first:
        record = store.read(run.id)
        if record and record["status"] == DONE:
            loss = record["validation"]["loss"]  # None where it was no number
            losses[run.id] = math.inf if loss is None else loss
    chosen, tried = settled(runs, over, losses), {run.id for run in first}
    _make_all([run for run in chosen if run.id not in tried], store, jobs, cache_dir, progress)
    return chosen


def _make_all(
    runs: Sequence[Run], store: RunStore, jobs: int | None, cache_dir: Path, progress: bool
) -> None:
    """Make every run that is not done, under one progress bar."""
    records = {run.id: store.read(run.id) for run in runs}
    failed_before = {i: one["finished"] for i, one in records.items() if one and one["status"] == FAILED}
    to_do = [run for run in runs if records[run.id] is None or run.id in failed_before]
    del records  # they hold the logits
    counts = {DONE: 0, FAILED: 0}
    before, shown = len(runs) - len(to_do), progress and len(runs) > 0
    with tqdm(total=len(runs), initial=before, desc="study", unit="run", disable=not shown) as bar:

        def told(status: str) -> None:
            counts[status] += 1
            bar.set_postfix({"failed": counts[FAILED]} if counts[FAILED] else {}, refresh=False)
            bar.update()

        try:
            Workers(store, jobs, cache_dir, failed_before, progress, told).work(to_do)
        except KeyboardInterrupt:
            kept = f"{before + sum(counts.values())} of {len(runs)} runs are kept"
            tqdm.write(f"interrupted: {kept}; the same call goes on from there.")
            raise


@dataclass
class Workers:
    """Workers of one call: each run is made once, by them or by another call's.

    Attributes:
        store: Where records go.
        jobs: Processes; None is what `joblib.parallel_config` says, else one, this process.
        cache_dir: Of the image features.
        failed_before: {run id: when it failed}, of the failures that are tried again.
        progress: Show bars, where image features take their time.
        told: Is told of each run's end: "done" or "failed".
    """

    store: RunStore
    jobs: int | None
    cache_dir: Path
    failed_before: dict[str, str]
    progress: bool
    told: Callable[[str], None]

    def __post_init__(self) -> None:
        self.call = uuid4().hex

    def work(self, runs: Iterable[Run]) -> None:
        """Make the runs. Those that another process makes now are waited for when all others are made."""
        busy = self._pass(list(runs), wait=False)
        self._pass(busy, wait=True)

    def _pass(self, runs: list[Run], wait: bool) -> list[Run]:
        """Make what is free, or everything; the runs that were busy."""
        left, busy, suspects, unexplained = {run.id: run for run in runs}, [], [], 0
        while left:
            try:
                for run_id, status in self._parallel(left.values(), wait):
                    run = left.pop(run_id)
                    busy.append(run) if status == BUSY else self.told(status)
            except _deaths():
                # what a dead worker had begun is made later, alone: it may be what kills
                begun = [run_id for run_id in left if self.store.has_begun(run_id, self.call)]
                unexplained += not begun
                if unexplained > PATIENCE:
                    raise
                suspects += [left.pop(run_id) for run_id in begun]
        for run in suspects:
            self.told(self._alone(run))
        return busy

    def _alone(self, run: Run) -> str:
        try:
            ((_, status),) = self._parallel([run], wait=True)
        except _deaths():
            with self.store.lock(run.id, wait=True):
                self.store.write(run.id, failure(run, DIED))
                self.store.end(run.id)
            return FAILED
        return status

    def _parallel(self, runs: Iterable[Run], wait: bool) -> Iterable[tuple[str, str]]:
        """Ids and states of runs as they end."""
        task = delayed(_work)
        settings, before = (self.store, self.call, self.cache_dir, self.progress), self.failed_before
        tasks = (task(run, *settings, before.get(run.id), wait) for run in list(runs))
        return Parallel(n_jobs=self.jobs, return_as="generator_unordered")(tasks)


def _work(run: Run, *args: object) -> tuple[str, str]:
    return run.id, execute(run, *args)


def _deaths() -> tuple[type[BaseException], ...]:
    """What joblib raises when a worker has died: loky at once, Dask when a run has outlived several."""
    dask = sys.modules.get("distributed")
    return (BrokenProcessPool,) if dask is None else (BrokenProcessPool, dask.KilledWorker)
