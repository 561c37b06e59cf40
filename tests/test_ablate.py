"""`python -m medvlp ablate`: lists, refuses, runs, and runs nothing twice."""

import pandas as pd
import pytest

from medvlp.__main__ import main
from medvlp.study.ablation.papers import ABLATIONS
from medvlp.study.ablation.study import Study
from medvlp.study.ablation.tables import to_markdown, wide


def test_without_a_name_the_ablations_are_listed_with_their_questions(capsys):
    assert main(["ablate"]) == 0
    shown = capsys.readouterr().out
    for name, build in ABLATIONS.items():
        assert name in shown and build().question in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vip_part"], "unknown ablation 'vip_part'; did you mean 'vip_parts'"),
        (["vip_parts", "--metric", "acuracy"], "unknown metric 'acuracy'; did you mean 'accuracy'"),
        (["vip_parts", "-c", "epoch=1"], "unknown field 'epoch' in config; did you mean 'epochs'"),
        (["vip_parts", "-c", "epochs"], "-c epochs: it is given as NAME=VALUE"),
        (["vip_parts", "-c", "lr=x"], "lr is 'x'; give a number"),
        (["vip_parts", "--seeds", "-1"], "seed is -1; give a whole number from 0"),
        (["vip_parts", "--cards", "nope/x.md"], "nope/x.md"),
        (["vip_parts", "--shots", "few"], "'few' is not a whole number from 1"),
        (["vip_parts", "--cards", "phantom-dern"], "did you mean 'phantom-derm'"),
    ],
)
def test_wrong_arguments_end_with_a_sentence_before_any_run(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["ablate", *arguments, "--store", str(tmp_path / "runs")])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*.json"))


@pytest.mark.parametrize(
    ("option", "place", "message"),
    [
        ("--export", "file", "the store {}/file cannot be written"),
        ("--export", "file/new/store", "the store {}/file/new/store cannot be written"),
        ("--out", "file/table.csv", "the folder {}/file cannot be written"),
        ("--out", "", "{} is a folder; name a file for the table"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_any_run(option, place, message, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    command = ["ablate", "vip_parts", "--shots", "1", "--seeds", "1", "-c", "epochs=1"]
    command += ["--store", str(tmp_path / "runs"), option, str(tmp_path / place)]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2 and message.format(tmp_path) in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*.json"))


def test_one_command_runs_and_shows_and_the_next_runs_nothing(tmp_path, capsys, monkeypatch):
    command = ["ablate", "vip_aggregation", "--shots", "1", "--seeds", "1", "2", "-c", "epochs=1"]
    command += ["-c", "views=0", "-c", "lr=1e-3", "--store", str(tmp_path / "runs")]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "Does a learned merge" in first and "6 runs" in first and "p Holm" in first
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(records) == 6
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert records == {path: path.stat().st_mtime_ns for path in records}


def test_a_tuned_ablation_is_shown_written_and_exported_with_the_chosen_runs(tmp_path, capsys):
    command = ["ablate", "few_shot", "--shots", "1", "2", "--seeds", "1", "2", "-c", "epochs=1"]
    command += ["--store", str(tmp_path / "runs"), "--out", str(tmp_path / "table.csv")]
    assert main([*command, "--export", str(tmp_path / "chosen")]) == 0
    shown, table = capsys.readouterr().out, pd.read_csv(tmp_path / "table.csv")
    methods = ["ZeroShot", "Linear probe", "Tip-Adapter-F", "CLIP-Adapter", "CoOp", "ViP"]
    assert list(dict.fromkeys(table["method"])) == methods and set(table["shots"]) == {1, 2}
    assert (table["seeds"] == 2).all()
    for shots, part in table.groupby("shots"):
        assert f"shots {shots}: mean" in shown and to_markdown(wide(part, "method", "data")) in shown
    made, chosen = Study(tmp_path / "runs"), Study(tmp_path / "chosen")
    assert len(made) == 2 * (2 + 4 * 3 + 6) and len(chosen) == 24  # rates are tried with the first seed
    coop = made.runs[made.runs["method"].eq("CoOp") & made.runs["shots"].eq(2)]
    first = coop[coop["seed"] == 1]
    kept = set(chosen.runs["run"]) & set(coop["run"])
    best = first.loc[first["val loss"].idxmin(), "lr"]
    assert set(coop.loc[coop["run"].isin(kept), "lr"]) == {best} and len(kept) == 2
    found = chosen.summary(by=["method", "shots"])
    found = table[["method", "shots"]].merge(found)[[c for c in table.columns if c != "data"]]
    pd.testing.assert_frame_equal(found, table.drop(columns="data"), check_dtype=False, atol=1e-6)


def test_a_rate_that_is_given_is_not_chosen(tmp_path):
    command = ["ablate", "few_shot", "--shots", "1", "--seeds", "1", "-c", "epochs=1", "-c", "lr=0.01"]
    assert main([*command, "--store", str(tmp_path / "runs")]) == 0
    made = Study(tmp_path / "runs")
    assert len(made) == 6
    assert {record["inputs"]["config"]["lr"] for record in map(made.store.read, made.runs["run"])} == {0.01}
