"""Studies whose processes are killed, or are several: nothing is lost, and nothing is made twice."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from medvlp.study.ablation.study import Study
from tests.study.ablation import dask_apart
from tests.study.ablation.ablations_apart import GRID, KILLS
from tests.study.ablation.small_study import noted, small_data, study

N = len(GRID["seed"])


def in_a_process(module: str, folder: Path, repository: Path) -> None:
    """Run a module of this folder; what it said, if it failed or hung."""
    command = [sys.executable, "-m", f"tests.study.ablation.{module}", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The folder of a whole study, a killed one and one of two calls, made in another process."""
    folder = tmp_path_factory.mktemp("apart")
    in_a_process("ablations_apart", folder, repository)
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


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_is_made_again(folder):
    grid = [{"method": "Mortal", "fate": "once"}, {"method": "Mortal", "seed": [1, 2, 3, 4]}]
    made = study(folder, grid, jobs=2)
    assert made.runs["status"].tolist() == ["done"] * 5
    begun = Counter(word for word, _ in noted())
    assert begun["once"] == 2 and 4 <= begun["lives"] <= 5
    assert os.getpid() not in {pid for _, pid in noted()}


@pytest.mark.slow
def test_a_dask_worker_killed_midway_loses_nothing(tmp_path, repository):
    in_a_process("dask_apart", tmp_path, repository)
    facts, store = json.loads((tmp_path / "facts.json").read_text()), tmp_path / "store"
    made, alone = Study(store), Study(tmp_path / "alone")
    assert made.runs["status"].tolist() == ["done"] * len(dask_apart.GRID["seed"])
    assert facts["killed"] in facts["workers"] and len(set(facts["workers"])) == 2
    assert {pid for _, pid in facts["begun"]} >= set(facts["workers"]), "both worked"
    assert all((store / f"{run}.json").stat().st_mtime_ns == time for run, time in facts["kept"].items())
    begun = Counter(word for word, _ in facts["begun"])
    assert set(begun) == {str(seed) for seed in dask_apart.GRID["seed"]}
    assert begun.total() <= len(begun) + 1, "only the run of the killed worker was made again"
    same = Study(store, {run: made.store.read(run)["settings"] for run in alone.runs["run"]})
    tables_agree(alone, same)
    assert small_data().test.fingerprint == alone.store.read(alone.runs["run"][0])["test"]
