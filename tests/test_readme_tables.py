"""The README's tables are those of the committed numbers, and these are of every method of the package."""

from importlib import resources
from pathlib import Path

import pandas as pd
import pytest

from medvlp.methods import METHODS
from medvlp.study.ablation.papers import TRAINED
from medvlp.study.ablation.tables import to_markdown, wide

ASSETS = resources.files("medvlp") / "assets"
TABLE = pd.concat(
    [pd.read_csv(str(ASSETS / name)) for name in ("family.csv", "family_cells.csv")], ignore_index=True
)
TABLE["num_shots"] = TABLE["num_shots"].astype(str)
CHANCE = {"phantom-derm": 0.5, "wbcatt": 0.2}


@pytest.mark.parametrize("num_shots", ["16", "all"])
def test_the_readme_shows_the_table_of_the_family(num_shots, repository: Path):
    part = TABLE[TABLE["num_shots"] == num_shots]
    assert to_markdown(wide(part, "method", "data")) in (repository / "README.md").read_text("utf-8")


def test_the_table_has_every_method_on_every_card_with_three_seeds():
    names = {method for method, _ in TRAINED.values()} | {"ZeroShot", "TipAdapter", "LinearProbe"}
    assert names == set(METHODS) - {"LPPlusPlus", "SSText"}  # of the ablation "realistic"
    assert set(TRAINED) < set(TABLE["method"]) and TABLE["method"].nunique() == len(TRAINED) + 5
    shots = TABLE.groupby(["data", "num_shots"]).size().to_dict()
    assert shots == {(card, num_shots): 20 for card in CHANCE for num_shots in ("16", "all")}
    assert (TABLE["seeds"] == 3).all() and (TABLE["failed"] == 0).all()


def test_each_mean_lies_in_its_interval_and_learning_helps():
    assert (TABLE["images low"] <= TABLE["mean"]).all() and (TABLE["mean"] <= TABLE["images high"]).all()
    for card, level in CHANCE.items():
        part = TABLE[(TABLE["data"] == card) & (TABLE["num_shots"] == "all")].set_index("method")
        learned = part.loc[part.index.isin(TRAINED), "images low"]
        assert (learned > level).mean() > 0.8, f"methods at chance on {card}"
        assert part.loc["Linear probe", "mean"] > part.loc["ZeroShot, classnames", "mean"]


def test_what_the_readme_says_of_few_images_and_nothing_to_choose_by(repository: Path):
    rows = pd.concat([pd.read_csv(str(ASSETS / name)) for name in ("realistic.csv", "realistic_cells.csv")])
    assert (rows["seeds"] == 3).all() and (rows["failed"] == 0).all()

    def told(card: str, scenario: str, num_shots: int, words: str) -> tuple[int, int, int]:
        """How many learners lie below and above zero-shot by these words, and how many there are."""
        drawn = (rows["data"] == card) & (rows["scenario"] == scenario) & (rows["num_shots"] == num_shots)
        part = rows[drawn].set_index("method")
        learned = part[~part.index.str.startswith("ZeroShot")]
        below = learned["images high"] < part.loc[words, "images low"]
        return below.sum(), (learned["images low"] > part.loc[words, "images high"]).sum(), len(learned)

    assert told("pneumonia", "realistic", 16, "ZeroShot") == (6, 0, 11)
    assert told("wbcatt", "realistic", 4, "ZeroShot, symptoms") == (9, 0, 11)
    assert told("pneumonia", "standard", 16, "ZeroShot")[0] == 1
    assert told("wbcatt", "standard", 16, "ZeroShot, symptoms")[0] == 2
    text = (repository / "README.md").read_text("utf-8")
    assert "Of 11, 6 are clearly below" in text and "9 below zero-shot by symptoms" in text
    assert "none is above" in text and "it is 1 and 2" in text
