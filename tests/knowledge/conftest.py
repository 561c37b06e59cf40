"""The generator with a store of the test's own."""

import pytest

from medvlp.data.cards import DataCard
from medvlp.knowledge.symptom_sets import SymptomSet
from medvlp.knowledge.symptoms import generate_symptoms
from tests.knowledge.fake_server import FakeServer
from tests.knowledge.lesions import CARD


@pytest.fixture
def ask(tmp_path):
    """generate_symptoms of CARD with a store of this test and no bar; the server is the first argument."""

    def generate(server: FakeServer, card: DataCard = CARD, **settings) -> SymptomSet:
        client = settings.pop("client", None) or server.client()
        settings = {"store": tmp_path / "store", "progress": False, "model": "good-model", **settings}
        return generate_symptoms(card, client, **settings)

    return generate
