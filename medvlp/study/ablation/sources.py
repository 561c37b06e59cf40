"""What the runs of a study share: CLIPs and data sets, loaded once a process, and their parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.cards import DataCard
from medvlp.data.datasets import Data, ImageSet, load_dataset
from medvlp.data.files import sha256
from medvlp.data.splits import cut_to_shots, few_shot

SPLIT_SEED = 1  # of the splits that are made and of the phantoms drawn: a study has one test set
ALL, RAREST = "all", "rarest"  # shots
FEW_SHOT = "few-shot"  # the scenario that has validation images
SCENARIOS = (FEW_SHOT, "standard", "relaxed", "realistic")


class Parts:
    """A data set and the parts of it that runs train on, each made once."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._cuts: dict[tuple, tuple[ImageSet, ImageSet | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "_cuts": {}}

    @property
    def fingerprint(self) -> str:
        """Hash of the card and of all images."""
        data = self.data
        return sha256(data.card.hash, *(images.fingerprint for images in data.splits.values()))

    def cut(
        self, num_shots: int | str, seed: int, scenario: str = FEW_SHOT
    ) -> tuple[ImageSet, ImageSet | None]:
        """Training and validation images, as `Protocol` says of the shots and the scenario."""
        train, val = self.data.train, self.data.val
        num_shots = min(train.counts.values()) if num_shots == RAREST else num_shots
        if num_shots == ALL:
            return train, val if scenario == FEW_SHOT else None
        key, names = (num_shots, seed, scenario), train.card.classnames
        if key in self._cuts:
            return self._cuts[key]
        if scenario == FEW_SHOT:
            cut = cut_to_shots(train, val, num_shots, seed)
        elif scenario == "standard":
            cut = train.subset(few_shot(train.labels, num_shots, seed, names)), None
        else:
            every_class = scenario == "relaxed"
            cut = train.subset(shots_as_they_come(train.labels, num_shots, seed, names, every_class)), None
        return self._cuts.setdefault(key, cut)


def shots_as_they_come(
    labels: ArrayLike, num_shots: int, seed: int, classnames: Sequence[str], every_class: bool
) -> np.ndarray:
    """Draw `num_shots` times n_cls images, of every class its share of the labels.

    That is round(num_shots n_cls p_c) of class c, and with `every_class` at least one; what is too many then
    is taken from the largest, as in `balance_split` of github.com/jusiro/SS-Text. A rare class may have none.

    Returns:
        Sorted indices.

    Raises:
        ValueError: fewer images than that.
    """
    labels, wanted = np.asarray(labels), num_shots * len(classnames)  # (N,)
    if wanted > len(labels):
        raise ValueError(f"{num_shots} shots of {len(classnames)} classes: there are {len(labels)} images.")
    counts = np.bincount(labels, minlength=len(classnames))  # (n_cls,)
    drawn = np.rint(wanted * counts / len(labels)).astype(int)
    drawn = np.maximum(drawn, np.minimum(counts, 1)) if every_class else drawn
    while drawn.sum() > wanted:
        drawn[drawn.argmax()] -= 1
    chosen = []
    for c, n in enumerate(drawn):
        rows = np.flatnonzero(labels == c)
        chosen.append(np.random.default_rng([seed, c]).permutation(rows)[:n])
    return np.sort(np.concatenate(chosen))


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
