"""load_dataset: from a card's name to train, validation and test images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.contrib.concurrent import thread_map

from medvlp.data.cards import DataCard, load_card
from medvlp.data.files import sha256
from medvlp.data.folders import SPLITS, Problems, read_csv, read_folder
from medvlp.data.image_sets import ImageSet, PhantomSet
from medvlp.data.medmnist import read_medmnist
from medvlp.data.phantoms.worlds import get_world
from medvlp.data.splits import few_shot, split
from medvlp.data.stores import Files, Found, Rendered

PHANTOM_SIZE = 64  # pixels a side, where no image_size is given
VAL_SHOTS = 4  # most validation images a class when training has few shots, as in CoOp


@dataclass(repr=False)
class Data:
    """A data set in three splits. `record` (plain JSON) says how splits and shots were made."""

    card: DataCard
    train: ImageSet
    val: ImageSet
    test: ImageSet
    record: dict

    def __repr__(self) -> str:
        lines = [f"{self.card.title} ({self.card.name})", str(self.summary())]
        shared = self.record["groups_in_two_splits"]
        lines += [f"groups in both {pair}, as the data was given: {n}" for pair, n in shared.items()]
        lines += (
            [f"left out: {len(self.record['skipped'])}; see record['skipped']"]
            if self.record["skipped"]
            else []
        )
        return "\n".join(lines)

    def summary(self) -> pd.DataFrame:
        """Images of each class (columns) in each split (rows)."""
        table = pd.DataFrame({name: getattr(self, name).counts for name in SPLITS}).T
        table.index.name = "split"
        return table.assign(total=table.sum(axis=1))

    def of_classes(self, names: Sequence[str]) -> "Data":
        """The images of some classes only, in all splits: see `DataCard.with_classes`."""
        card = self.card.with_classes(names)
        parts = {name: getattr(self, name).of_classes(card) for name in SPLITS}
        return replace(self, card=card, record=self.record | {"classes": card.classnames}, **parts)

    def split_table(self) -> pd.DataFrame:
        """One row an image: id, label, classname, split, group. Saved, it serves as a card's CSV table."""
        parts = []
        for name in SPLITS:
            images = getattr(self, name)
            labels = images.labels.tolist()
            classnames = [self.card.classnames[label] for label in labels]
            part = {
                "id": images.ids,
                "label": labels,
                "classname": classnames,
                "split": name,
                "group": images.groups,
            }
            parts.append(pd.DataFrame(part))
        return pd.concat(parts, ignore_index=True)


def load_dataset(
    name_or_card_path: str | Path | DataCard,
    root: str | Path | None = None,
    num_shots: int | None = None,
    seed: int = 1,
    image_size: int | None = None,
    on_error: str = "raise",
    download: bool = False,
) -> Data:
    """Load the train, validation and test images that a card describes. No image file is opened yet.

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

    Raises:
        FileNotFoundError: the images, or one that a table names, are not there.
        ValueError: unknown card or class, a label out of range, an empty split, too few images for the shots.
    """
    card = name_or_card_path if isinstance(name_or_card_path, DataCard) else load_card(name_or_card_path)
    problems = Problems(on_error)
    kind = card.source.kind
    if image_size is not None and kind in ("folder", "csv"):
        raise ValueError(
            f"card {card.name!r}: image_size is for phantoms and MedMNIST; files have their own size."
        )
    if kind == "phantom":
        found, notes = _draw_phantoms(card, seed, PHANTOM_SIZE if image_size is None else image_size)
    elif kind == "medmnist":
        found, notes = read_medmnist(card, root, image_size, download)
    else:
        found, notes = (read_folder if kind == "folder" else read_csv)(card, root, problems)
    if problems.skip:
        found = {name: _readable(part, problems) for name, part in found.items()}
    found, made = _all_splits(card, found, seed)
    shared = _check_disjoint(found, made)
    if num_shots is not None:
        found, made = _cut_to_shots(card, found, made, num_shots, seed)
    record = {"card": card.name, "card_hash": card.hash, "seed": seed, "num_shots": num_shots, **notes}
    record |= {"splits": {name: _describe(card, found[name], made[name]) for name in SPLITS}}
    record |= {"groups_in_two_splits": shared, "skipped": problems.skipped}
    image_set = PhantomSet if kind == "phantom" else ImageSet
    return Data(card, *(image_set(card, name, found[name]) for name in SPLITS), record=record)


def _draw_phantoms(card: DataCard, seed: int, size: int) -> tuple[dict[str, Found], dict]:
    world = get_world(card.source.world)
    if list(world.classnames) != card.classnames:
        raise ValueError(
            f"card {card.name!r} must list the classes of the {world.name} world in their order: "
            f"{', '.join(world.classnames)}; it lists {', '.join(card.classnames)}."
        )
    found = {}
    for number, name in enumerate(SPLITS):
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])
        latents = world.sample(card.source.sizes[name], seed=own_seed)
        ids = [f"{card.name}/seed{seed}/{name}/{i:06d}" for i in range(len(latents))]
        found[name] = Found(ids, latents.labels.numpy().astype(np.int64), ids, Rendered(world, latents, size))
    return found, {"image_size": size}


def _readable(found: Found, problems: Problems) -> Found:
    """Only the images whose files can be read; every file is tried."""
    if not isinstance(found.store, Files) or not len(found):
        return found

    def trial(i: int) -> str | None:
        try:
            found.store.image(i)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    reasons = thread_map(trial, range(len(found)), desc="reading every image", leave=False)
    for name, reason in zip(found.ids, reasons, strict=True):
        if reason:
            problems.add(name, reason)
    return found.take([i for i, reason in enumerate(reasons) if not reason])


def _all_splits(
    card: DataCard, found: dict[str, Found], seed: int
) -> tuple[dict[str, Found], dict[str, str]]:
    """The three splits, those that were missing made out of train; and how each came about."""
    found, made = dict(found), dict.fromkeys(SPLITS, "given")
    for name, part in found.items():
        if not len(part):
            raise ValueError(f"card {card.name!r}: the {name} split is empty.")
    fractions = {"test": card.source.test_fraction, "val": card.source.val_fraction}
    for name in [name for name in fractions if name not in found]:
        pool = found["train"]
        kept, held = split(pool.labels, pool.groups, fractions[name], seed, card.classnames)
        found["train"], found[name] = pool.take(kept), pool.take(held)
        made[name] = (
            f"{fractions[name]:g} of the {len(pool)} images then in train, "
            f"stratified by class, groups whole, seed {seed}"
        )
    for label, classname in enumerate(card.classnames):
        if label not in found["train"].labels:
            raise ValueError(f"card {card.name!r}: no image of class {classname!r} in the train split.")
    return found, made


def _check_disjoint(found: dict[str, Found], made: dict[str, str]) -> dict[str, int]:
    """Raise where a made split shares an image or a group; count the groups that given splits share."""
    shared = {}
    for one, other in combinations(SPLITS, 2):
        both = set(found[one].ids) & set(found[other].ids)
        if both:
            raise ValueError(f"{len(both)} image(s) are in both {one} and {other}, such as {min(both)!r}.")
        groups = set(found[one].groups) & set(found[other].groups)
        if groups:
            shared[f"{one}/{other}"] = len(groups)
        if groups and one == "train" and made[other] != "given":
            raise ValueError(
                f"{len(groups)} group(s) are in both {one} and {other}, such as {min(groups)!r}."
            )
    return shared


def _cut_to_shots(
    card: DataCard, found: dict[str, Found], made: dict[str, str], num_shots: int, seed: int
) -> tuple[dict[str, Found], dict[str, str]]:
    found, made = dict(found), dict(made)
    train = few_shot(found["train"].labels, num_shots, seed, card.classnames)
    val_shots = min(num_shots, VAL_SHOTS, np.unique(found["val"].labels, return_counts=True)[1].min())
    val = few_shot(found["val"].labels, int(val_shots), seed)
    for name, rows, shots in (("train", train, num_shots), ("val", val, val_shots)):
        found[name] = found[name].take(rows)
        made[name] += f"; cut to {shots} image(s) a class, seed {seed}"
    return found, made


def _describe(card: DataCard, found: Found, made: str) -> dict:
    counts = np.bincount(found.labels, minlength=len(card.classes)).tolist()
    return {
        "made": made,
        "images": len(found),
        "classes": dict(zip(card.classnames, counts, strict=True)),
        "groups": len(set(found.groups)),
        "ids_sha256": sha256(*found.ids),
    }
