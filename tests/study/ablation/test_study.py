"""run_ablation in one process: what a run is, that it is made once, and what a study tells of it."""

import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.features import image_features
from medvlp.data.cards import DataCard
from medvlp.data.datasets import Data
from medvlp.data.splits import few_shot
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.ablation.grid import Named
from medvlp.study.ablation.plan import plan
from medvlp.study.ablation.run import BUSY, Workshop, execute
from medvlp.study.ablation.sources import Parts
from medvlp.study.ablation.store import FIELDS, RunStore
from medvlp.study.ablation.study import Study
from medvlp.study.evaluation import predict_logits
from medvlp.study.metrics import METRICS, bootstrap, metric_values
from medvlp.study.training.callbacks import EpochAverage
from medvlp.study.training.config import TrainConfig, recipe
from medvlp.study.training.fit import fit
from tests.methods.small import make_card, make_set
from tests.study.ablation.small_study import RECIPE, Slow, clip_in, note, noted, small_data, study
from tests.study.training.small_training import CARD, Prototypes

GRID = {"method": "Slow", "num_shots": [2, 4], "seed": [1, 2]}


def without_times(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns="seconds")


def by_hand(folder: Path, shots: int, seed: int, average: bool = False) -> Tensor:
    """Test logits of Prototypes, trained without the study's code."""
    clip, data = load_clip(clip_in(folder)), small_data()
    rows = few_shot(data.train.labels, shots, seed)
    val = few_shot(data.val.labels, min(shots, 4), seed)
    method = Prototypes(clip, CARD, seed=seed)
    config = TrainConfig(**RECIPE, seed=seed)
    callbacks = [EpochAverage(config.epochs)] if average else []
    fit(method, data.train.subset(rows), data.val.subset(val), config, callbacks=callbacks, progress=False)
    return predict_logits(method, data.test)


@pytest.mark.parametrize("average", [False, True])
def test_a_run_is_fit_and_evaluation_as_by_hand(folder, average):
    grid = {"method": "Prototypes", "num_shots": 4, "seed": 3, "average": average}
    made = study(folder, grid)
    (run,) = made.runs.to_dict("records")
    expected = by_hand(folder, 4, 3, average).double().softmax(dim=1).numpy()
    found = made.predictions(run["run"])
    assert np.abs(found.probabilities - expected).max() < 1e-3
    assert found.labels.tolist() == small_data().test.labels.tolist()
    values = metric_values(found.labels, found.probabilities)
    assert [run[name] for name in METRICS] == pytest.approx([values[name] for name in METRICS])
    assert run["n_trainable"] == 3 * 40 and run["status"] == "done" and run["seed"] == 3


def test_without_validation_images_the_recipe_is_fixed_and_the_last_epoch_is_kept(folder):
    labels = [0] * 12 + [1] * 9 + [2] * 3
    data = replace(small_data(), train=make_set(CARD, labels))
    grid = {"method": ["Prototypes", "SSText"], "num_shots": 2, "seed": 3, "scenario": "realistic"}
    made = study(folder, grid, data=data)
    prototypes, ss_text = made.runs.to_dict("records")
    assert made.runs["status"].eq("done").all() and made.runs["val loss"].isna().all()
    assert (prototypes["epoch"], ss_text["epoch"]) == (RECIPE["epochs"], 0)
    assert (prototypes["n_trainable"], ss_text["n_trainable"]) == (3 * 40, 3 * 40)  # by steps and without
    clip, (train, _) = load_clip(clip_in(folder)), Parts(data).cut(2, 3, "realistic")
    method = Prototypes(clip, CARD, seed=3)
    fit(method, train, None, TrainConfig(**RECIPE, seed=3, keep="last"), progress=False)
    expected = predict_logits(method, data.test).double().softmax(dim=1).numpy()
    assert np.abs(made.predictions(prototypes["run"]).probabilities - expected).max() < 1e-3


def test_a_run_is_made_once_and_a_study_grows(folder, capsys):
    first = study(folder, GRID, progress=True)
    assert [word for word, _ in noted()] == ["1", "2", "1", "2"] and "4/4" in capsys.readouterr().err
    again = study(folder, GRID)
    grown = study(folder, [GRID, {"method": "Slow", "num_shots": [4, "all"], "seed": [1]}])
    assert [word for word, _ in noted()] == ["1", "2", "1", "2", "1"]
    pd.testing.assert_frame_equal(again.runs, first.runs)
    assert grown.runs["num_shots"].tolist() == [2, 2, 4, 4, "all"]
    assert study(folder, GRID, "elsewhere").runs["run"].tolist() == first.runs["run"].tolist()
    assert len(noted()) == 9


def test_runs_of_the_same_images_look_for_their_features_once(folder, monkeypatch):
    looks = []

    def looked(clip, images, view, *args, **options):
        looks.append((images.split, view))
        return image_features(clip, images, view, *args, **options)

    monkeypatch.setattr("medvlp.study.ablation.run.image_features", looked)
    study(folder, {"method": "Prototypes", "num_shots": "all", "lr": [0.01, 0.05], "seed": [1, 2]})
    assert sorted(looks, key=str) == [("test", None), ("train", 0), ("val", None)]


def test_what_a_run_depends_on_is_in_its_id(folder):
    def run_id(change: dict, data: Data | None = None, config: dict = RECIPE, kind: type = Slow) -> str:
        grid, name = {"method": "Slow", "num_shots": 2} | change, clip_in(folder)
        (run,) = plan(grid, data or small_data(), None, name, config, {"Slow": kind})
        return run.id

    changes = [{}, {"lr": 0.01}, {"seconds": 0.001}, {"seed": 2}, {"config.seed": 2}, {"num_shots": 3}]
    changed = type("Slow", (Slow,), {"forward": lambda self, images: None})
    ids = {*map(run_id, changes), run_id({}, small_data(9)), run_id({}, config=RECIPE | {"views": 0})}
    assert len(ids | {run_id({}, kind=changed)}) == 9
    assert run_id({}, config=RECIPE | {"num_workers": 1}) in ids


def test_a_failure_is_kept_and_the_rest_goes_on(folder):
    made = study(folder, {"method": "Raises", "seed": [1, 2, 3]})
    assert made.runs["status"].tolist() == ["done", "failed", "done"]
    assert made.runs["accuracy"].isna().tolist() == [False, True, False]
    (failed,) = made.failures().to_dict("records")
    assert failed["error"] == "ValueError: seed 2 is not to my liking" and failed["seed"] == 2
    assert "small_study.py" in failed["traceback"]
    with pytest.raises(ValueError, match="failed; study.failures"):
        made.predictions(failed["run"])
    study(folder, {"method": "Raises", "seed": [1, 2, 3]})
    assert [word for word, _ in noted()] == ["1", "2", "3", "2"]


def test_a_run_that_failed_meanwhile_is_left_alone(folder):
    (run,) = plan(
        {"method": "Raises", "seed": 2},
        small_data(),
        None,
        clip_in(folder),
        RECIPE,
        {"Raises": Prototypes},
    )
    store = RunStore(folder / "store")
    store.write(run.id, dict.fromkeys(FIELDS) | {"status": "failed", "finished": "now"})
    workshop = Workshop(store, folder / "cache", progress=False)
    made = [execute(run, workshop, before, wait=True) for before in (None, "now")]
    assert made == ["failed", "done"]


def test_a_run_of_another_process_is_waited_for(folder):
    (run,) = plan({"method": "ZeroShot"}, small_data(), None, clip_in(folder), RECIPE, None)
    store, held = RunStore(folder / "store"), threading.Event()

    def work_elsewhere() -> None:
        """Hold the run's lock until the other run of the study is kept."""
        with store.lock(run.id, wait=True):
            held.set()
            deadline = time.monotonic() + 60
            while not store.ids() and time.monotonic() < deadline:
                time.sleep(0.01)

    other = threading.Thread(target=work_elsewhere)
    other.start()
    held.wait()
    assert execute(run, Workshop(store, folder / "cache", False), None, wait=False) == BUSY
    made = study(folder, {"method": ["ZeroShot", "Slow"]})
    other.join()
    assert made.runs["status"].tolist() == ["done", "done"]
    finished = [store.read(run_id)["finished"] for run_id in made.runs["run"]]
    assert finished[0] > finished[1], "what was busy is made last"


class Interrupted(Prototypes):
    """Prototypes whose second run meets Ctrl-C in the middle of training."""

    def logits_from_features(self, image_features: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        if self.config["seed"] == 2 and self.calls == 4:
            raise KeyboardInterrupt
        return super().logits_from_features(image_features)


def test_after_ctrl_c_what_is_done_stays_and_no_half_run_is_kept(folder, capsys):
    grid = {"method": "Interrupted", "seed": [1, 2, 3]}
    with pytest.raises(KeyboardInterrupt):
        study(folder, grid, methods={"Interrupted": Interrupted})
    assert "1 of 3 runs are kept" in capsys.readouterr().out
    assert len(Study(folder / "store")) == 1


class Dies(Prototypes):
    """Prototypes that end their process, or what stands for it, as often as `deaths` says."""

    def __init__(self, clip: Clip, card: DataCard, deaths: int = 0, seed: int = 1) -> None:
        super().__init__(clip, card, seed=seed)
        note(f"{deaths}/{seed}")
        if [word for word, _ in noted()].count(f"{deaths}/{seed}") <= deaths:
            raise SystemExit


class DyingPool:
    """In place of joblib.Parallel: runs tasks here, and breaks where one would have ended its process."""

    def __init__(self, **options: object) -> None:
        pass

    def __call__(self, tasks: Iterable[tuple]) -> Iterator[object]:
        for function, args, kwargs in tasks:
            try:
                yield function(*args, **kwargs)
            except SystemExit as death:
                raise BrokenProcessPool from death


def test_a_run_that_kills_its_worker_twice_fails_and_takes_no_other_along(folder, monkeypatch):
    monkeypatch.setattr("medvlp.study.ablation.make.Parallel", DyingPool)
    grid = {"method": "Dies", "deaths": [9, 1, 0], "seed": [1, 2]}
    made = study(folder, grid, methods={"Dies": Dies})
    assert made.runs["status"].tolist() == ["failed"] * 2 + ["done"] * 4
    assert "died" in made.failures()["error"][0] and "memory" in made.failures()["traceback"][1]
    counts = {word: [w for w, _ in noted()].count(word) for word, _ in noted()}
    assert counts == {"9/1": 2, "9/2": 2, "1/1": 2, "1/2": 2, "0/1": 1, "0/2": 1}


def test_the_table_has_what_varies_and_none_where_a_method_lacks_it(folder):
    made = study(
        folder,
        [
            {"method": "Prototypes", "dropout": [0.0, 0.5], "lr": 0.05, "seed": [1, 2]},
            {"method": "ZeroShot", "knowledge": ["classnames", "symptoms"], "seed": [1, 2]},
        ],
    )
    table = made.runs
    first = ["run", "method", "data", "dropout", "knowledge", "seed", "status", *METRICS]
    assert list(table)[: len(first)] == first and "lr" not in table
    assert table["dropout"].tolist() == [0.0, 0.0, 0.5, 0.5] + [None] * 4
    assert table["knowledge"].tolist()[:5] == [None] * 4 + ["classnames"]
    summary = made.summary("accuracy")
    assert summary[["method", "seeds"]].values.tolist() == [
        ["Prototypes", 2], ["Prototypes", 2], ["ZeroShot", 2], ["ZeroShot", 2],
    ]  # fmt: skip
    expected = table["accuracy"].to_numpy().reshape(4, 2).mean(axis=1)
    assert summary["mean"].tolist() == pytest.approx(expected.tolist())
    assert "varied: method, dropout, knowledge, seed" in repr(made)
    assert repr(made) in made._repr_html_()


def test_compare_pairs_runs_of_one_study(folder):
    made = study(folder, {"method": ["Prototypes", "ZeroShot"], "seed": [1, 2]})
    found = made.compare("ZeroShot", metric="accuracy", n_bootstrap=50)
    accuracy = made.runs.groupby("method")["accuracy"].mean()
    assert found["difference"].tolist() == pytest.approx([accuracy["Prototypes"] - accuracy["ZeroShot"]])
    with pytest.raises(ValueError, match="give a list of fields"):
        made.summary(by="method")


def test_each_run_has_an_interval_over_test_images(folder):
    made = study(folder, {"method": ["Prototypes", "Raises"], "seed": [1, 2]})
    found = made.with_intervals("accuracy")
    assert found["accuracy low"].isna().tolist() == [False, False, False, True]
    first = made.predictions(found["run"][0])
    samples = bootstrap(first.labels, first.probabilities, first.groups, 1000, 1, ["accuracy"])["accuracy"]
    expected = np.quantile(samples, [0.025, 0.975])  # as `evaluate` has it
    assert found.loc[0, ["accuracy low", "accuracy high"]].tolist() == pytest.approx(expected.tolist())


def test_a_store_opens_by_itself_and_stores_merge_by_copying(folder):
    one = study(folder, {"method": "Slow", "seed": [1, 2]}, "one")
    two = study(folder, {"method": "Slow", "seed": [2, 3]}, "two")
    for store in ("one", "two"):
        no_locks = shutil.ignore_patterns("locks")
        shutil.copytree(folder / store, folder / "both", dirs_exist_ok=True, ignore=no_locks)
    both = Study(folder / "both").runs.sort_values("seed", ignore_index=True)
    expected = pd.concat([one.runs[:1], two.runs], ignore_index=True)
    pd.testing.assert_frame_equal(without_times(both), without_times(expected))
    count = len(noted())
    study(folder, {"method": "Slow", "seed": [1, 2, 3]}, "both")
    assert len(noted()) == count
    with pytest.raises(FileNotFoundError, match="no runs in"):
        Study(folder / "nowhere")


def test_threads_give_the_same_table_as_one_after_another(folder):
    grid = {"method": "Slow", "seed": [1, 2, 3, 4]}
    with joblib.parallel_config("threading", n_jobs=3):
        threads = study(folder, grid, "threads")
    pd.testing.assert_frame_equal(without_times(threads.runs), without_times(study(folder, grid).runs))


def test_another_test_set_is_the_one_that_is_measured(folder):
    test = make_set(CARD, [2, 1, 0, 0], "test", seed=5)
    data = small_data()
    shifted = Named("shifted", Data(CARD, data.train, data.val, test, record={}))
    made = study(folder, {"method": "Prototypes", "num_shots": 4, "test": [shifted, data]})
    predictions = [made.predictions(run) for run in made.runs["run"]]
    assert [len(found.labels) for found in predictions] == [4, 30]
    assert made.runs["test"].tolist() == ["shifted", "lesions"]


def four_classes() -> Data:
    """Data of two base classes and two new ones."""
    card = make_card().model_copy(deep=True)
    phrases = {"symptoms": ["rough skin"]}
    card.classes.append(card.classes[0].model_validate({"name": "wart", "knowledge": phrases}))
    sets = [
        make_set(card, [0, 1, 2, 3] * 4, part, seed) for seed, part in enumerate(("train", "val", "test"))
    ]
    return Data(card, *sets, record={})


def test_base_to_new_trains_on_the_first_classes_and_tests_on_both(folder, monkeypatch):
    def no_training(*args: object, **options: object) -> None:
        raise AssertionError("what cannot be transferred was trained")

    monkeypatch.setattr("medvlp.study.ablation.run.fit", no_training)
    data = four_classes()
    card, names = data.card, data.card.classnames
    made = study(folder, {"method": ["ZeroShot", "Prototypes"], "base_to_new": True}, data=data)
    zero, prototypes = made.runs.to_dict("records")
    assert prototypes["status"] == "failed"
    assert "'weight'" in made.failures()["error"][0] and "says nothing" in made.failures()["error"][0]
    clip, expected = load_clip(clip_in(folder)), []
    for half in (names[:2], names[2:]):
        own = card.with_classes(half)
        images = data.test.of_classes(own)
        right = predict_logits(ZeroShot(clip, own), images).argmax(dim=1) == images.labels
        expected.append(right.double().mean().item())
    base, new = expected
    assert [zero["base accuracy"], zero["new accuracy"]] == expected
    assert zero["harmonic mean"] == pytest.approx(2 * base * new / (base + new))
    assert zero["accuracy"] == base


def test_base_to_new_reads_what_is_given_by_class(folder):
    """Symptoms and LLM states of all classes: the base classes' in training, the new ones' after it."""
    data = four_classes()
    own = Named("own", {name: [f"{name} like a stone", "round"] for name in data.card.classnames})
    states = {c: torch.randn(9, 12, generator=torch.Generator().manual_seed(i))
              for i, c in enumerate(data.card.classnames)}  # fmt: skip
    grids = [
        {"method": "ZeroShot", "symptoms": own, "base_to_new": True},
        {"method": "ViP", "aggregation": "mean", "symptoms": own, "base_to_new": True},
        {"method": "CILMP", "representations": Named("own", states), "image_depth": 0, "base_to_new": True},
    ]
    made = study(folder, grids, data=data)
    assert made.failures()["traceback"].tolist() == []
    clip = load_clip(clip_in(folder))
    new = data.card.with_classes(data.card.classnames[2:])
    images = data.test.of_classes(new)
    zero = ZeroShot(clip, new, symptoms={name: own.value[name] for name in new.classnames})
    right = predict_logits(zero, images).argmax(dim=1) == images.labels
    assert made.runs["new accuracy"][0] == right.double().mean().item()


def test_what_validation_says_of_a_run_is_what_the_finished_method_says(folder):
    data = small_data()
    made = study(folder, {"method": "Prototypes", "config.keep": ["best", "last"], "num_shots": 4}, data=data)
    clip = load_clip(clip_in(folder))
    for _, row in made.runs.iterrows():
        method = Prototypes(clip, CARD)
        config = replace(recipe(method), **RECIPE, seed=1, keep=row["config.keep"])
        train, val = Parts(data).cut(4, 1)
        history = fit(method, train, val, config, progress=False)
        logits = predict_logits(method, val).double()
        assert row["val loss"] == pytest.approx(F.cross_entropy(logits, val.labels).item(), rel=1e-6)
        assert row["epoch"] == (
            4 if row["config.keep"] == "last" else history["epoch"][history["best"]].item()
        )


def test_labels_of_a_test_set_that_were_lost_are_written_again(folder):
    grid = {"method": "ZeroShot"}
    before = study(folder, grid).summary()
    (path,) = (folder / "store" / "tests").iterdir()
    path.unlink()
    pd.testing.assert_frame_equal(study(folder, grid).summary(), before)


@pytest.mark.parametrize(
    ("impossible", "message"),
    [
        ({"method": "ZeroShot", "symptoms": Named("more", {"worm": ["round"]})}, "ZeroShot.*unknown"),
        ({"method": "CILMP"}, "CILMP on lesions: unknown card 'lesions'"),
        ({"method": "VPT", "depth": [1, 99]}, "VPT on lesions: depth"),
        ({"method": "ViP", "base_to_new": True}, "ViP on lesions.*says nothing about others"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_run(folder, impossible, message):
    with pytest.raises(ValueError, match=f"{message}.* No run was started"):
        study(folder, [{"method": "Prototypes"}, impossible], data=four_classes())
    assert not RunStore(folder / "store").ids()
