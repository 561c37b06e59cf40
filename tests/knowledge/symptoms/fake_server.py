"""A server on loopback that speaks as OpenAI-compatible ones do, says what it was told, and counts calls."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai

KEY = "sk-planted-Zx81Qw92Er73Ty"
IMAGE_TOKENS = 300  # that an image costs


@dataclass
class Say:
    """One answer: a reply, or with a status of 400 and more an error with `text` as its message."""

    text: str | list | None
    finish_reason: str = "stop"
    status: int = 200
    param: str | None = None
    refusal: str | None = None
    wait: float = 0.0  # seconds before it is sent
    body: bytes | None = None  # sent as it is, instead of all that
    headers: tuple[tuple[str, str], ...] = ()
    usage: bool = True
    thoughts: str | None = None  # beside the answer, as reasoning_content


Script = Callable[[dict], Say | str] | Sequence[Say | str]


class FakeServer:
    """Answers each chat completion with the next entry of a list, or with what a function of its body gives.

    `asked` holds the body of each call, `headers` its headers by lower-case name; `models` are listed.
    """

    def __init__(self, script: Script, models: Sequence[str] = ("good-model", "other-model")) -> None:
        self.script, self.models = script, models
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def calls(self) -> int:
        return len(self.asked)

    def client(self, **settings: Any) -> openai.OpenAI:
        """A client with the planted key, no retries and a short timeout, unless told otherwise."""
        return client_of(self.base_url, **{"timeout": 10.0, **settings})

    def answer(self, body: dict, headers: dict[str, str]) -> Say:
        with self._lock:
            place = len(self.asked)
            self.asked.append(body)
            self.headers.append(headers)
        if callable(self.script):
            said = self.script(body)
        elif place < len(self.script):
            said = self.script[place]
        else:
            said = Say("the script has no more answers", status=400)
        return Say(said) if isinstance(said, str) else said

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class LoopbackHttp(openai.DefaultHttpxClient):
    """Reads no certificates, which takes longer than a test; ends with the client, as openai's own does."""

    def __init__(self) -> None:
        super().__init__(verify=False)

    def __del__(self) -> None:
        self.close()


def client_of(url: str, **settings: Any) -> openai.OpenAI:
    given = {"api_key": KEY, "base_url": url, "timeout": 0.2, "max_retries": 0}
    return openai.OpenAI(**{**given, "http_client": LoopbackHttp(), **settings})


def question(body: dict) -> str:
    """All text of the messages of a call."""
    contents = [message["content"] for message in body["messages"]]
    return "\n".join(text if isinstance(text, str) else text[0]["text"] for text in contents)


def bullets(*phrases: str) -> str:
    return "\n".join(f"- {phrase}" for phrase in phrases)


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            models = [{"id": m, "object": "model", "created": 0, "owned_by": "test"} for m in fake.models]
            self._send(200, json.dumps({"object": "list", "data": models}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            say = fake.answer(body, {name.lower(): text for name, text in self.headers.items()})
            time.sleep(say.wait)
            try:
                self._send(say.status, say.body if say.body is not None else _content(say, body), say.headers)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has given up, as a test of timeouts wants

        def _send(self, status: int, content: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
            self.send_response(status)
            for name, value in (*headers, ("Content-Type", "application/json")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    return Handler


def _content(say: Say, body: dict) -> bytes:
    if say.status >= 400:
        error = {"message": say.text, "type": "invalid_request_error", "param": say.param, "code": None}
        return json.dumps({"error": error}).encode()
    letters = len(question(body))
    images = sum(not isinstance(message["content"], str) for message in body["messages"])
    usage = {
        "prompt_tokens": letters // 4 + IMAGE_TOKENS * images,
        "completion_tokens": len(say.text or "") // 4,
    }
    usage["total_tokens"] = sum(usage.values())
    message = {"role": "assistant", "content": say.text, "refusal": say.refusal}
    message |= {"reasoning_content": say.thoughts} if say.thoughts else {}
    completion = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": say.finish_reason}],
        "usage": usage if say.usage else None,
    }
    return json.dumps(completion).encode()
