"""What the runs of a study share: CLIPs and data sets, loaded once a process, and their parts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.cards import DataCard
from medvlp.data.datasets import Data, ImageSet, load_dataset
from medvlp.data.files import sha256
from medvlp.data.splits import cut_to_shots

SPLIT_SEED = 1  # of the splits that are made and of the phantoms drawn: a study has one test set
ALL = "all"  # shots


class Parts:
    """A data set and the parts of it that runs train on, each made once."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._cuts: dict[tuple, tuple[ImageSet, ImageSet]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "_cuts": {}}

    @property
    def fingerprint(self) -> str:
        """Hash of the card and of all images."""
        data = self.data
        return sha256(data.card.hash, *(images.fingerprint for images in data.splits.values()))

    def cut(self, num_shots: int | str, seed: int) -> tuple[ImageSet, ImageSet]:
        """Training and validation images: all, or as `load_dataset` cuts them to shots by this seed."""
        if num_shots == ALL:
            return self.data.train, self.data.val
        if (num_shots, seed) not in self._cuts:
            self._cuts[num_shots, seed] = cut_to_shots(self.data.train, self.data.val, num_shots, seed)
        return self._cuts[num_shots, seed]


@dataclass(frozen=True)
class Source:
    """A CLIP or a data set. By name it is loaded once a process; an object that was given travels itself.

    The runs of a study take their sources with them to the processes that work on them.
    """

    fingerprint: str
    name: str = field(compare=False)  # in tables
    load: Callable | None = field(compare=False)  # None: an object was given
    args: tuple = field(compare=False)
    thing: Any = field(compare=False, repr=False)

    def get(self) -> Any:
        """The Clip, or the data set's Parts; RuntimeError where what loads here is not what the study has."""
        return _loaded(self) if self.thing is None else self.thing

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"thing": None} if self.load else {})


@lru_cache(maxsize=8)
def _loaded(source: Source) -> Any:
    """What the source's name loads in this process."""
    thing = source.load(*source.args)
    if thing.fingerprint != source.fingerprint:
        raise RuntimeError(
            f"{source.name!r} is not in this process what it is where the study was started: its files have "
            "changed, or differ between the machines."
        )
    return thing


def clip_source(given: str | Clip) -> Source:
    """A CLIP by its name for `load_clip`, or itself."""
    if isinstance(given, Clip):
        return Source(given.fingerprint, given.name, None, (), given)
    clip = load_clip(given)
    return Source(clip.fingerprint, given, load_clip, (given,), clip)


def data_source(given: str | Path | DataCard | Data, root: str | Path | None) -> Source:
    """A data set by its card's name or path, by a card, or itself."""
    if isinstance(given, Data):
        parts = Parts(given)
        return Source(parts.fingerprint, given.card.name, None, (), parts)
    if isinstance(given, DataCard):
        name, args = given.name, (given, root)
    else:
        path = Path(given)
        is_file = path.suffix == ".md"
        name, args = path.stem if is_file else str(given), (str(path.resolve() if is_file else given), root)
    parts = load_parts(*args)
    return Source(parts.fingerprint, name, load_parts, args, parts)


def load_parts(name_or_card: str | DataCard, root: str | Path | None) -> Parts:
    """The parts of a data set by name."""
    return Parts(load_dataset(name_or_card, root, seed=SPLIT_SEED))
