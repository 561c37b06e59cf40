"""What the embedded CLIP must be: small, honest about what it read, and with something left to learn."""

import json
from dataclasses import asdict

import pytest

import medvlp
from medvlp.backbone.pretrain import PretrainConfig
from medvlp.data.phantoms.worlds import get_world

WORLDS = ("derm", "cxr", "fundus")
FRESH = 31  # a seed that no notebook and no pre-training uses


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


def test_is_small_and_has_its_card(repository):
    folder = repository / "medvlp" / "assets" / "tiny"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    recorded = json.loads((folder / "training.json").read_text(encoding="utf-8"))["config"]
    config = asdict(PretrainConfig(bf16=True))
    assert "--bf16 --out medvlp/assets/tiny" in card
    assert recorded == config | {"worlds": list(config["worlds"])}, "the card's command makes other weights"
    assert f"{config['steps']:,} steps of {config['batch_size']} pairs" in card
    assert f"{config['n_images']:,} drawn images" in card and f"{config['name_rate']:.4f}" in card


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
