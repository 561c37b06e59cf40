"""What was learned on some classes, used for others."""

import pytest
import torch
from torch import nn

from medvlp.data.cards import DataCard
from medvlp.knowledge.representations import Representations
from medvlp.methods.adapters.linear_probe import LinearProbe
from medvlp.methods.base import own_tensors
from medvlp.methods.cilmp import CILMP
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.saving import base_and_new, transfer
from tests.study.training.small_training import Prototypes

NAMES = ["melanoma", "nevus", "keratosis", "wart", "cyst"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CILMP_SIZES = {"prefix_length": 1, "suffix_length": 1, "n_ctx": 2, "rank": 2}


def card_with(names) -> DataCard:
    classes = [
        {"name": name, "knowledge": {"symptoms": [f"a {name[0]} sign", f"{name[1]} edge"]}} for name in names
    ]
    source = {"kind": "folder"}
    return DataCard(name="moles", title="Moles", modality="a photo", classes=classes, source=source)


CARD = card_with(NAMES)
BASE, NEW = base_and_new(CARD)


def moved(method: nn.Module) -> nn.Module:
    """The method with other values than it started from, as after training."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in own_tensors(method).values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=random) * 0.1)
    return method.eval()


def states(names) -> Representations:
    random = torch.Generator().manual_seed(2)
    return Representations({name: torch.randn(3, 8, generator=random) for name in names})


def test_the_first_half_of_the_classes_is_the_base():
    assert (BASE.classnames, NEW.classnames) == (NAMES[:3], NAMES[3:])
    four = base_and_new(card_with(NAMES[:4]))
    assert [part.classnames for part in four] == [NAMES[:2], NAMES[2:4]]
    with pytest.raises(ValueError, match="card 'moles' has 3 classes; .* need two each"):
        base_and_new(card_with(NAMES[:3]))


@pytest.mark.parametrize("new", [NAMES[3:], NAMES[2:]], ids=["fewer classes", "as many classes"])
@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_shared_tensors_meet_the_texts_of_other_classes(clip, new, aggregation):
    """A context trained on the base classes gives the new ones the logits that it would give them anyway."""
    method = moved(ViP(clip, BASE, aggregation=aggregation)).train()
    other = card_with(new)
    found = transfer(method, other)
    by_hand = ViP(clip, other, aggregation=aggregation)
    with torch.no_grad():
        by_hand.ctx.copy_(method.ctx)
    assert torch.equal(found(IMAGES), by_hand(IMAGES)) and found.card is other and not found.training
    assert not torch.equal(found(IMAGES), ViP(clip, other, aggregation=aggregation)(IMAGES))
    with torch.no_grad():
        found.ctx.zero_()
    assert method.ctx.abs().sum() > 0 and method.card is BASE and method.training  # it stays as it is


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (LinearProbe, "'linear.weight', 'linear.bias'"),
        (Prototypes, "'weight'"),
        (ViP, "'g'"),
        (lambda clip, card: ViP(clip, card, csc=True, aggregation="mean"), "'ctx'"),
    ],
    ids=["LinearProbe", "Prototypes", "ViP", "csc"],
)
@pytest.mark.parametrize("new", [NAMES[3:], NAMES[2:]], ids=["fewer classes", "as many classes"])
def test_what_belongs_to_a_class_is_not_given_to_another(clip, make, named, new):
    with pytest.raises(ValueError, match=rf"has learned {named} for its 3 classes.*such as '{new[0]}'"):
        transfer(make(clip, BASE), card_with(new))


def test_the_same_classes_take_every_tensor(clip):
    """As for a shifted data set."""
    other = BASE.model_copy(update={"name": "moles-elsewhere"})
    for method in (moved(Prototypes(clip, BASE)), moved(ViP(clip, BASE, csc=True))):
        found = transfer(method, other)
        assert torch.equal(found(IMAGES), method(IMAGES)) and found.card is other


def test_the_same_classes_in_another_order_are_refused(clip):
    turned = BASE.with_classes(BASE.classnames[::-1])
    with pytest.raises(ValueError, match="has the classes of ViP in another order, .*use its order"):
        transfer(ViP(clip, BASE), turned)


def test_nothing_learned_is_a_zero_shot_classifier_of_the_new_classes(clip):
    found = transfer(ZeroShot(clip, BASE, "classnames"), NEW)
    assert torch.equal(found(IMAGES), ZeroShot(clip, NEW, "classnames")(IMAGES))


def test_arguments_that_name_classes_are_changed(clip):
    own = {name: [f"my {name[0]}"] for name in NAMES}
    method = moved(ViP(clip, BASE, aggregation="mean", symptoms={n: own[n] for n in BASE.classnames}))
    with pytest.raises(ValueError, match="unknown class 'melanoma'"):
        transfer(method, NEW)
    for new in (NEW, card_with(NAMES[2:])):
        theirs = {name: own[name] for name in new.classnames}
        found = transfer(method, new, {"symptoms": theirs})
        assert found.config["symptoms"] == theirs and torch.equal(found.ctx, method.ctx)


def test_cilmp_takes_the_new_classes_states(clip):
    method = moved(CILMP(clip, BASE, states(NAMES), **CILMP_SIZES))
    for new in (NEW, card_with(NAMES[2:])):
        found = transfer(method, new, {"representations": states(NAMES)})
        assert found(IMAGES).shape == (3, len(new.classes)) and list(found.lengths) == new.classnames
        assert all(
            torch.equal(found.get_parameter(n), p) for n, p in method.named_parameters() if "sites" in n
        )
    with pytest.raises(ValueError, match="for the old and the new ones together, which fails: .*'melanoma'"):
        transfer(method, new, {"representations": states(NAMES[2:])})
