"""Data cards: what a data set is, read from YAML that people can read too.

A card is a Markdown file. Its front matter (YAML between two `---` lines) is what the
code reads: classes in label order, templates, symptoms, source, licence. The prose below
is for people. The card is the one place where class names and their order are written.

A card that says `like: pneumonia` has the classes, templates and modality of that card, and other images.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator, model_validator

from medvlp.data.card_parts import SOURCES, AnySource, Attribute, ClassInfo, Phrase, Strict, plain_name
from medvlp.data.errors import brief, check_choice, check_kinds, listed, said, unknown_name, visible
from medvlp.data.files import as_word, composed, sha256, short

# What a card that is `like` another takes from it.
INHERITED = {"modality", "templates", "classes", "attributes"}


class DataCard(Strict):
    """A data set as the code sees it. Label i is `classes[i]`, everywhere.

    `modality` is a phrase ("a chest X-ray"), each template has one `{}` for the class name.
    `images` is how many images the data has as it was published, None where that is unknown.
    `prose` is the Markdown under the front matter, `path` the file the card was read from.

    Example:
        >>> import medvlp
        >>> card = medvlp.load_card("pneumonia")
        >>> card.classnames, card.label_of("NORMAL")
        (['normal lung', 'pneumonia'], 0)
        >>> card.symptoms()["pneumonia"][0]
        'a dense white patch inside one lung'
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    title: str = Field(min_length=1)
    modality: str = Field(pattern=r"^[^{}]+$")
    classes: list[ClassInfo] = Field(min_length=2)
    source: AnySource
    attributes: list[Attribute] = []
    images: PositiveInt | None = None
    templates: list[str] = Field(default=[], min_length=1)
    licence: str = "unknown"
    redistribution: bool = False
    citation: str = "unknown"
    pitfalls: list[str] = []
    intended_use: str = "Teaching and research."
    out_of_scope: str = "Any use on patients."
    prose: str = Field("", exclude=True)  # not part of what the code reads
    path: Path | None = Field(None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _default_templates(cls, values: Any) -> Any:
        if isinstance(values, dict) and "templates" not in values and isinstance(values.get("modality"), str):
            modality = values["modality"].strip()
            return {**values, "templates": [f"{modality} of {{}}.", f"{modality} showing {{}}."]}
        return values

    @field_validator("templates")
    @classmethod
    def _one_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1 or re.search("[{}]", template.replace("{}", "")):
                raise ValueError(f"{brief(template)} must contain {{}} exactly once, for the class name")
        return templates

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, classes: list[ClassInfo]) -> list[ClassInfo]:
        owner: dict[str, str] = {}
        for info in classes:
            if owner.get(as_word(info.name)) == info.name:
                raise ValueError(f"two classes are called {brief(info.name)}")
            for word in info.words:
                other = owner.setdefault(as_word(word), info.name)
                if other != info.name:
                    raise ValueError(f"{brief(word)} means class {brief(other)} and class {brief(info.name)}")
        return classes

    @model_validator(mode="after")
    def _attributes_are_sound(self) -> "DataCard":
        """Every attribute is there once, in a table, and phrases claim nothing else."""
        names = [attribute.name for attribute in self.attributes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two attributes are called {brief(name)}")
        if names and self.source.kind != "csv":
            kind = self.source.kind
            raise ValueError(f"attributes are read from a table, and a source of kind {brief(kind)} has none")
        if not names and getattr(self.source, "second_file", None):
            raise ValueError("second_file has what another expert noted, but the card has no attributes")
        values = {attribute.name: attribute.values for attribute in self.attributes}
        for info in self.classes:
            for phrase in (phrase for phrases in info.knowledge.values() for phrase in phrases):
                where = f"class {brief(info.name)}, the claims of {brief(phrase.text)}"
                for name, claimed in phrase.claims.items():
                    check_choice("attribute", name, names, where)
                    for value in claimed:
                        check_choice(f"value of {brief(name)}", value, values[name], where)
        return self

    @property
    def classnames(self) -> list[str]:
        """Class names in label order."""
        return [info.name for info in self.classes]

    @property
    def plain_names(self) -> list[str]:
        """Class names as texts have them, in label order: an underscore is a space."""
        return [plain_name(name) for name in self.classnames]

    @property
    def labels(self) -> dict[str, int]:
        """The label of every name and alias of a class, as they are written."""
        return {word: label for label, info in enumerate(self.classes) for word in info.words}

    @property
    def kinds(self) -> list[str]:
        """Kinds of knowledge that every class has phrases for."""
        kinds = self.classes[0].knowledge
        return [kind for kind in kinds if all(info.knowledge.get(kind) for info in self.classes)]

    @property
    def hash(self) -> str:
        """SHA-256 of what the code reads (defaults left out), not of `images` and the prose."""
        read = self.model_dump(mode="json", exclude_defaults=True, exclude={"images"})
        return sha256(json.dumps(read, sort_keys=True, ensure_ascii=False))

    @property
    def claims(self) -> dict[str, dict[str, list[str]]]:
        """What phrases claim of the card's attributes; phrases without `claims` are left out."""
        phrases = (phrase for info in self.classes for listed in info.knowledge.values() for phrase in listed)
        return {phrase.text: phrase.claims for phrase in phrases if phrase.claims}

    def symptoms(self, kind: str = "symptoms") -> dict[str, list[str]]:
        """Phrases of one kind of knowledge by class name, in label order; ValueError where there are none."""
        if not self.some_kinds():
            where = f" in {self.path}" if self.path else ""
            raise ValueError(
                f"card {self.name!r} has no symptoms nor other knowledge: write some under knowledge of each "
                f"class{where}, as data_cards/phantom-derm.md does, or give your own, as symptoms="
                f"{{{brief(self.classnames[0])}: [...], ...}}; medvlp.generate_symptoms asks an LLM for them."
            )
        check_choice("kind of knowledge", kind, self.some_kinds(), f"card {self.name!r}")
        for info in self.classes:
            if not info.knowledge.get(kind):
                theirs = [kind for kind, phrases in info.knowledge.items() if phrases]
                raise ValueError(
                    f"card {self.name!r}: class {brief(info.name)} has no phrases of kind {brief(kind)}; "
                    f"it has {listed(theirs) or 'none of any kind'}."
                )
        return {info.name: [phrase.text for phrase in info.knowledge[kind]] for info in self.classes}

    def some_kinds(self) -> list[str]:
        """Kinds of knowledge that some class has."""
        return list(dict.fromkeys(kind for info in self.classes for kind in info.knowledge))

    def with_knowledge(
        self, kind: str, phrases: Mapping[str, Sequence[str]], origin: str | None = None
    ) -> "DataCard":
        """A copy with phrases of one kind more, {classname: [phrase, ...]}, such as generated symptoms.

        `origin` says where they come from; it stands where other phrases have their criterion.
        ValueError for a kind that the card has already, a class that is unknown or missing, and for phrases
        that no card may have.
        """
        where = f"card {self.name!r}"
        if kind in self.some_kinds():
            raise ValueError(
                f"{where} has phrases of kind {brief(kind)} already; its kinds: {listed(self.some_kinds())}."
            )
        phrases = in_label_order(phrases, self.classnames, self.name)
        front = self.model_dump()
        for info in front["classes"]:
            info["knowledge"][kind] = [{"text": p, "criterion": origin} for p in phrases[info["name"]]]
        return _validated(front, where).model_copy(update={"prose": self.prose, "path": self.path})

    def with_classes(self, names: Sequence[str]) -> "DataCard":
        """A copy with some classes only: label i is `names[i]`, a name or an alias.

        The copy has the card's name, templates and phrases, and another hash; `ImageSet.of_classes` gives its
        images. ValueError for an unknown class, one named twice, or fewer than two.
        """
        labels = [self.label_of(name) for name in names]
        if len(set(labels)) < max(2, len(labels)):
            raise ValueError(
                f"with_classes needs two or more different classes, got {brief(list(names))}; card "
                f"{self.name!r} has {listed(self.classnames)}."
            )
        return self.model_copy(update={"classes": [self.classes[label] for label in labels]})

    def label_of(self, alias: str) -> int:
        """Label of a class by its name or an alias, upper or lower case; ValueError for an unknown one."""
        label = {as_word(word): label for word, label in self.labels.items()}.get(as_word(str(alias)))
        if label is None:
            raise ValueError(unknown_name("class", alias, self.labels, where=f"card {self.name!r}"))
        return label


def in_label_order(
    symptoms: Mapping[str, Sequence[str]], classnames: Sequence[str], card: str
) -> dict[str, list[str]]:
    """The phrases of every class of the card of this name, stripped.

    Raises:
        TypeError: no mapping.
        ValueError: a class that is unknown, missing or without a phrase.
    """
    if not isinstance(symptoms, Mapping):
        raise TypeError(f"symptoms is {said(symptoms)}; it should be {{classname: [phrase, ...]}}.")
    symptoms = {composed(name): phrases for name, phrases in symptoms.items()}
    for name, phrases in symptoms.items():
        check_choice("class", name, classnames, f"the symptoms for card {card!r}")
        texts = [] if isinstance(phrases, str) else phrases
        if not texts or not all(isinstance(text, str) and text.strip(" .") for text in texts):
            raise ValueError(
                f"the symptoms of {brief(name)} must be a list of phrases, not {brief(phrases)}."
            )
    missing = [name for name in classnames if name not in symptoms]
    if missing:
        raise ValueError(f"no symptoms for {listed(missing)}; give some for every class of card {card!r}.")
    return {name: [phrase.strip() for phrase in symptoms[name]] for name in classnames}


def cards_folder() -> Path:
    """Folder of the packaged cards: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "data_cards"
    return inside if inside.is_dir() else package.parent / "data_cards"


def list_cards() -> list[str]:
    """Names of the packaged cards, sorted.

    Example:
        >>> import medvlp
        >>> [name for name in medvlp.list_cards() if name.startswith("phantom-derm")]
        ['phantom-derm', 'phantom-derm-shifted']
    """
    return sorted(path.stem for path in cards_folder().glob("*.md"))


def load_card(name_or_path: str | Path) -> DataCard:
    """Read a packaged card by its name ("pneumonia"), or any card by the path of its .md file.

    FileNotFoundError for a path without a file; ValueError for an unknown name or a bad card.

    Example:
        >>> import medvlp
        >>> medvlp.load_card("phantom-fundus").classnames[:2]
        ['no retinopathy', 'mild retinopathy']
        >>> medvlp.load_card("pneumona")
        Traceback (most recent call last):
        ValueError: unknown card 'pneumona'; did you mean 'pneumonia'? ...
    """
    check_kinds(load_card, locals())
    path = _card_file(name_or_path)
    front, prose = _front_matter(path)
    if "like" in front:
        front = _like(front, path)
    for key in {"prose", "path"} & front.keys():
        raise ValueError(f"{path}: {unknown_name('field', key, _fields(DataCard))}")
    return _validated(front, str(path)).model_copy(update={"prose": prose, "path": path})


def _card_file(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".md":
        if not os.path.isfile(path):
            known = unknown_name("packaged card", path.stem, list_cards())
            raise FileNotFoundError(f"there is no file {short(path)}, and {known}")
        return path
    if str(name_or_path) not in list_cards():
        known = unknown_name("card", name_or_path, list_cards())
        raise ValueError(f"{known} Or give the path of a .md file.")
    return cards_folder() / f"{name_or_path}.md"


def _like(front: dict, path: Path) -> dict:
    """The front matter of a card `like` another: it takes from that one what it has not of its own.

    That is what belongs to the classes (INHERITED); source, licence and the rest are never another card's.
    """
    name = str(front["like"])
    other = path.parent / name if name.endswith(".md") else name
    try:
        takes_too = "like" in _front_matter(_card_file(other))[0]
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{path}, like: {error}") from None
    if takes_too:
        raise ValueError(f"{path}, like: card {brief(name)} is itself like another; name that one.")
    theirs = load_card(other).model_dump(include=INHERITED, exclude_defaults=True)
    return theirs | {key: value for key, value in front.items() if key != "like"}


def _validated(front: dict, where: str) -> DataCard:
    try:
        return DataCard.model_validate(front)
    except ValidationError as error:
        sentences = [_sentence(one, front) for one in error.errors()]
        raise ValueError(f"{where}: " + "\n  ".join(sentences)) from None


def _fields(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if not field.exclude]


def _sentence(error: Any, front: dict) -> str:
    """One pydantic error as one sentence: the place, what is wrong there, the choices."""
    kind, loc = error["type"], error["loc"]
    place, parent = _place(loc, front), _place(loc[:-1], front)
    if kind == "missing":
        return f"the field {loc[-1]!r} is missing{f' in {parent}' if parent else ''}."
    if kind == "extra_forbidden":
        return unknown_name("field", loc[-1], _fields(_model_at(loc[:-1])), where=parent)
    if kind == "union_tag_invalid":
        return unknown_name("kind of source", error["ctx"]["tag"], SOURCES)
    if loc == ("source",):
        return f"source needs a kind, one of {listed(SOURCES)}."
    if kind == "literal_error":
        choices = re.findall("'(.*?)'", error["ctx"]["expected"])
        return unknown_name("value", error["input"], choices, where=place)
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{place}: {message}." if place else f"{message}."


def _model_at(loc: tuple) -> type[BaseModel]:
    """Model whose fields may stand at this place of a card."""
    if not loc:
        return DataCard
    if loc[0] == "source":
        return SOURCES[loc[1]]
    if loc[0] == "attributes":
        return Attribute
    return Phrase if "knowledge" in loc else ClassInfo


def _place(loc: tuple, front: dict) -> str:
    """Words for a pydantic location: ("classes", 1, "aliases", 0) is "class 'nevus', aliases, entry 1"."""
    loc = loc[:-2] if loc[-1:] == ("[key]",) else loc
    words = [f"entry {part + 1}" if isinstance(part, int) else short(visible(str(part))) for part in loc]
    if loc[:1] == ("source",):
        words = [word for i, word in enumerate(words) if i != 1]  # the kind, which pydantic puts there
    one = {"classes": "class", "attributes": "attribute"}.get(loc[0] if loc else None)
    if one and len(loc) > 1:
        info = front[loc[0]][loc[1]]
        name = info.get("name") if isinstance(info, dict) else info
        words[:2] = [f"{one} {brief(name)}" if isinstance(name, str) else f"{one} number {loc[1] + 1}"]
    return ", ".join(words)


def _front_matter(path: Path) -> tuple[dict, str]:
    """Fields and text of a file; ValueError, naming the file, where the front matter is missing or bad."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}. A card is text in UTF-8.") from error
    parts = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n(.*))?\Z", text, re.DOTALL)
    if parts is None:
        raise ValueError(f"{path}: it must start with YAML between two lines of three dashes (---).")
    try:
        above = "\n" * text.count("\n", 0, parts.start(1))  # so that errors count the file's lines
        front = yaml.load(above + parts[1], Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        problem = str(error).replace('in "<unicode string>", ', "at ")
        raise ValueError(f"{path}: the front matter is not valid YAML: {problem}") from error
    if not isinstance(front, dict) or not all(isinstance(key, str) for key in front):
        raise ValueError(f"{path}: the front matter must be fields, each written 'name: value'.")
    return front, (parts[2] or "").strip()


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = []
        for key, _ in node.value:
            value = self.construct_object(key, deep=True)
            if value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {brief(value)} is given twice", problem_mark=key.start_mark
                )
            seen.append(value)
        return super().construct_mapping(node, deep)
