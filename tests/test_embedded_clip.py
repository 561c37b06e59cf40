"""What the embedded CLIP must be: small, honest about what it read, and with something left to learn."""

import json
from dataclasses import asdict

import pytest

import medvlp
from medvlp.backbone.pretrain_annotated import AnnotatedConfig
from medvlp.data.phantoms.worlds import get_world
from medvlp.show import counterfactual, counterfactual_summary
from tests.benchmarks.measure_tiny import FRESH, WORLDS, tables


@pytest.fixture(scope="module")
def clip():
    return medvlp.load_clip("tiny", device="cpu")


@pytest.fixture(scope="module")
def accuracy(clip):
    """By world and method, on images drawn from a fresh seed."""
    rows = {}
    for name in WORLDS:
        data = medvlp.load_dataset(f"phantom-{name}", seed=FRESH)
        methods = {k: medvlp.ZeroShot(clip, data.card, k) for k in ("classnames", "symptoms")}
        methods["probe"] = medvlp.LinearProbe(clip, data.card)
        medvlp.fit(methods["probe"], data.train, data.val)
        for key, method in methods.items():
            report = medvlp.evaluate(method, data.test, n_bootstrap=200)
            rows[name, key] = report.table().loc["accuracy"]
    return rows


def test_is_small_and_its_card_tells_how_it_was_made_and_what_it_knows(repository, clip):
    folder = repository / "medvlp" / "assets" / "tiny"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    config = AnnotatedConfig(bf16=True)
    assert record["config"] == asdict(config) and record["images"] == list(WORLDS)
    assert (
        f"{config.steps:,} steps of {config.batch_size} images" in card
        and f"{config.n_images:,} drawn" in card
    )
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    assert measured["clip"] == clip.fingerprint
    for name, table in tables(measured).items():
        assert f"<!-- {name} -->\n{table}\n<!-- end of {name} -->" in card


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_it_sees_what_it_is_asked(clip, world):
    images = medvlp.load_dataset(f"phantom-{world}", seed=FRESH).test
    read = medvlp.attribute_accuracy(clip, images, n_bootstrap=2)["read"]
    assert (read >= 0.9).all(), read[read < 0.9]


@pytest.mark.parametrize("world", ["derm", "cxr"])
def test_the_right_symptom_moves_when_an_attribute_is_turned_round(clip, world):
    data = medvlp.load_dataset(f"phantom-{world}", seed=FRESH)
    turned = counterfactual(medvlp.ZeroShot(clip, data.card), data.test, n_images=100)
    assert counterfactual_summary(turned, n_bootstrap=2).loc["all", "more"] >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("world", ["derm", "cxr"])
def test_its_features_hold_nearly_all_that_can_be_known(accuracy, world):
    assert accuracy[world, "probe"]["value"] > get_world(world).bayes_accuracy() - 0.05


@pytest.mark.parametrize("world", WORLDS)
def test_symptoms_are_well_above_chance(accuracy, world):
    chance = 1 / len(get_world(world).classnames)
    assert accuracy[world, "symptoms"]["low"] > chance + 0.1


def test_on_two_worlds_there_is_something_to_learn(accuracy):
    room = [accuracy[world, "probe"]["value"] - accuracy[world, "symptoms"]["value"] for world in WORLDS]
    assert sorted(room)[1] >= 0.05, room


@pytest.mark.parametrize("world", WORLDS)
def test_names_are_weaker_than_symptoms(accuracy, world):
    assert accuracy[world, "classnames"]["value"] < accuracy[world, "symptoms"]["value"] - 0.05


def test_every_packaged_symptom_fits_its_text_tower(clip):
    for name in medvlp.list_cards():
        card = medvlp.load_card(name)
        for phrases in card.symptoms().values():
            assert clip.tokenize([phrase + "." for phrase in phrases]).shape[1] <= clip.context_length - 4
