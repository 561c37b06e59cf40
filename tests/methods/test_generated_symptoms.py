"""A SymptomSet is knowledge like any other: given to a method, or as another kind of a card's."""

import pytest
import torch

from medvlp.knowledge.symptoms.sets import SymptomSet
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from tests.methods.small import make_card

CARD = make_card(2)
PHRASES = dict(zip(CARD.classnames, (["dark dots", "a ragged edge"], ["an even tone"]), strict=True))


@pytest.mark.parametrize("method", [ZeroShot, ViP])
def test_a_set_its_phrases_and_a_card_with_it_are_one(clip, tmp_path, method):
    made = SymptomSet.from_phrases(CARD, PHRASES)
    made.save(tmp_path / "set.json")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    given = [
        method(clip, CARD, symptoms=PHRASES),
        method(clip, CARD, symptoms=made),
        method(clip, CARD, symptoms=SymptomSet.load(tmp_path / "set.json")),
        method(clip, CARD.with_knowledge("generated", made), knowledge="generated"),
    ]
    logits = [one(images) for one in given]
    assert all(torch.equal(logits[0], other) for other in logits[1:])
    assert given[1].config == given[0].config
    assert not torch.equal(logits[0], method(clip, CARD)(images))
