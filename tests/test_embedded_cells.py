"""What the CLIP of real cells must be: small, honest, and able to read what experts noted."""

import json
from dataclasses import asdict

import pandas as pd
import pytest

import medvlp
from medvlp.backbone.pretrain_annotated import AnnotatedConfig
from medvlp.show import faithfulness, faithfulness_controls
from tests.benchmarks.measure_tiny_cells import NUMBER, number, tables


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "medvlp" / "assets" / "tiny-cells"


@pytest.fixture(scope="module")
def measured(folder):
    return json.loads((folder / "measured.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def clip():
    return medvlp.load_clip("tiny-cells", device="cpu")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The cells as a user has them who has no images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MEDVLP_DATA", raising=False)
        patch.chdir(tmp_path_factory.mktemp("empty"))
        return medvlp.load_dataset("wbcatt")


def test_is_small_and_its_card_tells_how_it_was_made(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    config = AnnotatedConfig(steps=4_500, bf16=True)
    assert record["config"] == asdict(config) and record["images"] == "wbcatt"
    assert f"{config.steps:,} steps of {config.batch_size} images" in card and "--steps 4500" in card


def test_the_card_shows_what_was_measured_of_these_weights(folder, measured, clip):
    assert measured["clip"] == clip.fingerprint
    card = (folder / "README.md").read_text(encoding="utf-8")
    for name, table in tables(measured).items():
        assert f"<!-- {name} -->\n{table}\n<!-- end of {name} -->" in card
    assert {name: value for _, name, value, _ in NUMBER.findall(card)} == {
        name: number(measured, name) for name in ("same", "changed")
    }


def test_without_a_folder_the_same_numbers_come_out(measured, clip, cells):
    for kind in ("symptoms", "no-granules", "classnames"):
        report = medvlp.evaluate(medvlp.ZeroShot(clip, cells.card, kind), cells.test, n_bootstrap=2)
        value = report.table().loc["balanced accuracy", "value"]
        assert value == pytest.approx(measured["test"][f"zero-shot, {kind}"]["value"], abs=1e-3)
    table = medvlp.attribute_accuracy(clip, cells.test, n_bootstrap=2)
    noted = pd.DataFrame(measured["attributes"]).T
    assert table["read"].tolist() == pytest.approx(noted["read"].tolist(), abs=2e-3)
    assert table["second"].tolist() == pytest.approx(noted["second"].tolist(), abs=1e-6)


def test_it_reads_cells_by_symptoms_and_not_by_names(measured):
    test = {name: row["value"] for name, row in measured["test"].items()}
    assert test["zero-shot, symptoms"] >= 0.96 and test["linear probe"] >= 0.975
    assert test["zero-shot, classnames"] < test["zero-shot, symptoms"] - 0.5
    assert measured["test in changed looks"] >= 0.85
    read = pd.DataFrame(measured["attributes"]).T
    assert (read["low"] > read["chance"] + 0.1).all()
    assert read["read"].mean() >= 0.88 and read.loc["nucleus shape", "read"] >= 0.62


def test_its_explanations_are_true_within_cell_types_and_nonsense_is_not(clip, cells):
    zero = medvlp.ZeroShot(clip, cells.card)
    table = faithfulness(zero, cells.test, n_images=None, n_bootstrap=100)
    best = table.sort_values("within").groupby("attribute").last()
    assert (best["within low"] > 0.5).sum() >= 9  # whether there are granules hardly varies within a type
    assert (best["within"] > 0.8).sum() >= 6 and (table["AUROC"] > 0.7).all()
    controls = faithfulness_controls(zero, cells.test, n_draws=3, n_images=1000, n_bootstrap=20)
    assert abs(controls.loc["gibberish", "within"] - 0.5) < 0.1
    assert controls.loc["symptoms", "within low"] > controls.loc["gibberish", "within"] + 0.1
