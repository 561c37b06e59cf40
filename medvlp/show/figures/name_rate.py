"""How often must captions name a disease before CLIP knows the name? A study on phantoms.

One command, `python -m medvlp.show.figures.name_rate`, pre-trains the embedded CLIP from scratch, once
for each rate and seed, measures zero-shot accuracy by class name and by symptoms on the way, and writes
medvlp/assets/name_rate.csv and figures/name_rate.png. A run that is in the CSV already is not done again.
"""

import argparse
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from medvlp.backbone.clip import Clip
from medvlp.backbone.pretrain import PretrainConfig, normalise, pretrain
from medvlp.data.cards import DataCard, load_card
from medvlp.data.files import atomic_write
from medvlp.data.phantoms.worlds import get_world
from medvlp.methods.zero_shot import ZeroShot
from medvlp.show.figures.basic import save_figure

RATES = (0.0003, 0.003, 0.03, 0.3)
SEEDS = (0, 1)
STEPS = 150
MEASURED_AT = (50, 100, 150)  # steps
N_IMAGES = 6_000  # for training
N_TEST = 1_000
TEST_SEED = 20_240_901  # a stream that no pre-training draws from


@torch.no_grad()
def measure(clip: Clip, card: DataCard, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Zero-shot accuracy by class names and by symptoms; images (N, 3, 64, 64) normalised, labels (N,)."""
    accuracy = {}
    for knowledge in ("classnames", "symptoms"):
        method = ZeroShot(clip, card, knowledge)
        found = method(images).argmax(dim=1)  # (N,)
        accuracy[knowledge] = (found == labels).float().mean().item()
    return accuracy


def one_run(rate: float, seed: int, world_name: str = "derm", progress: bool = True) -> pd.DataFrame:
    """Pre-train at one rate and seed: rows of rate, seed, step, names_read, knowledge, accuracy.

    `names_read` is how many captions named a disease so far, on average.
    """
    world, card = get_world(world_name), load_card(f"phantom-{world_name}")
    latents = world.sample(N_TEST, TEST_SEED)
    images = normalise(world.render(latents))  # (N, 3, 64, 64)
    rows = []

    def watch(step: int, clip: Clip) -> None:
        if step in MEASURED_AT:
            for knowledge, accuracy in measure(clip, card, images, latents.labels).items():
                read = rate * step * config.batch_size
                rows.append((rate, seed, step, read, knowledge, round(accuracy, 4)))

    config = PretrainConfig((world_name,), N_IMAGES, STEPS, name_rate=rate, seed=seed)
    pretrain(config, watch, progress)
    return pd.DataFrame(rows, columns=["rate", "seed", "step", "names_read", "knowledge", "accuracy"])


def name_rate_figure(table: pd.DataFrame, bayes: float, chance: float) -> Figure:
    """Accuracy against the rate of named captions, one panel a moment of training, a line a kind of text.

    Each seed is a mark, the line their mean.
    """
    steps = sorted(table["step"].unique())
    fig, axes = plt.subplots(
        1, len(steps), figsize=(3.2 * len(steps), 3.2), sharey=True, layout="constrained"
    )
    for ax, step in zip(axes, steps, strict=True):
        part = table[table["step"] == step]
        kinds = {"x": "rate", "y": "accuracy", "hue": "knowledge", "style": "knowledge", "ax": ax}
        sns.lineplot(part, **kinds, palette="colorblind", errorbar=None, legend=step == steps[-1])
        sns.scatterplot(part, **kinds, palette="colorblind", s=25, legend=False)
        ax.axhline(bayes, color="0.4", linestyle="dashed", linewidth=1)
        ax.axhline(chance, color="0.4", linestyle="dotted", linewidth=1)
        ax.set(xscale="log", title=f"after {step} steps", xlabel="share of captions that name a disease")
    axes[0].text(RATES[0], bayes + 0.005, "Bayes optimum", fontsize=8, color="0.4")
    axes[0].text(RATES[0], chance + 0.005, "chance", fontsize=8, color="0.4")
    axes[0].set_ylabel("zero-shot accuracy")
    axes[-1].get_legend().set_title("line: mean of seeds\nmarks: each seed")
    plt.close(fig)
    return fig


def shipped_study() -> pd.DataFrame:
    """The table of the runs that were made for the package; columns as in `one_run`."""
    return pd.read_csv(str(resources.files("medvlp") / "assets" / "name_rate.csv"))


def study(
    csv: Path, rates: Sequence[float] = RATES, seeds: Sequence[int] = SEEDS, progress: bool = True
) -> pd.DataFrame:
    """All runs that `csv` does not hold yet; it is written after each."""
    table = pd.read_csv(csv) if csv.exists() else pd.DataFrame(columns=["rate", "seed"])
    for seed in seeds:
        for rate in rates:
            if ((table["rate"] == rate) & (table["seed"] == seed)).any():
                continue
            run = one_run(rate, seed, progress=progress)
            table = run if table.empty else pd.concat([table, run], ignore_index=True)
            with atomic_write(csv) as part:
                table.to_csv(part, index=False)
    return table


def main() -> None:
    """Run the study and draw its figure."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--csv", type=Path, default=Path("medvlp/assets/name_rate.csv"), help="the numbers")
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="folder of the figure")
    arguments = parser.parse_args()
    table = study(arguments.csv)
    world = get_world("derm")
    figure = name_rate_figure(table, world.bayes_accuracy(), 1 / len(world.classnames))
    save_figure(figure, "name_rate", "python -m medvlp.show.figures.name_rate", arguments.figures)
    last = table[table["step"] == max(MEASURED_AT)]
    print(last.pivot_table(index="rate", columns="knowledge", values="accuracy").round(3).to_string())


if __name__ == "__main__":
    main()
