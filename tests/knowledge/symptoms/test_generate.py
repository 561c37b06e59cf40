"""generate_symptoms against a scripted server over HTTP: what is asked, kept, stored, replayed and said."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import openai
import pytest
import torch

from medvlp.data.cards import DataCard
from medvlp.knowledge.symptoms.generate import SymptomError, generate_symptoms
from medvlp.knowledge.symptoms.one_class import centred_cosines
from medvlp.knowledge.symptoms.phrases import PhraseChecker
from medvlp.knowledge.symptoms.questions import DEFAULT, SMALL
from medvlp.knowledge.symptoms.replies import REPLY_KINDS
from medvlp.knowledge.symptoms.server import SAYS_WHICH, Server
from medvlp.knowledge.symptoms.sets import SymptomSet
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from tests.knowledge.symptoms.fake_server import FakeServer, Say, bullets, question
from tests.knowledge.symptoms.lesions import CARD, LISTS, classname, told
from tests.methods.small import make_card, make_set

# What comes out, and what it remembers


def test_zero_shot_vip_and_cards_take_a_set_as_it_is(ask, clip):
    symptoms = ask(told, n=2)
    assert ZeroShot(clip, CARD, symptoms=symptoms).symptoms == dict(symptoms)
    assert ViP(clip, CARD, symptoms=symptoms).symptoms == dict(symptoms)
    assert CARD.with_knowledge("generated", symptoms).symptoms("generated") == dict(symptoms)


def test_the_record_says_how_it_came_about(ask):
    with FakeServer(told) as server:
        record = ask(server, seed=7, temperature=0.5).record
    assert record.server == server.base_url
    assert (record.card, record.card_hash, record.model) == (CARD.name, CARD.hash, "good-model")
    assert record.prompts == DEFAULT.facts and record.created[:2] == "20"
    call = record.classes["nevus"].calls[0]
    assert call.reply == bullets(*LISTS["nevus"]) and call.finish_reason == "stop"
    assert call.messages == server.asked[1]["messages"]
    assert (call.options["seed"], call.options["temperature"]) == (7, 0.5)
    assert call.prompt_tokens == len(question(server.asked[1])) // 4 and call.completion_tokens > 0
    assert record.checks and record.settings["n"] == 4
    asked = question(server.asked[0])
    assert "melanoma" in asked and CARD.modality in asked and "with 8 phrases" in asked


def test_surplus_phrases_are_kept_with_the_reason_why_not(ask):
    table = ask(told, n=3).candidates()
    last = table[table.phrase == "shiny white streaks"].iloc[0]
    assert not last.kept and last.reason == "not needed: 3 came before it"
    assert table.kept.sum() == 9 and len(table) == 12


# Checks, and asking again


def test_a_rejected_phrase_keeps_its_reason_and_the_llm_is_told(ask):
    bad = ["high fever", "melanoma cells", "ragged dark border", "blue gray colors", "shiny white streaks"]
    replies = [bad, ["uneven two halves"], LISTS["nevus"], LISTS["keratosis"]]
    with FakeServer([bullets(*reply) for reply in replies]) as server:
        symptoms = ask(server)
    assert symptoms["melanoma"] == [*bad[2:], "uneven two halves"]
    table = symptoms.candidates().set_index("phrase")
    assert "fever" in table.reason["high fever"] and "names its own class" in table.reason["melanoma cells"]
    assert table.attempt["uneven two halves"] == 2
    again = server.asked[1]["messages"]
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert "high fever" in again[2]["content"] and table.reason["high fever"] in again[2]["content"]
    assert "- ragged dark border" in again[2]["content"]
    assert server.asked[1]["seed"] == server.asked[0]["seed"] + 1


def test_examples_in_the_question_are_no_answer(ask):
    """Small LLMs copy them; they also copy the remarks about what was wrong."""
    replies = [
        ["small brown spots", "Smooth, waxy skin.", "high fever", "dark border"],
        ["high fever", "dark border (once more)", "round halves"],
        ["flat"],
        LISTS["nevus"],
        LISTS["keratosis"],
    ]
    prompts = replace(SMALL, again="\n- dark border (once more)\n$rejected $modality")
    symptoms = ask([bullets(*reply) for reply in replies], n=3, prompts=prompts)
    table = symptoms.candidates()
    copied = table.phrase[table.reason == "copied from the question"].unique()
    assert list(copied) == ["small brown spots", "Smooth, waxy skin", "dark border (once more)"]
    assert symptoms["melanoma"] == ["dark border", "round halves", "flat"]


def test_a_phrase_of_another_class_is_a_duplicate(ask):
    same = {**LISTS, "nevus": ["ragged dark borders", *LISTS["nevus"]]}
    symptoms = ask(lambda body: bullets(*same[classname(body)]))
    assert symptoms["nevus"] == LISTS["nevus"]
    assert "melanoma" in symptoms.candidates().set_index("phrase").reason["ragged dark borders"]


def test_too_few_is_an_error_that_shows_what_came_back(ask, tmp_path):
    def script(body):
        return told(body) if classname(body) == "melanoma" else bullets("high fever", "one brown color")

    with FakeServer(script) as server, pytest.raises(SymptomError) as caught:
        ask(server, max_asks=2)
    assert (caught.value.kind, caught.value.classname, server.calls) == ("too few", "nevus", 3)
    for part in (
        *("class 'nevus': 1 of 4 symptoms", "'high fever' (text)", "asked 2 times", "- one brown color"),
        *(str(tmp_path / "store"), "on_too_few='skip'"),
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "settings", "said"),
    [
        ("fever " * 5000, {"max_asks": 1}, "asked once"),
        ("- fever\n- cough", {"on_too_few": "skip"}, "0 of 4"),
        ("", {}, r"reply 1 \(text\): empty"),
    ],
)
def test_no_phrase_at_all_is_a_short_error(ask, reply, settings, said):
    with pytest.raises(SymptomError, match=said) as caught:
        ask(lambda body: reply, **settings)
    assert len(str(caught.value)) < 1500


def test_a_class_without_any_phrase_does_not_keep_the_others_from_being_asked(ask):
    poor = {"melanoma": ["fever"], "nevus": LISTS["nevus"], "keratosis": ["cough"]}
    with FakeServer(lambda body: bullets(*poor[classname(body)])) as server:
        with pytest.raises(SymptomError, match="'melanoma': 0 of 4(.|\n)*passed for 'keratosis' either") as e:
            ask(server, max_asks=1, on_too_few="skip")
        assert (e.value.kind, e.value.classname, server.calls) == ("too few", "melanoma", 3)
        poor.update(LISTS)
        assert dict(ask(server, max_asks=1, on_too_few="skip")) == LISTS
        assert server.calls == 5  # nevus is kept


def test_keep_takes_what_passed_and_error_asks_such_a_class_again(ask):
    poor = {**LISTS, "nevus": LISTS["nevus"][:1]}
    with FakeServer(lambda body: bullets(*poor[classname(body)])) as server:
        symptoms = ask(server, max_asks=2, on_too_few="skip")
        assert symptoms["nevus"] == ["round even shape"] and symptoms.record.classes["nevus"].finished
        assert server.calls == 4
        assert ask(server, max_asks=2, on_too_few="skip").new_calls == 0
        poor["nevus"] = LISTS["nevus"]
        assert dict(ask(server, max_asks=2)) == LISTS
        assert server.calls == 5  # nevus alone, going on from its two replies


UNUSABLE = {
    "empty": Say(""),
    "none": Say(None),
    "blank": Say(" \n "),
    "refusal": Say("I'm sorry, but I cannot help with medical questions."),
    "refusal field": Say(None, refusal="I will not."),
    "filter": Say("- ragged dark border", finish_reason="content_filter"),
    "prose": Say("It depends on many things and a doctor should be asked about all of them in person."),
    "cut": Say("- ragged da", finish_reason="length"),
    "talk": Say("Sure!\n- high fever\n- dry cough"),
    "labels": Say("- Absent: blue veil\n- Color: none"),
    "another key": Say('{"rejected": ["blue veil"]}'),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_reply_is_noted_and_asked_again(ask, name):
    first = UNUSABLE[name]
    with FakeServer(lambda body: first if len(server.asked) == 1 else told(body)) as server:
        symptoms = ask(server)
    call = symptoms.record.classes["melanoma"].calls[0]
    assert call.problem in REPLY_KINDS and symptoms["melanoma"] == LISTS["melanoma"]
    again = server.asked[1]["messages"]
    assert [message["role"] for message in again] == ["user"]
    assert f"could not be used: {REPLY_KINDS[call.problem]}" in question(server.asked[1])
    assert list(symptoms.calls().problem.notna()) == [True, False, False, False]


REJECTED = ["one rejected color", "two rejected spots", "three rejected lines", "four rejected edges"]
THINKING = {
    "tags": "<think>\n{draft}\nNo, rejected.\n</think>\n{answer}",
    "brackets": "[THINK]{draft}[/THINK]{answer}",
    "analysis": "<analysis>\n{draft}\n</analysis>\n\n{answer}",
    "channels": "<|channel|>analysis<|message|>{draft}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>{answer}",
    "unknown tag": "<private_notes>{draft}</private_notes>{answer}",
    "the server's own tag": "{draft}\n</think>\n\n{answer}",
    "no tags": "Candidates:\n{draft}\n\nAll rejected. Better:\n{answer}",
    "verdict after": "{draft}\n\nNo, these are rejected.",
    "markers taken away": "analysis{draft}assistantfinal{answer}",
}


@pytest.mark.parametrize("listed", ["JSON", "bullets"])
@pytest.mark.parametrize("name", THINKING)
def test_what_a_reasoning_model_rejects_is_never_a_symptom(ask, name, listed):
    """Where the answer cannot be told from the draft, the class is asked again, and then answered plainly."""

    def written(phrases: list[str]) -> str:
        return json.dumps({"symptoms": phrases}) if listed == "JSON" else bullets(*phrases)

    def script(body: dict) -> str:
        answer = written(LISTS[classname(body)])
        asked_again = "could not be used" in question(body)
        return answer if asked_again else THINKING[name].format(draft=written(REJECTED), answer=answer)

    symptoms = ask(script)
    assert dict(symptoms) == LISTS
    assert not symptoms.candidates().phrase.str.contains("rejected").any()


def test_an_answer_in_parts_is_read_without_its_thoughts(ask):
    def script(body: dict) -> Say:
        thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": bullets(*REJECTED)}]}
        return Say([thoughts, {"type": "text", "text": told(body)}], thoughts=bullets(*REJECTED))

    assert dict(ask(script)) == LISTS


@pytest.mark.parametrize("text", [None, "", []])
def test_thoughts_that_use_up_max_tokens_are_an_error_at_once(ask, text):
    said = Say(text, finish_reason="length", thoughts=bullets(*REJECTED))
    with FakeServer(lambda body: said if "could not be used" not in question(body) else told(body)) as server:
        with pytest.raises(SymptomError, match="'melanoma'.* all of max_tokens=400 .*max_tokens=4000") as e:
            ask(server)
        assert e.value.kind == "max_tokens" and server.calls == 1
        with pytest.raises(SymptomError, match="'nevus'.* spent all of max_tokens"):
            ask(server)  # the same call asks melanoma otherwise: it is told
        assert server.calls == 3


def test_the_last_phrase_of_a_reply_that_was_cut_is_dropped(ask):
    cut = Say(told({"messages": [{"content": "to detect nevus in"}]}) + "\n- flat wi", finish_reason="length")
    symptoms = ask(lambda body: cut if classname(body) == "nevus" else told(body))
    assert not symptoms.candidates().phrase.str.contains("flat wi").any()
    assert symptoms["nevus"] == LISTS["nevus"]


def test_half_characters_and_control_characters_are_data(ask):
    odd = "- ragged \ud800 border\n- \x1b[31mred\x1b[0m edge\n- blue \x00 colors\n- <script>x</script> spot"
    script = lambda body: odd if classname(body) == "melanoma" else told(body)  # noqa: E731
    symptoms = ask(script, n=1, on_too_few="skip")
    assert "\x1b" not in repr(symptoms) and "<script" not in symptoms._repr_html_()
    assert "\ufffd" in symptoms.record.classes["melanoma"].calls[0].reply


# Replay and resume


def test_a_replay_makes_no_call(ask):
    with FakeServer(told) as server:
        first = ask(server)
        assert dict(first) == LISTS and list(first) == CARD.classnames
        assert server.calls == first.new_calls == 3
        again = ask(server)
        assert server.calls == 3 and again.new_calls == 0
    assert again.record == first.record and "replayed" in repr(again)


def test_another_server_is_asked_anew_and_a_local_llm_is_known_on_any_port(ask):
    """The same name on another port of this machine may be another model."""
    with FakeServer(told) as server, FakeServer(told) as elsewhere:
        ask(server)
        ask(elsewhere)
        assert server.calls == elsewhere.calls == 3
        local = [each.client(default_headers={SAYS_WHICH: "a" * 64}) for each in (server, elsewhere)]
        first = ask(server, client=local[0])
        again = ask(elsewhere, client=local[1])
        assert again.record == first.record and (server.calls, elsewhere.calls) == (6, 3)
        ask(elsewhere, client=elsewhere.client(default_headers={SAYS_WHICH: "b" * 64}))
        assert elsewhere.calls == 6


CHANGES = {
    "n": 3,
    "seed": 2,
    "temperature": 0.7,
    "max_tokens": 50,
    "max_words": 9,
    "model": "other-model",
    "card": make_card(name="others"),
    "prompts": replace(DEFAULT, version="3"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_inputs_are_asked_anew(ask, name):
    with FakeServer(told) as server:
        ask(server)
        ask(server, **{name: CHANGES[name]})
        assert server.calls == 6


def test_a_failed_class_keeps_the_finished_ones_and_the_run_goes_on_there(ask):
    broken = True

    def script(body):
        return Say("no", status=503) if broken and classname(body) == "keratosis" else told(body)

    with FakeServer(script) as server:
        with pytest.raises(SymptomError, match="'keratosis'.*Finished classes are kept"):
            ask(server)
        assert server.calls == 3
        broken = False
        symptoms = ask(server, max_asks=5)  # when to give up does not change what was found
        assert server.calls == 4 and dict(symptoms) == LISTS and symptoms.new_calls == 1


def test_replies_that_were_not_enough_are_paid_for_once(ask, tmp_path):
    """The same call goes on from them, and on_too_few='skip' takes what passed without another call."""
    poor = {**LISTS, "nevus": LISTS["nevus"][:1]}
    with FakeServer(lambda body: bullets(*poor[classname(body)])) as server:
        for times in (2, 4):
            with pytest.raises(SymptomError, match=f"1 of 4 .* asked {times} times"):
                ask(server, max_asks=2)
        assert server.calls == 5
        (stored,) = (tmp_path / "store").glob("*.json")
        nevus = SymptomSet.load(stored).record.classes["nevus"]
        assert len(nevus.calls) == 4 and nevus.phrases == poor["nevus"] and not nevus.finished
        symptoms = ask(server, max_asks=2, on_too_few="skip")
        assert server.calls == 6 and symptoms.new_calls == 1  # keratosis alone
        assert symptoms["nevus"] == poor["nevus"] and len(symptoms.record.classes["nevus"].calls) == 4
        poor["nevus"] = LISTS["nevus"][1:]
        assert dict(ask(server, max_asks=2)) == LISTS
        assert server.calls == 7 and server.asked[6]["seed"] == 1 + 4


@pytest.mark.parametrize("error", [SymptomError, KeyboardInterrupt])
def test_a_run_that_breaks_off_goes_on_from_its_replies(ask, error, monkeypatch):
    """The third question fails; the next run asks that one alone."""
    count, ask_server = 0, Server.ask

    def failing(self, *arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise error("stopped")
        return ask_server(self, *arguments)

    monkeypatch.setattr(Server, "ask", failing)
    first = [bullets(phrase) for phrase in LISTS["melanoma"][:2]]
    rest = [LISTS["melanoma"][2:], LISTS["nevus"], LISTS["keratosis"]]
    replies = [*first, *(bullets(*phrases) for phrases in rest)]
    with FakeServer(replies) as server:
        with pytest.raises(error, match="stopped"):
            ask(server)
        assert server.calls == 2
        assert dict(ask(server)) == LISTS
        assert server.calls == 5 and server.asked[2]["seed"] == 3


def test_images_and_comparisons_are_not_paid_for_twice(ask, images):
    agreed = {**LISTS, "nevus": LISTS["nevus"][:1]}
    given = {"images": images, "send_images": True, "agree": "llm", "max_asks": 2}
    with FakeServer(Seeing(LISTS, agreed)) as server:
        with pytest.raises(SymptomError, match="'nevus': 1 of 4"):
            ask(server, **given)
        assert server.calls == 3 + 6
        symptoms = ask(server, **given, on_too_few="skip")
        assert server.calls == 9 + 3 and symptoms["nevus"] == LISTS["nevus"][:1]


RUN = """
import sys, openai
from medvlp.knowledge.symptoms.generate import generate_symptoms
from tests.methods.small import make_card
client = openai.OpenAI(api_key="none", base_url=sys.argv[1])
generate_symptoms(make_card(), client, "good-model", store=sys.argv[2], progress=False)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_at_the_first_unfinished_class(ask, tmp_path, repository):
    asked = []

    def script(body):
        asked.append(classname(body))
        return Say(told(body), wait=60) if asked == ["melanoma", "nevus"] else told(body)

    with FakeServer(script) as server:
        arguments = [sys.executable, "-c", RUN, server.base_url, str(tmp_path / "store")]
        process = subprocess.Popen(
            arguments, cwd=repository, env={**os.environ, "PYTHONPATH": str(repository)}
        )
        try:
            limit = time.monotonic() + 120
            while server.calls < 2 and time.monotonic() < limit and process.poll() is None:
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert asked == ["melanoma", "nevus"]
        (stored,) = (tmp_path / "store").glob("*.json")
        finished = {name: made.finished for name, made in SymptomSet.load(stored).record.classes.items()}
        assert finished == {"melanoma": True, "nevus": False, "keratosis": False}
        assert dict(ask(server)) == LISTS
    assert asked == ["melanoma", "nevus", "nevus", "keratosis"]


def test_a_damaged_store_is_named(ask, tmp_path):
    with FakeServer(told) as server:
        ask(server)
        (stored,) = (tmp_path / "store").glob("*.json")
        stored.write_text(stored.read_text()[:-100])
        with pytest.raises(ValueError, match=f"{stored.name} is damaged.*Delete it"):
            ask(server)


def test_the_default_store_is_in_the_cache(own_cache):
    with FakeServer(told) as server:
        generate_symptoms(CARD, server.client(), "good-model", progress=False)
    assert len(list((own_cache / "symptoms").glob("lesions-*.json"))) == 1


# Images


class Seeing:
    """A script that remembers whose turn it is: the question with the image does not name the class."""

    def __init__(self, seen: dict[str, list[str]], agreed: dict[str, list[str]] | None = None) -> None:
        self.seen, self.agreed, self.name = seen, agreed, ""

    def __call__(self, body: dict) -> str:
        text = question(body)
        if any(not isinstance(message["content"], str) for message in body["messages"]):
            return bullets(*self.seen[self.name])
        if "List A" in text:
            return bullets(*self.agreed[self.name])
        self.name = classname(body)
        return bullets(*LISTS[self.name])


@pytest.fixture(scope="module")
def images():
    return make_set(CARD, [0, 1, 2] * 20)


@pytest.fixture
def show(ask, images, clip):
    """`ask` with images of CARD."""
    return partial(ask, images=images, clip=clip, send_images=True)


def test_images_leave_only_when_told_to_and_it_says_so(show, capsys):
    with FakeServer(Seeing(LISTS)) as server:
        with pytest.raises(ValueError, match="pass send_images=True"):
            show(server, send_images=False)
        assert server.calls == 0
        show(server, n=2)
        out = capsys.readouterr().out.strip()
        assert out.count("\n") == 0 and f"Leaving this machine for {server.base_url}" in out
        assert "up to 16 training images" in out and "'melanoma', 'nevus', 'keratosis'" in out
        show(server, n=2)
        assert capsys.readouterr().out == ""  # a replay sends nothing
    assert server.calls == 6


def test_the_sheet_is_sent_as_jpeg_and_stored_as_its_hash(show, tmp_path):
    with FakeServer(Seeing(LISTS)) as server:
        symptoms = show(server)
    sent = server.asked[1]["messages"][0]["content"][1]["image_url"]["url"]
    assert sent.startswith("data:image/jpeg;base64,/9j/")
    text, image = symptoms.record.classes["melanoma"].calls[1].messages[0]["content"]
    assert set(image["image_url"]) == {"sha256", "bytes", "pixels"} and "16 training images" in text["text"]
    assert "base64" not in next((tmp_path / "store").glob("*.json")).read_text()
    assert "melanoma" not in question(server.asked[1])


def test_similarity_keeps_what_both_questions_found(show):
    seen = {**LISTS, "nevus": ["round even shapes", "smooth sharp edges"]}
    symptoms = show(Seeing(seen), n=2, threshold=0.9)
    assert sorted(symptoms["nevus"]) == ["round even shape", "smooth sharp edge"]
    table = symptoms.candidates().query("classname == 'nevus' and stage == 'text'").set_index("phrase")
    assert (table.similarity[symptoms["nevus"]] > 0.9).all()
    assert list(table.similarity[symptoms["nevus"]]) == sorted(table.similarity, reverse=True)[:2]
    dropped = table[~table.kept]
    assert (dropped.similarity < 0.9).all()
    assert dropped.reason.str.contains("nearest there is .* < 0.90").all()
    assert symptoms.record.settings["threshold"] == 0.9


def test_too_little_agreement_is_asked_again_then_an_error(show):
    seen = {**LISTS, "melanoma": ["one bright yellow ring", "green tint", "pale center", "red dots"]}
    with FakeServer(Seeing(seen)) as server, pytest.raises(SymptomError) as caught:
        show(server, threshold=0.999, max_asks=2)
    assert "not seen in the images: nearest there is" in str(caught.value) and "0 of 4" in str(caught.value)
    assert "not seen in the images" in question(server.asked[2])


PARAPHRASES = [
    ("a dense white patch inside one lung", "solid white area in a lung"),
    ("cloudy gray haze over part of a lung", "hazy gray cloud in the lung"),
    ("sharp edges of the heart shadow", "clear heart border"),
    ("both lungs equally dark", "dark lungs on both sides"),
    ("asymmetric shape", "uneven two halves"),
    ("ragged border", "irregular jagged edge"),
    ("round shape", "circular outline"),
    ("blue and gray colors", "blue gray color"),
    ("even brown color", "uniform brown tone"),
    ("white dots", "small white spots"),
    ("streaky white lines", "thin white streaks"),
    ("rough scaly surface", "flaky rough texture"),
    ("smooth sharp edge", "clean smooth border"),
    ("a bright yellow spot", "yellow bright dot"),
    ("dark red patches", "patches of dark red"),
    ("thin branching vessels", "fine branched blood vessels"),
    ("white fluid hiding the lower corner of a lung", "white area at the bottom corner of the lung"),
    ("shiny white lines", "glossy white streaks"),
    ("large round dark area", "big dark circle"),
    ("dark hole in the middle", "black gap at the center"),
]


def test_the_threshold_keeps_half_of_the_paraphrases_and_few_other_phrases(clip):
    """What the docstring says of the threshold, on 20 pairs, in the embedded CLIP."""
    ours, theirs = map(list, zip(*PARAPHRASES, strict=True))
    terms = clip.encode_texts([f"{term}." for term in PhraseChecker(CARD).terms["visual"]])  # (N, D)
    cosines = centred_cosines(clip, ours, theirs, terms.mean(dim=0))
    same = torch.eye(len(ours), dtype=torch.bool)
    assert (cosines[same][:, None] > cosines[~same]).float().mean() > 0.65
    assert (cosines[same] >= 0.7).sum() == 9
    assert (cosines[~same] >= 0.7).float().mean() < 1 / 30


def test_the_llm_may_compare_but_not_invent(show):
    agreed = {name: [*reversed(phrases[:2]), "made up spot"] for name, phrases in LISTS.items()}
    symptoms = show(Seeing(LISTS, agreed), clip=None, agree="llm", n=2)
    assert dict(symptoms) == {name: phrases[:2][::-1] for name, phrases in LISTS.items()}
    assert list(symptoms.calls().stage) == ["text", "images", "agree"] * 3
    assert "made up" not in "".join(symptoms.candidates().phrase)


def test_a_model_without_eyes_is_said_to_be_so(show):
    def script(body):
        seeing = any(not isinstance(message["content"], str) for message in body["messages"])
        return Say("image_url is not supported", status=400) if seeing else told(body)

    with pytest.raises(SymptomError, match="Does the model read images") as caught:
        show(script)
    assert caught.value.kind == "images refused"


@pytest.mark.parametrize(("tokens", "dropped"), [(0, True), (300, False)])
def test_an_image_that_costs_no_tokens_was_dropped_and_that_is_said(
    show, monkeypatch, recwarn, tokens, dropped
):
    monkeypatch.setattr("tests.knowledge.symptoms.fake_server.IMAGE_TOKENS", tokens)
    show(Seeing(LISTS))
    assert any("may have dropped the image" in str(warning.message) for warning in recwarn) == dropped


# Settings and prompts


WRONG = {
    "n": (0, 2.5, "4", True, None),
    "max_asks": (0, 1.0),
    "max_tokens": (0, "400"),
    "max_words": (-1, 3.5),
    "agree": ("both",),
    "on_too_few": ("drop", "keep"),
    "threshold": (80, None),
    "send_images": (True,),
    "seed": (None,),
    "temperature": ("0",),
    "prompts": ("$classname?",),
    "clip": ("tiny",),
    "images": ("images/",),
    "card": ("lesions",),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_setting_that_makes_no_sense_is_named_before_a_call(ask, name, value):
    said = f"^generate_symptoms: {name} is |^unknown {name} .* generate_symptoms|^{name}=True needs"
    with FakeServer(told) as server, pytest.raises(ValueError, match=said):
        ask(server, **{name: value})
    assert server.calls == 0


def test_a_store_that_cannot_be_written_is_named_before_a_call(ask, tmp_path):
    (tmp_path / "file").write_text("")
    with FakeServer(told) as server:
        for store in (tmp_path / "file", tmp_path / "file" / "sub"):
            with pytest.raises(OSError, match=f"nothing was asked: the store {store} cannot be written"):
                ask(server, store=store)
        assert server.calls == 0
        ask(server, store=tmp_path / "new" / "sub")
    assert [path.suffix for path in (tmp_path / "new" / "sub").iterdir()] == [".json"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip": None}, "pass clip=, or agree='llm'"),
        ({"images": make_set(CARD, [0, 1, 2], "test")}, "of split 'test'"),
        ({"images": make_set(CARD, [0, 1])}, "'keratosis': there is no training image"),
        ({"card": make_card(2)}, "build both from one card"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_images_of_another_split_or_card_and_similarity_without_a_clip(show, settings, said, capsys):
    with FakeServer(told) as server, pytest.raises(ValueError, match=said):
        show(server, **settings)
    assert server.calls == 0 and "Leaving" not in capsys.readouterr().out


def test_a_client_of_another_kind_is_a_clear_error(ask):
    with FakeServer(told) as server:
        with pytest.raises(TypeError, match=r"openai.OpenAI\(...\), not AsyncOpenAI"):
            ask(server, client=openai.AsyncOpenAI(api_key="none", base_url=server.base_url))
        with pytest.raises(TypeError, match="model must be the name"):
            ask(server, model="")


def test_names_with_braces_and_dollars_are_asked_as_they_are(ask):
    fields = json.loads(make_card(2).model_dump_json(exclude={"prose", "path"}))
    names = ["{classname} $modality {0}", "ab$$c %(x)s"]
    for info, name in zip(fields["classes"], names, strict=True):
        info["name"] = name
    card = DataCard.model_validate(fields)
    with FakeServer(["- {n} $count high fever", "- dark border", "- round shape"]) as server:
        symptoms = ask(server, card=card, n=1)
    assert "{n} $count high fever" in question(server.asked[1])
    assert names[0] in question(server.asked[0]) and names[1] in question(server.asked[2])
    assert list(symptoms) == names


def test_an_underscore_in_a_class_name_is_a_space_in_questions(ask):
    named = [
        info.model_copy(update={"name": name})
        for info, name in zip(CARD.classes, ("bad_mole", "good_mole", "c"), strict=True)
    ]
    with FakeServer(["- dark border", "- round shape", "- waxy look"]) as server:
        symptoms = ask(server, card=CARD.model_copy(update={"classes": named}), n=1)
    assert list(symptoms) == ["bad_mole", "good_mole", "c"]
    asked = question(server.asked[0])
    assert "to detect bad mole in" in asked and "(good mole, c)" in asked and "_mole" not in asked


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "$count $classname $modality $nmae"}, "unknown placeholder 'nmae' in the prompt 'text'"),
        ({"text": "$count $classname {modality}"}, "'text' needs the placeholder \\$modality"),
        ({"images": "cost 5$ $count $modality"}, "stray dollar"),
        ({"version": " "}, "need a version"),
    ],
)
def test_prompts_are_checked_when_they_are_made(change, said):
    with pytest.raises(ValueError, match=said):
        replace(DEFAULT, **change)


def test_prompts_of_your_own_are_asked_and_recorded(ask):
    mine = replace(DEFAULT, text="$count of $classname ($modality), costs $$5: to detect it in")
    with FakeServer(["- dark border", "- round shape", "- waxy look"]) as server:
        symptoms = ask(server, prompts=mine, n=1)
    assert question(server.asked[0]) == "2 of melanoma (a dermoscopy image), costs $5: to detect it in"
    assert symptoms.record.prompts["text"] == mine.text and "2 of" not in str(mine)
