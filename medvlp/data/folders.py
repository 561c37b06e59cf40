"""Images in class folders; what folders and tables of images have in common."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import regex
import torch

from medvlp.data.cards import DataCard, cards_folder
from medvlp.data.errors import brief, check_choice
from medvlp.data.files import as_word, composed, on_disk, printable, short
from medvlp.data.image_sets import Files, ImageSet
from medvlp.data.images import image_suffixes
from medvlp.data.tensor_files import Shipped, is_shipped, shipped_path

SPLIT_WORDS = {"training": "train", "train": "train", "testing": "test", "test": "test"} | dict.fromkeys(
    ("dev", "valid", "validation", "val"), "val"
)
# Folders with such names hold masks and other drawings, not images of a class.
MASKS = re.compile(r"(?i)(mask|segmentation|annotation|label|overlay|contour|ground.?truth)s?$|^gts?$")
TEST_ONLY = " If all of them are test images, as another site's may be, load them with test_only=True."
PATTERN_SECONDS = 1.0  # for the card's group_pattern on one name: (a|aa)+$ may take for ever


class Problems:
    """Raises the first problem, or, with on_error="skip", collects them all."""

    def __init__(self, on_error: str) -> None:
        check_choice("on_error", on_error, ("raise", "skip"))
        self.skip = on_error == "skip"
        self.skipped: list[dict[str, str]] = []

    def add(self, what: str, reason: str, error: type[Exception] = ValueError) -> None:
        """Report that `what` (an id, a row, a folder) cannot be used."""
        if not self.skip:
            raise error(reason)
        self.skipped.append({"id": what, "reason": reason})


def find_folder(card: DataCard, root: str | Path | None, fits: Callable[[Path], bool], expected: str) -> Path:
    """The card's folder: `root` or its sub-folder; by default under MEDVLP_DATA or beside the card.

    Where it is in none of these, and nobody named a `root`, it is what the package ships for that folder.

    FileNotFoundError names the card, what is expected, where it was looked for and how to get it.
    """
    default = [os.environ.get("MEDVLP_DATA") or None, card.path and card.path.parent]
    starts = [start for start in (default if root is None else [root]) if start is not None]
    starts = [Path(os.path.expanduser(start)) for start in starts]  # Path's own fails on unknown users
    name = os.path.expanduser(getattr(card.source, "folder", "."))
    tried = list(dict.fromkeys(folder for start in starts for folder in (on_disk(start, name), start)))
    for folder in tried:
        if fits(folder):
            return folder
    shipped = shipped_path(name)
    if root is None and is_shipped(shipped) and fits(shipped):
        return shipped
    looked = ", ".join(map(short, tried)) or "nowhere"
    raise FileNotFoundError(
        f"card {card.name!r}: its images were not found. Expected: {expected}. Looked in: {looked}. "
        "Give root=... (that folder or its parent) or set the environment variable MEDVLP_DATA. "
        f"How to get them: {card.source.how_to_get or 'the card does not say'}"
    )


def read_folder(
    card: DataCard, root: str | Path | None, problems: Problems, test_only: bool = False
) -> tuple[dict[str, ImageSet], dict]:
    """Images in class folders, with or without split folders above them.

    With `test_only` those in the test folder, or all where there are no split folders.
    """
    source = card.source
    says = "splits" in source.model_fields_set  # else the usual names of split folders are looked for
    split_of = {as_word(folder): split for split, folder in source.splits.items() if folder}
    needed = split_of if says else {"train": "train"}
    split_of = split_of if says else SPLIT_WORDS
    if test_only:
        needed, split_of = {"test": "test"}, SPLIT_WORDS | split_of
    words = set(map(as_word, card.labels))

    def named(folder: Path) -> bool:
        """Whether folders in it are named as classes or splits."""
        return any(as_word(path.name) in words | split_of.keys() for path in _subfolders(folder))

    def fits(folder: Path) -> bool:
        if is_shipped(folder):  # a folder of that name in another's card holds other images
            return card.path is not None and card.path.parent == cards_folder()
        meant = root is not None if source.folder == "." else folder.name == Path(source.folder).name
        return named(folder) or (meant and bool(_subfolders(folder)))

    classes = " and ".join(map(brief, card.classnames[:2]))
    place = f"in {brief(source.folder)} or in its split folders"
    expected = f"class folders such as {classes} (names or aliases), {place}"
    base = find_folder(card, root, fits, expected)
    if is_shipped(base):
        return _read_shipped(card, base, split_of), {}
    subfolders = _subfolders(base)
    if not named(base) and (below := [folder for folder in subfolders if named(folder)]):
        raise FileNotFoundError(
            f"card {card.name!r}: no folder in {base} is a class or a split, but {below[0]} has some. If its "
            f"images are meant, give root={str(below[0])!r}."
        )
    folders_of: dict[str, list[Path]] = {}
    for path in subfolders:
        if split := split_of.get(as_word(path.name)):
            folders_of.setdefault(split, []).append(path)
    present = {}
    for split, paths in folders_of.items():
        exact = [path for path in paths if says and path.name == source.splits[split]]
        present[split], *more = exact or paths
        if more:
            raise ValueError(
                f"card {card.name!r}: {' and '.join(repr(path.name) for path in paths)} are both {split} "
                f"folders in {base}. Rename one, or name in the card, under source, splits, which is meant."
            )
    missing = [name for name, split in needed.items() if split not in present]
    if present and missing:
        raise FileNotFoundError(
            f"card {card.name!r}: no split folder {brief(missing[0])} in {base}; it has "
            f"{_listed(subfolders)}.{TEST_ONLY if list(present) == ['test'] else ''}"
        )
    present = {split: path for split, path in present.items() if not test_only or split == "test"}
    unused = [path for path in subfolders if path not in present.values()] if present else []
    parts, others = {}, Counter()
    for split, folder in (present or {"test" if test_only else "train": base}).items():
        walk = _Walk(base, split if present else None, problems, source.skip_files)
        parts[split] = _read_class_folders(card, split, folder, walk)
        others += walk.others
    return parts, {"other_files": dict(others), "unused_folders": [printable(path.name) for path in unused]}


def _read_shipped(card: DataCard, base: Path, split_of: dict[str, str]) -> dict[str, ImageSet]:
    """The images that a shipped folder names, in class folders, with or without split folders above them."""
    rows: dict[str, list[tuple[str, int, str]]] = {}
    for name in Shipped.read(base).names:
        top, *below = name.split("/")
        split = split_of.get(as_word(top))
        label = card.label_of(below[0] if split else top)
        rows.setdefault(split or "train", []).append((name, label, ""))
    return {split: image_set(card, split, base, of_split) for split, of_split in rows.items()}


def _subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, and links to folders, by name; none where it is no folder."""
    if not os.path.isdir(folder):
        return []
    try:
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if os.path.isdir(entry)]
    except OSError as error:
        raise ValueError(_unreadable(error)) from error
    visible = [path for path in paths if not path.name.startswith((".", "__"))]
    return sorted(visible, key=lambda path: composed(path.name))


def _unreadable(error: OSError) -> str:
    return f"the folder {printable(error.filename)} cannot be read ({error.strerror})."


def _listed(paths: Sequence[str | Path]) -> str:
    """The names of some files or folders, the first ten of them."""
    names = ", ".join(f"'{printable(os.path.basename(path))}'" for path in paths[:10])
    return f"{names}, ..." if len(paths) > 10 else names


class _Walk:
    """Reads what is under class folders, through links, each folder once.

    A name is a path within `base`, spelled as on the disk, with / between folders. `split` is that of the
    folder that is read, None where there are no split folders. `others` counts what is no image, by ending,
    and files that are to be skipped, by the pattern of their names.
    """

    def __init__(self, base: Path, split: str | None, problems: Problems, skip: str) -> None:
        self.base, self.split, self.problems, self.skip = base, split, problems, skip
        self.suffixes, self.others = image_suffixes(), Counter()

    def images(self, name: str) -> list[str]:
        """Names of the images under the folder of this name, in order: its own before those of its folders.

        Problems: a loop of links, a name that is not UTF-8, a folder that cannot be read, and one
        with images that is, by its name, of another split or of masks.
        """
        images: dict[str, list[str]] = {}  # by folder
        folders_in: dict[str, list[str]] = {}
        read: set[tuple[int, int]] = set()  # the folders, by device and inode
        walk = os.walk(f"{self.base}/{name}", followlinks=True, onerror=self._cannot_read)
        for path, folders, files in walk:
            folder, info = self._name(path), os.stat(path)
            if self._leads_back(path) or (info.st_dev, info.st_ino) in read:
                folders.clear()  # os.walk goes into those that are left
                continue
            read.add((info.st_dev, info.st_ino))
            shown = [one for one in folders if not one.startswith(".") and self.is_text(f"{folder}/{one}")]
            folders[:] = folders_in[folder] = sorted(shown, key=composed)
            in_order = (f"{folder}/{file}" for file in sorted(files, key=composed))
            images[folder] = [file for file in in_order if self._is_image(file)]
        for folder in list(images)[1:]:
            above, word = folder.rsplit("/", 1)
            fault = self._fault(word)
            inside = [one for one in images if f"{one}/".startswith(f"{folder}/")] if fault else []
            if n := sum(len(images.pop(one)) for one in inside):
                self.problems.add(
                    composed(folder),
                    f"the folder {self.base}/{folder} holds {n} image(s), but by its name {fault} "
                    f"{self.base}/{above} holds {_listed(folders_in[above])}.",
                )
        return [image for of_folder in images.values() for image in of_folder]

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self.base}/")

    def _cannot_read(self, error: OSError) -> None:
        self.problems.add(self._name(error.filename), _unreadable(error))

    def _leads_back(self, path: str) -> bool:
        """Whether it is a link to a folder above it; that is a problem."""
        above = [*Path(path).parents, *self.base.resolve().parents] if os.path.islink(path) else []
        loop = next((folder for folder in above if os.path.samefile(path, folder)), None)
        if loop:
            reason = f"{path} leads back to {loop}: a loop of links. Remove the link."
            self.problems.add(self._name(path), reason)
        return loop is not None

    def _is_image(self, name: str) -> bool:
        """Whether it is one by its ending, with a name that can be used; if not, it is counted."""
        file = name.rsplit("/", 1)[1]
        ending = "hidden" if file.startswith(".") else os.path.splitext(file)[1].lower()
        ending = f"called {self.skip}" if fnmatch(file, self.skip) else ending
        if ending in self.suffixes:
            return self.is_text(name)
        self.others[printable(ending)] += 1
        return False

    def is_text(self, name: str) -> bool:
        """Whether a name is UTF-8; if not, that is a problem."""
        plain = name if name.isascii() else printable(name)
        if plain != name:
            path = printable(f"{self.base}/{name}")
            self.problems.add(plain, f"the name of {path} is not UTF-8 where it says \\x. Rename it.")
        return plain == name

    def _fault(self, word: str) -> str | None:
        """What a folder inside a class folder is, by its name, other than images of the class."""
        if SPLIT_WORDS.get(as_word(word), self.split) != self.split:
            advice = "Put split folders above class folders, or list images in a table with a split column."
            return f"it is a split, inside a class folder. {advice}"
        return "it is of masks or the like. Move it out of the class folder." if MASKS.search(word) else None


def _read_class_folders(card: DataCard, split: str, folder: Path, walk: _Walk) -> ImageSet:
    """All images under the class folders of one folder."""
    rows = []
    for class_folder in _subfolders(folder):
        name = class_folder.relative_to(walk.base).as_posix()
        if not walk.is_text(name):
            continue
        try:
            label = card.label_of(class_folder.name)
        except ValueError as error:
            advice = "Rename the folder, or add its name to the card as an alias."
            walk.problems.add(name, f"class folder {class_folder}: {error} {advice}")
            continue
        rows += [(image, label, "") for image in walk.images(name)]
    if not rows:
        raise ValueError(
            f"card {card.name!r}: no images in the class folders of {folder} (other files: "
            f"{listed_files(walk.others)}). An image's name ends as Pillow knows it: .png, .jpg, .tif, ..."
        )
    return image_set(card, split, walk.base, rows)


def listed_files(others: dict[str, int]) -> str:
    """Numbers of files by ending in words, such as "3 .txt, 1 hidden"."""
    return ", ".join(f"{n} {ending or 'without ending'}" for ending, n in sorted(others.items())) or "none"


def image_set(card: DataCard, split: str, base: Path, rows: list[tuple[str, int, str]]) -> ImageSet:
    """Images from rows of name (the path within `base`), label and group.

    A row without a group has the one that the card's pattern finds in the file's name or path, else its id.
    """
    names, labels, groups = map(list, zip(*rows, strict=True))
    ids = [composed(name) for name in names]
    pattern = card.source.group_pattern and regex.compile(card.source.group_pattern)
    pairs = zip(groups, ids, strict=True)
    groups = [group or (pattern and _group(card, pattern, name)) or name for group, name in pairs]
    store = Files(base, names)
    if is_shipped(base):
        store = Shipped.read(base, card.source.how_to_get).called(names)
    return ImageSet(card, split, ids, torch.tensor(labels), groups, store)


def _group(card: DataCard, pattern: regex.Pattern, name: str) -> str | None:
    """What a card's pattern finds in a file's name, else in its path within the data folder."""
    try:
        match = pattern.search(name.rsplit("/", 1)[-1], timeout=PATTERN_SECONDS)
        match = match or pattern.search(name, timeout=PATTERN_SECONDS)
    except TimeoutError:
        raise ValueError(
            f"card {card.name!r}: the group_pattern {brief(card.source.group_pattern)} took more than "
            f"{PATTERN_SECONDS:g} s on the name '{short(name)}'. Repeats inside a repeat, such as (a|aa)+, "
            "do that; write a simpler pattern."
        ) from None
    return match and match[1]
