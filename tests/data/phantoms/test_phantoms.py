import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medvlp.data.cards import load_card
from medvlp.data.datasets import load_dataset
from medvlp.data.phantoms.drawing import DRAWING
from medvlp.data.phantoms.worlds import DRAWINGS, get_world

GOLDEN = Path(__file__).parents[2] / "golden"
WORLDS = [get_world(name) for name in DRAWINGS]
by_name = pytest.mark.parametrize("world", WORLDS, ids=list(DRAWINGS))


@by_name
def test_classes_are_the_cards(world):
    assert list(world.classnames) == load_card(f"phantom-{world.name}").classnames


@by_name
def test_samples_follow_the_stated_probabilities(world):
    latents = world.sample(20_000, seed=5)
    for c in range(len(world.classnames)):
        of_class = latents.attributes[latents.labels == c].double()
        error = (of_class.mean(dim=0) - world.probability[c]).abs()  # (K,)
        assert error.max() < 4 * 0.5 / len(of_class) ** 0.5
        assert len(of_class) > 0.9 * len(latents) / len(world.classnames)


@by_name
def test_an_image_does_not_depend_on_its_neighbours(world):
    latents = world.sample(70, seed=3)  # more than one chunk
    together = world.render(latents, 32)
    assert torch.equal(world.render(latents[65:68], 32), together[65:68])
    assert together.float().flatten(1).std(dim=0).mean() > 5  # and images differ


@by_name
def test_a_flipped_attribute_changes_its_part_only(world):
    latents = world.sample(24, seed=8)
    for k, attribute in enumerate(world.attributes):
        off = world.render(latents.with_attribute(k, False), 64).float()
        on = world.render(latents.with_attribute(k, True), 64).float()
        changed = (on - off).abs().amax(dim=1) > 12  # (n, 64, 64)
        share = changed.float().mean(dim=(1, 2))  # (n,)
        assert (share > 0).float().mean() > 0.95, f"{attribute.name} cannot be seen"
        if attribute.name != "pigment":  # which tints the whole retina
            assert share.mean() < 0.45, f"{attribute.name} changes everything"


@by_name
def test_a_flip_changes_one_attribute_and_twice_is_the_same_image(world):
    latents = world.sample(6, seed=4)
    for k, attribute in enumerate(world.attributes):
        flipped = latents.flip(k)
        differs = (flipped.attributes != latents.attributes).all(dim=0)  # (K,)
        assert differs.nonzero().flatten().tolist() == [k]
        assert torch.equal(flipped.labels, latents.labels) and torch.equal(flipped.seeds, latents.seeds)
        assert not torch.equal(world.render(flipped, 64), world.render(latents, 64)), attribute.name
        assert torch.equal(world.render(flipped.flip(k), 32), world.render(latents, 32))


@by_name
def test_the_same_picture_at_any_size(world):
    latents = world.sample(4, seed=2)
    small = world.render(latents, 64).float()
    large = torch.nn.functional.avg_pool2d(world.render(latents, 192).float(), 3)
    correlation = torch.corrcoef(torch.stack([small.flatten(), large.flatten()]))[0, 1]
    assert correlation > 0.97


def test_bayes_accuracy_is_what_the_posterior_reaches():
    for world in WORLDS:
        latents = world.sample(40_000, seed=9)
        posterior = world.posterior(latents.attributes)
        assert torch.allclose(posterior.sum(dim=1), torch.ones(40_000, dtype=torch.float64))
        reached = (posterior.argmax(dim=1) == latents.labels).double().mean().item()
        assert reached == pytest.approx(world.bayes_accuracy(), abs=0.01)


def test_bayes_accuracy_by_hand():
    """With its four telling attributes alone, derm can be summed on paper."""
    world = get_world("derm")
    p = world.probability[:, [world.index(name) for name in ("veil", "colors", "large", "scar")]]
    by_hand = 0.0
    for shown in itertools.product((True, False), repeat=4):
        likelihood = torch.where(torch.tensor(shown), p, 1 - p).prod(dim=1)  # (n_cls,)
        by_hand += likelihood.max().item() / 2
    assert by_hand < world.bayes_accuracy() < by_hand + 0.02


@pytest.mark.parametrize("name", ["derm", "cxr"])
def test_no_single_sign_does_what_the_best_rule_does(name):
    world = get_world(name)
    present = world.probability  # (n_cls, K)
    alone = (torch.maximum(present[0], present[1]) + 1 - torch.minimum(present[0], present[1])) / 2
    assert alone.max() < world.bayes_accuracy() - 0.05
    assert (present[0] > present[1]).any() and (present[0] < present[1]).any(), (
        "one listed sign points the other way"
    )


def test_the_bayes_rule_is_the_posterior():
    for world in WORLDS:
        weights, bias = world.bayes_rule()
        attributes = world.sample(50, seed=4).attributes
        by_rule = (attributes.double() @ weights + bias).softmax(dim=1)
        torch.testing.assert_close(by_rule, world.posterior(attributes))
        assert world.rule_accuracy(weights, bias) == pytest.approx(world.bayes_accuracy())


@by_name
def test_a_shifted_world_trades_probabilities_and_nothing_else(world):
    shifted = get_world(f"{world.name}-shifted")
    for part in ("classnames", "openings", "draw"):
        assert getattr(shifted, part) == getattr(world, part)
    before, after = ({a.name: a.probability for a in w.attributes} for w in (world, shifted))
    assert sorted(before.values()) == sorted(after.values()) and list(before) == list(after)
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) == 4
    said_after, said_before = ([(a.present, a.absent) for a in w.attributes] for w in (shifted, world))
    assert said_after == said_before


@by_name
def test_a_shift_leaves_the_task_as_hard_and_what_is_known_as_right(world):
    """What was learned is worth less than what is known there, although both worlds are equally hard."""
    shifted, symptoms = get_world(f"{world.name}-shifted"), load_card(f"phantom-{world.name}").symptoms()
    assert shifted.bayes_accuracy() == pytest.approx(world.bayes_accuracy())
    assert shifted.plain_accuracy(symptoms) == pytest.approx(world.plain_accuracy(symptoms))
    learned = shifted.rule_accuracy(*world.bayes_rule())
    assert learned < shifted.plain_accuracy(symptoms) - 0.05 and learned < world.bayes_accuracy() - 0.2


@by_name
def test_the_shifted_card_tells_the_exact_figures(world):
    shifted, card = get_world(f"{world.name}-shifted"), load_card(f"phantom-{world.name}-shifted")
    learned, plain = shifted.rule_accuracy(*world.bayes_rule()), shifted.plain_accuracy(card.symptoms())
    best = f"{world.bayes_accuracy():.3f}"
    assert f"| the best of each world | {best} | {best} |" in card.prose
    assert f"| the best rule of phantom-{world.name} | {best} | {learned:.3f} |" in card.prose
    assert f"| the plain mean over the symptoms | {plain:.3f} | {plain:.3f} |" in card.prose


@by_name
def test_images_of_a_shifted_world_come_in_pairs_with_those_of_its_world(world):
    one, other = (load_dataset(f"phantom-{name}").test for name in (world.name, f"{world.name}-shifted"))
    assert torch.equal(one.labels, other.labels) and torch.equal(one.latents.seeds, other.latents.seeds)
    shown, shown_there = one.latents.attributes, other.latents.attributes  # (N, K) each
    same = (shown == shown_there).all(dim=1)  # (N,)
    assert 0.05 < same.float().mean() < 0.95
    traded = (shown != shown_there).any(dim=0)  # (K,)
    assert traded.sum() == 4
    for i in (int(same.nonzero()[0]), int((~same).nonzero()[0])):
        assert (one[i][0].tobytes() == other[i][0].tobytes()) == bool(same[i])
    assert not set(one.ids) & set(other.ids)


def test_a_trade_is_between_attributes_that_are_there():
    derm = get_world("derm")
    assert derm.traded("same", []).attributes == derm.attributes
    assert derm.traded("back", [("veil", "border"), ("border", "veil")]).attributes == derm.attributes
    with pytest.raises(ValueError, match="unknown attribute 'vail' in the derm world; did you mean 'veil'"):
        derm.traded("mine", [("vail", "border")])


def test_weights_can_beat_the_plain_mean_of_symptoms():
    for world in WORLDS:
        symptoms = load_card(f"phantom-{world.name}").symptoms()
        assert world.plain_accuracy(symptoms) < world.bayes_accuracy() - 0.1
    derm = get_world("derm")
    one_telling = {"melanoma": ["a blue-white veil"], "nevus": ["clear warm tones"]}
    assert derm.plain_accuracy(one_telling) == pytest.approx((0.80 + 0.75) / 2)


def test_data_sets_share_no_image_with_pretraining():
    from medvlp.backbone.pretrain import corpus_latents
    from medvlp.backbone.pretrain_annotated import AnnotatedConfig

    config = AnnotatedConfig()
    for number, name in enumerate(DRAWINGS):
        seen = set(corpus_latents(get_world(name), config, number).seeds.tolist())
        assert len(seen) == config.n_images
        for seed in (1, 2, 3):
            data = load_dataset(f"phantom-{name}", seed=seed)
            for part in (data.train, data.val, data.test):
                assert not seen & set(part.latents.seeds.tolist())


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match=r"unknown phantom world 'dermo'; did you mean 'derm'"):
        get_world("dermo")
    with pytest.raises(ValueError, match=r"did you mean 'border'.*'veil'"):
        get_world("derm").index("boarder")
    with pytest.raises(ValueError, match=r"unknown wording 'black dot'.*did you mean 'black dots'"):
        get_world("derm").reading("black dot")
    with pytest.raises(ValueError, match="at least 16 pixels"):
        get_world("derm").render(get_world("derm").sample(1, 0), 8)


@by_name
def test_the_version_of_the_drawing_stands_for_these_images(world):
    """Fingerprints hold the version instead of pixels, of which a few differ by 1 between processors."""
    expected = np.load(GOLDEN / f"drawings_{DRAWING}.npz")[world.name]  # (16, 3, 8, 8), means of 8 x 8 pixels
    latents, coins = world.sample(16, seed=1), torch.Generator().manual_seed(1)
    shown = torch.rand(latents.attributes.shape, generator=coins) < 0.5  # whatever the world's probabilities
    means = F.avg_pool2d(world.render(replace(latents, attributes=shown)).float(), 8).numpy()
    assert np.abs(means - expected).max() < 0.1, "the same latents give other images: raise DRAWING"
