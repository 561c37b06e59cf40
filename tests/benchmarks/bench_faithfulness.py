"""Faithfulness on the phantom cards: the tables behind the figures, and how long they take.

Run `python -m tests.benchmarks.bench_faithfulness [--vip]`. Prints, for zero-shot with symptoms on the
embedded CLIP (and ViP, trained as notebook 3 trains it): what each changed attribute moves, beside what the
towers make of it; the controls; and how well maps find the attributes.
"""

import pandas as pd

from medvlp.backbone.clip import load_clip
from medvlp.data.datasets import load_dataset
from medvlp.data.phantoms.worlds import DRAWINGS
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.show.explanations.controls import faithfulness_controls
from medvlp.show.explanations.faithfulness import (
    counterfactual,
    counterfactual_summary,
    faithfulness,
    what_is_seen,
)
from medvlp.show.explanations.patch_maps import localisation
from medvlp.show.explanations.twins import flip_all
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit
from tests.benchmarks.timing import Clock, options

SEEN = 0.95  # AUROC of the linear probe from which on an attribute is called seen here


def main() -> None:
    """Print every table, with the seconds it took."""
    parser = options(__doc__, images=500)
    parser.add_argument("--vip", action="store_true", help="also train ViP and measure it")
    wanted = parser.parse_args()
    pd.set_option("display.width", 200, "display.max_columns", 30)
    clip = load_clip("tiny")
    for name in DRAWINGS:
        data = load_dataset(f"phantom-{name}")
        seen = what_is_seen(clip, data.train, data.test, wanted.images)
        methods = {"zero-shot": ZeroShot(clip, data.card)}
        if wanted.vip:
            methods["ViP"] = ViP(clip, data.card)
            config = TrainConfig(epochs=10, lr=0.002, views=0)
            fit(methods["ViP"], data.train, data.val, config, progress=False)
        for title, method in methods.items():
            clock = Clock()
            flips = flip_all(method, data.test, wanted.images)
            table = counterfactual(flips)
            summary = counterfactual_summary(table).join(seen)
            aurocs = faithfulness(flips).groupby("attribute", sort=False)[["AUROC", "as drawn"]].mean()
            print(f"\n{title}, {data.card.name}: {clock.look():.1f} s")
            print(summary.join(aurocs).round(3).to_string())
            known = seen.index[seen["probe"] >= SEEN]
            is_known = table["attribute"].isin(known)
            for what, part in (("seen", is_known), ("not", ~is_known)):
                row = counterfactual_summary(table[part]).loc["all", ["more", "low", "high", "most"]]
                n = table.loc[part, "attribute"].nunique()
                print(f"{n} attributes, {what} by the probe: {row.round(3).to_dict()}")
            clock.look()
            print(faithfulness_controls(method, data.test, n_images=wanted.images).round(3).to_string())
            print(f"controls: {clock.look():.1f} s")
        maps = localisation(clip, data.test, ("similarity", "rollout"), n_images=100)
        print(maps.pivot(index="attribute", columns="map", values="AUROC").round(2).to_string())


if __name__ == "__main__":
    main()
