"""Replies as LLMs write them, and ten thousand that are broken or hostile on purpose."""

import json
import re
import time
import unicodedata
from collections.abc import Collection
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvlp.knowledge.symptoms.phrases import PhraseChecker
from medvlp.knowledge.symptoms.replies import REPLY_KINDS, ReplyError, parse_reply
from medvlp.knowledge.symptoms.sets import SymptomSet
from tests.knowledge.symptoms.lesions import CARD

CORPUS = yaml.safe_load((Path(__file__).parent / "replies" / "replies.yaml").read_text(encoding="utf-8"))
MILLION = 10**6


def squeezed(text: str) -> str:
    """A text without white space, characters that are not seen, and marks of emphasis."""
    return "".join(
        c for c in text if unicodedata.category(c) not in ("Cc", "Cf") and not c.isspace() and c not in "*_`"
    )


def decoded(reply: str) -> str:
    """A reply with every escape that JSON knows replaced, wherever it stands."""
    return re.sub(
        r"(?:\\u[0-9a-fA-F]{4})+|\\[\"\\/bfnrt]", lambda found: json.loads(f'"{found[0]}"'), reply
    ).replace("\\'", "'")


def check(reply: str, cut: bool, names: Collection[str] = ()) -> list[str]:
    """Parse a reply; assert what holds for any reply at all; return the phrases, none for a ReplyError."""
    try:
        phrases = parse_reply(reply, cut, names)
    except ReplyError as error:
        assert error.kind in REPLY_KINDS
        assert error.reply == reply
        assert str(error).isprintable()
        return []
    assert phrases
    plain, escaped = squeezed(reply), squeezed(decoded(reply))
    for phrase in phrases:
        assert phrase == phrase.strip() != ""
        assert not re.search(r"[\r\n\t\u2028]|:\s|:$|：|\s-\s|^[-*•]\s|^\d+\.\s", phrase), ascii(phrase)
        assert squeezed(phrase) in plain or squeezed(phrase) in escaped, ascii(phrase)
    tags = [shown_tags(some) for some in (phrases, ["red dots"] * len(phrases))]
    assert tags[0] == tags[1], "a reply brought a tag of its own into the notebook"
    return phrases


def shown_tags(phrases: list[str]) -> list[tuple]:
    """Every tag, comment and declaration of what a notebook shows of a set with these phrases."""
    tags: list[tuple] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_starttag = lambda *tag: tags.append(tag)
    parser.handle_endtag = parser.handle_comment = parser.handle_decl = lambda text: tags.append((text,))
    parser.handle_pi = parser.unknown_decl = lambda text: tags.append((text,))
    parser.feed(SymptomSet.from_phrases(CARD, dict.fromkeys(CARD.classnames, phrases))._repr_html_())
    parser.close()
    return tags


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["shape"])
def test_the_shapes_that_llms_produce(case):
    cut = case.get("cut", False)
    if "error" in case:
        with pytest.raises(ReplyError) as caught:
            parse_reply(case["reply"], cut, case.get("names", ()))
        assert caught.value.kind == case["error"]
        assert caught.value.reply == case["reply"]
    else:
        assert parse_reply(case["reply"], cut, case.get("names", ())) == case["phrases"]
    check(case["reply"], cut, case.get("names", ()))


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["shape"])
def test_a_reply_cut_anywhere_gives_whole_phrases_only(case):
    """Whatever the length, a cut reply says a prefix of what it would have said; an explanation may stay."""
    reply = case["reply"].rstrip("\n")
    whole = case.get("phrases", [])
    for length in range(len(reply)):
        phrases = check(reply[:length], True, case.get("names", ()))
        half = [p for p in phrases if p not in whole and any(w != p and w.startswith(p) for w in whole)]
        assert not half, f"half a phrase after {length} characters"


WORDS = st.sampled_from([
    "red dots", "a pale disc", "Blurred heart edge.", "fever", "I'm sorry", "I cannot help",
    "Color", "`x`", "<b>", "**Shape:** round", "<script>alert('x')</script>", '"quoted"', "it's",
    "“smart”", "白色斑块", "пятно", "é", "e\u0301", "\u202eabc", "\u200bzero", "\ud800", "\x00",
    "\x1b[31m", "\\u0041", "\\\\", "\\n", "\\ud83d\\ude00", "{}", "{{0}}", "%s", "../../etc/passwd",
    "a & b", "&lt;i&gt;", "😀", "1.5 cm", "etc.", "https://example.org/?q=1", "```", "---", "Note:",
    "symptoms", "feature", "name", "= 1;",
])  # fmt: skip
MARKS = st.sampled_from([
    "- ", "* ", "• ", "1. ", "2) ", "(3) ", "  - ", "\t* ", "> ", "# ", "**", "__", "{", "}", "[",
    "]", "[[", "{[", '{"', '":', '","', '",', ",", ":", '"', "'", "“", "”", "```json\n", "```\n",
    "<think>", "</think>", "<reasoning>", "\n", "\n\n", "\r\n", "\r", "\u2028", "\x0b", "\x85", " ",
    "\\", ": ", ". ", "…", "①", "1、", "| ", "|", "|---|---|\n",
])  # fmt: skip
SHAPED = st.recursive(
    WORDS | st.none() | st.integers() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(WORDS | st.sampled_from(["symptoms", "note", "name", "1"]), inner, max_size=4)
    ),
    max_leaves=12,
)


ASKED = st.fixed_dictionaries({"symptoms": st.lists(WORDS, min_size=1, max_size=4)})


@st.composite
def broken_json(draw) -> str:
    """JSON that a careless hand went over: cut, a character changed, doubled or lost, prose around."""
    text = json.dumps(
        draw(SHAPED | ASKED), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 2]))
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(MARKS | st.just("")) + text[at + draw(st.integers(0, 2)) :]
    return draw(WORDS | st.just("")) + text[: draw(st.integers(0, len(text)) | st.just(len(text)))]


@st.composite
def broken_list(draw) -> str:
    """Lines with marks that do not match, in any order."""
    mark = draw(MARKS.map(st.just) | st.just(MARKS))  # one mark, or any
    lines = draw(st.lists(st.tuples(mark, WORDS, st.just("") | MARKS, st.just("") | WORDS), max_size=8))
    return draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join("".join(line) for line in lines)


SOUP = st.lists(WORDS | MARKS | st.text(max_size=5), max_size=25).map("".join)
NOISE = st.text(st.characters(), max_size=80)  # any character, lone surrogates too
REPLIES = {"json": broken_json(), "lists": broken_list(), "soup": SOUP, "noise": NOISE}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REPLIES)
def test_ten_thousand_hostile_replies(kind):
    """2,500 of each kind: phrases that were in the reply, or a ReplyError, and nothing else."""
    seen = {"phrases": 0, "errors": 0}

    @settings(
        max_examples=2500,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(reply=REPLIES[kind], cut=st.booleans())
    def run(reply, cut):
        seen["phrases" if check(reply, cut) else "errors"] += 1

    run()
    assert sum(seen.values()) >= 2500
    assert seen["errors"] > 10 and (seen["phrases"] > 10 or kind == "noise"), f"replies of one sort: {seen}"


WRAPPERS = [
    ("<think>\n", "\n</think>\n"), ("[THINK]", "[/THINK]"), ("<any-Name x='1'>", "</any-Name>\n\n"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>thought\n", "<channel|>"), ("<|START_THINKING|>", "<|END_THINKING|>\n"),
    ("Let me think.\n", "\nSo the answer is:\n"), ("**Draft**\n", "\n**Answer**\n"), ("<!-- ", " -->"),
]  # fmt: skip


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(data=st.data(), wrapper=st.sampled_from(WRAPPERS), cut=st.booleans())
def test_a_draft_before_the_answer_is_never_read(data, wrapper, cut):
    """Whatever stands round it, and wherever the reply ends."""
    lists = st.sampled_from(
        ["- draft {0}\n- draft {1}", "1. draft {0}\n2. draft {1}", '{{"symptoms": ["draft"]}}']
    )
    words = st.tuples(WORDS, WORDS)
    draft = "\n".join(data.draw(lists).format(*data.draw(words)) for _ in range(data.draw(st.integers(1, 3))))
    answer = data.draw(
        st.sampled_from(["- red dots\n- pale disc", '{"symptoms": ["red dots", "pale disc"]}'])
    )
    reply = f"{wrapper[0]}{draft}{wrapper[1]}{answer}"
    reply = reply[: data.draw(st.integers(0, len(reply)) | st.just(len(reply)))]
    for phrase in check(reply, cut):
        assert "draft" not in phrase and "red dots pale disc".find(phrase.split()[0]) >= 0


PIECES = [
    "[", '["', '[{"a":', "['a,", '["\\"', "<think>", "</think>", "- ", "1. ", "**", "*_", '"',
    "a: ", "|", "\n- a", "\n  a", "```\n", " ", "\n", "\x00", "\\", "a", "a\n", "I ", "(", "# ",
    "{a:", "[a:", "' ", "['  ", "{1,", "sorry. ",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES, ids=ascii)
def test_long_replies_take_linear_time_and_no_recursion(piece):
    """Were the time squared in the length, 100,000 characters would take minutes."""
    size = MILLION // 10
    taken = []
    for reply in (piece * (size // len(piece)), "- x\n" + piece * (size // len(piece))):
        start = time.process_time()
        check_only(reply)
        taken.append(time.process_time() - start)
    assert max(taken) < 5, f"{size} characters took {max(taken):.1f} s"


def check_only(reply: str) -> None:
    try:
        assert parse_reply(reply)
    except ReplyError as error:
        assert len(str(error)) < 300


@pytest.mark.slow
def test_a_million_characters():
    for reply in ("[" * MILLION, "- red dots\n" * (MILLION // 11), '["a",' * (MILLION // 5)):
        check_only(reply)


def test_an_error_says_what_was_wrong_and_what_came_back():
    with pytest.raises(ReplyError, match="cut short before it was whole.* max_tokens larger"):
        parse_reply("- dense", cut=True)
    with pytest.raises(ReplyError, match=r"beside the list, or no list\. It says 'The lung is white\.'"):
        parse_reply("The lung is white.")
    with pytest.raises(ReplyError) as caught:
        parse_reply("x" * 10_000)
    assert len(str(caught.value)) < 200
    assert caught.value.reply == "x" * 10_000


def test_what_cannot_be_printed_is_left_to_the_checks():
    phrases = parse_reply('{"symptoms": ["red\\u0000 dots", "pale\\u200d disc"]}')
    assert phrases == ["red\0 dots", "pale\u200d disc"]
    assert not any(verdict.kept for verdict in PhraseChecker(CARD).check("nevus", phrases))
