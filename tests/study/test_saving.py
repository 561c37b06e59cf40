"""save and load: the same logits again, or an error that says what does not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import medvlp.study.saving as saving
from medvlp.backbone.clip import load_clip
from medvlp.data.cards import DataCard
from medvlp.methods.vip import ViP
from medvlp.study.evaluation import predict_logits
from medvlp.study.prediction import predict
from medvlp.study.saving import load, save
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.study.training.small_training import CARD, Prototypes, Tinted, small_clip


@pytest.fixture
def saved(clip, tmp_path):
    """A file with an untrained ViP."""
    save(ViP(clip, CARD), tmp_path / "vip.safetensors")
    return tmp_path / "vip.safetensors"


def facts_of(path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["facts"])


def changed_card(name: str = CARD.name) -> DataCard:
    card = CARD.model_dump(exclude={"path"}) | {"name": name, "licence": "CC0"}
    card["classes"][0]["knowledge"]["symptoms"][0]["text"] = "uneven shape"
    return DataCard.model_validate(card)


def test_the_clip_is_loaded_by_its_name(clip, sets, saved):
    loaded = load(saved, device="cpu", trust_clip=True)
    assert loaded.clip is not clip and loaded.clip.name == clip.name
    assert torch.equal(predict_logits(loaded, sets[1]), predict_logits(ViP(clip, CARD), sets[1]))


def test_trained_saved_loaded_and_asked_about_one_image(clip, sets, tmp_path):
    vip = ViP(clip, CARD)
    history = fit(vip, *sets, TrainConfig(epochs=2, batch_size=8, lr=0.02, views=1), progress=False)
    save(vip, tmp_path / "vip.safetensors", history)
    Image.fromarray(np.full((40, 50, 3), 90, dtype=np.uint8)).save(tmp_path / "lesion.png")
    loaded = load(tmp_path / "vip.safetensors", clip)
    one, other = (predict(method, tmp_path / "lesion.png") for method in (vip, loaded))
    assert not loaded.training
    assert one.probabilities.equals(other.probabilities) and one.symptom_scores.equals(other.symptom_scores)
    summary = facts_of(tmp_path / "vip.safetensors")["history"]
    best = history[history["best"]].iloc[0]
    assert summary["epochs"] == 2 and len(summary["best"]) == 1
    assert summary["best"][0]["val_loss"] == pytest.approx(best["val_loss"])


def test_the_file_holds_the_trained_tensors_and_what_they_belong_to(clip, saved):
    vip = ViP(clip, CARD)
    tensors, facts = load_file(saved), facts_of(saved)
    assert tensors.keys() == {name for name, p in vip.named_parameters() if p.requires_grad}
    assert tensors.keys() == {"ctx", "g", "Wq", "Wk"}
    assert saved.stat().st_size < sum(t.numel() for t in tensors.values()) * 4 + 8000  # and no frozen weight
    assert facts["method"] == "ViP" and facts["config"] == vip.config and facts["medvlp"]
    assert facts["clip"] == {"name": clip.name, "precision": "fp32", "fingerprint": clip.fingerprint}
    assert facts["card_hash"] == CARD.hash == DataCard.model_validate(facts["card"]).hash


def test_a_method_of_ones_own_is_loaded_by_its_class(clip, sets, tmp_path):
    save(Tinted(clip, CARD, seed=3), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="unknown method 'Tinted'.*pass method="):
        load(tmp_path / "own.safetensors", clip)
    with pytest.raises(ValueError, match="holds Tinted, not Prototypes"):
        load(tmp_path / "own.safetensors", clip, method=Prototypes)
    loaded = load(tmp_path / "own.safetensors", clip, method=Tinted)
    assert torch.equal(loaded.head.weight, Tinted(clip, CARD, seed=3).head.weight)


# what does not fit


def test_another_clip_is_refused_by_name(saved, clip, tmp_path):
    other = small_clip(tmp_path / "other", seed=9)
    with pytest.raises(
        ValueError, match="was trained on clip .*other weights, or other preprocessing"
    ) as error:
        load(saved, other)
    assert repr(clip.name) in str(error.value) and repr(other.name) in str(error.value)
    half = load_clip(clip.name, "cpu", "bf16")
    with pytest.raises(ValueError, match=r"in fp32 \(.*the one given is .* in bf16"):
        load(saved, half)


def test_a_clip_whose_name_now_means_another_is_refused(tmp_path):
    folder = tmp_path / "clip"
    save(ViP(small_clip(folder), CARD), tmp_path / "vip.safetensors")
    small_clip(folder, seed=9)
    with pytest.raises(ValueError, match="what loads by that name is now .*other weights"):
        load(tmp_path / "vip.safetensors", device="cpu", trust_clip=True)


def test_a_card_that_changed_is_refused_and_the_fields_named(saved, clip, monkeypatch):
    monkeypatch.setattr(saving, "list_cards", lambda: [CARD.name])
    monkeypatch.setattr(saving, "load_card", lambda name: changed_card())
    with pytest.raises(
        ValueError, match="the packaged card 'lesions' differs in classes, licence.*card='saved'"
    ):
        load(saved, clip)
    assert load(saved, clip, card="saved").card.hash == CARD.hash
    monkeypatch.setattr(saving, "load_card", lambda name: CARD)
    assert load(saved, clip).card is CARD
    with pytest.raises(ValueError, match="the card given 'mine' differs in name, classes, licence"):
        load(saved, clip, card=changed_card("mine"))
    with pytest.raises(ValueError, match="card must be a DataCard, 'saved' or None, got 'lesions'"):
        load(saved, clip, card="lesions")


def test_a_method_of_some_classes_of_a_card_is_loaded_with_them(clip, tmp_path, monkeypatch):
    some = CARD.with_classes([CARD.classnames[2], CARD.classnames[0]])
    method, path = ViP(clip, some), tmp_path / "some.safetensors"
    save(method, path)
    monkeypatch.setattr(saving, "list_cards", lambda: [CARD.name])
    monkeypatch.setattr(saving, "load_card", lambda name: CARD)
    again = load(path, clip)
    assert again.card == some and torch.equal(again.g, method.g)
    monkeypatch.setattr(saving, "load_card", lambda name: changed_card())
    with pytest.raises(ValueError, match="the packaged card 'lesions' differs in"):
        load(path, clip)


def rewrite(path, tensors, facts) -> None:
    """As another version, or a clumsy hand, would have written it."""
    saving.write_tensors(path, tensors, saving.KIND, facts)


def test_tensors_that_do_not_fit_are_named(saved, clip):
    tensors, facts = load_file(saved), facts_of(saved)
    rewrite(saved, {k: v for k, v in tensors.items() if k != "Wq"}, facts)
    with pytest.raises(ValueError, match="vip.safetensors lacks 'Wq', which ViP needs"):
        load(saved, clip)
    rewrite(saved, tensors | {"Wqq": tensors["Wq"]}, facts)
    with pytest.raises(ValueError, match="unknown tensor of ViP 'Wqq' in .*did you mean 'Wq'"):
        load(saved, clip)
    rewrite(saved, tensors, facts | {"config": facts["config"] | {"n_ctx": 2}})
    with pytest.raises(ValueError, match=r"'ctx' in .* is 4 x 48 \(float32\), but ViP here has 2 x 48"):
        load(saved, clip)
    rewrite(saved, tensors, facts | {"config": facts["config"] | {"n_context": 2}})
    with pytest.raises(ValueError, match="vip.safetensors does not fit this version's ViP: .*'n_context'"):
        load(saved, clip)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_named(saved, clip, damage):
    raw = bytearray(saved.read_bytes())
    if damage == "flipped":
        raw[-3] ^= 1
    saved.write_bytes({"cut": raw[:-100], "flipped": raw, "empty": b""}[damage])
    with pytest.raises(ValueError, match="vip.safetensors is damaged"):
        load(saved, clip)


def test_other_files_are_not_taken_for_methods(clip, sets, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*none.safetensors; expected a method"):
        load(tmp_path / "none.safetensors", clip)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a method saved by medvlp: it is a safetensors file of another"):
        load(tmp_path / "other.safetensors", clip)
    config = replace(TrainConfig(), epochs=1, views=1)
    fit(Prototypes(clip, CARD), *sets, config, checkpoint=tmp_path / "run.safetensors", progress=False)
    with pytest.raises(ValueError, match="not a method saved by medvlp: it is a medvlp checkpoint"):
        load(tmp_path / "run.safetensors", clip)


def test_a_config_that_is_not_json_is_refused_when_saving(clip, tmp_path):
    method = Prototypes(clip, CARD)
    method.config["start"] = torch.zeros(1)
    with pytest.raises(TypeError, match="config of Prototypes is not plain JSON.*Tensor"):
        save(method, tmp_path / "own.safetensors")
    assert not list(tmp_path.iterdir())
