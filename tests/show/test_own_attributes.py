"""Somebody's own table with three attributes: a card of twenty lines, and two cells."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

import medvlp
from medvlp.show import failures, faithfulness

PAIRS = ("disc", "box"), ("red", "blue"), ("big", "small")
CARD = """---
name: shapes
title: Shapes that somebody described
modality: a drawing
classes:
  - name: disc
    knowledge:
      symptoms: [{text: a round edge, claims: {edge: round}}, {text: a red shape, claims: {colour: red}}]
  - name: box
    knowledge:
      symptoms: [{text: straight sides, claims: {edge: straight}}, {text: a big shape, claims: {size: big}}]
attributes:
  - {name: edge, values: {round: [a round edge, a curved edge], straight: [straight sides, four corners]}}
  - {name: colour, values: {red: [a red shape, red], blue: [a blue shape, blue]}}
  - {name: size, column: how big, values: {big: [a big shape], small: [a small shape]}}
source: {kind: csv, file: table.csv, columns: {path: image, label: is}}
---
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    draw, rows = np.random.default_rng(1), ["image,is,edge,colour,how big"]
    for i in range(60):
        shape, colour, size = (draw.choice(pair) for pair in PAIRS)
        image, side = Image.new("RGB", (64, 64), "white"), 22 if size == "big" else 10
        pen = ImageDraw.Draw(image)
        corners = (32 - side, 32 - side, 32 + side, 32 + side)
        (pen.ellipse if shape == "disc" else pen.rectangle)(corners, colour)
        image.save(folder / f"{i}.png")
        rows.append(f"{i}.png,{shape},{'round' if shape == 'disc' else 'straight'},{colour},{size}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    (folder / "card.md").write_text(CARD)
    return folder


def test_attributes_truth_and_gallery_in_two_cells(folder):
    assert len(CARD.splitlines()) <= 20
    data = medvlp.load_dataset(folder / "card.md")
    zero = medvlp.ZeroShot(medvlp.load_clip("tiny", device="cpu"), data.card)
    truth = faithfulness(zero, data.test, n_bootstrap=20)

    page = failures(zero, data.test, data.train).to_html(folder / "failures.html")

    shown = data.test.attributes
    assert list(shown) == ["edge", "colour", "size"] and shown.notna().all(axis=None)
    assert truth["attribute"].tolist() == ["edge", "colour", "edge", "size"]
    red = truth.set_index("symptom").loc["a red shape"]
    assert red["true"] == pytest.approx((shown["colour"] == "red").mean()) and 0 <= red["AUROC"] <= 1
    wrong = failures(zero, data.test).table["image"]
    text = page.read_text(encoding="utf-8")
    for i in wrong:
        noted = ", ".join(f"{name}: {value}" for name, value in shown.iloc[i].items())
        assert noted in text, "what was noted stands beside the failure"
    assert len(wrong)
