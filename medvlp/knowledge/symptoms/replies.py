"""The phrases in an LLM's reply: the one shape that was asked for, or an error that says what is wrong.

    {"symptoms": ["red dots", "a pale disc"]}        what is asked for
    - red dots                                       or, from an LLM that writes no JSON, one flat list
    - a pale disc

Nothing else is read. A heading, a remark before or after, a label, a list inside a list: whose phrases these
are, and whether the LLM means or rejects them, would be a guess. The class is asked again, and told.
"""

import json
import re
from collections.abc import Collection
from itertools import pairwise

from medvlp.data.errors import brief
from medvlp.knowledge.symptoms.phrases import words_of

REPLY_KINDS = {  # what was wrong, as the error and the next question say it
    "empty": "it was empty",
    "refusal": "it was a refusal or an apology",
    "cut": "it was cut short before it was whole: it needs to be shorter, or max_tokens larger",
    "thoughts": "it held thoughts and no answer after them",
    "other text": "it had text beside the list, or no list",
    "other JSON": 'it was JSON, but not {"symptoms": ["...", "..."]} and nothing else',
    "not flat": "it was not one flat list: it had levels, several lists or different marks",
    "labels": "its phrases had labels, headings, explanations or names of classes",
}
SHOWN = 80  # characters of a reply in an error's message

# What an LLM writes before its answer: <think>...</think> under any name, [THINK]...[/THINK], what stands
# before a closing tag that the server's own template opened, and every channel but the final one.
THOUGHTS = re.compile(
    r"""\s*<(?P<tag>[\w:-]++)[^<>]*+>.*</(?P=tag)>|\s*\[(?P<name>\w++)\].*\[/(?P=name)\]
    |.*</(?:think|thinking|thought|thoughts|reasoning|analysis|reflection)>
    |.*<\|channel\|>\s*final\b[^<]*+<\|message\|>|\s*<\|channel>thought\b.*<channel\|>
    |\s*<\|(?:begin_of_thought|START_THINKING)\|>.*<\|(?:end_of_thought|END_THINKING)\|>|\s*◁think▷.*◁/think▷""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
OPENED = re.compile(r"\s*(?:<\|?[\w:-]+|\[[A-Z]+\]|◁)")  # the start of thoughts that do not end
STOP = re.compile(r"(?:</s>|<eos>|<end_of_turn>|<[|｜][^<>|｜\s]{1,40}[|｜]>)\Z")
FENCE = re.compile(r"```\w*[ \t]*\n(.*)```", re.DOTALL)
ITEM = re.compile(r"([ \t]*)(?:([-*+–—])\s+|([•·])\s*|\(?(\d{1,3})(?:[.)]\s+|、\s*))(\S.*)")
REFUSAL = re.compile(
    r"(?:i'?m|i am|we are|we're) (?:\w+ )?(?:sorry|afraid|unable|not able)|(?:i|we) (?:can'?t|cannot|can not|"
    r"won'?t|will not|could not|do not|don'?t|must decline|apologi[sz]e)\b|sorry\b|(?:my )?apologies\b|"
    r"as an? (?:ai|artificial|large language|language)\b|unfortunately, (?:i|we)|es tut mir leid|"
    r"ich kann (?:leider )?nicht|lo siento|no puedo|je suis désolé|désolé|je ne peux pas|mi dispiace|"
    r"desculpe|抱歉|对不起|很抱歉|我无法|申し訳|죄송",
    re.IGNORECASE,
)
LABEL = re.compile(r":(?:\s|\Z)|：|\s[-–]\s|—|→|\*\*.+\*\*|__.+__|\A#")
HEADING = re.compile(  # a whole item that describes nothing
    r"(?:(?:visual|visible|colou?r|shape|texture|size|border|edge|margin|outline|location|position|pattern|"
    r"appearance|surface|structure|brightness|contrast|present|absent|note|none|feature|symptom|sign|finding|"
    r"summary|answer|not|seen|and|of|the|n/a)s?[\s,&/]*)++",
    re.IGNORECASE,
)
PAIRS = ('""', "''", "“”", "‘’", "«»", "「」", "**", "__", "``")


class ReplyError(ValueError):
    """A reply that is not in the shape that was asked for.

    `kind` is one of `REPLY_KINDS`, which says it in words; `reply` is the raw text.
    """

    def __init__(self, kind: str, reply: str) -> None:
        shown = brief(" ".join(reply.split()), SHOWN)
        super().__init__(f"the reply cannot be used: {REPLY_KINDS[kind]}. It says {shown}.")
        self.kind, self.reply = kind, reply


def parse_reply(reply: str, cut: bool = False, names: Collection[str] = ()) -> list[str]:
    """The phrases of an LLM's reply, in order.

    They are verbatim, but for white space, quotes or emphasis around the whole phrase, and a full stop.

    Args:
        reply: what the LLM said, any text. A fence around the whole, a stop token at the end and thoughts
            before the answer are taken away.
        cut: the server said that it cut the reply short: the last line of a list is left out.
        names: of classes; a phrase that is one of them is a heading.

    Raises:
        ReplyError: anything but the one shape.
    """
    answer = _answer(reply)
    if fence := FENCE.fullmatch(answer):
        answer = fence[1].strip()
    try:
        phrases = _of_json(answer) if answer.startswith(("{", "[")) else _of_list(answer, cut)
        phrases = [_clean(phrase) for phrase in phrases]
        known = {words_of(name) for name in names}
        if not all(phrases):
            raise _Wrong("other text")
        if any(REFUSAL.match(phrase.replace("’", "'")) for phrase in phrases):
            raise _Wrong("refusal")
        if any(LABEL.search(p) or HEADING.fullmatch(p) or words_of(p) in known for p in phrases):
            raise _Wrong("labels")
        if any(ITEM.match(phrase) for phrase in phrases):
            raise _Wrong("not flat")
    except _Wrong as error:
        raise ReplyError(_kind(str(error), reply, answer, cut), reply) from None
    return phrases


class _Wrong(Exception):
    """Why a reply is not in the shape: a key of REPLY_KINDS."""


def _kind(wrong: str, reply: str, answer: str, cut: bool) -> str:
    """What is wrong with a reply in the first place."""
    if REFUSAL.match(answer.strip(" -*\"'“{[\n").replace("’", "'")):
        return "refusal"
    if cut:
        return "cut"
    if not reply.strip():
        return "empty"
    unended = wrong == "other text" and OPENED.match(answer)
    return "thoughts" if unended or not answer else wrong


def _answer(reply: str) -> str:
    """What stands after the thoughts and before the stop token."""
    text = reply.strip()
    while stop := STOP.search(text, max(0, len(text) - 50)):
        text = text[: stop.start()].rstrip()
    while thoughts := THOUGHTS.match(text):
        text = text[thoughts.end() :].strip()
    return text


def _of_json(text: str) -> list[str]:
    """The strings of {"symptoms": [...]}."""
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)  # so that a key said twice is seen
    except (ValueError, RecursionError):
        raise _Wrong("other JSON") from None
    match pairs:
        case (("symptoms", list(phrases)),) if isinstance(pairs, tuple):
            if phrases and all(isinstance(phrase, str) for phrase in phrases):
                return phrases
    raise _Wrong("other JSON")


def _of_list(text: str, cut: bool) -> list[str]:
    """The items of one flat list: every line has a mark, all marks are of a kind, numbers count up from 1."""
    items = {i: ITEM.fullmatch(line) for i, line in enumerate(text.splitlines()) if line.strip()}
    if not all(items.values()):
        raise _Wrong("other text")
    if cut and items:
        items.popitem()
    if not items:
        raise _Wrong("other text")
    indents, dashes, dots, numbers, phrases = zip(*(item.groups() for item in items.values()), strict=True)
    counted = [int(number) for number in numbers if number]
    if (
        len(set(indents)) > 1
        or len(set(dashes) | set(dots)) > 2  # one mark, and None where the other kind would be
        or counted not in ([], list(range(1, len(phrases) + 1)))
        or len({after - before for before, after in pairwise(items)}) > 1  # a gap parts two lists
    ):
        raise _Wrong("not flat")
    return list(phrases)


def _clean(text: str) -> str:
    """The phrase without quotes and emphasis around it and a full stop; "" where no letter is left."""
    text = " ".join(text.split()).rstrip(" .。,;")
    while len(text) > 2 and text[0] + text[-1] in PAIRS:
        text = text[1:-1].strip(" .。,;")
    return text if any(map(str.isalpha, text)) else ""
