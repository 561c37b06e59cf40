"""The local LLM's server: the real one once, over HTTP; its starts, ends and errors with fake ones."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import openai
import pytest
from transformers import AutoConfig

from medvlp.knowledge.llm import llm_server, local_llm
from medvlp.knowledge.llm.local_llm import LocalLLM
from medvlp.knowledge.symptoms.server import SAYS_WHICH
from tests.knowledge.llm.small_llm import save_llm

QUESTION = [{"role": "user", "content": "Name four signs of pneumonia on a chest X-ray."}]
TINY = SimpleNamespace(name="tiny", place="/none", gguf_file="tiny.gguf", sha256="0" * 64)
FAKE = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        models = {"object": "list", "data": [{"id": sys.argv[1], "object": "model"}]}
        self.wfile.write(json.dumps(models).encode())
HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""
PARENT = """
import sys, time
from types import SimpleNamespace
from medvlp.knowledge.llm.local_llm import LocalLLM
llm = SimpleNamespace(name="tiny", place=sys.argv[1], gguf_file="", sha256="0" * 64)
server = LocalLLM(llm, None, 60, False).start(wait=False)
print(server._process.pid, flush=True)
time.sleep(float(sys.argv[2]))
"""


def fake(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(local_llm, "COMMAND", (sys.executable, "-c", code))


def reachable(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def gone(pid: int, seconds: float) -> bool:
    """Whether process `pid` ends within `seconds`; a zombie has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_smollm2_over_http(own_cache: Path) -> None:
    with local_llm.local_llm(progress=False) as server:
        pid, port, client = server._process.pid, server.port, server.client
        assert server.base_url == f"http://127.0.0.1:{port}/v1" and server.model == "smollm2"
        assert [model.id for model in client.models.list()] == ["smollm2"]
        ask = {"model": server.model, "messages": QUESTION, "max_tokens": 12}

        greedy = [client.chat.completions.create(**ask, temperature=0, seed=seed) for seed in (1, 2)]
        first = greedy[0].choices[0]
        assert len(first.message.content.split()) > 3 and first.finish_reason == "length"
        assert greedy[0].usage.completion_tokens == 12
        assert first.message.content == greedy[1].choices[0].message.content
        drawn = [
            client.chat.completions.create(**ask, temperature=1.5, seed=seed).choices[0].message.content
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]

        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**{**ask, "model": "gpt-4"})
        assert "requested 'gpt-4'" in refused.value.response.text
        assert reachable("127.0.0.1", port) and not reachable("127.0.0.2", port)
    assert gone(pid, 0.1) and not reachable("127.0.0.1", port) and not server.running
    assert (own_cache / "llms" / f"{server.llm.sha256}-{local_llm.VERSION}" / "models--smollm2").is_dir()
    assert not [*(own_cache / "llms").glob(".*")]  # nothing half-written


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", ["killed", "leaves without closing"])
def test_a_server_ends_with_its_parent(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLP_CACHE", str(tmp_path / "cache"))
    seconds = "60" if end == "killed" else "0"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path, seconds], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    if end == "killed":
        assert not gone(pid, 0.5)
        parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=20)
    assert gone(pid, 20)


def test_start_answer_close_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    fake(monkeypatch, FAKE)
    server = LocalLLM(TINY, None, 30, False)
    assert repr(server) == "LocalLLM('tiny-00000000', not running)"
    with pytest.raises(RuntimeError, match=r"'tiny-00000000' was not started: use `with local_llm"):
        server.client.models.list()
    for _ in range(2):
        assert server.start(wait=False) is server and server.running
        pid, port = server._process.pid, server.port
        assert [model.id for model in server.client.models.list()] == [server.model]  # waits; no proxy
        assert server.client.default_headers[SAYS_WHICH] == TINY.sha256
        assert server.client.api_key == "none" and server.client is server.client
        assert server.start().port == port and server._process.pid == pid  # already running
        server.close()
        server.close()
        assert gone(pid, 0.1) and not reachable("127.0.0.1", port) and server.port is None


def test_forgotten_or_failing_blocks_leave_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, FAKE)
    server = LocalLLM(TINY, None, 30, False).start(wait=False)
    pid = server._process.pid
    del server
    assert gone(pid, 5)
    with pytest.raises(ZeroDivisionError), LocalLLM(TINY, None, 30, False) as server:
        pid = server._process.pid
        1 / 0  # noqa: B018
    assert gone(pid, 0.1)

    def interrupt(port: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(local_llm, "_answers", interrupt)
    server = LocalLLM(TINY, None, 30, False).start(wait=False)
    pid = server._process.pid
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert gone(pid, 0.1) and not server.running


def test_a_server_that_dies_or_hangs_shows_its_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "for i in range(40): print('line', i)\nraise SystemExit('no such weights')")
    with pytest.raises(RuntimeError, match=r"'tiny-00000000' ended by itself \(exit code 1\)") as error:
        LocalLLM(TINY, None, 30, False).start()
    lines = str(error.value).splitlines()[1:]
    assert lines == [f"line {i}" for i in range(29, 40)] + ["no such weights"]

    fake(monkeypatch, "import time; print('still reading', flush=True); time.sleep(60)")
    server = LocalLLM(TINY, None, 1.0, False).start(wait=False)
    pid = server._process.pid
    with pytest.raises(TimeoutError, match=r"(?s)not answer within 1 seconds; give a larger.*still reading"):
        server.base_url  # noqa: B018
    assert gone(pid, 0.1)

    fake(monkeypatch, FAKE)
    with LocalLLM(TINY, None, 30, False) as server:
        os.kill(server._process.pid, signal.SIGTERM)
        server._process.wait()
        with pytest.raises(RuntimeError, match="ended by itself"):
            server.client  # noqa: B018


def test_a_port_that_is_taken_or_impossible() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of .* cannot be used .*in use.*leave port out"):
            LocalLLM(TINY, port, 30, False).start()
    for port in (0, 65536, -1):
        with pytest.raises(ValueError, match=f"port {port} is impossible"):
            local_llm.local_llm(port=port)


def test_missing_packages_and_llms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        local_llm.local_llm(tmp_path / "nowhere")
    folder = save_llm(tmp_path / "base")
    with pytest.raises(ValueError, match="'base' has no chat template, so it takes no messages"):
        local_llm.local_llm(folder)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("openai", "uvicorn") else find(name)
    )
    with pytest.raises(ImportError, match=r'needs openai, uvicorn, not .*: pip install "medvlp\[llm\]"'):
        local_llm.local_llm()


def test_a_folder_is_served_by_a_name_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDVLP_CACHE", str(tmp_path / "cache"))
    folder = save_llm(tmp_path / "my -- llm v1.5 (chat)")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    server = local_llm.local_llm(folder)
    assert server.model == f"my-llm-v1.5-chat-{server.llm.sha256[:8]}"
    hub = server._hub()
    llm_server._lay_out(hub, server.model, server.llm.place, "")
    found = huggingface_hub.scan_cache_dir(hub)
    assert [repo.repo_id for repo in found.repos] == [server.model] and not found.warnings
    assert AutoConfig.from_pretrained(server.model, cache_dir=hub, local_files_only=True).hidden_size == 32
    assert [path.name for path in hub.parent.glob(".*.part")] == []


def test_only_the_shipped_llm_and_hub_names_stand_without_a_hash() -> None:
    def model(name: str, gguf_file: str | None, sha256: str | None) -> str:
        llm = SimpleNamespace(name=name, place="/none", gguf_file=gguf_file, sha256=sha256)
        return LocalLLM(llm, None, 1, False).model

    assert model("smollm2", "SmolLM2.gguf", "a" * 64) == "smollm2"
    assert model("owner/name", None, None) == "owner/name"
    assert model("smollm2", None, "a" * 64) == "smollm2-aaaaaaaa"  # a folder of that name
    assert model("model.gguf", "model.gguf", "b" * 64) == "model-bbbbbbbb"
    huggingface_hub.utils.validate_repo_id(model("x" * 300, "x.gguf", "c" * 64))


@pytest.mark.parametrize(
    "name, model",
    [("a.gguf", "a"), ("SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M.Q4_1"), ("-.-", "llm"), ("größe", "gr-e")],
)
def test_model_names(name: str, model: str) -> None:
    assert local_llm._model_name(name) == model
    huggingface_hub.utils.validate_repo_id(model)


def test_the_server_gets_few_threads_that_wait_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    given = local_llm._environment(Path("/hub"))
    assert given["OMP_NUM_THREADS"] == "3" and given["OMP_WAIT_POLICY"] == "PASSIVE"
    assert given["HF_HUB_CACHE"] == "/hub" and given["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert local_llm._environment(None)["OMP_NUM_THREADS"] == "5"
