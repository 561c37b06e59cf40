"""load_dataset: from a card's name to train, validation and test images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from medvlp.data.card_parts import SPLITS
from medvlp.data.cards import DataCard, load_card
from medvlp.data.errors import brief, check_choice, check_kinds, check_same_classes, free_name, visible
from medvlp.data.files import in_threads, sha256, short
from medvlp.data.folders import Problems, listed_files, read_folder
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet, PhantomSet, same_images
from medvlp.data.medmnist import read_medmnist
from medvlp.data.phantoms.worlds import Rendered, get_world
from medvlp.data.splits import cut_to_shots, split
from medvlp.data.tables import read_csv

PHANTOM_SIZE = 64  # pixels a side, where no image_size is given


@dataclass(repr=False)
class Data:
    """A data set in three splits. `record` (plain JSON) says how splits and shots were made.

    Example:
        >>> import medvlp
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=8)
        >>> data.summary()
               melanoma  nevus  total
        split
        train         8      8     16
        val           4      4      8
        test        995   1005   2000
        >>> data.of_classes(["nevus", "melanoma"]).train.counts
        {'nevus': 8, 'melanoma': 8}
    """

    card: DataCard
    train: ImageSet
    val: ImageSet
    test: ImageSet
    record: dict

    @property
    def splits(self) -> dict[str, ImageSet]:
        """The three image sets by name: train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def __repr__(self) -> str:
        lines = [f"{self.card.title} ({self.card.name})", str(self.summary())]
        shared = self.record["groups_in_two_splits"]
        lines += [f"groups in both {pair}, as the data was given: {n}" for pair, n in shared.items()]
        if self.record.get("without_group"):
            lines.append(f"in no group, each image its own: {self.record['without_group']} image(s)")
        same = self.record.get("same_images", {}).items()
        lines += [f"the same image {why}: {len(ids)}; see record['same_images']" for why, ids in same if ids]
        others = ", ".join(f"{n} {why}" for why, n in self.record.get("other_rows", {}).items())
        lines += [f"rows that the card does not mean, left out: {others}"] if others else []
        if self.test.pictures_missing:
            lines.append(
                f"the pictures are not here: these are features that clip {self.test.store.clip!r} computed"
            )
        here, published = self.record.get("images_here"), self.card.images
        if here and published not in (None, here):
            lines.append(f"images: {here}, where the data has {published} as it was published")
        if self.record["skipped"]:
            lines.append(f"left out: {len(self.record['skipped'])}; see record['skipped']")
        if self.record.get("other_files"):
            lines.append(f"no images, left out: {listed_files(self.record['other_files'])}")
        return visible("\n".join(lines))

    def summary(self) -> pd.DataFrame:
        """Images of each class (columns) in each split (rows), and their total last.

        That is "total_" where a class is called "total".
        """
        table = Table({name: images.counts for name, images in self.splits.items()}).T
        table.index.name = "split"
        return table.assign(**{free_name("total", table): table.sum(axis=1)})

    def of_classes(self, names: Sequence[str]) -> "Data":
        """The images of some classes only, in all splits: see `DataCard.with_classes`."""
        card = self.card.with_classes(names)
        parts = {name: images.of_classes(card) for name, images in self.splits.items()}
        return replace(self, card=card, record=self.record | {"classes": card.classnames}, **parts)

    def split_table(self) -> pd.DataFrame:
        """One row an image: id, label (the class's name), split, group. Saved, it serves as a card's CSV."""
        tables = []
        for name, images in self.splits.items():
            labels = [self.card.classnames[label] for label in images.labels.tolist()]
            columns = {"id": images.ids, "label": labels, "split": name, "group": images.groups}
            tables.append(Table(columns))
        return pd.concat(tables, ignore_index=True)


def load_dataset(
    name_or_card_path: str | Path | DataCard,
    root: str | Path | None = None,
    num_shots: int | None = None,
    seed: int = 1,
    image_size: int | None = None,
    on_error: str = "raise",
    download: bool = False,
    on_same_image: str = "tell",
    test_only: bool = False,
) -> Data:
    """Load the train, validation and test images that a card describes. No image is decoded yet.

    A split that the source lacks is made: test out of all (`test_fraction`), then validation out of what
    is left for training (`val_fraction`); stratified by class, groups kept whole, by `seed`.

    Args:
        name_or_card_path: a packaged card's name, the path of a card, or a card.
        root: folder of the images or its parent; default: the environment variable MEDVLP_DATA, then the
            card's own folder (for MedMNIST ~/.medmnist).
        num_shots: training images a class; None: all. Validation is then cut to min(num_shots, 4) images a
            class (fewer where a class has fewer), as in CoOp: few shots that
            need many validation labels are not few.
        seed: of the splits that are made, of the shots, and of the phantoms drawn.
        image_size: pixels a side. MedMNIST: 28, 64, 128 or 224, default the largest there. Phantoms: any,
            default 64. Files have their own size.
        on_error: "raise", or "skip" to leave out what cannot be used (unknown classes, missing files, broken
            images, for which every file is read once) and list it in `record["skipped"]`.
        download: fetch a missing MedMNIST file.
        on_same_image: "tell" of images that are the same, byte for byte, in two splits or under two labels
            (in `record["same_images"]` and where the data is printed), or "raise".
        test_only: the images are for testing only, such as another site's with the card of the training
            images: those that are marked as test, or all where nothing is marked; train and val are empty.

    Raises:
        FileNotFoundError: the images, or one that a table names, are not there.
        ValueError: unknown card or class, a label out of range, an empty split, too few images for the shots,
            a group_pattern that finds nothing, the same image twice where that is to raise, shots of a data
            set that is for testing only.

    Example:
        >>> import medvlp
        >>> data = medvlp.load_dataset("phantom-cxr", num_shots=4, seed=2)
        >>> data.train.counts, len(data.test)
        ({'normal lung': 4, 'pneumonia': 4}, 2000)
        >>> shifted = medvlp.load_dataset("phantom-cxr-shifted", test_only=True)
        >>> len(shifted.train), len(shifted.test)
        (0, 2000)
    """
    check_kinds(load_dataset, locals())
    card = name_or_card_path if isinstance(name_or_card_path, DataCard) else load_card(name_or_card_path)
    problems, kind = Problems(on_error), card.source.kind
    check_choice("on_same_image", on_same_image, ("tell", "raise"))
    if test_only and num_shots is not None:
        raise ValueError("with test_only=True there are no training images to cut to num_shots.")
    if kind == "phantom":
        parts, notes = _draw_phantoms(card, seed, PHANTOM_SIZE if image_size is None else image_size)
    elif kind == "medmnist":
        parts, notes = read_medmnist(card, root, image_size, download)
    elif image_size is not None:
        raise ValueError(f"card {card.name!r}: image_size is for phantoms and MedMNIST; files have a size.")
    else:
        parts, notes = read_files(card, root, problems, test_only)
        if problems.skip and not parts["test" if test_only else "train"].pictures_missing:
            parts = {name: _readable(images, problems) for name, images in parts.items()}
        notes["without_group"] = _without_group(card, parts, test_only)
    parts, made = _all_splits(card, parts, seed, test_only)
    shared = _check_disjoint(parts, made)
    notes["images_here"] = None if test_only else sum(map(len, parts.values()))
    if num_shots is not None:
        parts["train"], parts["val"] = cut_to_shots(parts["train"], parts["val"], num_shots, seed)
        for name in ("train", "val"):
            made[name] += f"; cut to {max(parts[name].counts.values())} image(s) a class, seed {seed}"
    same = same_images(list(parts.values()))
    if on_same_image == "raise" and any(same.values()):
        told = [f"{len(ids)} {why}, such as {' and '.join(ids[0][:2])}" for why, ids in same.items() if ids]
        raise ValueError(
            f"card {card.name!r}: images that are the same, byte for byte: {'; '.join(told)}. Remove all but "
            "one of each, or load with on_same_image='tell'."
        )
    splits = {
        name: {
            "made": made[name],
            "images": len(images),
            "classes": images.counts,
            "groups": len(set(images.groups)),
            "ids_sha256": sha256(*images.ids),
        }
        for name, images in parts.items()
    }
    record = {"card": card.name, "card_hash": card.hash, "seed": seed, "num_shots": num_shots, **notes}
    record |= {"splits": splits, "groups_in_two_splits": shared, "same_images": same}
    return Data(card, **parts, record=record | {"skipped": problems.skipped})


def read_files(
    card: DataCard, root: str | Path | None, problems: Problems, test_only: bool = False
) -> tuple[dict[str, ImageSet], dict]:
    """The image files of a card's folder or table, in the splits that are given there, and notes on them."""
    return (read_folder if card.source.kind == "folder" else read_csv)(card, root, problems, test_only)


def _draw_phantoms(card: DataCard, seed: int, size: int) -> tuple[dict[str, ImageSet], dict]:
    world = get_world(card.source.world)
    check_same_classes(f"the {world.name} world", world.classnames, f"card {card.name!r}", card.classnames)
    parts = {}
    for number, name in enumerate(SPLITS):
        split_seed = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])
        latents = world.sample(card.source.sizes[name], seed=split_seed)
        ids = [f"{card.name}/seed{seed}/{name}/{i:06d}" for i in range(len(latents))]
        parts[name] = PhantomSet(card, name, ids, latents.labels, ids, Rendered(world, latents, size))
    return parts, {"image_size": size}


def _without_group(card: DataCard, parts: dict[str, ImageSet], test_only: bool) -> int:
    """How many images are their own group although the card says how to find groups.

    ValueError where its pattern finds none, if the images are to be split. In a table's group column every
    image may be its own.
    """
    names = [pair for images in parts.values() for pair in zip(images.ids, images.groups, strict=True)]
    alone, pattern = sum(name == group for name, group in names), card.source.group_pattern
    if alone < len(names):
        return alone
    if names and pattern and not test_only:
        raise ValueError(
            f"card {card.name!r}: the group_pattern {brief(pattern)} finds nothing in any name or path, such "
            f"as '{short(names[0][0])}'. Mend it; leave it out where each image is of another patient."
        )
    return alone if test_only and (pattern or getattr(card.source, "columns", {}).get("group")) else 0


def _readable(images: ImageSet, problems: Problems) -> ImageSet:
    """Only the images whose files can be read; every file is tried."""

    def trial(i: int) -> str | None:
        try:
            images.image(i)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    reasons = in_threads(trial, range(len(images)), "reading every image")
    for name, reason in zip(images.ids, reasons, strict=True):
        if reason:
            problems.add(name, reason)
    return images.subset([i for i, reason in enumerate(reasons) if not reason])


def _all_splits(
    card: DataCard, parts: dict[str, ImageSet], seed: int, test_only: bool
) -> tuple[dict[str, ImageSet], dict[str, str]]:
    """The three splits, those that were missing made out of train; and how each came about.

    With `test_only` the given test split and two that are empty.
    """
    parts = {"test": parts["test"]} if test_only else parts
    for name, images in parts.items():
        if not len(images):
            raise ValueError(f"card {card.name!r}: the {name} split is empty.")
    if test_only:
        nothing, made = parts["test"].subset([]), dict.fromkeys(("train", "val"), "empty: test_only")
        return {name: replace(nothing, split=name) for name in made} | parts, made | {"test": "given"}
    made = dict.fromkeys(SPLITS, "given")
    for name in [name for name in ("test", "val") if name not in parts]:
        pool, fraction = parts["train"], getattr(card.source, f"{name}_fraction")
        kept, held = split(pool.labels, pool.groups, fraction, seed, card.classnames)
        parts |= {"train": pool.subset(kept), name: replace(pool.subset(held), split=name)}
        made[name] = (
            f"{fraction:g} of the {len(pool)} images then in train, "
            f"stratified by class, groups whole, seed {seed}"
        )
    for classname, n in parts["train"].counts.items():
        if not n:
            raise ValueError(f"card {card.name!r}: no image of class {brief(classname)} in the train split.")
    return {name: parts[name] for name in SPLITS}, made


def _check_disjoint(parts: dict[str, ImageSet], made: dict[str, str]) -> dict[str, int]:
    """Raise where a made split shares a group, or so an image; count the groups that given splits share."""
    shared = {}
    for one, other in combinations(SPLITS, 2):
        groups = set(parts[one].groups) & set(parts[other].groups)
        if groups and one == "train" and made[other] != "given":
            raise ValueError(
                f"{len(groups)} group(s) are in both {one} and {other}, such as {brief(min(groups))}."
            )
        if groups:
            shared[f"{one}/{other}"] = len(groups)
    return shared
