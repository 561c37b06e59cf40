"""The texts of learned prompts: where the learned vectors stand, and what they start from."""

from collections.abc import Sequence

from medvlp.backbone.prompts.slots import SLOT

POSITIONS = ("end", "middle", "front")
STD = 0.02  # of learned vectors that are drawn at the start
FIRST_CTX = "a photo of a"  # the words that most methods' vectors start from


def slotted(words: str, n_ctx: int, position: str) -> str:
    """Words with a `SLOT` for each context vector, and a full stop; `position` is where the words stand.

    >>> slotted("pale spots", 2, "middle").replace(SLOT, "v")
    'v pale spots v.'
    """
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    return " ".join([*[SLOT] * before, words, *[SLOT] * (n_ctx - before)]) + "."


def plain_name(classname: str) -> str:
    """A class name as the text tower reads it: underscores are spaces."""
    return classname.replace("_", " ")


def in_template(template: str, classnames: Sequence[str]) -> list[str]:
    """The template with each class name in it; ValueError without `{}`."""
    if "{}" not in template:
        raise ValueError(
            f"template {template!r} has no {{}} for the class name, as 'a photo of a {{}}.' has."
        )
    return [template.replace("{}", plain_name(name)) for name in classnames]
