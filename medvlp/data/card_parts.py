"""What a card is made of: classes with their phrases, attributes of images, and four kinds of sources."""

import re
from typing import Annotated, Any, Literal, get_args

import regex
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from medvlp.data.errors import brief
from medvlp.data.files import composed

Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
SHORTEST_WORD = 3  # aliases shorter than this ("mel" is not, "nv" is) are codes, allowed inside phrases


def plain_name(classname: str) -> str:
    """A class name as every text has it that a text tower or an LLM reads: an underscore is a space.

    >>> plain_name("basal_cell carcinoma")
    'basal cell carcinoma'
    """
    return classname.replace("_", " ")


class Strict(BaseModel):
    """A model that refuses unknown fields and cannot be changed after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


def _spoken(value: Any) -> Any:
    """YAML's 0 is the text "0"; its yes, no, on and off are not text at all."""
    if isinstance(value, bool):
        raise ValueError("YAML reads an unquoted yes, no, on, off, true or false as a truth value: quote it")
    return composed(str(value) if isinstance(value, int) else value)


Name = Annotated[str, BeforeValidator(_spoken), Field(min_length=1)]


def _as_list(value: Any) -> Any:
    """One word will do where several may stand."""
    return value if isinstance(value, list) else [value]


Names = Annotated[list[Name], BeforeValidator(_as_list), Field(min_length=1)]


class Phrase(Strict):
    """One visual phrase and the clinical criterion it was taken from; a plain string in YAML will do.

    `claims` says which attribute of the card it speaks of, and which value or values it claims.
    """

    text: str = Field(min_length=1)
    criterion: str | None = None
    claims: dict[Name, Names] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class ClassInfo(Strict):
    """One class: its name in plain words, its other names, and its phrases by kind of knowledge.

    `aliases` are folder names, codes or label numbers that mean this class. `knowledge` maps a
    kind ("symptoms", "out-of-domain", "useless", "incorrect", or one of your own) to phrases.
    """

    name: Name
    aliases: list[Name] = []
    knowledge: dict[str, list[Phrase]] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str | int) else value

    @model_validator(mode="after")
    def _phrases_are_sound(self) -> "ClassInfo":
        for kind, phrases in self.knowledge.items():
            texts = [phrase.text.casefold() for phrase in phrases]
            for phrase, text in zip(phrases, texts, strict=True):
                if texts.count(text) > 1:
                    raise ValueError(f"the phrase {brief(phrase.text)} is listed twice under {brief(kind)}")
                for word in [self.name, *filter(is_word, self.aliases)]:
                    name = re.escape(plain_name(word))
                    if re.search(rf"(?<!\w){name}(?!\w)", plain_name(text), re.IGNORECASE):
                        raise ValueError(
                            f"the phrase {brief(phrase.text)} under {brief(kind)} names its own class "
                            f"({brief(word)}): describe what is seen instead"
                        )
        return self

    @property
    def words(self) -> list[str]:
        """The name and the aliases."""
        return [self.name, *self.aliases]


class Attribute(Strict):
    """What an expert notes of every image, such as the colour of granules.

    `values` maps each value, as the table spells it, to phrases that say so. `column` is the table's, by
    default the name; `criterion` says where the attribute is defined.
    """

    name: Name
    values: dict[Name, Names] = Field(min_length=2)
    column: Name = ""
    criterion: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _column_of_that_name(cls, given: Any) -> Any:
        return {"column": given.get("name"), **given} if isinstance(given, dict) else given


def is_word(alias: str) -> bool:
    """Whether an alias is a word, not a code that may stand inside a phrase."""
    return len(alias) >= SHORTEST_WORD and any(letter.isalpha() for letter in alias)


Fraction = Annotated[float, Field(gt=0, lt=1)]


def _over(defaults: dict[str, Any]) -> AfterValidator:
    """What a card does not say stands as in `defaults`."""
    return AfterValidator(lambda said: defaults | said)


class Source(Strict):
    """Where the images come from; what every kind of source has."""

    how_to_get: str = ""


class FilesSource(Source):
    """Image files in `folder`; what folders and tables have in common.

    `group_pattern` is a regular expression with one group, searched in the file's name, then in its path
    within the data folder ("(p[0-9]+)/" finds a patient's folder): images with the same match (one patient)
    stay on one side of a split. Where it finds nothing, or is None, an image is its own group.
    `val_fraction` (of train) and `test_fraction` (of all) are used only where a split is missing.
    """

    folder: str = "."
    group_pattern: str | None = None
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2

    @field_validator("group_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        try:
            groups = regex.compile("()" if pattern is None else pattern).groups
        except regex.error as error:
            raise ValueError(f"group_pattern {brief(pattern)} is no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"group_pattern {brief(pattern)} must have one (...) group, it has {groups}")
        return pattern


class PhantomSource(Source):
    """Procedural images: `world` draws `sizes[split]` of them for each split."""

    kind: Literal["phantom"]
    world: Literal["derm", "cxr", "fundus", "derm-shifted", "cxr-shifted", "fundus-shifted"]
    sizes: Annotated[
        dict[Split, PositiveInt],
        Field(validate_default=True),
        _over({"train": 2000, "val": 500, "test": 2000}),
    ] = {}


class FolderSource(FilesSource):
    """A folder of class folders, or of split folders that hold class folders.

    `splits` maps each split to its folder under `folder`, None where that split must be made; where a
    card does not say, folders called train, val and test are used as far as they are there. Files whose
    name fits `skip_files` ("*_mask*.png") are no images of the set.
    """

    kind: Literal["folder"]
    skip_files: str = ""
    splits: Annotated[dict[Split, str | None], _over(dict.fromkeys(SPLITS))] = {s: s for s in SPLITS}


class CsvSource(FilesSource):
    """A table with one image a row; `columns` names its path, label, split and group columns.

    Paths are relative to `folder`; where a table has only a part of them, `image_files` has the rest, with {}
    in its place ("images/{}.png"), or several such, of which the first that is there is taken. The split and
    group columns may be None: not there. `label_columns`, one for each class with a 1 in one of them, stand
    for a label column. `file` is one table, or one for each split. `second_file` lists some of the images
    again, with attributes as another expert noted them. Of each table FILE.gz will do, too; FILE.json is a
    list of objects, each a row.

    `rows` says which rows are meant, by column: those with one of these values. The others are left out.
    `split_words` are values of the split column that are no usual names ("1": train). `split_rows` are
    tables, one for each split, whose column "indexes" has its rows in `file`, the first being 0.
    """

    kind: Literal["csv"]
    file: str | dict[Split, str] = "labels.csv"
    second_file: str | None = None
    columns: Annotated[
        dict[Literal["path", "label", "split", "group"], Name | None],
        Field(validate_default=True),
        _over({"path": "path", "label": "label", "split": None, "group": None}),
    ] = {}
    image_files: Names = ["{}"]
    label_columns: list[Name] = []
    rows: dict[Name, Names] = {}
    split_words: dict[Name, Split] = {}
    split_rows: dict[Split, str] = {}

    @model_validator(mode="after")
    def _one_word_on_columns_and_splits(self) -> "CsvSource":
        if not (self.columns["path"] and self.columns["label"]):
            raise ValueError("the path and the label column must have a name")
        if isinstance(self.file, dict) and ("train" not in self.file or self.columns["split"]):
            raise ValueError("with a table for each split there is one for train, and no split column")
        return self


class MedMNISTSource(Source):
    """A MedMNIST v2 data set, by its flag; its splits are MedMNIST's."""

    kind: Literal["medmnist"]
    flag: str


SOURCES: dict[str, type[Source]] = {
    "phantom": PhantomSource,
    "folder": FolderSource,
    "csv": CsvSource,
    "medmnist": MedMNISTSource,
}
AnySource = Annotated[PhantomSource | FolderSource | CsvSource | MedMNISTSource, Field(discriminator="kind")]
