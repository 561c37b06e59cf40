"""The phrases in an LLM's reply, or a clear error: nothing is guessed, shortened or made up.

A reply is read as the first of these that it holds: JSON, a Markdown table, a list with marks (bullets,
numbers), one phrase a line. What stands in a fenced block comes before what stands around it.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from medvlp.knowledge.symptoms.loose_json import Tree, read_json
from medvlp.knowledge.symptoms.reply_keys import Classes, excludes, is_aspect, rank

REPLY_KINDS = ("empty", "refusal", "cut", "no phrases")
SAID = {
    "empty": "the reply is empty.",
    "refusal": "the LLM refused or apologised and gave no phrases; it said {}.",
    "cut": "the reply was cut short before its first phrase was whole; allow more tokens. It begins {}.",
    "no phrases": "the reply holds no list of phrases; it begins {}.",
}
SHOWN = 80  # characters of a reply in an error's message

TOGETHER = {2: (2, 3), 3: (3, 4)}  # ranks of keys that go with the best one; see `rank`
THOUGHTS = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
NUMBERS = r"[(\[（]?(?:\d{1,3}|[ivx]{1,4}|[a-hA-H])[.)\]）．、:]\)?(?=\s|[^\W\d_]{2}|\*)|[①-⑳]"
MARKS = re.compile(
    rf"""[ \t>]*+(?:\*\*|__)?(?:[•‣◦▪●○■◆►✓✔・·]\s*|[-*+–—]\s+|-(?=[^\W\d_])|(?:{NUMBERS})\s*
    |\#?[^\W\d_]{{3,20}}\s\#?\d{{1,2}}:\s+|\[[ xX]\]\s+)""",
    re.VERBOSE,
)
HEAD = re.compile(r"(\*\*?|__?)(?P<bold>[^*_:：]{1,80})(?:[:：]\1|\1\s*(?:[:：]|\s[-–—]\s))\s*(?P<rest>\S.*)")
LABEL = re.compile(r"(?P<label>[^\W\d_]+(?:[ \t,/&]+[^\W\d_]+){0,4})[:：]\s+(?P<rest>\S.*)")
NAMED = re.compile(r"(?P<label>[^:：\n]{1,80}?)(?:[:：]|\s[-–—]\s)[*_]*\s*(?P<rest>\S.*)")
SPACES = {0x3000: " ", 0x200B: None}  # wide, and of no width
RULE = re.compile(r"[ \t|:+=_*-]+")
REFUSAL = re.compile(
    r"(?:well, |oh, |but |however, )?(?:i'?m|i am|we are|we're)(?: really| very| so| truly)? "
    r"(?:sorry|afraid|unable|not able)|(?:i|we) (?:can'?t|cannot|can not|won'?t|will not|could not|couldn'?t|"
    r"do not|don'?t|must decline|apologi[sz]e|am not)\b|sorry\b|my apologies|apologies\b|as an? (?:ai|"
    r"artificial|(?:large )?language)\b|unfortunately, (?:i|we)|es tut mir leid|ich kann (?:leider )?nicht|"
    r"lo siento|no puedo|je suis désolé|désolé|je ne peux pas|mi dispiace|desculpe|抱歉|对不起|很抱歉|我无法|"
    r"申し訳|죄송",
    re.IGNORECASE,
)
PRONOUN = re.compile(r"\b(?:I|I'm|we|you|your|let me|here (?:is|are))\b", re.IGNORECASE)
SMALL_TALK = re.compile(
    r"(?:sure|ok|okay|hope|hoping|thanks?|of course|certainly|absolutely|glad|happy to|please|great question|"
    r"good luck|no problem|cheers|best (?:wishes|regards)|yes|done|enjoy|feel free|anything else)\b",
    re.IGNORECASE,
)
NOT_PLAIN = re.compile(r"[=;{}<>!?|`]|[.:。：]\s*\S")  # code, markup, a question or several sentences
QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("「", "」"), ("*", "*"), ("_", "_"))
LONGEST_LINE = 15  # words in a line that may be a phrase without a mark


class ReplyError(ValueError):
    """A reply without phrases. `kind` is one of `REPLY_KINDS`; `reply` is the raw text."""

    def __init__(self, kind: str, reply: str) -> None:
        shown = repr(" ".join(reply[: 2 * SHOWN].split())[:SHOWN])
        super().__init__(SAID[kind].format(shown if len(shown) < 2 * SHOWN else f"{shown[: 2 * SHOWN]}..."))
        self.kind, self.reply = kind, reply


@dataclass
class _Item:
    """A line with a list mark, with the lines that continue it."""

    parts: list[str]
    indent: int
    last_line: int


def parse_reply(reply: str, cut: bool = False, names: Mapping[str, bool] | None = None) -> list[str]:
    """The phrases of an LLM's reply, in order.

    They are verbatim, but for white space, list marks, emphasis, quotes and a final full stop; JSON strings
    are decoded. Objects, and the headers of tables, are read by their keys ("symptoms" before "name"; "note"
    never). Of a labelled phrase, "**Texture:** rough scales", the label goes if it is one word or names an
    aspect such as colour; a longer bold label is itself the phrase. Under a list item that is a phrase,
    deeper ones explain it and are left out. What stands between thinking tags is left out, and so is what
    stands under a heading, label or key that says no ("Absent") or names another class.

    Args:
        reply: what the LLM said, any text.
        cut: the server said that it cut the reply short: the last, unfinished phrase is left out.
        names: class names and other names, {name: whether it is of the class that was asked about}.

    Raises:
        ReplyError: an empty reply, a refusal, a cut before the end of the first phrase, or no list.
    """
    answer, thinking = _without_thoughts(reply)
    classes, closed = Classes(names or {}), True
    phrases: list[str] = []
    for text in (*_fenced(answer), answer):
        tree, closed = read_json(text)
        phrases = _cleaned(_values(tree, classes), classes) or _cleaned(
            _of_lines(text, cut, classes), classes
        )
        if phrases:
            break
    if any(REFUSAL.match(phrase.replace("’", "'")) for phrase in phrases):
        raise ReplyError("refusal", reply)
    if phrases:
        return phrases
    if any(_refuses(line) for line in answer.splitlines()):
        raise ReplyError("refusal", reply)
    if not answer.strip() and not thinking and not cut:
        raise ReplyError("empty", reply)
    raise ReplyError("cut" if cut or thinking or not closed else "no phrases", reply)


def _refuses(line: str) -> bool:
    parts = re.split(r"""[.!?:"“{\[*]+\s*|^\W+""", line[:400].replace("’", "'"))
    return any(REFUSAL.match(part) for part in parts)


def _without_thoughts(reply: str) -> tuple[str, bool]:
    """The reply without what stands between thinking tags, and whether it ends inside one.

    A closing tag alone closes what the server's own prompt opened.
    """
    kept, depth, at = [], 0, 0
    for tag in THOUGHTS.finditer(reply):
        if depth == 0:
            kept.append(reply[at : tag.start()])
        if tag[1] and depth == 0:
            kept.clear()
        depth = max(0, depth - 1) if tag[1] else depth + 1
        at = tag.end()
    if depth == 0:
        kept.append(reply[at:])
    return "\n\n".join(kept), depth > 0  # what a thought parted is not one phrase


def _fenced(text: str) -> list[str]:
    """What stands in the fenced blocks of a text, together; nothing where there is no fence."""
    inside, found = False, []
    for line in text.splitlines(keepends=True):
        if line.lstrip(" \t>").startswith(("```", "~~~")):
            inside = not inside
        elif inside:
            found.append(line)
    return ["".join(found)] if found else []


def _values(tree: Tree, classes: Classes) -> list[str]:
    """The strings of a tree that its keys say are phrases, or all where they say nothing."""
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            found.append(node)
            continue
        if any(
            key is not None and isinstance(value, str) and classes.named(value) is False
            for key, value in node
        ):
            continue  # as {"class": "nevus", "symptoms": [...]}
        ranked = [
            (0 if classes.whose(key or "") is False else rank(key, value), value) for key, value in node
        ]
        best = min((number for number, _ in ranked if number), default=0)
        taken = TOGETHER.get(best, (best,))
        waiting.extend(value for number, value in reversed(ranked) if number and number in taken)
    return found


def _of_lines(text: str, cut: bool, classes: Classes) -> list[str]:
    """The phrases of a text that is no JSON."""
    lines = [line.translate(SPACES).expandtabs(4).rstrip() for line in text.splitlines()]
    whole = lines[:-1] if cut and not text.endswith(("\n", "\r")) else lines
    table = _table(whole, classes)
    if table:
        return table
    items = _items(lines, classes)
    if cut and items and not any(lines[items[-1].last_line + 1 :]):  # its next line might have gone on
        return _of_items(items[:-1], classes)
    return _of_items(items, classes) if items else _plain(whole)


def _table(lines: list[str], classes: Classes) -> list[str]:
    """The column of a Markdown table that holds phrases by its header, where that leaves one."""
    rows = [line.strip().strip("|").split("|") for line in lines if line.lstrip().startswith("|")]
    if len(rows) < 3 or not all(RULE.fullmatch(cell) for cell in rows[1]):
        return []
    header = [cell.strip(" *_") for cell in rows[0]]
    ranks = [
        rank(name, "") if any(map(str.isalpha, name)) and classes.whose(name) is not False else 0
        for name in header
    ]
    chosen = [i for i, rank in enumerate(ranks) if rank == 1] or [i for i, rank in enumerate(ranks) if rank]
    own = [row for row in rows[2:] if not any(classes.named(cell) is False for cell in row)]
    return [row[chosen[0]] for row in own if len(row) > chosen[0]] if len(chosen) == 1 else []


def _items(lines: list[str], classes: Classes) -> list[_Item]:
    """The lines with a list mark, in order, but for those below a heading that excludes them."""
    items: list[_Item] = []
    current, excluded = None, False
    for i, line in enumerate(lines):
        mark = MARKS.match(line)
        text = line.strip()
        if RULE.fullmatch(text):  # as "---" or "***" are
            current = None
        elif mark:
            opened = "**" if mark[0].lstrip(" >").startswith("**") else ""
            while again := MARKS.match(line, mark.end()):  # as in "- [ ] 1. red dots"
                mark = again
            current = _Item([opened + line[mark.end() :]], len(line) - len(line.lstrip(" >")), i)
            if not excluded:
                items.append(current)
        elif text and current and classes.named(text) is None and _continues(current.parts[-1], text):
            current.parts.append(text)
            current.last_line = i
        else:
            current = None
            if _is_heading(text, classes) or text.startswith(("#", "**")):
                words = text.strip("#*_: ")
                excluded = excludes(words) or classes.whose(words) is False or (excluded and is_aspect(words))
    return items


def _continues(before: str, line: str) -> bool:
    return line[0].islower() and not before.rstrip().endswith((".", ":", ";", "!", "?", ","))


def _of_items(items: list[_Item], classes: Classes) -> list[str]:
    """The items' texts, without headings and without what stands deeper than a phrase or below a no."""
    found = []
    explained = None  # the indentation of the last phrase that may have explanations below it
    excluding = None  # the indentation of the last heading that excludes what stands below it
    for item, after in zip_longest(items, items[1:]):
        text = " ".join(item.parts).strip()
        if explained is not None and item.indent >= explained + 2:
            continue
        heading = is_aspect(text.strip("*_ ")) or _is_heading(text, classes)
        if excluding is not None and (item.indent > excluding or not heading):
            continue
        explained, excluding = None if heading else item.indent, None
        if not heading:
            found.append(text)
        elif excludes(text) or classes.whose(text) is False:
            below = after is not None and after.indent > item.indent
            explained, excluding = (item.indent, None) if below else (None, item.indent)
    return found


def _is_heading(text: str, classes: Classes) -> bool:
    return text.rstrip("*_ ").endswith((":", "：")) or classes.named(text) is not None


def _plain(lines: list[str]) -> list[str]:
    """One phrase a line, if all lines look alike: same case at the start, and full stops or none.

    Without a line before them that ends in a colon, two lines with capitals may as well be talk.
    """
    texts = [line.strip() for line in lines if not line.lstrip().startswith(("```", "~~~"))]
    intro = max((i for i, text in enumerate(texts) if text.endswith((":", "："))), default=-1)
    if intro >= 0 and excludes(texts[intro]):
        return []
    texts = texts[intro + 1 :]
    while texts and not texts[-1]:
        texts.pop()
    last = max((i for i, text in enumerate(texts) if not text), default=len(texts))
    for block in (texts, texts[:last]):
        block = [text for text in block if text]
        if len(block) >= 2 and all(_is_plain(text) for text in block):
            upper = {text.lstrip("\"'“*_")[:1].isupper() for text in block}
            stops = {text.rstrip("\"'”*_").endswith((".", "。")) for text in block}
            enough = intro >= 0 or len(block) > 2 or upper == {False}
            if enough and len(upper) == len(stops) == 1:
                return block
    return []


def _is_plain(text: str) -> bool:
    few = len(text.split(None, LONGEST_LINE)) <= LONGEST_LINE
    talk = PRONOUN.search(text) or SMALL_TALK.match(text)
    return few and not talk and not NOT_PLAIN.search(text) and not RULE.fullmatch(text)


def _cleaned(texts: Iterable[str], classes: Classes) -> list[str]:
    return [phrase for text in texts if (phrase := _clean(text, classes))]


def _clean(text: str, classes: Classes) -> str:
    """One phrase without label, emphasis, quotes and full stop; "" where nothing readable is left."""
    if not text.isprintable():
        text = "".join(map(_visible, text))
    text = " ".join(text.split())
    label = NAMED.match(text)
    if label and (own := classes.whose(label["label"])) is not None:
        if not own:
            return ""
        text = label["rest"] if classes.named(label["label"]) else text
    if head := HEAD.match(text):
        bold = head["bold"].strip()
        if excludes(bold) and not is_aspect(bold) and (" " not in bold or rank(bold, "") == 0):
            return ""
        text = head["rest"] if len(bold.split()) == 1 or is_aspect(bold) else bold
    text = text.replace("**", "").replace("__", "").replace("`", "").strip()
    if label := LABEL.match(text):
        if excludes(label["label"]) and not is_aspect(label["label"]):
            return ""
        text = label["rest"] if " " not in label["label"] or is_aspect(label["label"]) else text
    for _ in QUOTES:
        text = text.strip(" ,;").removesuffix(".").removesuffix("。").rstrip()
        for opening, closing in QUOTES:
            if len(text) > 1 and text[0] == opening and text[-1] == closing:
                text = text[1:-1].strip()
    broken = not text.isprintable() and any(unicodedata.category(c) in ("Cs", "Co", "Cn") for c in text)
    return "" if broken or not any(map(str.isalpha, text)) else text


def _visible(letter: str) -> str:
    """The letter, or a space for a control or formatting character other than the (non-)joiner."""
    return " " if unicodedata.category(letter) in ("Cc", "Cf") and letter not in "\u200c\u200d" else letter
