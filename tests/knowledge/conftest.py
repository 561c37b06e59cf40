"""The generator with a store of the test's own."""

import pytest

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.cards import DataCard
from medvlp.knowledge.symptoms.generate import generate_symptoms
from medvlp.knowledge.symptoms.sets import SymptomSet
from tests.knowledge.symptoms.fake_server import FakeServer, Script
from tests.knowledge.symptoms.lesions import CARD


@pytest.fixture(scope="session")
def clip() -> Clip:
    """The embedded CLIP, which knows words. Tests leave it as it is."""
    return load_clip("tiny", device="cpu")


@pytest.fixture
def ask(tmp_path):
    """generate_symptoms of CARD with a store of this test and no bar; asks a server, or one for a script."""

    def generate(server: FakeServer | Script, card: DataCard = CARD, **settings) -> SymptomSet:
        if not isinstance(server, FakeServer):
            with FakeServer(server) as started:
                return generate(started, card, **settings)
        client = settings.pop("client", None) or server.client()
        settings = {"store": tmp_path / "store", "progress": False, "model": "good-model", **settings}
        return generate_symptoms(card, client, **settings)

    return generate
