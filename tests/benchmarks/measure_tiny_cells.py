"""What the CLIP of real cells knows: `python -m tests.benchmarks.measure_tiny_cells`, with MEDVLP_DATA set.

Validation cells: zero-shot accuracy against the strength of changed looks. Test cells, looked at once:
zero-shot, linear probe, each attribute beside a probe and the second expert, cells of changed looks. Writes
medvlp/assets/tiny-cells/measured.json and, from it, the tables of the model card beside it.
"""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

import medvlp
from medvlp.backbone.appearance import Looks
from medvlp.backbone.clip import Clip
from medvlp.backbone.pretrain import normalise
from medvlp.backbone.pretrain_annotated import STORED, small_copies
from medvlp.data.files import atomic_write
from medvlp.data.image_sets import ImageSet
from medvlp.study.attributes import BALANCED, attribute_accuracy
from medvlp.study.evaluation import evaluating
from tests.benchmarks.timing import fill_in, options

FOLDER = Path(medvlp.__file__).parent / "assets" / "tiny-cells"
FIELDS = ("scale", "stain", "hue", "saturation", "brightness", "contrast", "blur", "shift", "untouched")
NONE = Looks(**dict.fromkeys(FIELDS, 0.0), turned=False)
KINDS = {  # what changes, at strength 1
    "scale 0.7 to 1.4": {"scale": 0.34},
    "stain 0.78 to 1.28": {"stain": 0.25},
    "hue 30 degrees": {"hue": 30.0},
    "brightness and contrast 0.7 to 1.4": {"brightness": 0.35, "contrast": 0.35},
    "focus 1.2 pixels": {"blur": 1.2},
}
STRENGTHS = (0.5, 1.0, 1.5)
NUMBER = re.compile(r"(<!-- (same|changed) -->)([.\d]*)(<!---->)")  # within the card's sentences
FACTOR = 0.2231  # log 1.25
DEMANDED = replace(NONE, hue=20.0, brightness=FACTOR, contrast=FACTOR, scale=FACTOR)


def features(clip: Clip, copies: Tensor, looks: Looks, seed: int = 1) -> Tensor:
    """Features (N, D) of stored copies, each in one look."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        seen = [looks.draw(part.float() / 255, clip.image_size, draws) for part in copies.split(256)]
        return torch.cat([clip.encode_images(normalise(part)) for part in seen])


def balanced(method: medvlp.Method, f: Tensor, images: ImageSet) -> float:
    """Balanced accuracy of a method on features."""
    with evaluating(method):
        return balanced_accuracy_score(images.labels, method.logits_from_features(f).argmax(1))


def measure(clip: Clip, data: medvlp.data.datasets.Data) -> dict:
    """Everything that the model card tells."""
    kinds = "symptoms", "no-granules", "classnames"
    zero = {kind: medvlp.ZeroShot(clip, data.card, kind) for kind in kinds}
    probe = medvlp.LinearProbe(clip, data.card)
    medvlp.fit(probe, data.train, data.val)
    copies = small_copies(data.val, round(STORED * clip.image_size))
    looks = {"none": balanced(zero["symptoms"], features(clip, copies, NONE), data.val)}
    for kind, change in KINDS.items():
        for strength in STRENGTHS:
            changed = replace(NONE, **{name: strength * value for name, value in change.items()})
            f = features(clip, copies, changed)
            looks[f"{kind}, {strength}"] = balanced(zero["symptoms"], f, data.val)
    rows = {}
    methods = {f"zero-shot, {kind}": method for kind, method in zero.items()} | {"linear probe": probe}
    for name, method in methods.items():
        report = medvlp.evaluate(method, data.test).table().loc[BALANCED]
        rows[name] = report[["value", "low", "high"]].to_dict()
    changed = features(clip, small_copies(data.test, round(STORED * clip.image_size)), DEMANDED)
    attributes = attribute_accuracy(clip, data.test, data.train)
    return {
        "clip": clip.fingerprint,
        "test": rows,
        "test in changed looks": balanced(zero["symptoms"], changed, data.test),
        "changed looks": asdict(DEMANDED),
        "attributes": attributes.to_dict(orient="index"),
        "mean of attributes": attributes[["chance", "read", "probe", "second"]].mean().to_dict(),
        "validation by looks": looks,
    }


def tables(measured: dict) -> dict[str, str]:
    """The model card's tables, by the name of their place."""
    test = pd.DataFrame(measured["test"]).T.rename(columns={"value": BALANCED})
    attributes = pd.DataFrame(measured["attributes"]).T.drop(columns=["values", "images"])
    attributes.loc["mean"] = pd.Series(measured["mean of attributes"])
    looks = measured["validation by looks"]
    by_kind = {kind: {f"x {s}": looks[f"{kind}, {s}"] for s in STRENGTHS} for kind in KINDS}
    frames = {"test": test, "attributes": attributes, "looks": pd.DataFrame(by_kind).T}
    return {name: in_digits(frame) for name, frame in frames.items()}


def in_digits(frame: pd.DataFrame) -> str:
    """A table in Markdown, with three digits."""
    return frame.map(lambda x: "" if pd.isna(x) else f"{x:.3f}").to_markdown(disable_numparse=True)


def number(measured: dict, name: str) -> str:
    """A number within the card's sentences."""
    same, changed = measured["validation by looks"]["none"], measured["test in changed looks"]
    return f"{same if name == 'same' else changed:.3f}"


def write_card(folder: Path, measured: dict, frames: dict[str, str]) -> None:
    """Write measured.json, and what was measured into its places in the model card."""
    with atomic_write(folder / "measured.json") as part:
        part.write_text(json.dumps(measured, indent=1) + "\n")
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    text = NUMBER.sub(lambda place: f"{place[1]}{number(measured, place[2])}{place[4]}", text)
    card.write_text(text, encoding="utf-8")
    fill_in(card, frames)
    print(json.dumps(measured, indent=1))


def main() -> None:
    args = options(__doc__, clip="tiny-cells", out=FOLDER).parse_args()
    measured = measure(medvlp.load_clip(args.clip, device="cpu"), medvlp.load_dataset("wbcatt"))
    write_card(args.out, measured, tables(measured))


if __name__ == "__main__":
    main()
