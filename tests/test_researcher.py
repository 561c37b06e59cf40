"""The researcher's page runs, cell by cell, on a small folder that is made up."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

TEXT = (Path(__file__).parents[1] / "notebooks" / "researcher.md").read_text(encoding="utf-8")
CELLS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(CARD,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
COLOURS = {"benign": 90, "malignant": 150}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which the cells ran, and the names that they left."""
    folder, rng, names = tmp_path_factory.mktemp("researcher"), np.random.default_rng(0), {}

    def draw(path, grey):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(grey + rng.normal(0, 60, size=(32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)

    for site, n in (("hospital-a", 10), ("hospital-b", 5)):
        for number, (label, grey) in enumerate(COLOURS.items()):
            for image in range(2 * n):
                patient = f"patient{10 * number + image // 2:02d}"
                draw(folder / site / label / f"{patient}-{image % 2}.png", grey)
    draw(folder / "unlabelled" / "a.png", 120)
    (folder / "breast.md").write_text(CARD, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cell in CELLS:
            exec(compile(cell, "researcher.md", "exec"), names)
    return folder, names


def test_each_question_has_one_cell():
    assert len(CELLS) == len(re.findall("^## ", TEXT, re.MULTILINE)) == 6


def test_patients_are_whole_and_both_hospitals_have_intervals_over_them(ran):
    names = ran[1]
    data, reports = names["data"], names["reports"]
    groups = [set(images.groups) for images in data.splits.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and sum(map(len, groups)) == 20
    assert set(reports) == {"internal", "external"} and len(set(reports["external"].groups)) == 10
    assert reports["internal"].temperature == reports["external"].temperature != 1


def test_each_image_is_tested_once_and_the_folds_have_a_table(ran):
    report = ran[1]["probe_report"]
    assert len(report.per_image) == 40 and report.folds["test"].sum() == 40 and len(report.folds) == 5


def test_the_files_have_a_row_an_image(ran):
    folder, names = ran
    tested, predicted = (pd.read_csv(folder / name) for name in ("tested.csv", "predictions.csv"))
    assert tested["id"].tolist() == names["elsewhere"].test.ids
    assert predicted["id"].tolist() == ["a.png"]
    assert predicted[["P(benign)", "P(malignant)"]].sum(axis=1).round(6).tolist() == [1.0]
