"""What the keys, headings and labels in an LLM's reply say of the phrases that stand under them."""

import re
from collections.abc import Mapping
from itertools import takewhile, zip_longest
from typing import TYPE_CHECKING

from medvlp.knowledge.symptoms.phrases import find_name, words_of

if TYPE_CHECKING:
    from medvlp.knowledge.symptoms.loose_json import Tree

LONGEST_LABEL = 200  # characters; what is longer is no label
SHORT_HEADING = 5  # words

# Which value of an object holds its phrases: the last of these words in the key says it.
WANTED = re.compile(
    "(phrase|symptom|feature|sign|finding|cue|characteristic|clue|observation|bullet|answer|attribute|item|"
    "hallmark|descriptor)s?|propert(y|ies)"
)
NAMES = re.compile("(name|title|label|term|heading)s?")  # wanted if there is nothing better
SKIPPED = re.compile(
    "(note|explanation|reason|reasoning|rationale|thought|thinking|comment|warning|disclaimer|error|message|"
    "status|source|reference|citation|class|condition|modality|id|type|role|model|confidence|treatment|cause|"
    "significance|meaning|definition|introduction|summary|conclusion|question|prompt|task|instruction|"
    "language|format|number|count|why|disease)s?|(categor|modalit)(y|ies)|(analys|diagnos)[ie]s"
)
NEGATION = re.compile(
    "non|not|no|avoid(ed)?|exclud(e|ed|es|ing)|without|never|wrong|nonvisual|invisible|absent|absence|lacks?|"
    "lacking|rare|rarely|negative|unlikely|against|cannot|don|doesn|isn|aren|shouldn"
)
OF_WORDING = re.compile("nam(e|es|ed|ing)|mention(s|ed|ing)?|us(e|es|ed|ing)|more|longer|only|diagnos(is|es)")
ASPECT = re.compile(
    "(colou?r|shape|texture|size|border|edge|margin|outline|location|position|distribution|contrast|pattern|"
    "appearance|surface|structure|number|area)s?|brightness|a?symmetry|density|and"
)


class Classes:
    """The names of a card's classes: {name: whether it is one of the class that was asked about}."""

    def __init__(self, names: Mapping[str, bool]) -> None:
        self.known: dict[str, bool] = {}
        for name, own in names.items():
            self.known[words_of(name)] = own or self.known.get(words_of(name), False)

    def named(self, text: str) -> bool | None:
        """Whether a label is a name and nothing else: True for the own class, False for another, or None."""
        return self.known.get(words_of(text)) if self.known and len(text) <= LONGEST_LABEL else None

    def whose(self, text: str) -> bool | None:
        """Whose phrases a label or heading announces: True, False or None as in `named`.

        Of several names, the longest counts where they overlap, and the first in a short heading. A
        sentence that names the own class beside others is about the own class.
        """
        if not self.known or len(text) > LONGEST_LABEL:
            return None
        words = words_of(text)
        found = []
        for name in sorted(self.known, key=len, reverse=True):
            if (at := find_name(words, name)) >= 0 and not any(name in longer for _, longer in found):
                found.append((at, name))
        if not found:
            return None
        if len(words.split()) > SHORT_HEADING and any(self.known[name] for _, name in found):
            return True
        return self.known[min(found)[1]]


def excludes(heading: str) -> bool:
    """Whether a heading or label says that what stands under it is not wanted, as "Absent" or "Note" do."""
    words = _words(heading.split(",")[0].split("(")[0])
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        if NEGATION.fullmatch(word) and not OF_WORDING.fullmatch(after):
            return True
    return len(words) < SHORT_HEADING and rank(heading, "") == 0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text[:LONGEST_LABEL].casefold())


def rank(key: str | None, value: "str | Tree") -> int:
    """1: the key means phrases; 2: a list or object; 3: an aspect; 4: any string; 5: a name; 0: never."""
    if key is None:
        return 1
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key[:200])
    words = re.findall(r"[^\W\d_]+", spaced.casefold())
    if any(map(NEGATION.fullmatch, words)):
        return 0
    for word in reversed(list(takewhile(lambda word: word not in ("of", "for", "in"), words))):
        for number, known in ((1, WANTED), (0, SKIPPED), (5, NAMES)):
            if known.fullmatch(word):
                return number
    if not isinstance(value, str):
        return 2
    return 3 if is_aspect(key) else 4


def is_aspect(label: str) -> bool:
    """Whether a label is made of words such as "color" and "shape" alone."""
    words = re.findall(r"[^\W\d_]+", label[:100].casefold())
    return bool(words) and len(label) <= 100 and all(map(ASPECT.fullmatch, words))
