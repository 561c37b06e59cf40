"""Which runs are one group, and which baseline a group has."""

import pandas as pd
import pytest

from medvlp.study.ablation.seed_groups import find_baseline, pair_with_baseline, run_groups

RUNS = pd.DataFrame(
    [
        ("r1", "base", 1, 1, "done", 0.5),
        ("r2", "base", 1, 2, "done", 0.6),
        ("r3", "base", 4, 1, "done", 0.7),
        ("r4", "new", 1, 2, "done", 0.8),
        ("r5", "new", 1, 1, "done", 0.9),
        ("r6", "new", 4, 1, "done", 0.9),
    ],
    columns=["run", "method", "shots", "seed", "status", "accuracy"],
)
BY = ["method", "shots"]


def pairs(runs: pd.DataFrame, baseline: object, by: list[str] = BY) -> list[tuple[str, str]]:
    groups = run_groups(runs, by, "accuracy", reserved=["p"])
    return [(str(a), str(b)) for a, b in pair_with_baseline(groups, find_baseline(baseline, groups, by))]


def test_groups_are_in_order_and_their_seeds_are_sorted():
    groups = run_groups(RUNS, BY, "accuracy", [])
    assert [str(group) for group in groups] == [
        "method base, shots 1",
        "method base, shots 4",
        "method new, shots 1",
        "method new, shots 4",
    ]
    assert groups[2].runs["run"].tolist() == ["r5", "r4"]
    assert groups[2].values("accuracy").tolist() == [0.9, 0.8]


@pytest.mark.parametrize("baseline", ["base", {"method": "base"}])
def test_the_baseline_is_that_of_the_same_shots(baseline):
    assert pairs(RUNS, baseline) == [
        ("method new, shots 1", "method base, shots 1"),
        ("method new, shots 4", "method base, shots 4"),
    ]


def test_one_baseline_for_everything():
    runs = RUNS[RUNS["seed"] == 1]
    assert pairs(runs, {"method": "base", "shots": 1}) == [
        ("method base, shots 4", "method base, shots 1"),
        ("method new, shots 1", "method base, shots 1"),
        ("method new, shots 4", "method base, shots 1"),
    ]


def test_a_field_that_the_baseline_lacks_does_not_count():
    runs = RUNS.astype({"shots": object})
    runs.loc[runs["method"] == "base", "shots"] = None
    runs = runs[(runs["run"] != "r3") & (runs["run"] != "r2") & (runs["run"] != "r4")]
    assert pairs(runs, "base") == [
        ("method new, shots 1", "method base, shots None"),
        ("method new, shots 4", "method base, shots None"),
    ]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (RUNS[RUNS["run"] != "r3"], "method new, shots 4 has no baseline: .* method base, shots 4"),
        (RUNS[RUNS["run"] != "r4"], r"method new, shots 1 has the seeds \[1\] but .* has \[1, 2\]"),
        (
            RUNS.assign(status=RUNS["status"].where(RUNS["run"] != "r2", "failed")),
            r"has the seeds \[1, 2\] but .* has \[1\].* 1 of their runs failed",
        ),
        (RUNS[RUNS["method"] == "base"], "nothing to compare"),
    ],
)
def test_a_group_needs_a_baseline_with_its_seeds(runs, message):
    with pytest.raises(ValueError, match=message):
        pairs(runs, "base")


def test_a_group_that_failed_throughout_keeps_its_row():
    runs = RUNS.copy()
    runs.loc[runs["method"] == "new", "status"] = "failed"
    assert len(pairs(runs, "base")) == 2


def test_runs_of_one_seed_say_in_what_they_differ():
    with pytest.raises(ValueError, match="method base: 2 runs have seed 1; they differ in shots. Add"):
        run_groups(RUNS, ["method"], "accuracy", [])


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("bass", "unknown baseline 'bass' in the runs' method, shots; did you mean 'base'"),
        ({"method": "bass"}, "unknown method 'bass' in baseline; did you mean 'base'"),
        ({"methods": "base"}, "unknown field 'methods'.*did you mean 'method'"),
        ({"shots": "4"}, "unknown shots '4' in baseline"),
    ],
)
def test_an_unknown_baseline_is_told_the_choices(baseline, message):
    with pytest.raises(ValueError, match=message):
        pairs(RUNS, baseline)


def test_a_value_of_two_fields_must_name_its_own():
    runs = RUNS[RUNS["seed"] == 1].assign(depth=1)
    with pytest.raises(
        ValueError, match="baseline 1 is a value of shots and depth; write which, such as {'sh"
    ):
        pairs(runs, 1, [*BY, "depth"])


@pytest.mark.parametrize(
    ("runs", "by", "metric", "message"),
    [
        (RUNS, ["methods"], "accuracy", "unknown column 'methods' in the runs; did you mean 'method'"),
        (RUNS, BY, "acc", "unknown metric 'acc'.*Choices: 'accuracy'[.]"),
        (RUNS, "method", "accuracy", "give a list of fields"),
        (RUNS, [], "accuracy", "give a list of fields"),
        (RUNS.rename(columns={"shots": "p"}), ["p"], "accuracy", "column 'p' of its own"),
        (RUNS.drop(columns="seed"), BY, "accuracy", "unknown column 'seed'"),
        (RUNS[:0], BY, "accuracy", "there are no runs"),
    ],
)
def test_tables_that_do_not_fit_are_refused(runs, by, metric, message):
    with pytest.raises(ValueError, match=message):
        run_groups(runs, by, metric, reserved=["p"])
