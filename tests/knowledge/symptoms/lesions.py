"""What a good LLM says about the classes of the small card, and whom it is asked about."""

from tests.knowledge.symptoms.fake_server import bullets, question
from tests.methods.small import make_card

CARD = make_card()
LISTS = {
    "melanoma": ["ragged dark border", "blue gray colors", "uneven two halves", "shiny white streaks"],
    "nevus": ["round even shape", "one brown color", "smooth sharp edge", "small flat spot"],
    "keratosis": ["rough waxy surface", "tiny white dots", "yellow brown crust", "stuck on plaque look"],
}


def told(body: dict) -> str:
    """The class's four phrases, as bullets."""
    return bullets(*LISTS[classname(body)])


def classname(body: dict) -> str:
    return next(name for name in LISTS if f"to detect {name} in" in question(body))
