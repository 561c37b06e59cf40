"""The table of medical CLIPs in the documentation is that of the file of facts."""

import re

import yaml

from medvlp.backbone.sources import ASSETS


def row(model: dict) -> str:
    how = f"`{model['load']}`" if "why" not in model else f"{model['load']}: {model['why']}"
    cells = [model["name"], model["images"], model["format"], model["licence"], how, model["source"]]
    return f"| {' | '.join(cells)} |"


def test_the_page_has_a_row_for_each_model(repository):
    page = (repository / "notebooks" / "medical_clips.md").read_text(encoding="utf-8")
    models = yaml.safe_load((ASSETS / "medical_clips.yaml").read_text(encoding="utf-8"))
    rows = [line for line in page.splitlines() if re.match(r"\| (?!CLIP \||---)", line)]
    assert rows == [row(model) for model in models]
