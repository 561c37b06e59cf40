"""The project P: what students get hides the labels, and grading sees leakage and scores predictions."""

import os
from pathlib import Path

import pandas as pd
import project
import pytest
from grading import HERE

CARD = """---
name: lesions
title: Skin lesions of a clinic
modality: a dermoscopy image
templates: ["a dermoscopy image of {}."]
classes:
  - name: melanoma
    knowledge: {symptoms: [a blue-white veil, several different colors, a large diameter]}
  - name: nevus
    knowledge: {symptoms: [clear warm tones, one uniform color, a small diameter]}
source: {kind: folder, folder: ., group_pattern: "(p[0-9]+)", val_fraction: 0.2, test_fraction: 0.25}
---
"""
PATTERN = 'group_pattern: "(p[0-9]+)", '
FULL = {"card": 3, "protocol": 2, "predictions": 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return project.build_project(tmp_path_factory.mktemp("project"), seed=7)


@pytest.fixture(scope="module")
def key(built) -> pd.DataFrame:
    return pd.read_csv(built, dtype=str)


def predicted(key: pd.DataFrame, wrong: int = 5) -> pd.DataFrame:
    """Predictions as a student writes them, every `wrong`th of which is wrong."""
    hidden = key[key["part"] == "unlabelled"].sort_values("image").reset_index(drop=True)
    other = hidden["label"].map({"melanoma": "nevus", "nevus": "melanoma"})
    label = other.where(hidden.index % wrong == 0, hidden["label"])
    return pd.DataFrame({"id": hidden["image"], "predicted": label, "confidence": 0.9})


def hand_in(folder: Path, key: pd.DataFrame, **instead: str | None) -> Path:
    """Write a good submission, with other texts of some files (`card`, ...); None: without it."""
    texts = {
        "card": CARD,
        "predictions": predicted(key).to_csv(index=False),
        "results": "method,value,low,high\nViP,0.8,0.75,0.85\nZeroShot,0.7,0.6,0.8\n",
        "report": "word " * 800,
    } | instead
    folder.mkdir(parents=True, exist_ok=True)
    for name in project.FILES:
        if (text := texts[name.partition(".")[0]]) is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def grade(folder: Path, built: Path, key: pd.DataFrame) -> tuple[dict[str, int], dict[str, str]]:
    graded = project.grade_project(folder, key, built.parent / "P" / "labelled")
    tasks = graded["tasks"][:3]
    assert graded["points"] == sum(task["points"] for task in tasks)
    return {t["name"]: t["points"] for t in tasks}, {t["name"]: " ".join(t["lines"]) for t in tasks}


def test_what_students_get_holds_no_hidden_label_and_another_seed_draws_others(built, key):
    files = {p.relative_to(built.parent / "P").as_posix() for p in (built.parent / "P").rglob("*.*")}
    of_key = key["part"] + "/" + key["image"]
    assert files == {"P.md", *of_key} and len(of_key) == of_key.nunique()
    hidden = key[key["part"] == "unlabelled"]
    assert hidden["image"].str.fullmatch(r"\d{4}\.png").all()
    order = hidden.sort_values("image")["label"]
    assert 0.3 < (order == order.shift()).mean() < 0.7, "the numbers tell nothing of the class"
    assert not set(hidden["patient"]) & set(key.loc[key["part"] == "labelled", "patient"])
    labelled = key[key["part"] == "labelled"]
    assert labelled.groupby("lesion").size().eq(2).all()
    assert labelled.groupby("patient")["label"].nunique().max() == 2, "some patients have both kinds"
    assert not project.draw_patients(8)[0]["label"].equals(key["label"])


def test_an_honest_project_has_all_points_but_the_report_s(tmp_path, built, key):
    points, said = grade(hand_in(tmp_path / "ann", key), built, key)
    assert points == FULL, said
    assert "The interval 0.750 to 0.850 of results.csv holds it." in said["predictions"]
    wide = hand_in(tmp_path / "bob", key, results="method,low,high\nViP,0.9,0.95\n")
    assert "does not hold it" in grade(wide, built, key)[1]["predictions"]


@pytest.mark.parametrize("pattern", ["", 'group_pattern: "(p[0-9]+-[0-9]+)", '])
def test_leakage_by_patient_loses_the_protocol_s_points_and_no_others(tmp_path, built, key, pattern):
    card = CARD.replace(PATTERN, pattern)
    points, said = grade(hand_in(tmp_path, key, card=card), built, key)
    assert points == FULL | {"protocol": 0}
    assert "Leakage: " in said["protocol"] and " are in train and in test, such as p" in said["protocol"]


def test_small_splits_lose_the_protocol_s_points(tmp_path, built, key):
    card = CARD.replace("val_fraction: 0.2", "val_fraction: 0.02")
    points, said = grade(hand_in(tmp_path, key, card=card), built, key)
    assert points == FULL | {"protocol": 0} and "val holds" in said["protocol"]


WRONG_CARDS = {  # what is changed, and what the feedback says
    ("a blue-white veil", "no warm tones"): "no warm tones",
    ("a blue-white veil, several different colors, ", ""): "melanoma has 1 symptoms",
    ("name: nevus", "name: mole"): "mole",
    ("---\nname", "name"): "it must start with YAML",
    ("folder: .,", "folder: ..,"): "with folder: .",
    ("kind: folder, folder: .", "kind: phantom, world: derm"): "",
    ("(p[0-9]+)", "(q[0-9]+)"): "group_pattern",
    ("(p[0-9]+)", "((p+)+)+$"): "",
    ("title:", "titel:"): "titel",
}


@pytest.mark.parametrize("change", WRONG_CARDS)
def test_a_card_that_does_not_hold_what_was_asked_loses_its_points(tmp_path, built, key, change):
    assert change[0] in CARD
    points, said = grade(hand_in(tmp_path, key, card=CARD.replace(*change)), built, key)
    assert points["card"] == 0 and points["predictions"] == 2, said
    assert WRONG_CARDS[change] in said["card"] and str(tmp_path) not in said["card"]


def test_predictions_are_scored_by_the_hidden_labels(tmp_path, built, key):
    good = predicted(key)
    wrong = {
        "0.500": good.assign(predicted="nevus"),
        "give one for each": good[1:],
        f"its {len(good) + 1} rows hold {len(good)} of {len(good)}": pd.concat([good, good[:1]]),
        "'mole' is no class": good.replace("nevus", "mole"),
        "'' is no class": good.assign(predicted=good["predicted"].where(good.index > 0)),
        "needs the columns": good.rename(columns={"predicted": "class"}),
    }
    for says, table in wrong.items():
        folder = hand_in(tmp_path, key, predictions=table.to_csv(index=False))
        points, said = grade(folder, built, key)
        assert points == FULL | {"predictions": 0} and says in said["predictions"], (says, said)


def test_what_is_missing_or_no_file_of_text_is_said_and_a_page_is_written_for_all(tmp_path, built, key):
    hand_in(tmp_path / "in" / "ann", key)
    hand_in(tmp_path / "in" / "<b>", key, card=None, predictions=None, results=None)
    os.symlink(built, tmp_path / "in" / "<b>" / "predictions.csv")
    (tmp_path / "in" / "=cy").mkdir()
    (tmp_path / "in" / "=cy" / "card.md").write_bytes(b"\xff\x00" * 99)
    (tmp_path / "in" / "=cy" / "predictions.csv").write_bytes(b'"\x00' * 99)
    table = project.grade_projects(built, tmp_path / "in", tmp_path / "out").set_index("submission")
    assert table["points"].to_dict() == {"<b>": 0, "'=cy": 0, "ann": 7}
    page = (tmp_path / "out" / "feedback" / "<b>" / "P.html").read_text()
    assert "there is no file card.md" in page and "there is no file predictions.csv" in page
    assert "<p>&lt;b&gt;</p>" in page and "800 words" in page
    assert all(question.partition(":")[2][:20] in page for question in project.RUBRIC)
    graded = pd.read_csv(tmp_path / "out" / "grades.csv").set_index("submission")
    assert graded.loc["ann", ["card", "protocol", "predictions"]].tolist() == [3, 2, 2]
    with pytest.raises(ValueError, match=r"no folder with one of card\.md"):
        project.grade_projects(built, tmp_path / "out" / "feedback", tmp_path)


def test_a_card_that_takes_for_ever_is_stopped(tmp_path, built, key, monkeypatch):
    monkeypatch.setattr(project, "SECONDS", 0.01)
    points, said = grade(hand_in(tmp_path, key), built, key)
    assert points == FULL | {"card": 0, "protocol": 0} and "did not end within 0.01 s" in said["card"]


def test_the_text_and_the_teacher_s_table_say_what_is_graded():
    text = (HERE / "P.md").read_text("utf-8")
    assert "**Points:** 10 (card 3, protocol 2, predictions 2, report 3)" in text
    assert f"{project.BAR:.2f} or more" in text and all(f"`{name}`" in text for name in project.FILES)
    row = "| 600 | 10: card 3, protocol 2, predictions 2, report 3 |"
    teacher = (HERE.parent / "teacher.md").read_text("utf-8")
    assert row in teacher and teacher.count(f"medvlp-{project.medvlp.__version__}-py3-none-any.whl") == 2
