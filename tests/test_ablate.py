"""`python -m medvlp ablate`: lists, refuses, runs, and runs nothing twice."""

import pytest

from medvlp.__main__ import main
from medvlp.study.papers import ABLATIONS


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
