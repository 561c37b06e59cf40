"""SymptomSet: a mapping that remembers; saving, damage, review, and what is shown of hostile text."""

import datetime
import json
import warnings
from xml.etree import ElementTree

import pytest

from medvlp.knowledge.symptoms.sets import (
    Call,
    Candidate,
    ClassRecord,
    Review,
    SymptomRecord,
    SymptomSet,
    in_label_order,
)
from tests.methods.small import SYMPTOMS, flips, make_card

CARD, NOON = make_card(2), "2026-05-01T12:00:00+00:00"


@pytest.fixture
def symptoms() -> SymptomSet:
    """Two classes; the first with a call and four candidates, one of them rejected, one rejected twice."""
    candidates = [
        Candidate(text="ragged border", stage="text", attempt=1, kept=True, similarity=0.75),
        Candidate(text="blue gray colors", stage="text", attempt=1, kept=True),
        Candidate(text="high fever", stage="text", attempt=1, kept=False, reason="not visual"),
        Candidate(text="ragged border", stage="text", attempt=2, kept=False, reason="duplicate"),
    ]
    asked = {"messages": [{"role": "user", "content": "which?"}], "options": {"seed": 1}}
    cost = {"prompt_tokens": 10, "completion_tokens": 5, "seconds": 1.5, "time": NOON}
    calls = [Call(stage="text", attempt=1, reply="- ragged border", **asked, **cost)]
    phrases = ["ragged border", "blue gray colors"]
    melanoma = ClassRecord(phrases=phrases, candidates=candidates, calls=calls, finished=True)
    classes = {"melanoma": melanoma, "nevus": ClassRecord(phrases=["round shape"], finished=True)}
    by = {"model": "some-model", "server": "http://127.0.0.1:1/v1", "prompts": {"version": "1"}}
    facts = {"card": CARD.name, "card_hash": CARD.hash, "created": NOON}
    return SymptomSet(SymptomRecord(**facts, **by, classes=classes))


def test_a_set_is_a_mapping_in_label_order(symptoms):
    assert list(symptoms) == ["melanoma", "nevus"] and len(symptoms) == 2 and "nevus" in symptoms
    symptoms["nevus"].append("made up")  # of a copy
    assert symptoms["nevus"] == ["round shape"] and symptoms.get("wart") is None and "wart" not in symptoms
    assert dict(symptoms) == {"melanoma": ["ragged border", "blue gray colors"], "nevus": ["round shape"]}
    with pytest.raises(KeyError, match="unknown class .*nevi.*did you mean .*nevus"):
        symptoms["nevi"]


def test_save_and_load_keep_everything_as_readable_json(symptoms, tmp_path):
    symptoms.save(tmp_path / "new" / "set.json")
    text = (tmp_path / "new" / "set.json").read_text(encoding="utf-8")
    assert SymptomSet.load(tmp_path / "new" / "set.json").record == symptoms.record
    assert '\n "card": "lesions"' in text
    assert json.loads(text)["classes"]["nevus"]["phrases"] == ["round shape"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set.json"]


def test_text_of_any_language_and_control_characters_survive(tmp_path):
    odd = {"melanoma": ["каёмка 边界 é", 'a "quoted" \\ \x1b[31m \x00 spot'], "nevus": ["</script> & <b>"]}
    SymptomSet.from_phrases(CARD, odd).save(tmp_path / "set.json")
    assert dict(SymptomSet.load(tmp_path / "set.json")) == odd
    assert "каёмка 边界" in (tmp_path / "set.json").read_text(encoding="utf-8")


DAMAGE = {
    "cut": (lambda text: text[: len(text) // 2], "is damaged"),
    "empty": (lambda text: "", "Expecting value"),
    "no object": (lambda text: "[1]", "holds a list, no object"),
    "something else": (lambda text: '{"kind": "other"}', "kind, Input should be 'medvlp symptoms'"),
    "deep": (lambda text: "[" * 100_000, "it is too deep"),
    "newer": (lambda text: text.replace('"version": 1,', '"version": 9,', 1), "version, Input should be 1"),
    "field": (
        lambda text: text.replace('"finished": true', '"finished": "maybe"', 1),
        "classes, melanoma, fin",
    ),
    "more": (lambda text: text.replace('"review": null', '"reviews": null'), "reviews, Extra inputs"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_with_what_is_wrong(symptoms, tmp_path, name):
    damage, said = DAMAGE[name]
    path = tmp_path / "set.json"
    symptoms.save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=said) as caught:
        SymptomSet.load(path)
    assert str(path) in str(caught.value) and "Delete it" in str(caught.value)


def test_a_file_in_another_encoding_and_a_missing_one(tmp_path):
    (tmp_path / "set.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match="set.json is damaged"):
        SymptomSet.load(tmp_path / "set.json")
    with pytest.raises(FileNotFoundError, match="other.json"):
        SymptomSet.load(tmp_path / "other.json")


def test_tables_have_a_row_for_each_candidate_and_call(symptoms):
    candidates, calls = symptoms.candidates(), symptoms.calls()
    columns = ["classname", "phrase", "stage", "kept", "reason", "similarity", "attempt"]
    assert list(candidates.columns) == columns and list(candidates.kept) == [True, True, False, False]
    assert candidates.similarity[0] == 0.75 and candidates.similarity.isna().sum() == 3
    assert calls.loc[0, ["classname", "prompt_tokens", "completion_tokens"]].tolist() == ["melanoma", 10, 5]
    empty = SymptomSet.from_phrases(CARD, CARD.symptoms())
    assert list(empty.candidates().columns) == columns and len(empty.calls()) == 0


def test_phrases_given_by_hand_need_every_class():
    phrases = {"nevus": [" round shape "], "melanoma": ["ragged border"]}
    given = SymptomSet.from_phrases(CARD, phrases, "a textbook")
    assert list(given) == ["melanoma", "nevus"] and given["nevus"] == ["round shape"]
    assert given.record.origin == "a textbook" and given.record.model is None
    assert dict(SymptomSet.from_phrases(CARD, CARD.symptoms())) == {c: SYMPTOMS[c] for c in CARD.classnames}
    for wrong, said in (
        ({"nevus": ["round"]}, "no symptoms for 'melanoma'"),
        ({"nevus": ["round"], "melanoma": []}, "the symptoms of 'melanoma' must be a list of phrases"),
        ({"nevus": ["round"], "melanoma": "ragged"}, "must be a list of phrases"),
        ({"nevus": ["round"], "melanoma": [" "]}, "must be a list of phrases"),
        ({"nevus": ["round"], "melanoma": ["a"], "wart": ["b"]}, "unknown class 'wart'"),
    ):
        with pytest.raises(ValueError, match=said):
            SymptomSet.from_phrases(CARD, wrong)
    for wrong in ("a text", ["round"]):
        with pytest.raises(TypeError, match="symptoms is .*; it should be {classname:"):
            in_label_order(wrong, CARD.classnames, CARD.name)


# Changed by other hands


def test_no_turned_bit_is_believed(symptoms, tmp_path):
    path = tmp_path / "set.json"
    symptoms.reviewed(symptoms, "AB").save(path)
    for raw in flips(path.read_bytes(), 300):
        path.write_bytes(raw)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                loaded = SymptomSet.load(path)
            except ValueError as error:
                assert str(path) in str(error)
            else:
                assert str(path) in str(said[0].message) and loaded.record.changed


@pytest.mark.parametrize("old", [False, True])
def test_a_set_changed_by_hand_is_read_and_needs_another_review(symptoms, tmp_path, old):
    """Also one that was saved before sets had a hash."""
    path = tmp_path / "set.json"
    symptoms.reviewed(symptoms, "AB", "2026-05-02").save(path)
    facts = json.loads(path.read_text())
    facts["classes"]["nevus"]["phrases"] = ["oval shape"]
    facts = {key: value for key, value in facts.items() if not (old and key == "sha256")}
    path.write_text(json.dumps(facts))
    with pytest.warns(RuntimeWarning, match="set.json is not as it was saved.*need a review"):
        changed = SymptomSet.load(path)
    assert changed["nevus"] == ["oval shape"] and "AB on 2026-05-02, then changed by hand" in repr(changed)
    changed.save(path)
    assert SymptomSet.load(path).record.changed  # saving is no review
    again = SymptomSet.load(path).reviewed(changed, "CD", "2026-05-03")
    again.save(path)
    loaded = SymptomSet.load(path)
    assert "changed" not in loaded.origin and loaded.record == again.record
    assert (loaded.record.review.reviewer, loaded.record.review.before.reviewer) == ("CD", "AB")


# Review


def test_a_review_marks_what_was_dropped_and_added(symptoms):
    changes = [{"classname": "melanoma", "did": "dropped"}]
    phrases = {"melanoma": ["ragged border", "black dots"], "nevus": ["round shape"]}
    after = symptoms.reviewed(phrases, "AB", "2026-05-02", changes)
    assert dict(after) == phrases
    review = after.record.review
    assert (review.reviewer, review.date, review.changes) == ("AB", datetime.date(2026, 5, 2), changes)
    table = after.candidates().query("classname == 'melanoma'")
    kept = table[table.kept]
    assert list(kept.phrase) == ["ragged border", "black dots"] and list(kept.stage) == ["text", "review"]
    assert "dropped in review by AB" in table.set_index("phrase").reason["blue gray colors"]
    assert table.reason.iloc[3] == "duplicate"  # a rejected copy of a kept phrase stays rejected
    assert symptoms.record.review is None and symptoms["melanoma"][1] == "blue gray colors"


def test_a_phrase_that_the_checks_rejected_can_be_taken_back(symptoms):
    after = symptoms.reviewed({"melanoma": ["high fever"], "nevus": ["round shape"]}, "AB")
    rows = after.candidates().query("phrase == 'high fever'")
    assert list(rows.stage) == ["text", "review"] and list(rows.kept) == [False, True]


def test_a_second_review_keeps_the_first(symptoms, tmp_path):
    once = symptoms.reviewed(symptoms, "AB", "2026-05-02")
    twice = once.reviewed(once, "Ü", "2026-05-03")
    twice.save(tmp_path / "set.json")
    review = SymptomSet.load(tmp_path / "set.json").record.review
    assert (review.reviewer, review.before.reviewer, review.before.before) == ("Ü", "AB", None)
    assert "reviewed by Ü on 2026-05-03" in twice.origin and "not reviewed" in symptoms.origin


def test_initials_are_letters_a_date_is_iso_and_every_class_has_a_phrase(symptoms):
    for reviewer in ("", "A1", "A B", "ABCDEFGHI", "<b>"):
        said = f"reviewer must be initials, 1 to 8 letters, not {reviewer!r}"
        with pytest.raises(ValueError, match=said):
            symptoms.reviewed(symptoms, reviewer)
    for date in ("yesterday", "2026-13-01", "1.5.2026"):
        with pytest.raises(ValueError, match=f"date must be an ISO date.*not {date!r}"):
            symptoms.reviewed(symptoms, "AB", date)
    with pytest.raises(ValueError, match="no symptoms for 'nevus'"):
        symptoms.reviewed({"melanoma": ["ragged border"]}, "AB")


def test_a_review_without_a_date_is_of_today(symptoms):
    before = datetime.datetime.now(datetime.UTC).date()
    assert symptoms.reviewed(symptoms, "AB").record.review.date - before <= datetime.timedelta(days=1)


# What is shown


def test_repr_says_model_cost_and_what_was_not_kept(symptoms):
    shown = repr(symptoms)
    assert "generated by some-model, prompts 1, 2026-05-01, not reviewed" in shown
    assert "- ragged border" in shown and "1 calls, 15 tokens, 1.5 s; 2 candidates not kept" in shown


def test_hostile_text_is_escaped_wherever_it_is_shown():
    """Every field that an LLM, a server or a file could fill; nothing gets a tag or a terminal's escape."""
    evil = "<img src=x onerror=alert(1)>\x1b[2J&\"'"
    facts = dict.fromkeys(("card", "origin", "model", "server"), evil) | {"card_hash": "", "created": "2026"}
    classes = {evil: ClassRecord(phrases=[evil], finished=True)}
    record = SymptomRecord(**facts, prompts={"version": evil}, classes=classes)
    shown = SymptomSet(record)
    page = shown._repr_html_()
    assert "<img" not in page and "\x1b" not in page and page.count("&lt;img") >= 4
    assert "\x1b" not in repr(shown)
    candidate = Candidate(text=evil, stage="text", attempt=1, kept=False, reason=evil)
    record.classes[evil].candidates.append(candidate)
    assert "<img" not in shown.candidates()._repr_html_()


def test_dollar_signs_in_a_phrase_are_no_mathematics(symptoms):
    """MathJax leaves elements of these classes alone, as in tables of pandas without mathematics."""
    phrases = dict(symptoms) | {"nevus": ["costs $5 or $x^2$"]}
    page = symptoms.reviewed(phrases, "AB")._repr_html_()
    root = ElementTree.fromstring(page.replace("<br>", "<br/>"))
    assert set(root.get("class").split()) == {"mathjax_ignore", "tex2jax_ignore"}
    assert "costs $5 or $x^2$" in "".join(root.itertext())


def test_a_review_in_a_file_is_checked_too(symptoms, tmp_path):
    after = symptoms.reviewed(symptoms, "AB")
    after.save(tmp_path / "set.json")
    text = (tmp_path / "set.json").read_text().replace('"reviewer": "AB"', '"reviewer": "<b>AB</b>"')
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(ValueError, match="review, reviewer"):
        SymptomSet.load(tmp_path / "set.json")
    assert isinstance(after.record.review, Review)
