"""What a card says of its source: four kinds, each with fields of its own."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Fraction = Annotated[float, Field(gt=0, lt=1)]
Split = Literal["train", "val", "test"]


class Strict(BaseModel):
    """A model that refuses unknown fields and cannot be changed after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Source(Strict):
    """Where the images come from; what every kind of source has.

    `group_pattern` is a regular expression with one group, searched in the file name: images with
    the same match (one patient) stay on one side of a split. None: each image is its own group.
    `val_fraction` (of train) and `test_fraction` (of all) are used only where a split is missing.
    """

    how_to_get: str = ""
    group_pattern: str | None = None
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2

    @field_validator("group_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"group_pattern {pattern!r} is no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"group_pattern {pattern!r} must have exactly one (...) group, it has {groups}")
        return pattern


class PhantomSource(Source):
    """Procedural images: `world` draws `sizes[split]` of them for each split."""

    kind: Literal["phantom"]
    world: Literal["derm", "cxr", "fundus", "derm-shifted", "cxr-shifted", "fundus-shifted"]
    sizes: dict[Split, Annotated[int, Field(gt=0)]] = Field({}, validate_default=True)

    @field_validator("sizes")
    @classmethod
    def _all_sizes(cls, sizes: dict[str, int]) -> dict[str, int]:
        return {"train": 2000, "val": 500, "test": 2000} | sizes


class FolderSource(Source):
    """A folder of class folders, or of split folders that hold class folders.

    `splits` maps each split to its folder under `folder`, None where that split must be made; where a
    card does not say, folders called train, val and test are used as far as they are there.
    """

    kind: Literal["folder"]
    folder: str = "."
    splits: dict[Split, str | None] = {"train": "train", "val": "val", "test": "test"}

    @field_validator("splits")
    @classmethod
    def _all_splits(cls, splits: dict[str, str | None]) -> dict[str, str | None]:
        return {split: splits.get(split) for split in ("train", "val", "test")}


class CsvSource(Source):
    """A table with one image a row; `columns` names its path, label, split and group columns.

    Paths are relative to `folder`. The split and group columns may be None: not there.
    """

    kind: Literal["csv"]
    folder: str = "."
    file: str = "labels.csv"
    columns: dict[Literal["path", "label", "split", "group"], str | None] = Field({}, validate_default=True)

    @field_validator("columns")
    @classmethod
    def _all_columns(cls, columns: dict[str, str | None]) -> dict[str, str | None]:
        columns = {"path": "path", "label": "label", "split": None, "group": None} | columns
        if not (columns["path"] and columns["label"]):
            raise ValueError("the path and the label column must have a name")
        return columns


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
