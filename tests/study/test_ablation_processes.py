"""Studies whose processes are killed, or are several: nothing is lost, and nothing is made twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import joblib
import pandas as pd
import pytest
from distributed import Client, LocalCluster

from medvlp.study.ablation import Study
from medvlp.study.run_store import RunStore
from tests.study.ablations_apart import GRID, KILLS
from tests.study.small_study import COUNTS, clip_name, noted, small_data, study

N = len(GRID["seed"])


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The folder of a whole study, a killed one and one of two calls, made in another process."""
    folder = tmp_path_factory.mktemp("apart")
    command = [sys.executable, "-m", "tests.study.ablations_apart", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def tables_agree(one: Study, other: Study) -> None:
    first, second = (
        s.runs.drop(columns="seconds").sort_values("run", ignore_index=True) for s in (one, other)
    )
    pd.testing.assert_frame_equal(first, second)
    for run in first["run"]:
        assert one.store.read(run)["logits"] == other.store.read(run)["logits"]


@pytest.mark.slow
def test_killed_at_random_moments_and_called_again_it_ends_with_the_same_table(apart):
    facts = json.loads((apart / "facts.json").read_text())
    assert facts["last call"] == 0 and sum(facts["killed"]) >= 2, "too few calls were still at work"
    assert facts["kept"] == sorted(facts["kept"]), "a run that was done is gone"
    tables_agree(Study(apart / "whole"), Study(apart / "killed"))
    begun = Counter(seed for seed, _ in facts["begun"])
    assert set(begun) == {str(seed) for seed in GRID["seed"]}
    assert begun.total() <= N + sum(facts["killed"]), "more was made again than a kill can break off"
    assert not list((apart / "killed").glob(".*.json.*"))[KILLS:], "more half-written files than kills"


@pytest.mark.slow
def test_two_processes_on_one_store_never_make_a_run_twice(apart):
    facts = json.loads((apart / "facts.json").read_text())
    assert facts["two calls"] == [0, 0]
    assert Counter(seed for seed, _ in facts["begun by two"]) == {str(seed): 1 for seed in GRID["seed"]}
    assert len({pid for _, pid in facts["begun by two"]}) == 2, "only one of them did anything"
    tables_agree(Study(apart / "whole"), Study(apart / "two"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small CLIP, in which runs are counted."""
    clip_name(tmp_path)
    monkeypatch.setenv(COUNTS, str(tmp_path / "counts.txt"))
    return tmp_path


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_is_made_again(folder):
    grid = [{"method": "Mortal", "fate": "once"}, {"method": "Mortal", "seed": [1, 2, 3, 4]}]
    made = study(folder, grid, jobs=2)
    assert made.runs["status"].tolist() == ["done"] * 5
    begun = Counter(word for word, _ in noted())
    assert begun["once"] == 2 and 4 <= begun["lives"] <= 5
    assert os.getpid() not in {pid for _, pid in noted()}


@pytest.mark.slow
def test_a_dask_worker_killed_midway_loses_nothing(folder):
    grid = {"method": "Slow", "seed": list(range(16)), "seconds": 0.3}
    store, killed, kept = RunStore(folder / "store"), [], {}

    def kill_one() -> None:
        while len(store.ids()) < 4:
            time.sleep(0.01)
        kept.update({run: (store.folder / f"{run}.json").stat().st_mtime_ns for run in store.ids()})
        killed.append(noted()[-1][1])  # it has just begun a run
        os.kill(killed[0], signal.SIGKILL)

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client, joblib.parallel_config("dask"):
        workers = set(client.run(os.getpid).values())
        killer = threading.Thread(target=kill_one)
        killer.start()
        made = study(folder, grid)
        killer.join()
    assert made.runs["status"].tolist() == ["done"] * 16
    assert killed[0] in workers and len(workers) == 2
    assert {pid for _, pid in noted()} >= workers, "both worked"
    assert all((store.folder / f"{run}.json").stat().st_mtime_ns == time for run, time in kept.items())
    begun = Counter(word for word, _ in noted())
    assert set(begun) == {str(seed) for seed in grid["seed"]}
    assert begun.total() <= 17, "only the run of the killed worker was made again"
    alone = study(folder, {**grid, "seed": [3, 5]}, "alone")
    same = study(folder, {**grid, "seed": [3, 5]})
    tables_agree(alone, same)
    assert small_data().test.fingerprint == alone.store.read(alone.runs["run"][0])["test"]
