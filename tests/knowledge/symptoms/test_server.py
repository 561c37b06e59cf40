"""Servers of all kinds behind generate_symptoms: options, failures, retries, and a key that is nowhere."""

import json
import logging
import traceback
from dataclasses import replace

import openai
import pytest

from medvlp.knowledge.symptoms.questions import DEFAULT
from medvlp.knowledge.symptoms.server import HIDDEN, SymptomError
from medvlp.knowledge.symptoms.sets import SymptomSet
from tests.knowledge.symptoms.fake_server import KEY, FakeServer, Say, bullets
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
    "no such model": [
        Say("no model", status=404),
        Say("", status=400, body=b'{"detail": "pinned to other"}'),
    ],
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
    echo = (
        f"- ragged {KEY} border\n- blue {other} colors\n- Authorization: Bearer {KEY} spot\n- white streaks"
    )

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


def test_a_key_of_the_usual_make_is_hidden_wherever_it_comes_from(ask):
    with pytest.raises(SymptomError) as caught:
        ask(lambda body: Say("Incorrect key: sk-proj*******9xYz", status=401))
    assert "9xYz" not in str(caught.value)


def test_stand_ins_for_a_key_are_ordinary_words(ask):
    lists = {name: [f"none {phrase}" for phrase in phrases] for name, phrases in LISTS.items()}
    with FakeServer(lambda body: bullets(*lists[classname(body)])) as server:
        symptoms = ask(server, client=server.client(api_key="none"))
    assert symptoms.candidates().phrase[0] == "none ragged dark border"
