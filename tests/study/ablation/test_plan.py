"""The plan of a study: errors before any run, names in tables, and what travels to other processes."""

import inspect
import linecache
import os
import pickle
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medvlp.backbone.clip import Clip
from medvlp.data.datasets import Data, load_dataset
from medvlp.study.ablation.grid import Named
from medvlp.study.ablation.plan import plan
from medvlp.study.ablation.sources import Parts, clip_source, data_source
from medvlp.study.training.config import TrainConfig
from tests.backbone import small_clips
from tests.data.squares import FOLDER, draw_classes
from tests.methods.small import make_set
from tests.study.ablation.small_study import Slow, clip_in, noted, small_data, study
from tests.study.training.small_training import CARD, Prototypes


def test_shots_are_those_of_load_dataset():
    parts = Parts(load_dataset("phantom-derm", seed=1))
    train, val = parts.cut(4, 1)
    same = load_dataset("phantom-derm", num_shots=4, seed=1)
    assert train.ids == same.train.ids and val.ids == same.val.ids
    assert parts.cut(4, 2)[0].ids != train.ids
    assert set(parts.cut(2, 1)[0].ids) < set(train.ids)
    assert parts.cut("all", 2)[0] is parts.data.train


def uneven(counts: list[int]) -> Data:
    """Small data whose training classes have so many images."""
    labels = [label for label, n in enumerate(counts) for _ in range(n)]
    return replace(small_data(), train=make_set(CARD, labels))


@pytest.mark.parametrize(
    ("counts", "num_shots", "realistic", "relaxed"),
    [
        ([20, 10, 10], 4, [6, 3, 3], [6, 3, 3]),
        ([90, 9, 1], 4, [11, 1, 0], [10, 1, 1]),  # 10.8, 1.08 and 0.12 of 12
        ([30, 30, 40], 3, [3, 3, 3], [3, 3, 3]),  # 2.7, 2.7 and 3.6 of 9: one too many, from the largest
        ([10, 10, 0], 2, [3, 3, 0], [3, 3, 0]),
    ],
)
def test_shots_as_they_come_have_each_classs_share(counts, num_shots, realistic, relaxed):
    parts = Parts(uneven(counts))
    for scenario, expected in (("realistic", realistic), ("relaxed", relaxed)):
        train, val = parts.cut(num_shots, 1, scenario)
        assert list(train.counts.values()) == expected and val is None
        again = Parts(uneven(counts)).cut(num_shots, 1, scenario)[0]
        assert train.ids == again.ids and parts.cut(num_shots, 2, scenario)[0].ids != train.ids
    with pytest.raises(ValueError, match=f"90 shots of 3 classes: there are {sum(counts)} images"):
        parts.cut(90, 1, "realistic")


def test_standard_shots_have_no_validation_and_the_rarest_class_says_how_many_there_are_of_each():
    parts = Parts(uneven([6, 4, 3]))
    train, val = parts.cut(2, 1, "standard")
    assert val is None and train.ids == parts.cut(2, 1)[0].ids
    assert list(parts.cut("rarest", 1)[0].counts.values()) == [3, 3, 3]
    assert parts.cut("all", 1, "realistic") == (parts.data.train, None)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"method": "Slower"}, {}, "unknown method 'Slower'; did you mean 'Slow'"),
        ({"secondz": 1}, {}, "did you mean 'seconds'"),
        ({"epochs": [1, 0]}, {}, "epochs is 0"),
        ({"epochs": 1.5}, {}, "epochs is 1.5; it should be a valid integer"),
        ({"lr": "x"}, {}, "lr is 'x'; it should be a valid number"),
        ({"lr": 0.1, "config.lr": 0.2}, {}, "gives 'lr' twice"),
        ({"num_shots": 100}, {}, "fewer than num_shots=100"),
        ({"num_shots": "2"}, {}, "num_shots is '2'; it should be a valid integer or 'all'"),
        ({"num_shots": True}, {}, "num_shots is True"),
        ({"num_shots": 0}, {}, "num_shots is 0"),
        ({"seed": "a"}, {}, "seed is 'a'; it should be a valid integer"),
        ({"seed": 1.9}, {}, "seed is 1.9"),
        ({"seed": -1}, {}, "seed is -1"),
        ({"average": "no"}, {}, "average is 'no'; it should be a valid boolean"),
        ({"base_to_new": "false"}, {}, "base_to_new is 'false'"),
        ({"base_to_new": True}, {}, "need two each"),
        ({"test": "phantom-cxr"}, {}, "must be the same, in the same order"),
        ({"data": ["phantom-dermm"]}, {}, "unknown card 'phantom-dermm'"),
        ({}, {"data": None}, "no data set"),
        ({}, {"config": {"lrr": 1}}, "unknown field 'lrr' in TrainConfig"),
        ({}, {"config": {"seed": 5}}, "seeds are in its grid"),
        ({}, {"config": TrainConfig()}, "give only the fields that change"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_run(folder, change, options, message):
    with pytest.raises(ValueError, match=message):
        study(folder, {"method": "Slow"} | change, **options)
    assert not noted() and not (folder / "store").exists()


def test_a_grid_names_its_methods(folder):
    with pytest.raises(ValueError, match="needs a 'method'"):
        study(folder, {"seed": 1})
    for misspelt in ("methd", "Methods"):
        with pytest.raises(ValueError, match=f"unknown key '{misspelt}' in the grid; did you mean 'method'"):
            study(folder, {"seed": 1, misspelt: ["Slow"]})


def test_runs_that_tables_cannot_tell_apart_need_names(folder):
    sets = [small_data(8), small_data(6)]
    with pytest.raises(ValueError, match="look the same in tables; name"):
        study(folder, {"method": "Slow", "data": sets})
    named = [Named("eight", sets[0]), Named("six", sets[1])]
    assert study(folder, {"method": "Slow", "data": named}).runs["data"].tolist() == ["eight", "six"]


def test_what_is_given_by_name_travels_by_name(folder):
    clip = clip_source(clip_in(folder))
    weights = sum(parameter.numel() for parameter in clip.get().parameters())
    sent = pickle.dumps(clip)
    assert len(sent) < 1000 < weights < len(pickle.dumps(clip_source(clip.get())))
    there = pickle.loads(sent)
    assert there.get().fingerprint == clip.fingerprint and there.get() is there.get()
    data = data_source("phantom-derm", None)
    assert len(pickle.dumps(data)) < 1000
    assert pickle.loads(pickle.dumps(data)).get().data.test.ids == data.get().data.test.ids
    small = pickle.loads(pickle.dumps(data_source(small_data(), None)))
    assert torch.equal(small.get().data.test.labels, small_data().test.labels)


def test_other_weights_under_the_same_name_are_noticed(folder):
    sent = pickle.dumps(clip_source(small_clips.open_clip_kind(folder / "mine", seed=8)))
    small_clips.open_clip_kind(folder / "mine", seed=9)
    with pytest.raises(RuntimeError, match="not in this process what it is where the study was started"):
        pickle.loads(sent).get()


def test_published_recipe_then_config_then_grid(folder):
    class Published(Prototypes):
        recipe = {"epochs": 2, "lr": 0.07, "batch_size": 4, "views": 0}

    methods, config = {"Published": Published}, {"lr": 0.03, "batch_size": 6}
    grid = {"method": "Published", "batch_size": 12}
    (run,) = plan(grid, small_data(), None, clip_in(folder), config, methods)
    assert run.config == TrainConfig(epochs=2, lr=0.03, batch_size=12, views=0)


def test_the_study_s_config_may_switch_the_average_off_and_the_grid_on(folder):
    class Averaged(Prototypes):
        average = {"mean": 1.0, "std": 0.3, "tensors": None}

    methods, grid = {"Averaged": Averaged}, {"method": "Averaged"}
    where = small_data(), None, clip_in(folder)
    (published,) = plan(grid, *where, {}, methods)
    (off,) = plan(grid, *where, {"average": False}, methods)
    (on,) = plan(grid | {"average": True}, *where, {"average": False}, methods)
    assert published.protocol.average and not off.protocol.average
    assert on.id == published.id != off.id


CLASS = """
class Mine(Prototypes):
    scale = {scale}

    @property
    def sign(self):
        return {sign}

    def forward(self, images):
        return self.scale * self.sign * super().forward(images)
"""


def id_of(folder: Path, clip: Clip, notebook: bool, **constants: float) -> str:
    """The id of a run of a method of one's own, from a module or from a cell of a notebook."""
    source = CLASS.format(**{"scale": 1.0, "sign": 1.0} | constants)
    module = types.ModuleType("mine")
    path = folder / f"{'cell' if notebook else 'mine'}{len(list(folder.iterdir()))}.py"
    if notebook:  # lines that Python knows, of a module without file
        linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))
        path.touch()
    else:
        path.write_text(source)
        module.__file__ = str(path)
    sys.modules["mine"] = module
    module.Prototypes = Prototypes
    exec(compile(source, str(path), "exec"), vars(module))
    (run,) = plan({"method": "Mine"}, small_data(), None, clip, None, {"Mine": module.Mine})
    del sys.modules["mine"]
    return run.id


@pytest.mark.parametrize("notebook", [False, True])
def test_a_changed_method_of_ones_own_makes_other_runs(tmp_path, clip, notebook):
    changes = ({}, {}, {"scale": 2.0}, {"sign": -1.0})
    ids = [id_of(tmp_path, clip, notebook, **constants) for constants in changes]
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_a_changed_base_of_ones_own_makes_other_runs(clip, monkeypatch):
    (run,) = plan({"method": "Slow"}, small_data(), None, clip, None, {"Slow": Slow})
    read = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda kind: read(kind) + "changed" * (kind is Prototypes))
    (other,) = plan({"method": "Slow"}, small_data(), None, clip, None, {"Slow": Slow})
    assert run.id != other.id


def test_a_changed_constant_of_a_class_without_functions_makes_other_runs(clip):
    ids = set()
    for scale in (1, 2):
        space = {"Prototypes": Prototypes, "__name__": "__main__"}
        exec(f"class Mine(Prototypes):\n    scale = {scale}", space)
        (run,) = plan({"method": "Mine"}, small_data(), None, clip, None, {"Mine": space["Mine"]})
        ids.add(run.id)
    assert len(ids) == 2


def test_a_method_without_source_is_refused(clip):
    space = {"Prototypes": Prototypes, "__name__": "__main__"}
    exec(CLASS.format(scale=1, sign=1), space)
    with pytest.raises(ValueError, match="the source of Mine cannot be read.* in a notebook's cell"):
        plan({"method": "Mine"}, small_data(), None, clip, None, {"Mine": space["Mine"]})


def test_runs_go_by_what_is_in_the_files_not_by_their_times_and_place(tmp_path, clip):
    """A copy elsewhere has the same runs; a noisy one of equal names, sizes and times has others."""
    draw_classes(tmp_path / "clean", each=8)
    for place in ("copy", "noisy"):
        shutil.copytree(tmp_path / "clean", tmp_path / place, copy_function=shutil.copyfile)
    for path in (tmp_path / "noisy").rglob("*.png"):
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(bytes(content))
    for path in (tmp_path / "copy").rglob("*.png"):
        os.utime(path, (1, 1))
    for place in ("clean", "noisy"):
        for path in (tmp_path / place).rglob("*.png"):
            os.utime(path, (10**9, 10**9))
    clean, copy, noisy = (load_dataset(FOLDER, root=tmp_path / place) for place in ("clean", "copy", "noisy"))

    def run_ids(data, tests):
        grid = {"method": "LinearProbe", "test": [Named(str(i), test) for i, test in enumerate(tests)]}
        return [run.id for run in plan(grid, data, None, clip, None, None)]

    assert run_ids(clean, [clean]) == run_ids(copy, [copy]) == run_ids(copy, [clean])
    assert len(set(run_ids(clean, [clean, noisy]))) == 2
