"""The local LLM's server: a tiny LLM asked over HTTP, its starts, ends and errors; SmolLM2 once."""

import gc
import http.client
import importlib.util
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import torch

from medvlp.knowledge import llms
from medvlp.knowledge.local_llm import LocalLLM, _sampler, local_llm
from medvlp.knowledge.symptoms.server import SAYS_WHICH
from tests.knowledge.small_llm import CONTEXT, save_llm

QUESTION = [{"role": "user", "content": "Name four signs of pneumonia on a chest X-ray."}]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = save_llm(tmp_path_factory.mktemp("llms") / "my llm v1.5")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def running(folder):
    with local_llm(folder) as server:
        yield server


def running_writer(server: LocalLLM):
    """The loaded LLM behind a server."""
    return server._stop.peek()[1].__self__.writer


def ask(server: LocalLLM, **settings) -> str:
    request = {"model": server.model, "messages": QUESTION, "max_tokens": 12, "temperature": 0, **settings}
    return server.client.chat.completions.create(**request).choices[0].message.content


def reachable(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def test_a_folder_is_served_on_loopback_alone_by_a_name_without_its_path(running, folder):
    assert running.model == f"my llm v1.5-{running.llm.sha256[:8]}" and str(folder) not in running.model
    assert running.base_url == f"http://127.0.0.1:{running.port}/v1"
    assert [model.id for model in running.client.models.list()] == [running.model]
    assert reachable("127.0.0.1", running.port) and not reachable("127.0.0.2", running.port)
    assert running.client.default_headers[SAYS_WHICH] == running.llm.sha256


def send(port: int, method: str, path: str, *headers: tuple[str, str]) -> tuple[int, str]:
    """Status and body of a request with these headers and no others."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    link.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    body = json.dumps({"model": "any", "messages": QUESTION}).encode() if method == "POST" else b""
    for name, value in (*headers, ("Content-Length", str(len(body)))):
        link.putheader(name, value)
    link.endheaders(body)
    response = link.getresponse()
    return response.status, response.read().decode()


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models")])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:PORT", "Origin": "http://evil.example:PORT"},  # DNS rebinding
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:PORT"},
        {"Host": "evil.example@127.0.0.1:PORT"},
        {"Host": "0.0.0.0:PORT"},
        {"Host": ""},
        {},
        {"Host": "127.0.0.1:PORT", "Origin": "http://evil.example"},  # a page that posts to this address
        {"Host": "127.0.0.1:PORT", "Origin": "null"},
        {"Host": "127.0.0.1:PORT", "Origin": "http://localhost:8888"},
        {"Host": "127.0.0.1:PORT", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_web_page_gets_nothing(running, monkeypatch, method, path, headers):
    monkeypatch.setattr(running_writer(running), "answer", lambda asked: pytest.fail("answered"))
    headers = [(name, value.replace("PORT", str(running.port))) for name, value in headers.items()]
    status, said = send(running.port, method, path, *headers)
    assert status == 403 and "error" in json.loads(said) and running.model not in said


def test_two_hosts_are_none(running):
    assert send(running.port, "GET", "/v1/models", ("Host", "127.0.0.1"), ("Host", "evil.example"))[0] == 403


POSTS = ("/", "/reset", "/v1/completions", "/v1/chat/completions/../reset", "http://a/v1/models")
GETS = ("/", "/reset", "/v1/chat/completions", "/v1/files", "/health")


@pytest.mark.parametrize(("method", "path"), [*product(["POST"], POSTS), *product(["GET"], GETS)])
def test_the_server_knows_chat_completions_and_its_model_alone(running, monkeypatch, method, path):
    monkeypatch.setattr(running_writer(running), "answer", lambda asked: pytest.fail("answered"))
    status, said = send(running.port, method, path, ("Host", f"127.0.0.1:{running.port}"))
    assert status == 404 and "/v1/chat/completions" in json.loads(said)["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "localhost:PORT", "LOCALHOST", "127.0.0.1:8000"])
def test_programs_on_this_machine_are_answered(running, host):
    """Also over a forwarded port, and from a page of the server's own address."""
    host = host.replace("PORT", str(running.port))
    for headers in ([], [("Origin", f"http://{host}")], [("Sec-Fetch-Site", "none")]):
        status, said = send(running.port, "GET", "/v1/models", ("Host", host), *headers)
        assert status == 200 and running.model in said
    status, said = send(running.port, "POST", "/chat/completions", ("Host", host))
    assert status == 400 and "'any' was asked" in said


@pytest.mark.parametrize("length", ["-1", "1000000000000", "many"])
def test_a_request_of_an_impossible_size_is_refused(running, length):
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as link:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
        link.sendall(head.encode())
        assert b" 400 " in link.recv(1000)


def test_only_the_shipped_llm_and_hub_names_stand_without_a_hash():
    def model(name: str, gguf_file: str | None, sha256: str | None) -> str:
        return LocalLLM(SimpleNamespace(name=name, gguf_file=gguf_file, sha256=sha256), False).model

    assert model("smollm2", "SmolLM2.gguf", "a" * 64) == "smollm2"
    assert model("owner/name", None, None) == "owner/name"
    assert model("smollm2", None, "a" * 64) == "smollm2-aaaaaaaa"  # a folder of that name
    assert model("model.gguf", "model.gguf", "b" * 64) == "model-bbbbbbbb"


def test_answers_are_those_of_transformers(running, folder):
    """Oracle: greedy words one by one, from the LLM as transformers loads it."""
    tokenizer, model = llms.find_llm(folder).load_writer(torch.device("cpu"))
    tokens = tokenizer(QUESTION[0]["content"], return_tensors="pt")["input_ids"]  # (1, T)
    asked = tokens.shape[1]
    with torch.no_grad():
        for _ in range(12):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    answer = running.client.chat.completions.create(model=running.model, messages=QUESTION, max_tokens=12)
    assert answer.choices[0].message.content == tokenizer.decode(tokens[0, asked:], skip_special_tokens=True)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (asked, 12)
    assert answer.choices[0].finish_reason == "length"


@pytest.fixture
def last_word(running, monkeypatch):
    """Sets the token that ends an answer; None: there is none."""
    config = running_writer(running).model.generation_config
    return lambda token: monkeypatch.setattr(config, "eos_token_id", token)


def test_an_answer_ends_at_the_llms_last_word(running, last_word):
    (first,) = running_writer(running).tokenizer(ask(running, max_tokens=1))["input_ids"]
    last_word(first)
    answer = running.client.chat.completions.create(model=running.model, messages=QUESTION)
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens == 1


def test_a_seed_draws_the_same_words_and_torchs_own_seed_is_left_alone(running):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn = [ask(running, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert ask(running, seed=1) == ask(running, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_words_are_drawn_by_their_probability():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    drawn = [_sampler(0.7, seed)(None, scores).argmax().item() for seed in range(4000)]
    share = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)  # (4,)
    torch.testing.assert_close(share, (scores[0] / 0.7).softmax(-1), atol=0.03, rtol=0)


def test_training_in_another_thread_is_not_felt_and_does_not_feel_it(running):
    """Gradients, draws and the number of threads beside answers are those without them."""

    def train() -> torch.Tensor:
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8)
        for _ in range(200):
            layer(torch.randn(4, 8)).square().sum().backward()
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        return layer.weight.grad

    threads, alone = torch.get_num_threads(), train()
    words = ask(running, temperature=1, seed=3)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, running, temperature=1, seed=3) for _ in range(8)]
        while not all(answer.done() for answer in answers):
            assert torch.equal(train(), alone)
    assert {answer.result() for answer in answers} == {words}
    assert torch.get_num_threads() == threads and torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "gpt-4"}, "'gpt-4' was asked"),
        ({"stream": True}, "leave stream out"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"temperature": "hot"}, "could not convert"),
        ({"max_tokens": -3}, "max_tokens at least 1"),
        ({"messages": [{"role": "bad", "content": ""}]}, "no such role"),
        ({"messages": "hello"}, "messages cannot be read"),
        ({"messages": [{"role": "user", "content": "x" * CONTEXT}]}, f"have {CONTEXT} tokens"),
    ],
)
def test_what_cannot_be_answered_is_an_error_with_a_message(running, settings, said):
    with pytest.raises(openai.BadRequestError, match=said):
        ask(running, **settings)
    assert ask(running)


def test_an_error_inside_an_answer_is_an_error_and_no_hang(running, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(running_writer(running).model, "generate", fail)
    with pytest.raises(openai.InternalServerError, match="RuntimeError: out of memory"):
        completions = running.client.with_options(max_retries=0).chat.completions
        completions.create(model=running.model, messages=QUESTION)
    monkeypatch.undo()
    assert ask(running)


def test_a_long_answer_stays_within_the_context(running, last_word):
    last_word(None)
    answer = running.client.chat.completions.create(model=running.model, messages=QUESTION, max_tokens=9999)
    assert answer.usage.total_tokens == CONTEXT


def test_start_answer_close_start_again(folder, monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    server = local_llm(folder)
    assert repr(server) == f"LocalLLM('{server.model}', not running)"
    with pytest.raises(RuntimeError, match=r"was not started: use `with local_llm"):
        server.client  # noqa: B018
    for _ in range(2):
        port = server.start().port
        assert ask(server) and server.client.api_key == "none" and server.client is server.client
        assert server.start().port == port and server.running
        server.close()
        server.close()
        assert not reachable("127.0.0.1", port) and server.port is None and not server.running


def test_closing_stops_an_answer_and_forgotten_or_failing_blocks_leave_no_server(folder):
    server = local_llm(folder).start()
    writer, problems = running_writer(server), []
    client, model, generate = server.client.with_options(max_retries=0), server.model, writer.model.generate
    begun = threading.Event()
    writer.model.generate = lambda *a, **k: (begun.set(), time.sleep(0.2), generate(*a, **k))[2]

    def wait() -> None:
        try:
            client.chat.completions.create(model=model, messages=QUESTION, max_tokens=400)
        except openai.OpenAIError as error:
            problems.append(error)

    asking = threading.Thread(target=wait)
    asking.start()
    assert begun.wait(20)
    server.close()
    asking.join(20)
    assert not asking.is_alive() and len(problems) == 1

    server = local_llm(folder).start()
    port = server.port
    del server
    gc.collect()
    assert not reachable("127.0.0.1", port)
    with pytest.raises(ZeroDivisionError), local_llm(folder) as server:
        port = server.port
        1 / 0  # noqa: B018
    assert not reachable("127.0.0.1", port)


def test_an_interrupted_load_leaves_no_server(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    server = local_llm(folder)
    monkeypatch.setattr(llms.LLM, "load_writer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert not server.running and server.port is None


def test_a_load_that_takes_long_says_so(folder, monkeypatch, capsys):
    load = llms.LLM.load_writer
    monkeypatch.setattr("medvlp.knowledge.local_llm.SAY_AFTER", 0.1)
    monkeypatch.setattr(llms.LLM, "load_writer", lambda *a: (time.sleep(0.3), load(*a))[1])
    for progress in (True, False):
        with local_llm(folder, progress=progress):
            assert ("loading my llm" in capsys.readouterr().out) == progress


def test_missing_packages_and_llms(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        local_llm(tmp_path / "nowhere")
    folder = save_llm(tmp_path / "base")
    with pytest.raises(ValueError, match="'base' has no chat template, so it takes no messages"):
        local_llm(folder).start()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in ("openai", "gguf") else find(n))
    with pytest.raises(ImportError, match=r'needs openai, gguf, not .*: pip install "medvlp\[llm\]"'):
        local_llm()


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_half_precision_only_where_the_processor_has_it(folder, monkeypatch, native, dtype):
    monkeypatch.setattr(llms, "native_bfloat16", lambda: native)
    assert llms.find_llm(folder).load_writer(torch.device("cpu"))[1].dtype == dtype


@pytest.mark.slow
def test_smollm2_over_http():
    with local_llm(progress=False) as server:
        assert server.model == "smollm2"
        assert len(ask(server).split()) > 3 and ask(server) == ask(server)
