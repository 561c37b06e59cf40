import json
import re
from datetime import date

import ipywidgets
import numpy as np
import pytest

from medvlp import SymptomSet, ZeroShot, image_features
from medvlp.backbone.prompts.slots import symptom_text
from medvlp.data.cards import ClassInfo
from medvlp.knowledge.symptoms.phrases import PhraseChecker
from medvlp.show import SymptomReview, review_table
from medvlp.show.widgets.review import COLUMNS
from medvlp.show.widgets.review_controls import ReviewWidget
from tests.methods.small import SYMPTOMS, make_card, make_set
from tests.show.widgets.test_widgets import all_widgets

HOSTILE = [
    "<script>alert(1)</script> spots",
    "dots <img src=x onerror=alert(2)> inside",
    'rim" onclick="x & y',
]


@pytest.fixture(scope="module")
def card():
    return make_card()


@pytest.fixture(scope="module")
def images(card):
    return make_set(card, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


@pytest.fixture
def review(card, clip, images, tmp_path):
    return SymptomReview(SYMPTOMS, card, clip, images, tmp_path / "reviewed.json")


@pytest.fixture
def widget(review):
    widget = ReviewWidget(review)
    assert widget.box  # makes the controls
    return widget


def approve_all(review):
    for name in review.phrases:
        review.approve(name, flagged=True)


def test_similarities_are_cosines_with_own_and_other_images_and_auroc_counts_pairs(card, clip, images):
    table = review_table(SYMPTOMS, card, clip, images)
    assert list(table.columns) == COLUMNS
    assert list(zip(table["classname"], table["phrase"], strict=True)) == [
        (name, phrase) for name, phrases in SYMPTOMS.items() for phrase in phrases
    ]
    found = image_features(clip, images)
    for _, row in table.iterrows():
        text = clip.encode_texts([symptom_text(row["phrase"])])[0]
        cosines = (found.features @ text).numpy()
        mine = found.labels.numpy() == card.classnames.index(row["classname"])
        own, others = cosines[mine], cosines[~mine]
        pairs = own[:, None] > others[None, :]  # AUROC is the share of pairs in the right order
        assert row["own"] == pytest.approx(own.mean(), abs=1e-5)
        assert row["others"] == pytest.approx(others.mean(), abs=1e-5)
        assert row["difference"] == pytest.approx(own.mean() - others.mean(), abs=1e-5)
        assert row["auroc"] == pytest.approx(pairs.mean(), abs=1e-6)


def test_a_table_without_images_has_the_checks_and_no_similarity(card):
    symptoms = {"nevus": ["even brown color", "high fever", "a small nevus"], "melanoma": ["ragged border"]}
    table = review_table(symptoms, card).set_index("phrase")
    assert list(table["classname"]) == ["melanoma", "nevus", "nevus", "nevus"]  # label order
    assert table["reason"].isna().to_dict() == {
        "ragged border": True,
        "even brown color": True,
        "high fever": False,
        "a small nevus": False,
    }
    assert "fever" in table.loc["high fever", "reason"] and "names" in table.loc["a small nevus", "reason"]
    assert table[["own", "others", "difference", "auroc"]].isna().all(axis=None)
    assert table["own"].dtype == float


def test_a_phrase_is_held_against_those_before_it_in_all_classes(card):
    symptoms = {"melanoma": ["ragged border", "Ragged borders."], "nevus": ["ragged border", "round shape"]}
    reasons = review_table(symptoms, card)["reason"]
    assert [reason is None for reason in reasons] == [True, False, False, True]


def test_checks_with_other_settings_are_used_where_given(card):
    symptoms = {"nevus": ["one even brown color"]}
    assert review_table(symptoms, card).loc[0, "reason"] is None
    checker = PhraseChecker(card, max_words=3)
    assert "too long" in review_table(symptoms, card, checker=checker).loc[0, "reason"]
    assert "too long" in SymptomReview(symptoms, card, checker=checker).table().loc[0, "reason"]


def test_a_phrase_too_long_for_the_tower_has_a_reason_and_no_similarity(card, clip, images):
    long = "dots " * 90
    table = review_table({"nevus": [long, "round shape"]}, card, clip, images)
    assert table.loc[0, "reason"] and np.isnan(table.loc[0, "auroc"])
    assert table.loc[1, "reason"] is None and 0 <= table.loc[1, "auroc"] <= 1


def test_a_class_without_images_has_no_similarity_of_its_own(card, clip):
    table = review_table(SYMPTOMS, card, clip, make_set(card, [0, 0, 1, 1])).set_index("classname")
    assert table.loc["keratosis", ["own", "difference", "auroc"]].isna().all(axis=None)
    assert table.loc["keratosis", "others"].notna().all() and table.loc["nevus", "auroc"].notna().all()


def test_an_empty_review_is_an_empty_table(card, clip, images):
    table = review_table({}, card, clip, images)
    assert table.empty and list(table.columns) == COLUMNS


@pytest.mark.parametrize(
    ("symptoms", "split", "n_cls", "with_clip", "message"),
    [
        ({"nevos": ["round"]}, "train", 3, True, "did you mean 'nevus'"),
        (
            {"nevus": "round"},
            "train",
            3,
            True,
            r"symptoms is .'nevus': 'round'.; it should be dict\[str, list",
        ),
        ({"nevus": ["round", 3]}, "train", 3, True, "symptoms is .*round.*3.*it should be"),
        (SYMPTOMS, "test", 3, True, "test images"),
        (SYMPTOMS, "train", 2, True, "build both from one card"),
        (SYMPTOMS, "train", 3, False, "needs a clip"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(card, clip, symptoms, split, n_cls, with_clip, message):
    images = make_set(make_card(n_cls), [0, 1], split)
    with pytest.raises((TypeError, ValueError), match=message):
        review_table(symptoms, card, clip if with_clip else None, images)


def test_the_methods_edit_drop_add_and_leave_the_input_alone(review):
    review.edit("melanoma", 1, "  jagged\nrim ")
    review.drop("melanoma", 0)
    review.add("nevus", "one brown tone")
    assert review.phrases["melanoma"] == ["jagged rim", "blue and gray colors"]
    assert review.phrases["nevus"] == ["round shape", "even brown color", "one brown tone"]
    assert SYMPTOMS["melanoma"] == ["asymmetric shape", "ragged border", "blue and gray colors"]
    assert review.changes == [
        {"action": "edit", "classname": "melanoma", "before": "ragged border", "after": "jagged rim"},
        {"action": "drop", "classname": "melanoma", "before": "asymmetric shape"},
        {"action": "add", "classname": "nevus", "after": "one brown tone"},
    ]
    assert "jagged rim" in set(review.table()["phrase"])


def test_undo_takes_back_one_change_after_another(review):
    review.approve("nevus", flagged=True)
    review.drop("nevus", 0)
    assert review.approved == set()
    review.undo()
    assert review.phrases["nevus"] == SYMPTOMS["nevus"] and review.approved == {"nevus"}
    review.undo()
    assert review.approved == set() and review.changes == []
    with pytest.raises(ValueError, match="nothing to undo"):
        review.undo()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.edit("nevus", 0, " . "), "empty"),
        (lambda r: r.edit("nevus", 2, "round"), "there is no 2"),
        (lambda r: r.drop("nevus", -1), "there is no -1"),
        (lambda r: r.add("nevos", "round"), "did you mean 'nevus'"),
        (lambda r: r.add("nevus", ""), "empty"),
        (lambda r: r.save("AB"), "approve every class first"),
    ],
)
def test_a_method_that_cannot_raises_and_changes_nothing(review, call, message):
    with pytest.raises(ValueError, match=message):
        call(review)
    assert review.phrases == SYMPTOMS and review.changes == [] and not review.path.exists()


def test_flagged_phrases_are_approved_only_when_asked_for(review):
    review.add("nevus", "high fever")
    with pytest.raises(ValueError, match="high fever.*fever"):
        review.approve("nevus")
    assert "nevus" not in review.approved
    review.approve("nevus", flagged=True)
    assert "nevus" in review.approved and "high fever" in review.changes[-1]["flagged"]
    review.edit("nevus", 2, "one brown tone")
    assert "nevus" not in review.approved


def test_a_class_without_phrases_is_not_approved(review):
    for _ in SYMPTOMS["nevus"]:
        review.drop("nevus", 0)
    with pytest.raises(ValueError, match="no phrase left"):
        review.approve("nevus", flagged=True)


@pytest.mark.parametrize("initials", ["", "A1", "much too long", "<b>"])
def test_bad_initials_save_nothing_and_lose_nothing(review, initials):
    review.drop("melanoma", 0)
    approve_all(review)
    before = (review.phrases, list(review.changes))
    with pytest.raises(ValueError, match="initials"):
        review.save(initials)
    assert not review.path.exists() and (review.phrases, review.changes) == before


def test_the_saved_set_has_the_phrases_initials_date_and_changes_and_classifies(review, card, clip):
    review.edit("melanoma", 1, "jagged rim")
    approve_all(review)
    saved = review.save(" AB ")
    assert isinstance(saved, SymptomSet) and dict(saved) == review.phrases
    loaded = SymptomSet.load(review.path)
    assert dict(loaded) == review.phrases
    facts = json.loads(review.path.read_text())["review"]
    assert facts["reviewer"] == "AB" and date.fromisoformat(facts["date"])
    assert facts["changes"] == review.changes and facts["changes"][0]["before"] == "ragged border"
    assert ZeroShot(clip, card, symptoms=loaded).symptoms["melanoma"][1] == "jagged rim"


def test_a_set_keeps_its_origin_and_a_second_review_keeps_the_first(card, tmp_path):
    made = SymptomSet.from_phrases(card, SYMPTOMS, origin="made for a test")
    for initials in ("AB", "CD"):
        review = SymptomReview(made, card, path=tmp_path / "set.json")
        review.drop("keratosis", 0)
        approve_all(review)
        made = review.save(initials)
    stored = SymptomSet.load(tmp_path / "set.json").record
    assert stored.origin == "made for a test"
    assert stored.classes["keratosis"].phrases == SYMPTOMS["keratosis"][2:]
    assert (stored.review.reviewer, stored.review.before.reviewer) == ("CD", "AB")
    assert stored.review.changes[0]["before"] == SYMPTOMS["keratosis"][1]


def test_a_class_that_came_without_phrases_is_saved_once_it_has_some(card, tmp_path):
    review = SymptomReview({"nevus": ["round shape"]}, card, path=tmp_path / "set.json")
    review.add("melanoma", "ragged border")
    review.add("keratosis", "waxy surface")
    approve_all(review)
    review.approve("nevus")  # a second time: nothing happens
    assert len(review.changes) == 5
    assert dict(review.save("AB")) == {
        "melanoma": ["ragged border"],
        "nevus": ["round shape"],
        "keratosis": ["waxy surface"],
    }


def test_what_no_card_may_have_is_not_saved(card, tmp_path):
    review = SymptomReview({**SYMPTOMS, "nevus": ["round", "Round"]}, card, path=tmp_path / "set.json")
    for name in card.classnames:
        review.approve(name, flagged=True)
    with pytest.raises(ValueError, match="not saved: card 'lesions': .*'round' is listed twice"):
        review.save("AB")
    assert not review.path.exists()


def test_a_set_of_another_card_is_neither_reviewed_nor_overwritten(card, tmp_path):
    other = make_card(3, name="other")
    assert SymptomReview(SYMPTOMS, other).path != SymptomReview(SYMPTOMS, card).path
    with pytest.raises(ValueError, match="of card 'lesions', not 'other'"):
        SymptomReview(SymptomSet.from_phrases(card, SYMPTOMS), other)
    for one in (card, other):
        review = SymptomReview(SYMPTOMS, one, path=tmp_path / "set.json")
        approve_all(review)
        if one is card:
            review.save("AB")
    with pytest.raises(ValueError, match="holds another card's set"):
        review.save("AB")
    assert SymptomSet.load(tmp_path / "set.json").record.card == "lesions"


def test_the_widget_shows_the_phrases_of_one_class_with_their_numbers(review, widget):
    assert review.widget is review.widget  # made once
    own = review.table().query("classname == 'melanoma'")
    assert [row.text.value for row in widget.rows] == SYMPTOMS["melanoma"]
    passed = own["reason"].isna().tolist()
    assert ["passes the checks" in row.facts.value for row in widget.rows] == passed and any(passed)
    for row, (_, facts) in zip(widget.rows, own.iterrows(), strict=True):
        assert f"{facts['difference']:+.3f}" in row.facts.value and f"{facts['auroc']:.2f}" in row.facts.value
    widget.classname.value = "keratosis"
    assert [row.text.value for row in widget.rows[:4]] == SYMPTOMS["keratosis"]
    widget.classname.value = "nevus"
    assert len(widget.list.children) == 2
    assert review.changes == []  # looking is no edit


def test_an_edit_in_the_widget_recomputes_similarity_and_keeps_the_fields(review, widget, card, clip, images):
    fields, before = widget.list.children, widget.rows[1].facts.value
    widget.rows[1].text.value = "white dots on a red ground "
    after = widget.rows[1].facts.value
    table = review_table({"melanoma": ["white dots on a red ground"]}, card, clip, images)
    assert review.phrases["melanoma"][1] == "white dots on a red ground"
    assert widget.rows[1].text.value == "white dots on a red ground"
    assert after != before and f"own {table.loc[0, 'own']:.3f}" in after
    assert widget.list.children == fields  # the same widgets: the keyboard's focus stays
    assert len(review.changes) == 1


def test_an_emptied_field_gets_its_phrase_back_and_a_message(review, widget):
    widget.rows[0].text.value = "  "
    assert widget.rows[0].text.value == SYMPTOMS["melanoma"][0]
    assert 'role="alert"' in widget.message.value and "empty" in widget.message.value
    assert review.changes == []


def test_drop_add_undo_and_approve_are_buttons(review, widget):
    widget.rows[0].drop.click()
    assert [row.text.value for row in widget.rows[:2]] == SYMPTOMS["melanoma"][1:]
    assert len(widget.list.children) == 2 and "asymmetric shape" in widget.message.value
    widget.undo.click()
    assert len(widget.list.children) == 3
    widget.new.value = "several shades"
    widget.add.click()
    assert review.phrases["melanoma"][-1] == "several shades" and widget.new.value == ""
    assert len(widget.list.children) == 4 and widget.rows[3].text.value == "several shades"
    widget.approve.click()
    if "fail" in widget.message.value:
        widget.flagged.value = True
        widget.approve.click()
    assert review.approved == {"melanoma"} and "melanoma: &#10003; approved" in widget.overview.value
    assert widget.flagged.value is False


def test_a_failing_phrase_is_kept_and_its_reason_shown(review, widget):
    widget.classname.value = "nevus"
    widget.new.value = "high fever"
    widget.add.click()
    assert review.phrases["nevus"][-1] == "high fever"
    assert "fails a check" in widget.message.value and "&#10007;" in widget.rows[2].facts.value
    widget.approve.click()
    assert 'role="alert"' in widget.message.value and "nevus" not in review.approved
    assert review.phrases["nevus"][-1] == "high fever"


def test_saving_by_the_button_says_what_is_missing_and_then_saves(review, widget):
    widget.save.click()
    assert "approve every class first" in widget.message.value and not review.path.exists()
    for name in review.phrases:
        widget.classname.value = name
        widget.flagged.value = True
        widget.approve.click()
    widget.initials.value = "A1"
    widget.save.click()
    assert "initials" in widget.message.value and not review.path.exists()
    assert widget.initials.value == "A1" and review.phrases == SYMPTOMS
    widget.initials.value, widget.new.value = "AB", "not yet added"
    widget.save.click()
    assert "was not added" in widget.message.value and widget.new.value == "not yet added"
    widget.new.value = ""
    widget.save.click()
    assert "Saved to" in widget.message.value and dict(SymptomSet.load(review.path)) == SYMPTOMS


def test_a_place_that_cannot_be_written_is_a_message_and_nothing_is_lost(review, widget, tmp_path):
    approve_all(review)
    (tmp_path / "file").write_text("")
    review.path = tmp_path / "file" / "reviewed.json"
    widget.initials.value = "AB"
    widget.save.click()
    assert 'role="alert"' in widget.message.value and review.phrases == SYMPTOMS


def test_hostile_phrases_and_class_names_never_become_markup(card, clip, tmp_path):
    bold = "<i onclick=alert(4)>bold</i>"
    card = card.model_copy(update={"classes": [*card.classes[:2], ClassInfo(name=bold)]})
    symptoms = {"melanoma": SYMPTOMS["melanoma"], "nevus": HOSTILE, bold: ["white dots"]}
    images = make_set(card, [0, 1, 2])
    review = SymptomReview(symptoms, card, clip, images, tmp_path / "<b>x.json")
    widget = ReviewWidget(review)
    shown = []
    for html in (box for box in all_widgets(widget.box) if isinstance(box, ipywidgets.HTML)):
        html.observe(lambda change: shown.append(change["new"]), names="value")
    widget.classname.value = bold
    widget.rows[0].text.value = "gray dots"
    widget.approve.click()
    widget.classname.value = "nevus"
    for row, phrase in zip(widget.rows, HOSTILE, strict=False):
        assert row.text.value == phrase  # a text field shows text as it is
    widget.approve.click()
    for phrase in HOSTILE:
        widget.new.value = phrase
        widget.add.click()
        widget.rows[0].drop.click()
        widget.rows[0].text.value = phrase + " again"
    widget.initials.value = "<img src=x onerror=alert(3)>"
    widget.save.click()
    approve_all(review)
    widget.save.click()
    shown += [box.value for box in all_widgets(widget.box) if isinstance(box, ipywidgets.HTML)]
    assert any("&lt;script&gt;" in html for html in shown)
    allowed = re.compile(
        r'</?(?:p|b)>|</?div>|<div (?:role="(?:status|alert)"|class="[\w ]+")>|<span class="[\w ]+">|</span>'
    )
    assert not [html for html in shown if "<" in allowed.sub("", html)]
    assert "<script>" not in review.table()._repr_html_()
