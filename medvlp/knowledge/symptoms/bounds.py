"""What a reply of an LLM's server may cost, and where it may come from: limits of time, size and address."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:  # it takes a second to import
    from openai import OpenAI

HIDDEN = "***"
PLAIN = re.compile(  # what stands in the paths of such servers and is no key
    r"(?i)v\d\w{0,7}|api|openai|openapi|chat|completions?|models?|engines|deployments|serving-endpoints|llm|"
    r"inference|compatible-mode|compat|paas|gateway|proxy"
)
MOST = 16  # MB of a reply; an answer has a few kB, a long list of models one or two MB
TOO_LONG = f"sent a reply of more than {MOST} MB, which was not read."
COMPRESSION = 1000  # text becomes at most so many times smaller by gzip


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
        self._close_idle()
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

    def _close_idle(self) -> None:
        """Close what the caller left open: the time limit cuts connections that it saw opened."""
        for transport in (self._http._transport, *self._http._mounts.values()):
            pool = getattr(transport, "_pool", None)
            for connection in getattr(pool, "connections", ()):
                if connection.is_idle():
                    connection.close()

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
