"""Texts with places for learned vectors: how they are written, and where the places are among the tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.data.card_parts import plain_name
from medvlp.data.errors import brief, listed

SLOT = "\0"  # stands for one learned vector in a text
# pairs of words: where the token ids of texts with the one and with the other differ, there is a slot
PLACEHOLDERS = (("X", "Y"), ("a", "the"), ("of", "and"))
POSITIONS = ("end", "middle", "front")  # where words stand among the learned vectors
STD = 0.02  # of learned vectors that are drawn at the start
FIRST_CTX = "a photo of a"  # the words that most methods' vectors start from


def slotted(words: str, n_ctx: int, position: str) -> str:
    """Words with a `SLOT` for each context vector, and a full stop; `position` is where the words stand.

    >>> slotted("pale spots", 2, "middle").replace(SLOT, "v")
    'v pale spots v.'
    """
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    return " ".join([*[SLOT] * before, words, *[SLOT] * (n_ctx - before)]) + "."


def symptom_text(symptom: str) -> str:
    """The text that a tower reads for a symptom, in zero-shot CLIP as in ViP: `{symptom}.`."""
    return f"{symptom.strip().rstrip('.')}."


def in_templates(templates: Sequence[str], classnames: Sequence[str]) -> list[list[str]]:
    """The texts of all classes in each template, a list a template; ValueError for none or one without `{}`.

    >>> in_templates(["a photo of a {}."], ["nevus", "basal_cell carcinoma"])
    [['a photo of a nevus.', 'a photo of a basal cell carcinoma.']]
    """
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates is {brief(templates)}; give a list, as ['a photo of a {{}}.'].")
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"template {brief(template)} has no {{}} for the class name: 'a photo of a {{}}.'."
            )
    return [[template.replace("{}", plain_name(name)) for name in classnames] for template in templates]


def find_slots(clip: Clip, texts: Sequence[str], names: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Token ids (N, L) of texts with `SLOT`s in them, and True where a slot stands, (N, L).

    >>> find_slots(clip, [f"{SLOT} {SLOT} dark spots."])[1].nonzero()[:, 1]
    tensor([1, 2])

    Args:
        clip: Its tokenizer reads the texts.
        texts: With any number of slots each.
        names: What to call each text in errors; by default errors say which text it is.

    Raises:
        ValueError: a text with more tokens than the tower takes, or a tokenizer that joins a slot with
            the words beside it, or has no placeholder of one token.
    """
    words = one_token_words(clip)
    try:
        return _find_slots(clip, texts, words)
    except ValueError:
        for name, text in zip(names or (), texts, strict=bool(names)):
            try:
                _find_slots(clip, [text], words)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        raise


def one_token_words(clip: Clip) -> tuple[str, str]:
    """The first of `PLACEHOLDERS` whose words are one token each to this clip's tokenizer.

    "X" is two to those of T5 and SigLIP, a space and a letter: vectors in its place would not be adjacent.
    """
    for words in PLACEHOLDERS:
        one, other = clip.tokenizer([" ".join([word] * 3) for word in words])  # (context_length,) each
        places = (one != other).nonzero().flatten().tolist()
        if len(places) == 3 and places[2] - places[0] == 2:
            return words
    raise ValueError(
        f"the tokenizer of clip {clip.name!r} has no two words of one token each among "
        f"{listed(sum(PLACEHOLDERS, ()))}, so the places of learned vectors cannot be found in its texts."
    )


def _find_slots(clip: Clip, texts: Sequence[str], words: tuple[str, str]) -> tuple[Tensor, Tensor]:
    tokens, others = (clip.tokenize([text.replace(SLOT, word) for text in texts]) for word in words)
    slots = tokens != others if tokens.shape == others.shape else torch.zeros_like(tokens).bool()  # (N, L)
    for text, n_found in zip(texts, slots.sum(dim=1).tolist(), strict=True):
        if n_found != text.count(SLOT):
            shown = text.replace(SLOT, words[0])
            raise ValueError(
                f"{shown!r} shows {n_found} of {text.count(SLOT)} places for learned vectors: the tokenizer "
                f"of clip {clip.name!r} joins {words[0]!r} with what stands beside it."
            )
    return tokens, slots


def slots_in_words(clip: Clip, words: str, names: Sequence[str], n_ctx: int) -> tuple[Tensor, Tensor]:
    """Token ids (n_cls, L) of `words name.`, and True where the words' first n_ctx tokens stand, (n_cls, L).

    These are the places of learned vectors; the words' other tokens stay in the text.
    """
    start, _ = word_tokens(clip, words)
    tokens = clip.tokenize([f"{words} {name}." for name in names])
    slots = torch.zeros_like(tokens, dtype=torch.bool)
    slots[:, start : start + n_ctx] = True
    return tokens, slots


def word_tokens(clip: Clip, words: str) -> tuple[int, Tensor]:
    """Where the words of a text begin, and the token ids (m,) of these words; none for ""."""
    _, begin = find_slots(clip, [SLOT])  # (1, L)
    tokens, end = find_slots(clip, [f"{words} {SLOT}"])
    start, stop = (int(slots[0].nonzero()) for slots in (begin, end))
    return start, tokens[0, start:stop].to(clip.device)
