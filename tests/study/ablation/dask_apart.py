"""A study on a real Dask cluster of this machine, of whose two workers one is killed midway.

Run as `python -m tests.study.ablation.dask_apart FOLDER`,
so that nothing else has been at work in the process.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import joblib
from distributed import Client, LocalCluster

from medvlp.study.ablation.store import RunStore
from tests.backbone import small_clips
from tests.study.ablation.small_study import COUNTS, noted, study

GRID = {"method": "Slow", "seed": list(range(12)), "seconds": 0.3}
BEFORE = 3  # runs that are done when the worker is killed


def main(folder: Path) -> None:
    small_clips.open_clip_kind(folder / "clip")
    os.environ[COUNTS] = str(folder / "counts.txt")
    store, facts = RunStore(folder / "store"), {}

    def kill_one() -> None:
        while len(store.ids()) < BEFORE:
            time.sleep(0.01)
        facts["kept"] = {run: (store.folder / f"{run}.json").stat().st_mtime_ns for run in store.ids()}
        facts["killed"] = noted()[-1][1]  # it has just begun a run
        os.kill(facts["killed"], signal.SIGKILL)

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client, joblib.parallel_config("dask"):
        facts["workers"] = list(client.run(os.getpid).values())
        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        study(folder, GRID)
        killer.join()
    facts["begun"] = noted()
    del os.environ[COUNTS]
    study(folder, {**GRID, "seed": [3, 5]}, "alone")
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
