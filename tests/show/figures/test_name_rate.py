import numpy as np
import pandas as pd
import pytest

from medvlp.show.figures import name_rate


def fake_run(rate, seed, progress=True):
    rows = [
        (rate, seed, step, rate * step * 128, knowledge, 0.5 + 0.1 * seed)
        for step in name_rate.MEASURED_AT
        for knowledge in ("classnames", "symptoms")
    ]
    return pd.DataFrame(rows, columns=["rate", "seed", "step", "names_read", "knowledge", "accuracy"])


def test_a_stopped_study_goes_on_where_it_was(tmp_path, monkeypatch):
    done = []

    def run(rate, seed, progress=True):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((rate, seed))
        return fake_run(rate, seed)

    monkeypatch.setattr(name_rate, "one_run", run)
    csv = tmp_path / "study.csv"
    with pytest.raises(KeyboardInterrupt):
        name_rate.study(csv, rates=(0.01, 0.1), seeds=(0, 1))
    monkeypatch.setattr(
        name_rate, "one_run", lambda r, s, progress=True: done.append((r, s)) or fake_run(r, s)
    )
    table = name_rate.study(csv, rates=(0.01, 0.1), seeds=(0, 1))
    assert done == [(0.01, 0), (0.1, 0), (0.01, 1), (0.1, 1)]
    assert len(table) == 4 * 2 * len(name_rate.MEASURED_AT)
    assert pd.read_csv(csv).equals(table)


def test_the_figure_draws_every_seed_the_mean_over_seeds_and_the_reference_lines():
    table = pd.concat([fake_run(rate, seed) for rate in (0.01, 0.1) for seed in (0, 1)])
    figure = name_rate.name_rate_figure(table, bayes=0.89, chance=0.5)
    assert len(figure.axes) == len(name_rate.MEASURED_AT)
    dots = np.vstack([dots.get_offsets() for dots in figure.axes[0].collections])  # no band around the mean
    each = [(rate, 0.5 + 0.1 * seed) for rate in (0.01, 0.1) for seed in (0, 1) for _ in range(2)]
    assert np.allclose(sorted(map(tuple, dots)), sorted(each))
    heights = [line.get_ydata() for line in figure.axes[0].lines]
    assert any(len(y) == 2 and y == pytest.approx([0.55, 0.55]) for y in heights)
    assert any(list(y) == [0.89, 0.89] for y in heights) and any(list(y) == [0.5, 0.5] for y in heights)


def test_the_shipped_study_has_four_rates_and_two_seeds():
    table = name_rate.shipped_study()
    assert table["rate"].nunique() >= 4 and table["seed"].nunique() >= 2
    assert set(table["knowledge"]) == {"classnames", "symptoms"}
    assert table.groupby(["rate", "seed"]).size().eq(2 * len(name_rate.MEASURED_AT)).all()
