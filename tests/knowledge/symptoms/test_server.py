"""Servers of all kinds behind generate_symptoms: options, failures, retries, and a key that is nowhere."""

import gzip
import json
import logging
import resource
import socket
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import replace
from urllib.parse import unquote

import openai
import pytest

from medvlp.knowledge.symptoms.questions import DEFAULT
from medvlp.knowledge.symptoms.server import HIDDEN, SymptomError
from medvlp.knowledge.symptoms.sets import SymptomSet
from tests.knowledge.symptoms.fake_server import KEY, FakeServer, Say, bullets, client_of
from tests.knowledge.symptoms.lesions import LISTS, classname, told

# What servers can and cannot do


def test_structured_output_is_asked_for_and_read(ask):
    with FakeServer(lambda body: json.dumps({"symptoms": LISTS[classname(body)]})) as server:
        assert dict(ask(server)) == LISTS
    wanted = server.asked[0]["response_format"]
    assert wanted["type"] == "json_schema" and "symptoms" in wanted["json_schema"]["schema"]["properties"]


def test_a_question_for_bullets_is_sent_without_a_schema(ask):
    prompts = replace(DEFAULT, text="$count bullets to detect $classname in $modality")
    with FakeServer(told) as server:
        assert dict(ask(server, prompts=prompts)) == LISTS
    assert not any("response_format" in body for body in server.asked)


@pytest.mark.parametrize("status", [400, 422, 500, 501])
def test_a_server_without_structured_output_is_asked_plainly_from_then_on(ask, status):
    def script(body):
        rejected = "response_format" in body
        return Say("json_schema is not supported", status=status) if rejected else told(body)

    with FakeServer(script) as server:
        symptoms = ask(server)
    assert dict(symptoms) == LISTS
    assert ["response_format" in body for body in server.asked] == [True, False, False, False]
    assert "response_format" not in symptoms.record.classes["melanoma"].calls[0].options


def test_a_server_that_takes_no_temperature_and_names_max_tokens_otherwise(ask):
    def script(body):
        if "max_tokens" in body:
            return Say("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", status=400)
        if "temperature" in body:
            return Say("Unsupported value.", status=400, param="temperature")
        return told(body)

    with FakeServer(script) as server, pytest.warns(RuntimeWarning, match="does not take temperature"):
        symptoms = ask(server, max_tokens=77)
    assert dict(symptoms) == LISTS and server.calls == 5
    options = symptoms.record.classes["nevus"].calls[0].options
    assert options["max_completion_tokens"] == 77 and "temperature" not in options
    assert "response_format" in options and "seed" in options


def test_tokens_that_a_server_does_not_count_are_unknown(ask):
    symptoms = ask(lambda body: Say(told(body), usage=False))
    assert symptoms.calls().prompt_tokens.isna().all() and "uncounted" in repr(symptoms)


FAILURES = {
    "key refused": [Say("bad key", status=401), Say("not allowed", status=403)],
    "rate limit": [Say("slow down", status=429)],
    "no such model": [Say("no", status=404), Say("", status=400, body=b'{"detail": "pinned to other"}')],
    "server": [
        Say("on fire", status=500),
        Say("", status=503, body=b"<html>busy</html>"),
        Say("", body=b"{not json"),
        Say("", body=b'"just a string"'),
        Say("", body=b"[" * 100_000),
        Say("", body=b'{"choices": []}'),
        Say("", body=b'{"choices": null}'),
        Say("", body=b'{"choices": [{"message": null}]}'),
        Say("", body=b'{"choices": [{"message": {"content": ["a"]}}]}'),
        Say("", body=b'{"choices": {"a": 1}}'),
    ],
}


@pytest.mark.parametrize(("kind", "say"), [(kind, say) for kind, says in FAILURES.items() for say in says])
def test_a_failing_server_is_one_clear_error(ask, kind, say):
    model = "unknown-model" if kind == "no such model" else "good-model"
    with FakeServer(lambda body: say) as server, pytest.raises(SymptomError) as caught:
        ask(server, model=model)
    said = str(caught.value)
    assert caught.value.kind == kind and "'melanoma'" in said and server.base_url in said and model in said
    assert "Finished classes are kept" in said and len(said) < 1500
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    if kind == "no such model":
        assert "good-model, other-model" in said


def test_a_server_that_is_too_slow_or_not_there(ask):
    with FakeServer(lambda body: Say("- a", wait=2)) as server:
        with pytest.raises(SymptomError, match="did not answer in time, after 1 tries.*timeout") as caught:
            ask(server, client=server.client(timeout=0.2))
        assert caught.value.kind == "timeout"
    with pytest.raises(SymptomError, match="cannot be reached") as caught:
        ask(server, client=server.client())
    assert caught.value.kind == "connection"


def test_the_clients_retries_come_first(ask):
    busy = Say("busy", status=429, headers=(("retry-after-ms", "5"),))
    with FakeServer(lambda body: busy if len(server.asked) == 1 else told(body)) as server:
        assert dict(ask(server, client=server.client(max_retries=1))) == LISTS
    assert server.calls == 4


# Replies without an end, and roads to elsewhere

DONE = json.dumps({"choices": [{"message": {"role": "assistant", "content": "- red dots"}}]}).encode()


@contextmanager
def raw_server(answer):
    """A server that reads a request whole and lets `answer` write to the socket; gives its base URL."""

    def serve():
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(link,), daemon=True).start()

    def talk(link):
        with suppress(OSError), link, link.makefile("rb") as file:
            while file.readline():
                length = 0
                while (line := file.readline().strip().lower()) != b"":
                    length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
                file.read(length)
                answer(link)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)


def drip(head: bytes, body: bytes = b""):
    def answer(link):
        link.sendall(head)
        for byte in body * 10_000:
            time.sleep(0.05)
            link.sendall(bytes([byte]))

    return answer


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DRIPS = {
    "the status line": drip(b"HTTP/1.1 200 ", b"OK"),
    "headers": drip(OK, b"A: b\r\n"),
    "a body": drip(OK + b"Content-Length: 50000\r\n\r\n", b"  "),
    "a body in chunks": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a body until the connection ends": drip(OK + b"Connection: close\r\n\r\n", b" "),
    "an error": drip(OK.replace(b"200 OK", b"500 No") + b"Content-Length: 50000\r\n\r\n", b" "),
    "a redirect": drip(b"HTTP/1.1 307 No\r\nLocation: /v1\r\nContent-Length: 9999\r\n\r\n", b" "),
}


@pytest.mark.parametrize(("what", "retries"), [*((what, 0) for what in DRIPS), ("headers", 2)])
def test_a_reply_that_drips_ends_at_twice_the_clients_timeout(ask, what, retries):
    with raw_server(DRIPS[what]) as url:
        start = time.perf_counter()
        with pytest.raises(SymptomError, match=r"did not finish its reply within 0.4 s, twice") as caught:
            ask(None, client=client_of(url, max_retries=retries))
    assert time.perf_counter() - start < 4 and caught.value.kind == "timeout"
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(("opened_by_caller", "classname"), [(True, "melanoma"), (False, "nevus")])
def test_a_reply_that_drips_over_a_connection_that_was_open_ends_too(ask, opened_by_caller, classname):
    def answer(link):
        if answers:
            DRIPS["headers"](link)
        answers.append(link)
        link.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(DONE) + DONE)

    answers = []
    with raw_server(answer) as url:
        client = client_of(url)
        if opened_by_caller:
            client.chat.completions.create(model="m", messages=[])
        with pytest.raises(SymptomError, match=f"class '{classname}'.*did not finish"):
            ask(None, client=client, n=1)
    assert len(answers) == 1


def test_a_server_that_drips_its_models_is_an_unknown_model_all_the_same(ask):
    def answer(link):
        if not asked:
            asked.append(link)
            body = b'{"error": {"message": "no such model"}}'
            link.sendall(b"HTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            DRIPS["headers"](link)

    asked = []
    with raw_server(answer) as url, pytest.raises(SymptomError, match="it does not say which"):
        ask(None, client=client_of(url))


def flood(head: bytes, piece: bytes):
    def answer(link):
        link.sendall(head)
        for _ in range(200):
            link.sendall(piece)
            sent.append(len(piece))

    sent = []
    answer.sent = sent
    return answer


MANY = b" " * 2**20
BOMB = gzip.compress(b" " * 2**28)
FLOODS = {
    "announced": (OK + b"Content-Length: 1000000000\r\n\r\n", MANY),
    "not announced": (OK + b"Connection: close\r\n\r\n", MANY),
    "in chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + MANY + b"\r\n"),
    "an error": (OK.replace(b"200 OK", b"404 No") + b"Connection: close\r\n\r\n", MANY),
    "compressed": (OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB), BOMB),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_reply_without_bounds_is_not_read(ask, what):
    answer = flood(*FLOODS[what])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raw_server(answer) as url, pytest.raises(SymptomError, match="more than 16 MB") as caught:
        ask(None, client=client_of(url, timeout=5, max_retries=2))
    assert caught.value.kind == "server" and sum(answer.sent) < (12 if what == "announced" else 40) * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_no_compressed_reply_is_asked_for(ask):
    with FakeServer(told) as server:
        ask(server)
    assert {headers["accept-encoding"] for headers in server.headers} == {"identity"}


LONG = "word " * 20_000


@pytest.mark.parametrize(
    "reply",
    [
        LONG,
        bullets(LONG, f"{LONG} too"),
        json.dumps({"symptoms": [LONG]}),
        json.dumps({LONG: [LONG]}),
        bullets(*(f"mole {i}!" for i in range(5000))),
    ],
    ids=["text", "bullets", "JSON", "a key", "many"],
)
def test_a_reply_of_any_length_is_shortened_in_the_error(ask, reply):
    with FakeServer(lambda body: reply) as server, pytest.raises(SymptomError) as caught:
        ask(server)
    assert 500 < len(str(caught.value)) < 6000


@pytest.mark.parametrize(("pack", "head"), [(bytes, b""), (gzip.compress, b"Content-Encoding: gzip\r\n")])
def test_a_long_reply_and_a_compressed_one_are_read(ask, pack, head):
    lists = list(LISTS.values())

    def answer(link):
        message = {"role": "assistant", "content": bullets(*lists.pop(0)), "reasoning_content": "so " * 2**20}
        body = pack(json.dumps({"choices": [{"message": message}]}).encode())
        link.sendall(OK + head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    with raw_server(answer) as url:
        assert dict(ask(None, client=client_of(url, timeout=5))) == LISTS


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_to_another_server_is_followed(ask, status):
    with FakeServer(told) as other:
        address = other.base_url + "/chat/completions?token=planted-pass"
        for location in (address, address.replace("127.0.0.1", "localhost"), address.removeprefix("http:")):
            say = Say("", status=status, headers=(("Location", location),), body=b"")
            with FakeServer(lambda body, say=say: say) as server, pytest.raises(SymptomError) as caught:
                client = server.client(default_headers={"x-api-key": KEY}, max_retries=2)
                ask(server, client=client)
            where = location.removeprefix("http:").partition("?")[0]
            assert f"another server, http:{where}. Nothing was sent there" in str(caught.value)
            assert server.calls == 1 and "planted" not in everything(caught.value)
        assert other.calls == 0 and not other.headers


def test_a_redirect_on_the_same_server_is_followed(ask):
    def script(body):
        moved = len(server.asked) == 1
        return Say("", status=307, headers=(("Location", "/v2/chat"),), body=b"") if moved else told(body)

    with FakeServer(script) as server:
        assert dict(ask(server)) == LISTS


def test_the_callers_client_is_as_it_was(ask):
    with FakeServer(told) as server:
        client = server.client()
        ask(server, client=client)
        assert client._client.event_hooks == {"request": [], "response": []}
    with FakeServer([Say("no", status=401)]) as server, pytest.raises(SymptomError):
        ask(server, client=server.client())


# Keys


def everything(error: BaseException | None) -> str:
    """An exception as tracebacks and pickles would show it, with all that hangs on it."""
    shown = ""
    while error is not None:
        shown += "".join(traceback.format_exception(error))
        shown += repr(error) + repr(vars(error)) + str(error.args)
        error = error.__cause__ or error.__context__
    return shown


def test_a_planted_key_is_nowhere(ask, tmp_path, monkeypatch, caplog, capfd, recwarn):
    """The server echoes the key in replies, errors and models; the environment holds a second one."""
    other = "abcdefgh12345678ijkl"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("SOME_SERVICE_TOKEN", other)
    caplog.set_level(logging.DEBUG)
    spot = f"Authorization: Bearer {KEY} spot"
    echo = bullets(f"ragged {KEY} border", f"blue {other} colors", spot, "white streaks")

    def script(body):
        if classname(body) == "melanoma":
            return echo
        return Say(f"Authorization: Bearer {KEY}, {other}", status=failing[-1], param="seed")

    shown, failing = "", []
    with FakeServer(script, models=[f"model-{KEY}"]) as server:
        headers = {"X-Api-Key": other}
        client = openai.OpenAI(base_url=server.base_url, max_retries=0, default_headers=headers)
        for status in (401, 400, 404, 429, 500):
            failing.append(status)
            with pytest.raises(SymptomError) as caught:
                ask(server, client=client, n=1)
            shown += everything(caught.value)
        with pytest.raises(SymptomError) as caught:  # too few: the reply itself is shown
            ask(server, client=client, n=9, max_asks=2)
        shown += everything(caught.value)
        for end in ("\n", "\r\n", " ", "\x1b"):  # OPENAI_API_KEY=$(cat file; echo)
            monkeypatch.setenv("OPENAI_API_KEY", KEY + end)
            for broken in (
                openai.OpenAI(base_url=server.base_url),
                server.client(api_key=KEY + end),
                server.client(default_headers={"X-Api-Key": other + end}),
            ):
                asked = server.calls
                with pytest.raises(SymptomError, match="was not asked: the .* has a line break") as caught:
                    ask(server, client=broken, n=1)
                assert caught.value.kind == "key refused" and server.calls == asked
                shown += everything(caught.value)
        assert any(f"Bearer {KEY}" == headers.get("authorization") for headers in server.headers)
        assert KEY in server.answer(server.asked[0], {}).text  # it did echo
    stored = list(tmp_path.rglob("*"))
    shown += "".join(path.read_text() for path in stored if path.is_file())
    symptoms = SymptomSet.load(next(path for path in stored if path.suffix == ".json"))
    shown += repr(symptoms) + symptoms._repr_html_() + repr(symptoms.record) + symptoms.calls().to_csv()
    shown += symptoms.candidates().to_html() + caplog.text + "".join(capfd.readouterr())
    shown += "".join(str(warning.message) for warning in recwarn)
    assert KEY not in shown and other not in shown
    assert KEY[:14] not in shown and HIDDEN in symptoms.record.classes["melanoma"].calls[0].reply
    assert symptoms.record.server == server.base_url


def test_a_key_with_odd_letters_is_not_in_the_error(ask):
    key = "sk-plänted-" + "ключ" * 3
    with FakeServer(told) as server, pytest.raises(SymptomError) as caught:
        ask(server, client=server.client(api_key=key))
    assert key not in everything(caught.value) and caught.value.kind == "key refused"


@pytest.mark.parametrize("where", ["user:planted-pass@", ""])
def test_a_key_in_the_url_is_refused(ask, where):
    """The HTTP library logs whole URLs."""
    with FakeServer(told) as server:
        address = server.base_url.replace("http://", f"http://{where}")
        client = server.client(base_url=address + ("" if where else "?api_key=planted-pass"))
        with pytest.raises(ValueError, match="URL holds a password or key") as caught:
            ask(server, client=client)
        with pytest.raises(ValueError, match="URL holds a password or key"):
            ask(server, client=server.client(default_query={"token": "planted-pass"}))
    assert "planted-pass" not in str(caught.value) and server.calls == 0


@pytest.mark.parametrize("path", ["", "/gateway", "/openai/deployments"])
@pytest.mark.parametrize("key", [KEY, "8f3a9c0d7e", "planted-path-key", "correcthorsebattery", "a%2Fb.key+1"])
def test_a_key_in_the_path_of_the_url_is_nowhere(ask, tmp_path, caplog, capfd, recwarn, path, key):
    """Some gateways want it there. The server echoes the path, as servers do."""
    caplog.set_level(logging.DEBUG)
    shown, failing = "", []

    def script(body):
        alone = "it" if key.isalpha() else unquote(key)  # one word may stand in an answer, too
        said = f"POST {path}/{key}/v1/chat/completions: cannot be found; {alone} is not known"
        return Say(said, status=failing[-1], param="seed") if failing else told(body)

    with FakeServer(script) as server:
        base = server.base_url.replace("/v1", path)
        client = server.client(base_url=f"{base}/{key}/v1")
        symptoms = ask(server, client=client)
        assert dict(symptoms) == LISTS and symptoms.record.server == f"{base}/{HIDDEN}/v1"
        assert ask(server, client=client).new_calls == 0
        assert ask(server, client=server.client(base_url=f"{base}/another-key/v1")).new_calls == 3
        for status in (401, 404, 429, 500, 400):
            failing.append(status)
            with pytest.raises(SymptomError) as caught:
                ask(server, client=client, n=1)
            assert f"{base}/{HIDDEN}/v1" in str(caught.value)
            shown += everything(caught.value)
    stored = [file for file in tmp_path.rglob("*") if file.is_file()]
    shown += "".join(file.read_text() for file in stored) + "".join(file.name for file in stored)
    shown += repr(symptoms) + symptoms._repr_html_() + repr(symptoms.record) + "".join(capfd.readouterr())
    shown += caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert key not in shown and unquote(key) not in shown


def test_a_key_of_the_usual_make_is_hidden_wherever_it_comes_from(ask):
    with pytest.raises(SymptomError) as caught:
        ask(lambda body: Say("Incorrect key: sk-proj*******9xYz", status=401))
    assert "9xYz" not in str(caught.value)


def test_stand_ins_for_a_key_are_ordinary_words(ask):
    lists = {name: [f"empty {phrase}" for phrase in phrases] for name, phrases in LISTS.items()}
    with FakeServer(lambda body: bullets(*lists[classname(body)])) as server:
        symptoms = ask(server, client=server.client(api_key="empty"))
    assert symptoms.candidates().phrase[0] == "empty ragged dark border"
