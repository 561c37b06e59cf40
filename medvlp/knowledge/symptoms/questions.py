"""What an LLM is asked for visual symptoms: the questions, their version, and the shape of an answer.

After ViP (arXiv 2409.00341): a text question says that CLIP is to detect the class and asks for plain visual
features without its name; an image question shows one sheet of training images and asks for colour, shape and
texture. The wording is our own, as the authors' is not published.
"""

from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from string import Template

import yaml

from medvlp.data.errors import check_choice

PLACEHOLDERS = {  # what each question may ask for, and what it must
    "text": ({"count", "classname", "modality", "others"}, {"classname", "modality"}),
    "images": ({"count", "classname", "modality", "others", "shown"}, {"modality"}),
    "agree": ({"count", "classname", "modality", "from_text", "from_images"}, {"from_text", "from_images"}),
    "again": ({"count", "classname", "modality", "kept", "rejected"}, set()),
}
JSON_KEY = '"symptoms"'  # a question that has it asks for JSON, and servers are sent the schema of that
SCHEMA = {
    "type": "object",
    "properties": {"symptoms": {"type": "array", "items": {"type": "string"}}},
    "required": ["symptoms"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class SymptomPrompts:
    """The four questions, with `$name` for what is filled in and `$$` for a dollar sign.

    Each asks for JSON, {"symptoms": ["...", "..."]}, or for one flat list of bullets; nothing else is read.

    Args:
        text: stage 1. `$count` phrases for `$classname` in `$modality`; `$others` are the other classes.
        images: stage 2, sent with the contact sheet of `$shown` images.
        agree: stage 3, where the LLM compares: the phrases `$from_text` and `$from_images`, one a line.
        again: sent after an answer with too few usable phrases: `$rejected` ones with their reasons, one a
            line, and those already `$kept`.
        version: your name for this wording; it is stored with what it produced.

    Raises:
        ValueError: an unknown placeholder, a missing one, or a stray dollar sign.
    """

    text: str
    images: str
    agree: str
    again: str
    version: str

    def __post_init__(self) -> None:
        for stage, (known, needed) in PLACEHOLDERS.items():
            prompt = Template(getattr(self, stage))
            if not prompt.is_valid():
                raise ValueError(f"the prompt {stage!r} has a stray dollar sign; write $$ for one.")
            named = prompt.get_identifiers()
            for name in named:
                check_choice("placeholder", name, sorted(known), f"the prompt {stage!r}")
            for name in sorted(needed):
                if name not in named:
                    raise ValueError(f"the prompt {stage!r} needs the placeholder ${name}.")
        if not self.version.strip():
            raise ValueError("prompts need a version, such as 'mine 1'.")

    def fill(self, stage: str, **values: str | int) -> str:
        """One question with its values put in, once: a value with `$` or braces stays as it is."""
        return Template(getattr(self, stage)).substitute(values)

    @property
    def facts(self) -> dict[str, str]:
        """Version and full texts, for provenance."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{field.name}:\n{getattr(self, field.name)}" for field in fields(self)]
        return "\n\n".join(parts)


@cache
def __getattr__(name: str) -> SymptomPrompts:
    """DEFAULT and SMALL, the wordings that ship with the package, read when they are asked for."""
    if name not in ("DEFAULT", "SMALL"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    written = yaml.safe_load((resources.files("medvlp") / "assets" / "prompts.yaml").read_text("utf-8"))
    return SymptomPrompts(**written["DEFAULT"] | written[name])
