"""JSON as LLMs write it: cut short, commas missing or too many, keys without quotes, prose around it.

The strings are decoded by `json`; brackets are counted here, because `json` reads nothing of a text that is
not whole. It runs in linear time and without recursion, whatever the text.
"""

import json
import re
from dataclasses import dataclass, field

# A bracket that opens JSON rather than a remark in brackets: a quote, another bracket, a key or the first of
# several numbers comes next.
START = re.compile(
    r"""[\[{](?=\s*+(?:["“'\[{]|\w{1,40}\s{0,9}:\s{0,9}["“'\[{]|(?:null|true|false|-?\d{1,40})\s{0,9},))"""
)
STRINGS = {  # what opens a string: the string, up to its end or the end of the line
    '"': re.compile(r'"((?:[^"\\\r\n]|\\[^\r\n])*+)("?)'),
    "“": re.compile(r"“([^”\r\n]*+)(”?)"),
    "'": re.compile(r"'((?:[^'\\\r\n]|\\[^\r\n]|'(?![ \t]*+[],:}\r\n]))*+)('?)"),
}
SPACE = re.compile(r"\s++")
BARE = re.compile(r"[^\s\[\]{},:\"“]++")

Tree = list["tuple[str | None, str | Tree]"]  # an object's (key, value); an array's have None for a key


@dataclass
class _Reader:
    """Where a text is read, and what of the values that are not closed yet is known."""

    open: list[Tree]
    keys: list[str | None] = field(default_factory=lambda: [None])  # the key that waits, one per open value
    words: list[tuple[str, bool]] = field(default_factory=list)  # since the last mark; is it a string?

    def value(self) -> None:
        """Take what was read since the last mark: one string is a value, anything else is none."""
        if len(self.words) == 1 and self.words[0][1]:
            self.open[-1].append((self.keys[-1], self.words[0][0]))
        self.words.clear()

    def mark(self, mark: str) -> None:
        """Take a bracket, a comma or a colon."""
        if mark == ":":
            self.keys[-1] = self.words[0][0] if len(self.words) == 1 else ""
            self.words.clear()
            return
        self.value()
        if mark in "[{":
            inner: Tree = []
            self.open[-1].append((self.keys[-1], inner))
            self.open.append(inner)
            self.keys.append(None)
        elif mark in "]}":
            self.open.pop()
            self.keys.pop()
        self.keys[-1] = None


def read_json(text: str) -> tuple[Tree, bool]:
    """Every array and object of a text, in order, and whether the last one is closed.

    A string is a value only if it is whole and stands alone between two marks; one in single quotes is whole
    if a mark or a line's end follows. Numbers, true, false, null
    and words without quotes are left out.

    >>> read_json('Sure: {"signs": ["red dots", "a pale r')
    ([(None, [('signs', [(None, 'red dots')])])], False)
    """
    top: Tree = []
    end = 0
    while start := START.search(text, end):
        end, closed = _read_one(text, start.start(), top)
        if not closed:
            return top, False
    return top, True


def _read_one(text: str, at: int, top: Tree) -> tuple[int, bool]:
    """Append the value that starts at `at` to `top`; where it ends, and whether it is closed."""
    reader, new_line = _Reader([top]), False
    while at < len(text):
        letter = text[at]
        if letter in "[]{},:":
            reader.mark(letter)
            at += 1
            if len(reader.open) == 1:
                return at, True
            continue
        if letter.isspace():
            found = SPACE.match(text, at)
            new_line = new_line or "\n" in found[0] or "\r" in found[0]
        else:
            if new_line:  # a comma was forgotten, unless a colon comes
                reader.value()
            new_line = False
            pattern = STRINGS.get(letter) if letter != "'" or not reader.words else None
            found = (pattern or BARE).match(text, at)
            if pattern is None:
                reader.words.append((found[0], False))
            elif found[2]:
                reader.words.append((_decode(letter, found[1]), True))
            else:  # not whole
                reader.words.extend([("", False)] * 2)
        at = found.end()
    reader.value()
    return at, False


def _decode(quote: str, body: str) -> str:
    """The string that stands between two quotes; as it is written where its escapes are wrong."""
    if quote == "'":
        return body.replace("\\'", "'")
    if quote == '"':
        try:
            return json.loads(f'"{body}"', strict=False)
        except ValueError:
            return body
    return body
