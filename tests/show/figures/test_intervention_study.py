"""The study of interventions: each run once, its figure, and the table that ships."""

import pandas as pd
import pytest

from medvlp.backbone.clip import load_clip
from medvlp.data.datasets import load_dataset
from medvlp.show.figures import intervention_study as study_module
from medvlp.show.figures.intervention_study import (
    CILMPS,
    FIXED,
    PHANTOMS,
    SEEDS,
    TRAINED,
    build,
    intervention_figure,
    one_run,
    recipe,
    runs,
    shipped_study,
    study,
)


def fake_run(card: str, method: str, seed: int) -> dict[str, object]:
    if (card, method) == ("phantom-derm", "broken"):
        raise RuntimeError("power cut")
    value = 0.5 + 0.1 * seed
    return {"card": card, "method": method, "seed": seed} | {
        f"{metric}{end}": value + shift
        for metric in ("accuracy", "balanced accuracy")
        for end, shift in (("", 0), (" low", -0.1), (" high", 0.1))
    }


def test_a_run_that_is_in_the_table_is_not_done_again(tmp_path, monkeypatch):
    done = []

    def watched(*run):
        done.append(run)
        return fake_run(*run)

    monkeypatch.setattr(study_module, "one_run", watched)
    csv = tmp_path / "study.csv"
    with pytest.raises(RuntimeError, match="power cut"):
        study(csv, [("phantom-derm", "ViP", 1), ("phantom-derm", "broken", 1)])
    assert done == [("phantom-derm", "ViP", 1), ("phantom-derm", "broken", 1)]
    done.clear()
    table = study(csv, [("phantom-derm", "ViP", 2), ("phantom-derm", "ViP", 1)])
    assert done == [("phantom-derm", "ViP", 2)]
    assert table[["seed", "accuracy"]].to_numpy().tolist() == [[1, 0.6], [2, 0.7]]
    pd.testing.assert_frame_equal(pd.read_csv(csv), table)


def test_every_method_is_built_as_its_name_says(monkeypatch):
    data, clip = load_dataset("phantom-derm", num_shots=2), load_clip("tiny")
    monkeypatch.setattr(study_module, "fit", lambda *args, **switches: None)
    for method in CILMPS:
        assert build(clip, data, method, 2).config["intervention"] == method.removeprefix("CILMP, ")
    assert build(clip, data, "linear probe, balanced", 1).config["class_weight"] == "balanced"
    assert build(clip, data, "zero-shot, symptoms", 1).symptoms
    assert build(clip, data, "ViP", 3).config["seed"] == 3
    assert recipe("pneumonia", "ViP", 1).class_weight == recipe("pneumonia", CILMPS[0], 1).class_weight
    assert len(set(runs(xrays=True))) == len(runs(xrays=True)) == 3 * len(FIXED) + 3 * (2 * len(TRAINED) + 2)


def test_a_row_holds_what_evaluation_says():
    row = one_run("phantom-fundus", "zero-shot, symptoms", 1)
    assert row["accuracy low"] < row["accuracy"] < row["accuracy high"]
    shipped = shipped_study().set_index(["card", "method", "seed"]).loc["phantom-fundus", row["method"], 1]
    assert row["accuracy"] == pytest.approx(shipped["accuracy"], abs=0.002)


def test_the_figure_draws_every_seed_with_its_interval():
    table = pd.DataFrame([fake_run(c, m, s) for c in PHANTOMS for m in ("ViP", CILMPS[0]) for s in (1, 2)])
    axes = intervention_figure(table).axes
    assert [ax.get_title() for ax in axes] == list(PHANTOMS)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["CILMP, conditional", "ViP"]
    first, second = axes[0].lines
    assert list(first.get_xdata()) == list(second.get_xdata()) == pytest.approx([0.6, 0.7])
    spans = [[tuple(x) for x in segment[:, :1]] for segment in axes[0].collections[0].get_segments()]
    assert [(a[0], b[0]) for a, b in spans] == [pytest.approx((0.5, 0.7)), pytest.approx((0.6, 0.8))]


def test_the_shipped_table_is_whole():
    table = shipped_study()
    wanted = set(runs(xrays=True))
    assert set(table[["card", "method", "seed"]].itertuples(index=False, name=None)) == wanted
    assert table.groupby(["card", "method"]).size().isin([1, len(SEEDS)]).all()
    assert (table["accuracy low"] <= table["accuracy"]).all()


def test_on_x_rays_cilmp_and_vip_lie_above_zero_shot_and_the_majority_with_their_whole_intervals():
    table = shipped_study().query("card == 'pneumonia'").set_index("method")
    zero_shot = table.loc[["zero-shot, classnames", "zero-shot, symptoms"], "accuracy"].max()
    for method in ("CILMP, conditional", "ViP"):
        assert (table.loc[method, "accuracy low"] > max(zero_shot, 390 / 624)).all()
