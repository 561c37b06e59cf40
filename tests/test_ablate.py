"""The command line: `cards` lists; `ablate` lists, refuses, runs, and runs nothing twice."""

import re
import shlex

import pandas as pd
import pytest
from PIL import Image
from typer.main import get_command

from medvlp.__main__ import SEVERAL, app, main, parse_setting, repeated
from medvlp.data.cards import list_cards, load_card
from medvlp.knowledge.representations import shipped_folder
from medvlp.study.ablation.papers import ABLATIONS
from medvlp.study.ablation.store import RunStore
from medvlp.study.ablation.study import Study
from medvlp.study.ablation.tables import to_markdown, wide

STATES = shipped_folder() / "phantom-derm.safetensors"


def medvlp(*arguments) -> int:
    """Run a command; its exit status."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def ablate(name, store, *more, num_shots=(1,)) -> int:
    """Run an ablation with one epoch; its exit status."""
    few = ["--num-shots", *num_shots, "-c", "epochs=1"]
    return medvlp("ablate", name, *few, "--store", store, *more)


def test_an_option_may_have_several_values_and_settings_are_yaml():
    words = ["ablate", "--seeds", "-1", "2", "--cards", "a", "x", "-c", "lr=1"]
    expected = ["ablate", "--seeds", "-1", "--seeds", "2", "--cards", "a", "--cards", "x", "-c", "lr=1"]
    assert repeated(words, ["--seeds", "--cards"]) == expected
    assert repeated(["--seeds"], ["--seeds"]) == ["--seeds"]
    assert parse_setting("names=[a, 2]", "-p") == ("names", ["a", 2])
    assert parse_setting("root=a=b", "-p") == ("root", "a=b")


def test_the_readmes_commands_can_be_given_on_slurm_too(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"python -m medvlp ablate (\w[^`\"\n]*)", text)
    assert len(shown) >= 4 and re.search(r'^sbatch --array.* --wrap "python -m medvlp ablate \w', text, re.M)
    for command in shown:
        words = repeated(shlex.split(command), SEVERAL)
        context = get_command(app).commands["ablate"].make_context("ablate", words)
        assert context.params["name"] in ABLATIONS, command


def test_cards_are_listed_and_a_misspelt_command_has_a_suggestion(capsys):
    assert medvlp("cards") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == list_cards()
    for line, card in zip(shown, map(load_card, list_cards()), strict=True):
        assert line.split()[1] == str(card.images) and card.licence in line and card.title in line
    assert medvlp("card") == 2
    assert "'cards'" in capsys.readouterr().err


def test_without_a_name_the_ablations_are_listed_with_their_questions(capsys):
    assert medvlp("ablate") == 0
    shown = capsys.readouterr().out
    for name, ablation in ABLATIONS.items():
        assert name in shown and ablation.question in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vip_part"], "unknown ablation 'vip_part'; did you mean 'vip_parts'"),
        (["vip_parts", "--metric", "acuracy"], "unknown metric 'acuracy'; did you mean 'accuracy'"),
        (["vip_parts", "-c", "epoch=1"], "unknown field 'epoch' in TrainConfig; did you mean 'epochs'"),
        (["vip_parts", "-c", "epochs"], "-c epochs: it is given as NAME=VALUE"),
        (["vip_parts", "-c", "lr=x"], "lr is 'x'; it should be a valid number"),
        (["vip_parts", "--seeds", "-1"], "seed is -1; it should be greater than or equal to 0"),
        (["vip_parts", "--cards", "nope/x.md"], "nope/x.md"),
        (["vip_parts", "--num-shots", "few"], "num_shots is 'few'; it should be a valid integer or 'all'"),
        (["vip_parts", "--cards", "phantom-dern"], "did you mean 'phantom-derm'"),
        (["vip_parts", "--clip", "tinny"], "tinny"),
        (["vip_parts", "--cards", "pneumonia", "--root", "no/where"], "/no/where"),
        (["cilmp_rank", "--representations", "no.safetensors"], "no.safetensors"),
        (["cilmp_rank", "--representations", STATES, STATES], "'phantom-derm' has representations already"),
        (["cilmp_rank", "--cards", "phantom-cxr", "--representations", STATES], "classes melanoma, nevus"),
    ],
)
def test_wrong_arguments_end_with_a_sentence_before_any_run(arguments, message, capsys, tmp_path):
    assert medvlp("ablate", *arguments, "--store", tmp_path / "runs") == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*.json"))


@pytest.mark.parametrize(
    ("option", "place", "message"),
    [
        ("--export", "file", "the store {}/file cannot be written"),
        ("--export", "file/new/store", "the store {}/file/new/store cannot be written"),
        ("--out", "file/table.csv", "{}/file/table.csv cannot be written: "),
        ("--out", "", "{} is a folder; give the name of a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_any_run(option, place, message, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert ablate("vip_parts", tmp_path / "runs", "--seeds", 1, option, tmp_path / place) == 2
    assert message.format(tmp_path) in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*.json"))


def test_one_command_runs_and_shows_and_the_next_runs_nothing(tmp_path, capsys):
    command = ["vip_aggregation", tmp_path / "runs", "--seeds", 1, 2, "-c", "views=0", "-c", "lr=1e-3"]
    assert ablate(*command) == 0
    first = capsys.readouterr().out
    assert "Does a learned merge" in first and "6 runs" in first and "p Holm" in first
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.json")}
    assert len(records) == 6
    assert ablate(*command) == 0
    assert capsys.readouterr().out == first
    assert records == {path: path.stat().st_mtime_ns for path in records}


def test_a_tuned_ablation_is_shown_written_and_exported_with_the_chosen_runs(tmp_path, capsys):
    where = ["--out", tmp_path / "table.csv", "--export", tmp_path / "chosen"]
    assert ablate("few_shot", tmp_path / "runs", "--seeds", 1, 2, *where, num_shots=(1, 2)) == 0
    shown, table = capsys.readouterr().out, pd.read_csv(tmp_path / "table.csv")
    methods = ["ZeroShot", "Linear probe", "CLAP", "Tip-Adapter-F", "CoOp", "ViP"]
    assert list(dict.fromkeys(table["method"])) == methods and set(table["num_shots"]) == {1, 2}
    assert (table["seeds"] == 2).all()
    for shots, part in table.groupby("num_shots"):
        assert f"shots {shots}: mean" in shown and to_markdown(wide(part, "method", "data")) in shown
    study, chosen = Study(tmp_path / "runs"), Study(tmp_path / "chosen")
    assert len(study) == 2 * (2 + 4 * 3 + 6) and len(chosen) == 24  # rates are tried with the first seed
    coop = study.runs[study.runs["method"].eq("CoOp") & study.runs["num_shots"].eq(2)]
    first = coop[coop["seed"] == 1]
    kept = set(chosen.runs["run"]) & set(coop["run"])
    best = first.loc[first["val loss"].idxmin(), "lr"]
    assert set(coop.loc[coop["run"].isin(kept), "lr"]) == {best} and len(kept) == 2
    table = table.drop(columns="data")
    again = table[["method", "num_shots"]].merge(chosen.summary(by=["method", "num_shots"]))[table.columns]
    pd.testing.assert_frame_equal(again, table, check_dtype=False, atol=1e-6)


def test_a_rate_that_is_given_is_not_chosen(tmp_path):
    assert ablate("few_shot", tmp_path / "runs", "--seeds", 1, "-c", "lr=0.01") == 0
    study = Study(tmp_path / "runs")
    assert len(study) == 6
    assert {record["inputs"]["config"]["lr"] for record in map(study.store.read, study.runs["run"])} == {0.01}


def test_a_folder_of_ones_own_takes_root_clip_and_representations_and_without_these_no_run_starts(
    tmp_path, capsys
):
    head, facts = load_card("phantom-derm").path.read_text().split("\nsource:\n")
    (tmp_path / "own.md").write_text(
        head.replace("name: phantom-derm", "name: own", 1) + "\nsource: {kind: folder}\n---\n"
    )
    for i, part in enumerate(("train", "val", "test")):
        for j, name in enumerate(("melanoma", "nevus")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (32, 32), (80 * i, 200 * j, 90 * k)).save(folder / f"{k}.png")
    options = ["--cards", tmp_path / "own.md", "--root", tmp_path / "images", "--clip", "tiny-cells"]
    store = tmp_path / "runs"
    assert ablate("base_to_new", store, *options, "--seeds", 1) == 2  # two classes alone
    assert ablate("cilmp_averaging", store, *options, "--seeds", 1) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "CILMP on own: unknown card 'own' in the shipped LLM representations" in message
    assert "llm_representations(card, ...) and give them as `representations`. No run was" in message
    assert not list(store.glob("*.json"))
    assert ablate("cilmp_averaging", store, *options, "--seeds", 1, "--representations", STATES) == 0
    runs = Study(store).runs
    assert runs["status"].tolist() == ["done"] * 2
    records = [RunStore(store).read(run) for run in runs["run"]]
    assert {record["settings"]["clip"] for record in records} == {"tiny-cells"}
    assert {record["settings"]["method.representations"] for record in records} == {"given"}
