import re
from functools import cache
from pathlib import Path

import medmnist
import pytest
from open_clip.tokenizer import SimpleTokenizer

from medvlp.data.cards import DataCard, Phrase, list_cards, load_card
from medvlp.data.phantoms.worlds import get_world

KINDS = ["symptoms", "out-of-domain", "useless", "incorrect"]
CARDS = list_cards()
MEDMNIST = [name for name in CARDS if name.endswith("mnist")]
PHANTOMS = [name for name in CARDS if name.startswith("phantom-")]
TOKENIZER, packaged = cache(SimpleTokenizer), cache(load_card)
MOST_TOKENS = 30  # with four context vectors, start and end

TEN_LINES = """\
---
name: fruit
title: Three fruits
modality: a photo
classes:
  - {name: apple, aliases: [apples]}
  - {name: pear, aliases: [pears]}
  - {name: plum, aliases: [plums]}
source: {kind: folder}
---
"""


def write(folder, text=TEN_LINES, name="fruit.md"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message(path) -> str:
    with pytest.raises(ValueError) as error:
        load_card(path)
    assert str(path) in str(error.value)
    return str(error.value)


def phrases(card: DataCard):
    for info in card.classes:
        for kind, listed in info.knowledge.items():
            for phrase in listed:
                yield info, kind, phrase


def test_the_packaged_cards_are_there():
    mnist = [f"{what}mnist" for what in ("pneumonia", "breast", "derma", "retina", "blood")]
    phantom = [f"phantom-{world}{shift}" for world in ("derm", "cxr", "fundus") for shift in ("", "-shifted")]
    files = "adam aptos2019 busi chaoyang cpn-x-ray derm7pt fetal-us isic kvasir odir pneumonia"
    files = [*files.split(), "wbcatt", "neutrophil-maturity"]
    assert set(CARDS) == {*files, *mnist, *phantom}


@pytest.mark.parametrize("name", CARDS)
class TestPackagedCards:
    def test_says_what_a_reader_must_know(self, name):
        card = packaged(name)
        assert card.name == name
        assert 3 <= len(card.templates) <= 6
        assert len(card.source.how_to_get) > 40 and card.images > 100
        assert len(card.pitfalls) >= 4
        assert "patient" in card.out_of_scope
        assert card.prose.startswith("# ")
        assert "**How the symptoms were chosen.**" in card.prose
        assert "**What goes wrong.**" in card.prose
        if name not in PHANTOMS:
            assert "doi:10." in card.citation

    def test_each_class_has_four_phrases_of_each_kind(self, name):
        card = packaged(name)
        assert card.kinds[0] == "symptoms" and set(KINDS) <= set(card.kinds)
        for kind in card.kinds:
            assert list(card.symptoms(kind)) == card.classnames
            assert min(len(listed) for listed in card.symptoms(kind).values()) >= 4

    def test_each_curated_symptom_names_its_criterion(self, name):
        for info, kind, phrase in phrases(packaged(name)):
            if kind in ("symptoms", "no-granules"):
                assert phrase.criterion, f"{info.name}: {phrase.text}"

    def test_no_phrase_names_its_class_or_the_disease(self, name):
        for info, _, phrase in phrases(packaged(name)):
            said = phrase.text.lower()
            disease = info.name.lower().split()[-1].rstrip("s")  # "retinopathy" of "no retinopathy"
            if disease not in {"lung", "tissue", "lesion", "tumor"}:  # what is in view, not what it is called
                assert disease not in said, f"{info.name}: {phrase.text}"

    def test_no_incorrect_phrase_is_among_its_class_symptoms(self, name):
        card = packaged(name)
        for classname, wrong in card.symptoms("incorrect").items():
            assert not set(wrong) & set(card.symptoms()[classname])

    def test_phrases_are_short_enough_for_a_text_tower(self, name):
        card, tokenizer = packaged(name), TOKENIZER()
        for _, _, phrase in phrases(card):
            assert len(phrase.text.split()) <= 12, phrase.text
            assert len(tokenizer.encode(f"{phrase.text}.")) + 4 + 2 <= MOST_TOKENS, phrase.text
        for template in card.templates:
            for classname in card.classnames:
                assert len(tokenizer.encode(template.format(classname))) + 2 <= MOST_TOKENS


@pytest.mark.parametrize("name", MEDMNIST)
def test_medmnist_cards_follow_medmnist(name):
    card, info = load_card(name), medmnist.INFO[name]
    assert card.source.flag == name
    assert len(card.classes) == len(info["label"])
    for label, text in info["label"].items():
        assert card.label_of(label) == card.label_of(text) == int(label)
    assert card.licence == info["license"] and card.images == sum(info["n_samples"].values())


MISLEADING = {"scar", "tube"}  # in the list of the class that shows them less often, on purpose


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantom_cards_say_each_attribute_once_a_class_and_its_usual_state_but_of_one_that_misleads(name):
    card = load_card(name)
    world = get_world(card.source.world)
    assert card.classnames == list(world.classnames) and card.images == sum(card.source.sizes.values())
    for label, info in enumerate(card.classes):
        symptoms, incorrect = info.knowledge["symptoms"], info.knowledge["incorrect"]
        for attribute, symptom, wrong in zip(world.attributes, symptoms, incorrect, strict=True):
            present = symptom.criterion.endswith(f"(phantom attribute {attribute.name}, present)")
            absent = symptom.criterion.endswith(f"(phantom attribute {attribute.name}, absent)")
            assert present != absent
            assert symptom.text in (attribute.present if present else attribute.absent)
            assert wrong.text in (attribute.absent if present else attribute.present)
            p, mean = attribute.probability[label], sum(attribute.probability) / len(card.classes)
            if max(attribute.probability) != min(attribute.probability):
                misleads = attribute.name in MISLEADING
                assert (present == (p > mean)) != misleads, (info.name, attribute.name)


def test_pneumonia_groups_by_person():
    pattern = re.compile(load_card("pneumonia").source.group_pattern)
    names = {
        "person1000_bacteria_2931.jpeg": "person1000",
        "person1000_virus_1681.jpeg": "person1000",
        "person100_virus_184.jpeg": "person100",
        "IM-0011-0001-0002.jpeg": "IM-0011",
        "NORMAL2-IM-0011-0001.jpeg": "NORMAL2-IM-0011",
    }
    assert {name: pattern.search(name)[1] for name in names} == names


def test_phrases_of_another_kind_make_another_card():
    card = load_card("pneumonia")
    own = {"pneumonia": ["a bright smudge"], "normal lung": ["even gray", "two dark sides"]}
    other = card.with_knowledge("generated", own, origin="a language model")
    phrase = Phrase(text="a bright smudge", criterion="a language model")
    assert other.classes[1].knowledge["generated"] == [phrase]
    assert other.symptoms("generated") == {name: own[name] for name in card.classnames}
    assert other.symptoms() == card.symptoms() and other.prose == card.prose and other.path == card.path
    assert other.hash != card.hash and "generated" not in card.kinds


def test_an_underscore_in_a_class_name_is_a_space_in_texts():
    card = load_card("pneumonia")
    named = card.classes[1].model_copy(update={"name": "viral_pneumonia"})
    card = card.model_copy(update={"classes": [card.classes[0], named]})
    assert card.plain_names == ["normal lung", "viral pneumonia"]
    for phrase in ("a viral_pneumonia smudge", "a Viral pneumonia smudge"):
        with pytest.raises(ValueError, match="names its own class \\('viral_pneumonia'\\)"):
            card.with_knowledge("mine", {"viral_pneumonia": [phrase], "normal lung": ["x"]})


@pytest.mark.parametrize("path", [None, "mine/own.md"])
def test_a_card_without_phrases_says_what_to_do(path):
    card = load_card("pneumonia")
    bare = [info.model_copy(update={"knowledge": {}}) for info in card.classes]
    card = card.model_copy(update={"classes": bare, "path": path and Path(path)})
    with pytest.raises(ValueError) as caught:
        card.symptoms()
    said = str(caught.value)
    assert said.startswith("card 'pneumonia' has no symptoms") and ("mine/own.md" in said) == bool(path)
    assert "symptoms={'normal lung': [...], ...}" in said and "medvlp.generate_symptoms" in said


NAMING = {"pneumonia": ["a PNEUMONIA smudge"], "normal lung": ["x"]}


@pytest.mark.parametrize(
    ("kind", "phrases", "message"),
    [
        ("symptoms", {}, "card 'pneumonia' has phrases of kind 'symptoms' already"),
        ("mine", {"pneumona": ["x"]}, "unknown class 'pneumona' in the symptoms for card 'pneumonia'; did"),
        ("mine", {"pneumonia": ["a smudge"]}, "no symptoms for 'normal lung'; give some for every"),
        ("mine", NAMING, "the phrase 'a PNEUMONIA smudge' under 'mine' names its own class"),
    ],
)
def test_phrases_that_a_card_may_not_have_are_named(kind, phrases, message):
    with pytest.raises(ValueError, match=message):
        load_card("pneumonia").with_knowledge(kind, phrases)


LIKE = """\
---
name: market-fruit
like: fruit.md
title: Fruits from the market
source: {kind: folder, folder: market}
---
"""


def test_a_card_like_another_has_its_classes_and_other_images(tmp_path):
    path = write(tmp_path, LIKE, "market.md")
    fruit, market = load_card(write(tmp_path)), load_card(path)
    assert market.classes == fruit.classes and market.templates == fruit.templates
    assert (market.name, market.source.folder, market.path) == ("market-fruit", "market", path)
    write(tmp_path, LIKE.replace("source:", "modality: a sketch\nsource:"), "market.md")
    assert load_card(path).modality == "a sketch"


def test_a_card_like_another_says_itself_what_concerns_its_images(tmp_path):
    write(tmp_path, TEN_LINES.replace("source:", "licence: CC0-1.0\ncitation: Us.\nsource:"))
    card = load_card(write(tmp_path, LIKE, "market.md"))
    assert card.licence == card.citation == "unknown"
    path = write(tmp_path, LIKE.replace("source: {kind: folder, folder: market}\n", ""), "market.md")
    assert "the field 'source' is missing" in message(path)


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ("pneumona", "like: unknown card 'pneumona'; did you mean 'pneumonia'"),
        ("apples.md", "like: there is no file"),
        ("market.md", "like: card 'market.md' is itself like another"),
        ("phantom-cxr-shifted", "like: card 'phantom-cxr-shifted' is itself like another"),
    ],
)
def test_a_card_like_one_that_cannot_be_taken_is_refused(tmp_path, like, said):
    path = write(tmp_path, LIKE.replace("fruit.md", like), "market.md")
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        load_card(path)
    assert str(path) in str(error.value)


def test_a_card_with_some_classes_has_them_in_the_order_asked_for():
    card = load_card("phantom-fundus")
    some = card.with_classes(["severe retinopathy", "grade 1"])
    assert some.classnames == ["severe retinopathy", "mild retinopathy"]
    assert some.classes == [card.classes[3], card.classes[1]]
    assert list(some.symptoms()) == some.classnames and some.name == card.name and some.hash != card.hash
    assert card.with_classes(card.classnames) == card


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["mild retinopaty"], "unknown class 'mild retinopaty' in card 'phantom-fundus'; did you mean 'mild"),
        (["mild retinopathy"], "two or more different classes, got .'mild retinopathy'.; card 'phantom-fun"),
        (["mild retinopathy", "grade 1"], "two or more different classes"),
        ([], "two or more different classes, got ..; .*'no retinopathy', 'mild retinopathy'"),
    ],
)
def test_a_card_cannot_have_these_classes(names, said):
    with pytest.raises(ValueError, match=said):
        load_card("phantom-fundus").with_classes(names)


def test_label_of_takes_names_and_aliases_in_any_case():
    card = load_card("pneumonia")
    words = ("NORMAL", "normal lung", "Pneumonia", " PNEUMONIA ")
    assert [card.label_of(word) for word in words] == [0, 0, 1, 1]
    said = "unknown class 'NORMALL' in card 'pneumonia'; did you mean 'NORMAL'"
    with pytest.raises(ValueError, match=said):
        card.label_of("NORMALL")


def test_ten_lines_are_a_card(tmp_path):
    card = load_card(write(tmp_path))
    assert len(TEN_LINES.splitlines()) == 10
    assert card.classnames == ["apple", "pear", "plum"]
    assert card.label_of("PEARS") == 1
    assert card.templates == ["a photo of {}.", "a photo showing {}."]
    assert card.licence == card.citation == "unknown"
    assert (card.source.folder, card.source.val_fraction, card.source.test_fraction) == (".", 0.1, 0.2)
    assert (card.prose, card.path) == ("", tmp_path / "fruit.md")


def test_classes_may_be_plain_words_and_aliases_numbers(tmp_path):
    text = TEN_LINES[: TEN_LINES.index("classes:")] + "classes: [apple, {name: pear, aliases: [1]}]\n"
    card = load_card(write(tmp_path, text + "source: {kind: csv, columns: {label: dx}}\n---\n"))
    assert card.classnames == ["apple", "pear"]
    assert card.label_of("1") == 1
    assert card.source.columns == {"path": "path", "label": "dx", "split": None, "group": None}


def test_hash_is_of_the_front_matter(tmp_path):
    first = load_card(write(tmp_path)).hash
    assert len(first) == 64
    assert load_card(write(tmp_path, TEN_LINES + "Other words.\n")).hash == first
    assert load_card(write(tmp_path, TEN_LINES.replace("source:", "images: 5\nsource:"))).hash == first
    assert load_card(write(tmp_path, TEN_LINES.replace("---\n", "---\n# a comment\n", 1))).hash == first
    assert load_card(write(tmp_path, TEN_LINES.replace("Three", "Other"))).hash != first
    assert load_card(write(tmp_path, TEN_LINES.replace("apples", "cox"))).hash != first


def test_a_loaded_card_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_card("pneumonia").name = "other"


def fruit(knowledge: str) -> str:
    return TEN_LINES.replace("aliases: [pears]", f"aliases: [pears], knowledge: {knowledge}")


BAD = [  # what is exchanged in the card, and what is said of it
    (
        "title:",
        "template: [a]\ntitle:",
        "unknown field 'template'; did you mean 'templates'? Choices: 'name', 'title',",
    ),
    ("aliases: [pears]", "alias: [pears]", "unknown field 'alias' in class 'pear'; did you mean 'aliases'?"),
    ("folder}", "csv, splits: {train: a}}", "unknown field 'splits' in source"),
    ("modality: a photo\n", "", "the field 'modality' is missing."),
    ("source:", "templates: [x]\nsource:", "templates: 'x' must contain {} exactly once"),
    ("source:", "templates: ['{} and {classname}']\nsource:", "must contain {} exactly once"),
    ("pears", "Apples", "'Apples' means class 'apple' and class 'pear'"),
    ("name: pear", "name: apple", "two classes are called 'apple'"),
    ("  - {name: p", "# ", "classes: List should have at least 2 items"),
    ("[pears]", "[pears], knowledge: {useless: [two pears]}", "names its own class ('pears')"),
    ("[pears]", "[pears], knowledge: {x: [green, Green]}", "the phrase 'green' is listed twice under 'x'"),
    ("[pears]", "[pears], knowledge: {x: [' ']}", "class 'pear', knowledge, x, entry 1, text: String should"),
    (
        "folder}",
        "foldr}",
        "kind of source 'foldr'; did you mean 'folder'? Choices: 'phantom', 'folder', 'csv', 'medmnist'.",
    ),
    ("kind: folder", "folder: x", "source needs a kind, one of 'phantom'"),
    ("folder}", "phantom, world: dermm}", "unknown value 'dermm' in source, world; did you mean 'derm'?"),
    ("folder}", "folder, group_pattern: '(p'}", "group_pattern: group_pattern '(p' is no regular expression"),
    ("folder}", "folder, group_pattern: 'p'}", "must have one (...) group, it has 0"),
    ("folder}", "medmnist, flag: x, group_pattern: '(p)'}", "unknown field 'group_pattern'"),
    ("name: pear", "name: no", "class number 2, name: YAML reads an unquoted yes, no"),
    ("title:", "title: x\ntitle:", "the key 'title' is given twice\n  at line 4"),
    ("title:", "prose: x\ntitle:", "unknown field 'prose'"),
    (TEN_LINES, "# Fruit\n", "it must start with YAML between two lines of three dashes (---)."),
    ("folder}", "folder", "the front matter is not valid YAML"),
    (TEN_LINES, "---\n- a\n---\n", "the front matter must be fields"),
    (
        "[pears]",
        "[pears], knowledge: {symptoms: [a green Pear shape]}",
        "class 'pear': the phrase 'a green Pear shape' under 'symptoms' names its own class ('pear')",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), BAD)
def test_a_bad_card_says_what_is_wrong(old, new, expected, tmp_path):
    assert old in TEN_LINES
    said = message(write(tmp_path, TEN_LINES.replace(old, new)))
    assert expected in said and "pydantic" not in said


def test_several_mistakes_are_told_at_once(tmp_path):
    said = message(write(tmp_path, TEN_LINES.replace("title: Three fruits\nmodality: a photo\n", "")))
    assert "'title' is missing" in said and "'modality' is missing" in said


def test_kinds_of_knowledge_that_are_not_there(tmp_path):
    card = load_card(write(tmp_path, fruit("{symptoms: [narrow at the top], myths: [blue]}")))
    assert card.kinds == []
    with pytest.raises(ValueError, match="'apple' has no phrases of kind 'symptoms'; it has none of any"):
        card.symptoms()
    said = "unknown kind of knowledge 'myth' in card 'fruit'; did you mean 'myths'"
    with pytest.raises(ValueError, match=said):
        card.symptoms("myth")


def test_class_without_phrases_of_this_kind(tmp_path):
    text = fruit("{symptoms: [narrow at the top], useless: [a fruit]}")
    text = text.replace("aliases: [apples]", "knowledge: {symptoms: [round and red], myths: [blue]}")
    text = text.replace("aliases: [plums]", "knowledge: {symptoms: [small and violet]}")
    card = load_card(write(tmp_path, text))
    assert card.kinds == ["symptoms"]
    assert card.symptoms()["pear"] == ["narrow at the top"]
    with pytest.raises(ValueError, match="'pear' has no phrases of kind 'myths'; it has 'symptoms', 'usel"):
        card.symptoms("myths")


def test_unknown_cards_are_told_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="unknown card 'pneumona'; did you mean 'pneumonia'"):
        load_card("pneumona")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*pneumona\.md.*did you mean 'pneumonia'"):
        load_card(tmp_path / "pneumona.md")


def test_a_short_alias_is_a_code_and_no_word(tmp_path):
    text = fruit("{symptoms: [a green skin]}").replace("aliases: [pears]", "aliases: [A]")
    assert load_card(write(tmp_path, text)).label_of("a") == 1
