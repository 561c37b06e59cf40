"""The project P: `build_project` makes the images, `grade_projects` grades folders that students hand in.

Nothing that a student wrote is run: a card is read by the package, tables by pandas.
"""

import multiprocessing
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from grading import PAGE, for_spreadsheet, write
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from tasks import HERE
from tqdm import tqdm

import medvlp
from medvlp.data.phantoms.worlds import Latents
from medvlp.knowledge.symptoms.phrases import PhraseChecker

FILES = ("card.md", "predictions.csv", "results.csv", "report.md")
MAX_BYTES = 1_000_000  # of a file
SECONDS = 120.0  # to read the images as a card says
BAR = 0.70  # balanced accuracy on the hidden labels; what is trained well reaches about 0.8
PATIENTS = {"labelled": 120, "unlabelled": 150}
PHOTOS = {"labelled": 2, "unlabelled": 1}  # of a lesion
RUBRIC = [
    "1 point: it says what was asked and compared, and validation images chose before others were looked at.",
    "1 point: values stand with intervals over patients, methods are compared in pairs, beside a baseline.",
    "1 point: it shows failures, says what they have in common, and what the numbers do not tell.",
]


def draw_patients(seed: int) -> tuple[pd.DataFrame, Latents]:
    """Draw who has which lesions, and what each photo is made of: a row and its latents for each photo.

    A patient has one to three lesions, each melanoma or nevus. The photos of one lesion show the same
    attributes in other light, at another place.
    """
    rng, rows = np.random.default_rng(seed), []
    patients = iter(rng.permutation(1000))
    for part, n in PATIENTS.items():
        for patient in (next(patients) for _ in range(n)):
            lesions = [f"{part}-{patient}-{number}" for number in range(rng.integers(1, 4))]
            rows += [(part, f"p{patient:03}", lesion) for lesion in lesions for _ in range(PHOTOS[part])]
    table = pd.DataFrame(rows, columns=["part", "patient", "lesion"])
    of_lesion = table["lesion"].factorize()[0]
    world = medvlp.get_world("derm")
    drawn = world.sample(int(of_lesion.max()) + 1, seed)
    seeds = world.sample(len(table), seed + 1).seeds
    photos = Latents(drawn.labels[of_lesion], drawn.attributes[of_lesion], seeds)
    table["label"] = [world.classnames[label] for label in photos.labels.tolist()]
    photo = table.groupby("patient").cumcount() + 1
    table["image"] = table["label"] + "/" + table["patient"] + "-" + photo.astype(str) + ".png"
    hidden = table["part"] == "unlabelled"
    table.loc[hidden, "image"] = [f"{number:04}.png" for number in rng.permutation(hidden.sum()) + 1]
    return table, photos


def build_project(out: Path, seed: int | None = None) -> Path:
    """Write what students get, `out/P`, and the key that grading needs, `out/P-key.csv`."""
    table, photos = draw_patients(secrets.randbelow(2**31) if seed is None else seed)
    pixels = medvlp.get_world("derm").render(photos).permute(0, 2, 3, 1).numpy()  # (n, 64, 64, 3)
    for row, image in zip(table.itertuples(), pixels, strict=True):
        path = out / "P" / row.part / row.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    shutil.copy(HERE / "P.md", out / "P" / "P.md")
    key = out / "P-key.csv"
    write(key, table.to_csv(index=False))
    return key


def splits_of(card: Path, images: Path) -> dict[str, Any]:
    """Read the images as the card says: the images of each split, and what is wrong with its phrases."""
    info = medvlp.load_card(str(card))
    if info.source.kind != "folder" or info.source.folder != ".":
        raise ValueError("source must be of kind folder, with folder: . for the folder of labelled images")
    checker = PhraseChecker(info)
    faults = []
    for name, phrases in info.symptoms().items():
        faults += [f"{row.phrase!r}: {row.reason}" for row in checker.check(name, phrases) if row.reason]
        faults += [f"{name} has {len(phrases)} symptoms, not three or more"] if len(phrases) < 3 else []
    data = medvlp.load_dataset(str(card), root=images)
    sets = {split: list(getattr(getattr(data, split), "ids", [])) for split in ("train", "val", "test")}
    return {"sets": sets, "faults": faults, "classes": info.classnames}


def apart(function: Callable, *args: object) -> Any:
    """Call a function in a process of its own, with a limit on its time; raise what it raises."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(function, args).get(timeout=SECONDS)


def grade_card(folder: Path, key: pd.DataFrame, images: Path) -> list[dict[str, Any]]:
    """Grade the card, and whether its splits keep patients whole."""
    card = {"name": "card", "points": 0, "of": 3, "lines": []}
    protocol = {"name": "protocol", "points": 0, "of": 2, "lines": ["Not looked at, for want of a card."]}
    try:
        got = apart(splits_of, read(folder / "card.md"), images)
    except multiprocessing.TimeoutError:
        card["lines"] = [f"Reading the images as card.md says did not end within {SECONDS:g} s."]
        return [card, protocol]
    except Exception as error:  # whatever a card makes the package raise
        card["lines"] = [str(error).replace(f"{folder}/", "")[:600]]
        return [card, protocol]
    sets, labelled = got["sets"], key[key["part"] == "labelled"].set_index("image")
    card["lines"] = got["faults"][:5]
    if sorted(got["classes"]) != sorted(set(labelled["label"])):
        card["lines"].append(f"Its classes are {', '.join(got['classes'])}.")
    if len(missing := set(labelled.index) - set().union(*sets.values())):
        card["lines"].append(f"{len(missing)} of the labelled images are in no split.")
    if not card["lines"]:
        card |= {"points": 3, "lines": ["Right: it loads and reads all images, and its symptoms are sound."]}
    protocol["lines"] = []
    patients = {split: set(labelled["patient"].reindex(ids)) for split, ids in sets.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sorted(patients[one] & patients[other]):
            line = f"Leakage: {len(both)} patients are in {one} and in {other}, such as {both[0]}."
            protocol["lines"].append(line)
    for split, ids in sets.items():
        if len(ids) < 0.1 * len(labelled) or labelled["label"].reindex(ids).nunique() < 2:
            protocol["lines"].append(f"{split} holds {len(ids)} images: too few, or of one class.")
    if not protocol["lines"]:
        sizes = ", ".join(f"{len(ids)} in {split}" for split, ids in sets.items())
        protocol |= {"points": 2, "lines": [f"Right: each patient is in one split; {sizes}."]}
    return [card, protocol]


def grade_predictions(folder: Path, key: pd.DataFrame) -> tuple[dict[str, Any], float]:
    """Score the predictions by the hidden labels, and hold the value against what was claimed."""
    graded, hidden = {"name": "predictions", "points": 0, "of": 2}, key[key["part"] == "unlabelled"]
    try:
        table = pd.read_csv(read(folder / "predictions.csv"), dtype=str, keep_default_na=False)
        given = table.set_index("id")["predicted"]
        if sorted(given.index) != sorted(hidden["image"]):
            known = len(set(given.index) & set(hidden["image"]))
            raise ValueError(f"its {len(given)} rows hold {known} of {len(hidden)} images; give one for each")
        if unknown := set(given) - set(hidden["label"]):
            raise ValueError(f"{sorted(map(str, unknown))[0]!r} is no class")
    except KeyError:
        return graded | {"lines": ["predictions.csv needs the columns id and predicted."]}, np.nan
    except Exception as error:  # whatever a file makes pandas raise
        return graded | {"lines": [f"predictions.csv: {error}"[:400]]}, np.nan
    value = float(balanced_accuracy_score(hidden["label"], given[hidden["image"]]))
    lines = [f"On the hidden labels the balanced accuracy is {value:.3f}; {BAR:.2f} was asked for."]
    return graded | {"points": 2 * (value >= BAR), "lines": [*lines, claim(folder, value)]}, value


def claim(folder: Path, value: float) -> str:
    """Say whether the interval that was claimed for the first method holds what the hidden labels say."""
    try:
        first = pd.read_csv(read(folder / "results.csv")).iloc[0]
        low, high = float(first["low"]), float(first["high"])
    except Exception as error:
        return f"results.csv, which has no points, cannot be read: {type(error).__name__}: {error}"[:300]
    holds = "holds it" if low <= value <= high else "does not hold it; the report should say why not"
    return f"The interval {low:.3f} to {high:.3f} of results.csv {holds}."


def read(path: Path) -> Path:
    """Return a path that is a file of a sensible size; else raise an error that says so."""
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"there is no file {path.name}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_BYTES:,} bytes")
    return path


def grade_project(folder: Path, key: pd.DataFrame, images: Path) -> dict[str, Any]:
    """Grade one folder: three parts by what was measured; the report's lines are the teacher's to tick."""
    predictions, value = grade_predictions(folder, key)
    tasks = [*grade_card(folder, key, images), predictions]
    points = sum(task["points"] for task in tasks)
    try:
        words = f"{len(read(folder / 'report.md').read_text('utf-8', 'replace').split())} words"
    except ValueError as error:
        words = str(error)
    tasks.append({"name": f"report ({words})", "points": "___", "of": len(RUBRIC), "lines": RUBRIC})
    notes = ["The report's points are not among these: your teacher gives them."]
    return {"assignment": "P", "points": points, "of": 10, "notes": notes, "tasks": tasks, "value": value}


def grade_projects(key_file: Path, submissions: Path, out: Path) -> pd.DataFrame:
    """Grade every folder that holds one of a project's files; write pages and `grades.csv`."""
    key = pd.read_csv(key_file, dtype=str)
    images = key_file.parent / "P" / "labelled"
    folders = sorted({path.parent for name in FILES for path in submissions.rglob(name)})
    if not folders:
        raise ValueError(f"no folder with one of {', '.join(FILES)} in {submissions}")
    rows = []
    for folder in tqdm(folders, desc="P", unit="submission"):
        name = folder.relative_to(submissions).as_posix()
        graded = grade_project(folder, key, images)
        write(out / "feedback" / name / "P.html", PAGE.render(graded | {"name": name}))
        parts = {task["name"]: task["points"] for task in graded["tasks"][:3]}
        row = {"submission": for_spreadsheet(name), "points": graded["points"], **parts, "report": ""}
        rows.append(row | {"balanced accuracy": graded["value"]})
    table = pd.DataFrame(rows)
    write(out / "grades.csv", table.to_csv(index=False))
    return table
