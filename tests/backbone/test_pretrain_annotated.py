"""Pre-training on described images: captions are true, names are never read, signs are learned."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss
from PIL import Image

import medvlp
from medvlp.backbone.appearance import Looks
from medvlp.backbone.clip import load_clip
from medvlp.backbone.pretrain import normalise, save_clip
from medvlp.backbone.pretrain_annotated import (
    AnnotatedConfig,
    Statements,
    drawn,
    pretrain_annotated,
    small_copies,
    true_pairs_loss,
)
from medvlp.data.phantoms.worlds import get_world

CARD = """---
name: squares
title: Squares on a ground
modality: a drawing
source: {kind: csv, file: table.csv}
classes:
  - {name: zorg, knowledge: {symptoms: [{text: a red thing, claims: {colour: red, there: "yes"}}]}}
  - {name: mupp, knowledge: {symptoms: [{text: a red or blue thing, claims: {colour: [red, blue]}}]}}
attributes:
  - {name: there, values: {"yes": [something is there, a square], "no": [nothing is there, an empty ground]}}
  - {name: colour, values: {red: red colour, blue: blue colour, nil: no colour}}
---
"""
STILL = Looks(scale=0.1, stain=0.05, hue=5.0, saturation=0.1, brightness=0.1, contrast=0.1, blur=0.2)
SHORT = AnnotatedConfig(steps=60, batch_size=32, warmup=10, seed=3, looks=STILL)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """90 images: a third each with a red, a blue and no square; some are not described."""
    folder, rows = tmp_path_factory.mktemp("squares"), ["path,label,there,colour"]
    draw = np.random.default_rng(0)
    for i in range(90):
        colour = ("red", "blue", "nil")[i % 3]
        pixels = draw.integers(90, 160, size=(64, 64, 3), dtype=np.uint8)
        if colour != "nil":
            pixels[16:48, 16:48] = (220, 30, 30) if colour == "red" else (30, 30, 220)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        noted = "," if i % 10 == 9 else f"{'no' if colour == 'nil' else 'yes'},{colour}"
        rows.append(f"{i}.png,{('zorg', 'mupp')[i % 2]},{noted}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    (folder / "card.md").write_text(CARD)
    return medvlp.load_dataset(folder / "card.md").train


@pytest.fixture(scope="module")
def trained(squares):
    return pretrain_annotated(squares, SHORT, progress=False)


def test_statements_are_true_of_their_images_and_name_no_class(squares):
    said, shown = Statements.of(squares), squares.attributes
    words = random.Random(0)
    assert set(said.phrases) == {
        *("something is there", "a square", "nothing is there", "an empty ground"),
        *("red colour", "blue colour", "no colour", "a red thing", "a red or blue thing"),
    }
    described = np.flatnonzero(shown["colour"].notna())
    for image in described.tolist() * 5:
        caption, made = said.caption(image, words)
        assert made and not {"zorg", "mupp"} & set(caption.split())
        attributes = [name for phrase in made for name in said.speaks_of[phrase]]
        assert len(attributes) == len(set(attributes)), "an attribute twice"
        colour = shown["colour"].iloc[image]
        for phrase in (said.phrases[phrase] for phrase in made):
            assert phrase in caption
            assert colour in phrase or colour == "nil" or not {"red", "blue"} & set(phrase.split()), caption
    unknown = said.values[np.flatnonzero(shown["colour"].isna())]
    assert (unknown == -1).all() and len(unknown)
    asked = said.ask(words)
    assert [len(of_attribute) for of_attribute in asked] == [2, 3]


def test_rare_values_weigh_more(squares):
    there, colour = Statements.of(squares).weights()
    assert there[1] > there[0] and there[0] / there[1] == pytest.approx(0.5**0.5, abs=0.1)
    assert len(colour) == 3


def test_with_one_true_pair_each_the_loss_is_open_clips():
    draws = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(2, 7, 5, generator=draws), dim=-1)).unbind()
    scale = torch.tensor(9.0)
    ours = true_pairs_loss(scale * images @ texts.T, torch.eye(7, dtype=torch.bool))
    assert ours.item() == pytest.approx(ClipLoss()(images, texts, scale).item(), abs=1e-6)


def test_the_loss_asks_for_every_true_pair():
    true = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert true_pairs_loss(30.0 * true, true).item() == pytest.approx(2 / 3 * np.log(2), abs=1e-5)
    assert true_pairs_loss(30.0 * torch.eye(3), true) > 5


@pytest.mark.slow
def test_it_learns_signs_that_it_reads_of(squares, trained):
    clip, history = trained
    assert history.columns.tolist() == ["step", "loss", "accuracy", "logit_scale"]
    assert history["loss"].tail(5).mean() < history["loss"].head(5).mean() - 0.5
    assert not any(p.requires_grad for p in clip.parameters())
    seen = squares.subset(squares.attributes["colour"].notna().to_numpy())
    features = clip.encode_images(torch.stack([clip.preprocess(seen.image(i)) for i in range(len(seen))]))
    best = (features @ clip.encode_texts(["red colour", "blue colour", "no colour"]).T).argmax(1)
    codes = torch.tensor(seen.attributes["colour"].cat.codes.to_numpy())
    assert (best == codes).float().mean() > 0.8


def test_the_same_seed_gives_the_same_weights(squares):
    few = replace(SHORT, steps=5, warmup=2)
    (one, history), (other, again) = (pretrain_annotated(squares, few, progress=False) for _ in range(2))
    assert history.equals(again)
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key]), key


def test_it_is_an_ordinary_open_clip_folder(squares, trained, tmp_path):
    save_clip(trained[0], tmp_path, {})
    loaded = load_clip(f"local-dir:{tmp_path}", device="cpu")
    texts = ["a red thing", "nothing is there"]
    assert torch.allclose(trained[0].encode_texts(texts), loaded.encode_texts(texts), atol=3e-3)


def test_copies_are_what_the_clip_reads(squares, trained):
    clip = trained[0]
    copies = small_copies(squares.subset([0, 1]), clip.image_size)
    mean, std = (torch.tensor(clip.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    read = torch.stack([clip.preprocess(squares.image(i)) for i in (0, 1)])
    assert torch.allclose((copies.float() / 255 - mean) / std, read, atol=0.03)


def test_statements_of_drawings_are_true_and_an_attribute_is_in_half_of_them():
    world = get_world("fundus")
    images, said = drawn(world, AnnotatedConfig(n_images=400, seed=2), number=2)
    assert images.shape == (400, 3, 64, 64) and images.dtype == torch.uint8
    shares = said.values.float().mean(dim=0)
    assert ((shares - 0.5).abs() < 0.1).all(), "whatever the classes show"
    words = random.Random(0)
    for image in range(50):
        caption, made = said.caption(image, words)
        for phrase in made:
            k, there = world.reading(said.phrases[phrase])
            assert said.phrases[phrase] in caption and said.values[image, k] == there
            assert said.speaks_of[phrase] == {world.attributes[k].name}
    assert not any(name in caption for name in world.classnames)


@pytest.mark.slow
def test_of_drawings_it_learns_what_it_is_asked():
    config = AnnotatedConfig(steps=60, batch_size=32, warmup=5, seed=1, n_images=300)
    clip, history = pretrain_annotated([get_world("derm")], config, progress=False)
    world = get_world("derm")
    latents = world.sample(200, seed=9)
    features = clip.encode_images(normalise(world.render(latents)))
    veil = clip.encode_texts(["unclouded", "milky blue haze"])
    assert ((features @ veil.T).argmax(1) == latents.attributes[:, 0]).float().mean() > 0.8
    assert history["accuracy"].tail(5).mean() > history["accuracy"].head(5).mean() + 0.05


def test_images_that_nobody_described_are_refused():
    images = medvlp.load_dataset("phantom-derm", num_shots=1).train
    with pytest.raises(ValueError, match="card 'phantom-derm' has no attributes"):
        pretrain_annotated(images, SHORT, progress=False)
