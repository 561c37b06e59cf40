"""The phrases in an LLM's reply: the one shape that was asked for, or an error that says what is wrong.

    {"symptoms": ["red dots", "a pale disc"]}        what is asked for
    - red dots                                       or, from an LLM that writes no JSON, one flat list
    - a pale disc

Nothing else is read. A heading, a remark before or after, a label, a list inside a list: whose phrases these
are, and whether the LLM means or rejects them, would be a guess. The class is asked again, and told.

Before that, a reply must end: `ReplyBounds` is what it may cost.
"""

import json
import re
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from medvlp.knowledge.symptoms.phrases import words_of

if TYPE_CHECKING:  # it takes a second to import
    from openai import OpenAI

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
HIDDEN = "***"
PLAIN = re.compile(  # what stands in the paths of such servers and is no key
    r"(?i)v\d\w{0,7}|api|openai|openapi|chat|completions?|models?|engines|deployments|serving-endpoints|llm|"
    r"inference|compatible-mode|compat|paas|gateway|proxy"
)
SHOWN = 80  # characters of a reply in an error's message
MOST = 16  # MB of a reply; an answer has a few kB, a long list of models one or two MB
TOO_LONG = f"sent a reply of more than {MOST} MB, which was not read."
COMPRESSION = 1000  # text becomes at most so many times smaller by gzip

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
        shown = repr(" ".join(reply[: 2 * SHOWN].split())[:SHOWN])[: 2 * SHOWN]
        super().__init__(f"the reply cannot be used: {REPLY_KINDS[kind]}. It begins {shown}.")
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


class ReplyEnded(Exception):
    """A reply was broken off; `ReplyBounds.why` says why."""


class ReplyBounds:
    """Breaks off a reply that drips, has no end or leads elsewhere: `with bounds:` around a question.

    A client's timeout is for each piece of a reply. Here twice of it is for the whole, redirects included;
    then the connection is cut. Works by hooks of the client's HTTP library, on the requests of this thread.

    Attributes:
        why: the kind of error and the problem in words, where a reply was broken off.
    """

    def __init__(self, client: "OpenAI") -> None:
        timeout = getattr(client.timeout, "read", client.timeout)
        self.why: tuple[str, str] | None = None
        self._seconds = timeout and 2 * timeout
        self._http = client._client  # openai has no public name for it
        self._hooks = {"request": self._before, "response": self._after}
        self._streams: list[Any] = []  # of earlier questions, too: connections are kept
        self._timer: threading.Timer | None = None
        self._thread = 0

    def __enter__(self) -> None:
        self.why, self._thread = None, threading.get_ident()
        for name, hook in self._hooks.items():
            self._http.event_hooks[name].append(hook)

    def __exit__(self, *_: object) -> None:
        self._stop_timer()
        for name, hook in self._hooks.items():
            self._http.event_hooks[name].remove(hook)

    def _before(self, request: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self._end()
        request.headers["Accept-Encoding"] = "identity"  # a small compressed reply can be a large one
        request.extensions["trace"] = self._trace
        if self._timer is None and self._seconds:
            self._timer = threading.Timer(self._seconds, self._cut)
            self._timer.daemon = True
            self._timer.start()

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".connect_unix_socket.complete")):
            self._streams.append(info["return_value"])
        elif event.endswith(".failed"):
            self._stop_timer()  # the client waits before it tries again

    def _cut(self) -> None:
        self.why = (
            "timeout",
            (
                f"did not finish its reply within {self._seconds:g} s, twice the client's timeout. Give the "
                "client a longer one: OpenAI(timeout=...)."
            ),
        )
        for stream in self._streams:
            with suppress(OSError, AttributeError, TypeError):  # closed, or no socket
                socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)

    def _after(self, response: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        url, moved = response.request.url, response.has_redirect_location
        there = url.join(response.headers["location"]) if moved else url
        if (there.scheme, there.host, there.port) != (url.scheme, url.host, url.port):
            self._end(
                f"sends the question on to another server, {address(there)}. Nothing was sent there. If that "
                "is where it should go, give it as the client's base_url."
            )
        packed = response.headers.get("content-encoding", "identity").lower()
        most = MOST * 2**20 // (1 if packed == "identity" else COMPRESSION)
        announced = response.headers.get("content-length", "")
        if packed not in ("identity", "gzip", "deflate") or (announced.isdigit() and int(announced) > most):
            self._end(TOO_LONG)
        response.stream = self._bounded(response.stream, most, moved)

    def _bounded(bounds, stream: Any, most: int, moved: bool) -> Any:  # noqa: N805
        """The stream of a reply's bytes, of which at most so many come."""

        class Bounded(type(stream)):  # the HTTP library asks for a class of its own
            def __init__(self) -> None:
                pass

            def __iter__(self) -> Iterator[bytes]:
                size = 0
                for chunk in stream:
                    size += len(chunk)
                    bounds._end(TOO_LONG if size > most else None)
                    yield chunk
                bounds._end()  # a connection that was cut can look like a reply's end

            def close(self) -> None:
                stream.close()
                if not moved:
                    bounds._stop_timer()

        return Bounded()

    def _end(self, problem: str | None = None) -> None:
        """Break off with this problem of the server, or where the time is over."""
        if problem:
            self.why = "server", problem
        if self.why:
            raise ReplyEnded

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


def address(url: Any, whole: bool = False) -> str:
    """A URL without user, password, query and fragment; of its path only words that are no key, or the whole.

    >>> address("https://user:word@host/gateway/4f1c2b/v1?key=8")
    'https://host/gateway/***/v1'
    """
    url = urlsplit(str(url))
    parts = url.path.rstrip("/").split("/")
    shown = [part if whole or not part or PLAIN.fullmatch(part) else HIDDEN for part in parts]
    return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], "/".join(shown), "", ""))
