"""Threads share torch's random state: what each draws is nevertheless what it draws alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from medvlp.backbone.clip import load_clip
from medvlp.backbone.features import image_features
from medvlp.backbone.pretrain import new_clip
from medvlp.knowledge.representations import Representations
from medvlp.methods import METHODS
from medvlp.methods.base import own_tensors
from medvlp.methods.cilmp import CILMP
from medvlp.study.evaluation import evaluate
from medvlp.study.prediction import predict
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.study.training.small_training import CARD, Prototypes, Tinted, same

ROWS = Representations(
    {name: torch.randn(9, 12, generator=torch.Generator().manual_seed(1)) for name in CARD.classnames}
)
CONFIG = TrainConfig(epochs=3, batch_size=8, lr=0.05, views=1, num_workers=0)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def works(clip, sets, tmp_path_factory):
    """What draws from torch's random state in some way, each giving tensors by name."""

    def trained(method):
        fit(method, *sets, CONFIG, progress=False)
        return {name: tensor.clone() for name, tensor in own_tensors(method).items()}

    def views():
        folder = tmp_path_factory.mktemp("cache")
        return {"f": image_features(clip, sets[0], 0, folder, num_workers=0, progress=False).features}

    def evaluated():
        table = evaluate(Tinted(clip, CARD), sets[1], 5).table()
        return {"value": torch.tensor(table["value"].to_numpy())}

    def names(clip):
        return {"t": clip.encode_texts(CARD.classnames)}

    return {
        "CILMP": lambda: trained(CILMP(clip, CARD, ROWS, rank=2, dropout=0.5, image_depth=0)),
        "CILMP again": lambda: trained(CILMP(clip, CARD, ROWS, rank=2, dropout=0.5, image_depth=0)),
        "dropout": lambda: trained(Prototypes(clip, CARD, dropout=0.3)),
        "views": views,
        "load_clip": lambda: names(load_clip(clip.name, device="cpu")),
        "new_clip": lambda: {"w": new_clip(3).model.visual.proj.detach().clone()},
        "build": lambda: {"w": METHODS["LinearProbe"](clip, CARD).linear.weight.detach().clone()},
        "evaluate": evaluated,
    }


def test_in_threads_each_gives_what_it_gives_alone(works):
    alone = {name: work() for name, work in works.items()}
    with ThreadPoolExecutor(len(works)) as threads:
        together = {name: threads.submit(work) for name, work in works.items()}
        for name, expected in alone.items():
            assert same(together[name].result(timeout=300), expected), name


def test_what_the_caller_draws_is_the_callers(clip, sets, works):
    state = torch.get_rng_state()
    for name, work in works.items():
        work()
        assert torch.equal(torch.get_rng_state(), state), name
    options = {"CILMP": {"representations": ROWS}, "TipAdapter": {"n_cache": 4}}
    for name, kind in METHODS.items():
        method = kind(clip, CARD, **options.get(name, {}))
        assert torch.equal(torch.get_rng_state(), state), name
        if not method.fits_before_training:
            predict(method, sets[0][0][0])
            assert torch.equal(torch.get_rng_state(), state), name
