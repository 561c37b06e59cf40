"""Does it matter that the intervention sees the image? CILMP's three kinds, beside what there is without it.

One command, `python -m medvlp.show.figures.intervention_study`, trains CILMP on the embedded CLIP with each
kind of intervention and seed on phantoms, and the conditional kind on real chest X-rays where MEDVLP_DATA has
them; all beside ViP, the linear probe and zero-shot. It writes medvlp/assets/interventions.csv and, of the
phantoms, figures/interventions.png. A run that is in the CSV already is not done again. The embedded CLIP has
seen drawings only: nothing here stands beside a paper's figures.
"""

import argparse
import os
from collections.abc import Sequence
from importlib import resources
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.datasets import Data, load_dataset
from medvlp.data.files import atomic_write
from medvlp.methods.cilmp import CILMP, INTERVENTIONS
from medvlp.methods.linear_probe import LinearProbe
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.show.figures.basic import PALETTE, closed, save_figure
from medvlp.study.evaluation import evaluate
from medvlp.study.training.config import TrainConfig
from medvlp.study.training.fit import fit

PHANTOMS, XRAYS = ("phantom-derm", "phantom-fundus"), "pneumonia"
SEEDS = (1, 2, 3)
CILMPS = tuple(f"CILMP, {kind}" for kind in INTERVENTIONS)
TRAINED = (*CILMPS, "ViP")
FIXED = ("zero-shot, classnames", "zero-shot, symptoms", "linear probe", "linear probe, balanced")
METRICS = ("accuracy", "balanced accuracy")
UNEVEN = {"class_weight": "balanced", "metric": "balanced accuracy"}  # for classes of unequal size
KEY = ["card", "method", "seed"]


def recipe(card: str, method: str, seed: int) -> TrainConfig:
    """The papers' learning rates and fewer epochs; best epoch by validation, CILMP without augmentation."""
    uneven = UNEVEN if card == XRAYS else {}
    if method == "ViP":  # as notebook 3 trains it
        epochs, lr, views = (20, 0.02, 4) if uneven else (10, 0.002, 0)
        return TrainConfig(epochs=epochs, lr=lr, views=views, seed=seed, **uneven)
    epochs = 8 if uneven else 6
    return TrainConfig(epochs=epochs, lr=0.0025, batch_size=64, views=0, seed=seed, num_workers=0, **uneven)


def build(clip: Clip, data: Data, method: str, seed: int) -> nn.Module:
    """A method of this study by name, ready to be evaluated."""
    card = data.card
    if method.startswith("zero-shot"):
        return ZeroShot(clip, card, method.removeprefix("zero-shot, "))
    if method.startswith("linear probe"):
        weight = "balanced" if method.endswith("balanced") else None
        return LinearProbe(clip, card, class_weight=weight).fit(data.train, data.val)
    if method == "ViP":
        trained = ViP(clip, card, seed=seed, logit_scale=100 if card.name == XRAYS else None)
    else:
        trained = CILMP(clip, card, intervention=method.removeprefix("CILMP, "), seed=seed)
    fit(trained, data.train, data.val, recipe(card.name, method, seed), progress=False)
    return trained


def one_run(card: str, method: str, seed: int) -> dict[str, object]:
    """One row: card, method, seed, and of each metric on the test images the value, low and high."""
    torch.set_num_threads(1)  # runs go side by side
    data = load_dataset(card)
    table = evaluate(build(load_clip("tiny"), data, method, seed), data.test).table()
    values = {
        f"{metric}{end}": round(float(table.loc[metric, column]), 4)
        for metric in METRICS
        for end, column in (("", "value"), (" low", "low"), (" high", "high"))
    }
    return {"card": card, "method": method, "seed": seed, **values}


def runs(xrays: bool) -> list[tuple[str, str, int]]:
    """All (card, method, seed) of the study; what nothing random decides has seed 1 only."""
    cards = (*PHANTOMS, XRAYS) if xrays else PHANTOMS
    wanted = [*product(cards, FIXED, SEEDS[:1]), *product(PHANTOMS, TRAINED, SEEDS)]
    return wanted + (list(product([XRAYS], [CILMPS[0], "ViP"], SEEDS)) if xrays else [])


def study(csv: Path, wanted: Sequence[tuple[str, str, int]], n_jobs: int = 1) -> pd.DataFrame:
    """The rows of all runs wanted that `csv` does not hold yet, added to it one by one."""
    table = pd.read_csv(csv) if csv.exists() else pd.DataFrame(columns=KEY)
    done = set(table[KEY].itertuples(index=False, name=None))
    left = [run for run in wanted if run not in done]
    rows = Parallel(n_jobs=n_jobs, return_as="generator_unordered")(delayed(one_run)(*run) for run in left)
    for row in tqdm(rows, total=len(left), desc="runs", unit="run"):
        row = pd.DataFrame([row])
        table = row if table.empty else pd.concat([table, row], ignore_index=True)
        table = table.sort_values(KEY, ignore_index=True)
        with atomic_write(csv) as part:
            table.to_csv(part, index=False)
    return table


def shipped_study() -> pd.DataFrame:
    """The table of the runs that were made for the package; columns as in `one_run`."""
    return pd.read_csv(str(resources.files("medvlp") / "assets" / "interventions.csv"))


def intervention_figure(table: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """A panel a card, a row a method: each seed's value as a point, its 95 % interval as a line."""
    cards = list(dict.fromkeys(table["card"]))
    methods = [method for method in (*FIXED, *TRAINED) if method in set(table["method"])]
    size = (3.3 * len(cards) + 1.8, 0.38 * len(methods) + 1)
    fig, axes = plt.subplots(1, len(cards), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, card in zip(axes[0], cards, strict=True):
        for y, method in enumerate(methods):
            own = table[(table["card"] == card) & (table["method"] == method)].sort_values("seed")
            places = [y + 0.22 * (i - (len(own) - 1) / 2) for i in range(len(own))]
            colour = PALETTE[0] if method in TRAINED else "0.4"
            ax.hlines(places, own[f"{metric} low"], own[f"{metric} high"], color=colour, linewidth=1)
            ax.plot(own[metric], places, "o", color=colour, markersize=3.5)
        ax.set_title(card, fontsize=10)
        ax.set_xlabel(f"{metric} (95 % interval)")
        ax.grid(axis="x", color="0.9")
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    sns.despine(fig)
    return closed(fig)


def main() -> None:
    """Run the study and draw its figure."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--csv", type=Path, default=Path("medvlp/assets/interventions.csv"), help="the numbers"
    )
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of the figure")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    arguments = parser.parse_args()
    root = os.environ.get("MEDVLP_DATA")
    xrays = bool(root) and Path(root, "chest_xray").is_dir()
    if not xrays:
        print("no chest X-rays: set MEDVLP_DATA to the folder that holds chest_xray. Phantoms only.")
    table = study(arguments.csv, runs(xrays), arguments.jobs)
    figure = intervention_figure(table[table["card"].isin(PHANTOMS)])
    save_figure(
        figure, "interventions", "python -m medvlp.show.figures.intervention_study", arguments.figures
    )
    print(table.groupby(["card", "method"])[list(METRICS)].agg(["mean", "min", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
