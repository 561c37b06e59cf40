"""What the CLIP of phantoms knows: `python -m tests.benchmarks.measure_tiny`.

On images of a seed that neither training nor any notebook uses: each attribute by its wordings beside a
probe, zero-shot and probe beside the best rule, and how often the right symptom moves most when an attribute
is turned round. Writes medvlp/assets/tiny/measured.json and, from it, the tables of the model card beside it.
"""

from pathlib import Path

import pandas as pd

import medvlp
from medvlp.backbone.clip import Clip
from medvlp.show import counterfactual, counterfactual_summary
from medvlp.study.attributes import attribute_accuracy
from tests.benchmarks.measure_tiny_cells import in_digits, write_card
from tests.benchmarks.timing import options

FOLDER = Path(medvlp.__file__).parent / "assets" / "tiny"
WORLDS = ("derm", "cxr", "fundus")
FRESH = 31


def measure(clip: Clip) -> dict:
    """Everything that the model card tells, by world."""
    measured = {"clip": clip.fingerprint, "worlds": {}}
    for world in WORLDS:
        data = medvlp.load_dataset(f"phantom-{world}", seed=FRESH)
        methods = {kind: medvlp.ZeroShot(clip, data.card, kind) for kind in ("symptoms", "classnames")}
        turned = counterfactual_summary(counterfactual(methods["symptoms"], data.test)).loc["all"]
        methods["linear probe"] = medvlp.LinearProbe(clip, data.card)
        medvlp.fit(methods["linear probe"], data.train, data.val)
        reports = {name: medvlp.evaluate(method, data.test).table() for name, method in methods.items()}
        rows = {
            name: table.loc["accuracy", ["value", "low", "high"]].to_dict() for name, table in reports.items()
        }
        rows["best rule"] = {"value": medvlp.get_world(world).bayes_accuracy()}
        measured["worlds"][world] = {
            "attributes": attribute_accuracy(clip, data.test, data.train).to_dict(orient="index"),
            "accuracy": rows,
            "turned round": turned[["more", "low", "high"]].astype(float).to_dict(),
        }
    return measured


def tables(measured: dict) -> dict[str, str]:
    """The model card's tables, by the name of their place."""
    by_world = measured["worlds"].items()
    attributes = {(w, k): row for w, of in by_world for k, row in of["attributes"].items()}
    accuracy = {(w, k): row for w, of in by_world for k, row in of["accuracy"].items()}
    frames = {
        "attributes": pd.DataFrame(attributes).T[["read", "low", "high", "probe"]],
        "accuracy": pd.DataFrame(accuracy).T,
        "turned": pd.DataFrame({w: of["turned round"] for w, of in by_world}).T,
    }
    for name in ("attributes", "accuracy"):
        frames[name].index = [f"{world}: {row}" for world, row in frames[name].index]
    return {name: in_digits(frame) for name, frame in frames.items()}


def main() -> None:
    args = options(__doc__, clip="tiny", out=FOLDER).parse_args()
    measured = measure(medvlp.load_clip(args.clip, device="cpu"))
    write_card(args.out, measured, tables(measured))


if __name__ == "__main__":
    main()
