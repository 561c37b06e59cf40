"""The study of names in captions: made once, and whole where it ships."""

from itertools import product

import name_rate
import pytest

from medvlp.study.ablation.papers import shipped_study


def test_a_stopped_study_goes_on_where_it_was(tmp_path, monkeypatch):
    done = []

    def fake(rate, seed, world, progress):
        if len(done) == 2 and "go on" not in done:
            raise KeyboardInterrupt
        done.append((rate, seed))
        return dict.fromkeys(product(name_rate.MEASURED_AT, name_rate.KNOWLEDGE), 0.5 + 0.1 * seed)

    monkeypatch.setattr(name_rate, "pretraining", fake)
    with pytest.raises(KeyboardInterrupt):
        name_rate.name_rate_study(tmp_path, rates=(0.01, 0.1), seeds=(0, 1))
    done.append("go on")
    study = name_rate.name_rate_study(tmp_path, rates=(0.01, 0.1), seeds=(0, 1))
    assert done == [(0.01, 0), (0.1, 0), "go on", (0.01, 1), (0.1, 1)]
    assert len(study) == 4 * 2 * len(name_rate.MEASURED_AT)
    last = study.runs.iloc[-1]
    assert last[["name_rate", "step", "accuracy"]].tolist() == [0.1, name_rate.STEPS, 0.6]
    assert last["names read"] == pytest.approx(0.1 * name_rate.STEPS * 128)


def test_the_shipped_study_has_what_the_command_makes():
    runs = shipped_study("name_rate").runs
    wanted = product(name_rate.RATES, name_rate.SEEDS)
    assert set(runs["run"]) == {run_id for one in wanted for run_id in name_rate.runs_of(*one)}
