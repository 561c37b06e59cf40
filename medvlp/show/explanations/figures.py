"""Figures of faithfulness: what a symptom detects, what a changed attribute moves, one image and its twin."""

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from medvlp.data.errors import check_columns, check_kinds
from medvlp.data.image_sets import PhantomSet
from medvlp.methods.base import Method
from medvlp.show.explanations.twins import claims_of, flip, flip_all
from medvlp.show.figures.basic import GREY, PALETTE, closed

GOAL = 0.8  # the share of images at which a symptom is called faithful here; a choice


def faithfulness_figure(table: pd.DataFrame, seen: pd.DataFrame | None = None) -> Figure:
    """Each phrase's AUROC for the attribute it names, with its interval, and as drawn; chance is dotted.

    Args:
        table: What `faithfulness` gave; a phrase that several classes list is drawn once.
        seen: What `what_is_seen` gave: each attribute's probe is then drawn as a line.

    Example:
        >>> import medvlp
        >>> from medvlp.show import faithfulness, faithfulness_figure
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> figure = faithfulness_figure(faithfulness(zero, data.test, n_images=20, n_bootstrap=10))
        >>> figure.axes[0].get_yticklabels()[0].get_text()
        'veil: a blue-white veil'
    """
    check_kinds(faithfulness_figure, locals())
    drawn = ["attribute", "symptom", "AUROC", "low", "high", "as drawn"]
    check_columns(table, drawn, "faithfulness")
    if seen is not None:
        check_columns(seen, ["probe"], "what_is_seen")
    rows = table.drop_duplicates(["attribute", "symptom"])
    names = list(rows["attribute"].unique())
    rows = rows.sort_values("attribute", key=lambda column: column.map(names.index), kind="stable")
    fig, ax = plt.subplots(figsize=(7, 0.27 * len(rows) + 1.4), layout="constrained")
    y = np.arange(len(rows))
    ax.hlines(y, rows["low"], rows["high"], color=PALETTE[0], linewidth=2)
    ax.plot(rows["AUROC"], y, "o", color=PALETTE[0], markersize=5, label="one attribute changed")
    ax.plot(rows["as drawn"], y, "x", color=PALETTE[1], markersize=5, label="images as drawn")
    if seen is not None:
        probes = rows["attribute"].map(seen["probe"])
        ax.plot(probes, y, "|", color="black", markersize=9, label="linear probe of the image feature")
    ax.axvline(0.5, color=GREY, linestyle="dotted", label="chance")
    labels = rows["attribute"] + ":  " + rows["symptom"]
    ax.set_yticks(y, [textwrap.shorten(label, 60) for label in labels], fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("AUROC of the symptom's score for its attribute (95 % interval)")
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    fig.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    sns.despine(ax=ax)
    return closed(fig)


def counterfactual_figure(summaries: Mapping[str, pd.DataFrame]) -> Figure:
    """The share of images in which the right symptom moved more than the others, attribute by attribute.

    Args:
        summaries: What `counterfactual_summary` gave, by the name of the card or method; a panel each.

    Raises:
        ValueError: no summary.

    Example:
        >>> import medvlp
        >>> from medvlp.show import counterfactual, counterfactual_figure, counterfactual_summary
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> summary = counterfactual_summary(counterfactual(zero, data.test, n_images=5), n_bootstrap=10)
        >>> figure = counterfactual_figure({"phantom-derm": summary})
        >>> [ax.get_title() for ax in figure.axes]
        ['phantom-derm']
    """
    check_kinds(counterfactual_figure, locals())
    if not summaries:
        raise ValueError("there is no summary to draw; give what counterfactual_summary gave, by name.")
    for table in summaries.values():
        check_columns(table, ["more", "low", "high"], "counterfactual_summary")
    longest = max(map(len, summaries.values()))
    size = (3.3 * len(summaries) + 0.6, 0.34 * longest + 1.3)
    fig, axes = plt.subplots(1, len(summaries), figsize=size, squeeze=False, layout="constrained")
    for ax, (name, table) in zip(axes[0], summaries.items(), strict=True):
        table = table.dropna(subset="more")
        y = np.arange(len(table))
        colours = [GREY if attribute == "all" else PALETTE[0] for attribute in table.index]
        ax.barh(y, table["more"], color=colours, height=0.7, alpha=0.75)
        ax.hlines(y, table["low"], table["high"], color="black", linewidth=1.5)
        ax.axvline(GOAL, color=PALETTE[1], linestyle="dashed", linewidth=1)
        ax.set_yticks(y, table.index)
        ax.set_ylim(longest - 0.5, -0.5)
        ax.set_xlim(0, 1.02)
        ax.set_title(name, fontsize=10)
    label = "share of images whose matching symptoms moved more than the others' mean (95 % interval)"
    label += f"\ndashed: {GOAL}, expected of a CLIP that sees what it is asked"
    fig.supxlabel(label, fontsize=10)
    sns.despine(fig)
    return closed(fig)


def twin_figure(method: Method, images: PhantomSet, attribute: str, i: int = 0) -> Figure:
    """One phantom with an attribute turned round: both images, what changed, and every score's change.

    Args:
        method: With symptoms that are wordings of the world.
        images: Phantoms.
        attribute: The one that is turned round; its own phrases are drawn in another colour.
        i: Which of the images.

    Raises:
        ValueError: an unknown attribute, or a method without symptom scores.

    Example:
        >>> import medvlp
        >>> from medvlp.show import twin_figure
        >>> data = medvlp.load_dataset("phantom-derm", num_shots=2)
        >>> zero = medvlp.ZeroShot(medvlp.load_clip("tiny"), data.card)
        >>> len(twin_figure(zero, data.test, "veil").axes)
        4
    """
    check_kinds(twin_figure, locals())
    if method.symptoms is None or not method.keeps_image_tower:
        raise ValueError(f"{type(method).__name__} has no symptom scores to draw; use ZeroShot or ViP.")
    one = images.subset([i])
    k, twin = one.world.index(attribute), flip(one, attribute)
    flips = flip_all(method, one, n_images=None)
    change, phrases = flips.moves()[:, k, 0], flips.phrases  # (phrases,)
    claims = claims_of(one.world, {"": phrases})
    before, after = np.asarray(one.image(0)), np.asarray(twin.image(0))  # (S, S, 3) each
    difference = np.abs(before.astype(int) - after).max(axis=2)  # (S, S)
    fig = plt.figure(figsize=(10, max(0.24 * len(phrases) + 0.9, 3)), layout="constrained")
    pictures, bars = fig.subfigures(1, 2, width_ratios=(1, 1.9))
    here, there = ("with", "without") if flips.present(k)[0] else ("without", "with")
    panels = {f"{here} {attribute}": before, f"{there} {attribute}": after, "changed pixels": difference}
    for ax, (title, picture) in zip(pictures.subplots(3, 1), panels.items(), strict=True):
        ax.imshow(picture, cmap="cividis")
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    ax = bars.subplots()
    rows = pd.DataFrame({"phrase": phrases, "change": change})
    rows["names it"] = [claims.get(phrase, ("",))[0] == attribute for phrase in phrases]
    rows = rows.sort_values("change", key=lambda column: -column.abs(), kind="stable", ignore_index=True)
    ax.barh(rows.index, rows["change"], color=rows["names it"].map({True: PALETTE[1], False: PALETTE[0]}))
    labels = rows["phrase"].map(lambda phrase: textwrap.shorten(phrase, 45))
    labels += rows["names it"].map({True: " *", False: ""})
    ax.set_yticks(rows.index, labels, fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0, color=GREY, linewidth=0.8)
    decided = flips.logits.argmax(axis=2)[[0, 1 + k], 0]  # (2,)
    names = [flips.classnames[c] for c in decided]
    ax.set_title(f"decision: {names[0]} to {names[1]}", fontsize=10)
    ax.set_xlabel(f"change of the cosine (*: names {attribute})")
    sns.despine(ax=ax)
    return closed(fig)
