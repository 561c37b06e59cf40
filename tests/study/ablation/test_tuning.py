"""Settings chosen with one seed on validation: the other seeds follow, and test images have no part in it."""

import numpy as np
import pytest

from medvlp.study.ablation.grid import Named
from medvlp.study.ablation.study import Study
from tests.study.ablation.small_study import noted, study


def rates(made: Study) -> list[float]:
    """The learning rate of each run, in order."""
    return [made.store.read(run_id)["settings"]["config.lr"] for run_id in made.runs["run"]]


RATES = [1e-6, 0.5, 3.0]
GRID = {"method": "Slow", "lr": RATES, "num_shots": [2, 4], "seed": [3, 1, 2]}


def test_the_first_seed_tries_all_and_the_others_take_its_choice(folder):
    made = study(folder, GRID, tune="lr")
    assert sorted(seed for seed, _ in noted()) == sorted(["3"] * 6 + ["1"] * 2 + ["2"] * 2)
    runs = made.runs.assign(lr=rates(made))
    assert len(made) == 6 and runs.groupby("num_shots")["seed"].apply(sorted).tolist() == [[1, 2, 3]] * 2
    everything = Study(folder / "store").runs
    for shots, rows in runs.groupby("num_shots"):
        tried = everything[(everything["num_shots"] == shots) & (everything["seed"] == 3)]
        assert sorted(tried["lr"]) == RATES
        assert set(rows["lr"]) == {tried.loc[tried["val loss"].idxmin(), "lr"]}
    assert made.summary(by=["num_shots"])["seeds"].tolist() == [3, 3]
    assert study(folder, GRID, tune="lr").runs.equals(made.runs) and len(noted()) == 10


def test_methods_without_the_key_run_with_every_seed(folder):
    grids = [{"method": "Slow", "lr": RATES, "seed": [1, 2]}, {"method": "ZeroShot", "seed": [1, 2]}]
    runs = study(folder, grids, tune="lr").runs
    assert runs["method"].value_counts().to_dict() == {"Slow": 2, "ZeroShot": 2}


def test_forms_of_a_method_choose_apart(folder):
    """Same class, two names and arguments: each has a choice of its own."""
    grids = [
        {"method": Named(name, "Prototypes"), "dropout": dropout, "lr": RATES, "seed": [1, 2]}
        for name, dropout in (("plain", 0.0), ("noisy", 0.9))
    ]
    made = study(folder, grids, tune="lr")
    assert made.runs.groupby("method")["seed"].apply(list).to_dict() == {"plain": [1, 2], "noisy": [1, 2]}
    assert (made.runs.assign(lr=rates(made)).groupby("method")["lr"].nunique() == 1).all()


def test_rates_that_fail_are_left_out_of_the_choice(folder):
    made = study(folder, {"method": "Slow", "lr": [0.5, 1e30], "seed": [1, 2]}, tune="lr")
    assert made.runs["status"].tolist() == ["done"] * 2 and set(rates(made)) == {0.5}


def test_where_every_value_fails_the_failures_are_seen_and_none_is_tried_twice(folder):
    grid = {"method": "Slow", "lr": [1e29, 1e30], "seed": [1, 2]}
    made = study(folder, grid, tune="lr")
    assert len(made) == 4 and set(made.runs["status"]) == {"failed"}
    assert sorted(seed for seed, _ in noted()) == ["1", "1", "2", "2"]
    study(folder, grid, tune="lr")  # the next call tries each again, once
    assert sorted(seed for seed, _ in noted()) == ["1"] * 4 + ["2"] * 4


@pytest.mark.parametrize("tune", ["lr", ["lr", "dropout"]])
def test_a_key_with_one_value_is_taken_as_it_is(folder, tune):
    grid = {"method": "Prototypes", "lr": 0.5, "dropout": 0.1, "seed": [1, 2]}
    made = study(folder, grid, tune=tune)
    assert rates(made) == [0.5, 0.5] and made.runs["seed"].tolist() == [1, 2]
    more = study(folder, grid | {"lr": [0.5, 1e-6]}, tune=tune)  # a choice is left in one of the two
    assert len(more) == 2 and len(set(rates(more))) == 1


@pytest.mark.parametrize("key", ["lrs", "method", "seed", "num_shots", "data"])
def test_what_is_no_key_to_choose_is_refused_before_any_run(folder, key):
    with pytest.raises(ValueError, match=f"unknown key to tune {key!r} in the grid"):
        study(folder, GRID, tune=key)
    assert not noted()


def test_exported_runs_are_a_store_of_their_own_with_predictions_or_intervals_in_their_place(folder):
    made = study(folder, {"method": "Slow", "lr": [1e-6, 0.5], "seed": [1, 2]}, tune="lr")
    made.export(folder / "exported")
    copied, run_ids = Study(folder / "exported"), made.runs["run"].tolist()
    assert sorted(copied.runs["run"]) == sorted(run_ids)
    for run_id in run_ids:
        assert (copied.predictions(run_id).probabilities == made.predictions(run_id).probabilities).all()
    with pytest.raises(FileNotFoundError, match="has no run 'nope'"):
        made.store.copy_to(folder / "other", ["nope"])

    made.export(folder / "numbers", predictions=False)
    numbers = Study(folder / "numbers").with_intervals("accuracy").set_index("run")
    before = made.with_intervals("accuracy").set_index("run").loc[numbers.index]
    columns = ["accuracy", "accuracy low", "accuracy high"]
    assert np.allclose(numbers[columns], before[columns], atol=5e-5)
    assert {path.name for path in (folder / "numbers").iterdir()} == {f"{run}.json" for run in run_ids}
    with pytest.raises(ValueError, match="kept without its predictions"):
        Study(folder / "numbers").predictions(run_ids[0])
