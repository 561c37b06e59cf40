"""Methods with learned vectors on CLIPs whose tokenizers are of sentence pieces, as SigLIP's and T5's."""

import pytest
import torch
import torch.nn.functional as F

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.prompts.slots import FIRST_CTX
from medvlp.methods.cilmp import CILMP
from medvlp.methods.prompt_tuning.cocoop import CoCoOp
from medvlp.methods.prompt_tuning.coop import CoOp
from medvlp.methods.prompt_tuning.kgcoop import KgCoOp
from medvlp.methods.vip import ViP
from tests.backbone import small_clips
from tests.methods.small import make_card

CARD = make_card(2)
SEEDS = {name: torch.Generator().manual_seed(i) for i, name in enumerate(CARD.classnames)}
ROWS = {name: torch.randn(9, 12, generator=seed) for name, seed in SEEDS.items()}
MADE = {
    "ViP": (ViP, {"n_ctx": 4}, 4),
    "CoOp": (CoOp, {"n_ctx": 3, "ctx_init": ""}, 3),
    "CoCoOp": (CoCoOp, {}, 4),
    "KgCoOp": (KgCoOp, {}, 4),
    "CILMP": (CILMP, {"representations": ROWS, "rank": 2, "image_depth": 0}, 4 + 9),
}


@pytest.fixture(scope="module", params=["sigmoid_kind", "t5_kind"])
def pieces(request, tmp_path_factory) -> Clip:
    make = getattr(small_clips, request.param)
    return load_clip(make(tmp_path_factory.mktemp(request.param)), device="cpu")


def test_words_that_learning_starts_from_read_as_these_words(pieces):
    coop = CoOp(pieces, CARD, ctx_init=FIRST_CTX)
    plain = pieces.encode_texts([f"{FIRST_CTX} {name}." for name in CARD.plain_names])
    torch.testing.assert_close(F.cosine_similarity(coop.class_features(), plain), torch.ones(2))


@pytest.mark.parametrize("name", MADE)
def test_n_vectors_stand_in_n_adjacent_places(pieces, name):
    kind, options, n = MADE[name]
    method = kind(pieces, CARD, **options)
    for slots in method.slots:  # (L,)
        places = slots.nonzero().flatten().tolist()
        assert places == list(range(places[0], places[0] + n))
