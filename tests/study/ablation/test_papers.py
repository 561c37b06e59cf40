"""The papers' ablations: grids that are sound, small, and answer their question."""

import json

import numpy as np
import pytest
import torch

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.cards import load_card
from medvlp.data.datasets import load_dataset
from medvlp.knowledge.llm.representations import Representations, shipped_representations
from medvlp.methods.registry import METHODS
from medvlp.study.ablation import cilmp_grids, family_grids, papers
from medvlp.study.ablation.grid import Named, combinations, label
from medvlp.study.ablation.plan import plan
from medvlp.study.training.config import recipe
from medvlp.study.transfer import transfer

MANY = 210  # runs that a default grid may have at most


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny", device="cpu")


def planned(ablation, clip):
    """The runs as `run_ablation` would make them; it raises for a key that a method does not take."""
    return plan(ablation.grids, None, None, clip, ablation.config, None)


@pytest.mark.parametrize("name", papers.ABLATIONS)
class TestDefaults:
    def test_every_setting_is_a_run_of_its_own(self, name, clip):
        ablation = papers.ABLATIONS[name]()
        runs = planned(ablation, clip)
        assert len(runs) == len({run.id for run in runs}) == ablation.n_runs <= MANY
        assert {run.seed for run in runs} == {1, 2, 3}

    def test_there_is_a_baseline_for_every_seed(self, name, clip):
        ablation = papers.ABLATIONS[name]()
        found = [
            run["seed"]
            for run in combinations(ablation.grids)
            if all(label(run.get(key)) == value for key, value in ablation.baseline.items())
        ]
        assert set(found) == {1, 2, 3}
        assert len(found) < ablation.n_runs, "there is nothing to compare"

    def test_cards_shots_and_seeds_are_arguments(self, name):
        one = papers.ABLATIONS[name](cards=["phantom-cxr"], shots=["all"], seeds=[7])
        two = papers.ABLATIONS[name](cards=["phantom-cxr", "phantom-derm"], shots=["all", 2], seeds=[7, 8])
        assert two.n_runs == 8 * one.n_runs
        runs = combinations(one.grids)
        assert {(run["data"], run["shots"], run["seed"]) for run in runs} == {("phantom-cxr", "all", 7)}

    def test_its_docstring_counts_its_settings(self, name):
        build = papers.ABLATIONS[name]
        settings = build(seeds=[1]).n_runs
        assert f"{settings} by default" in build.__doc__ or f"{settings} settings" in build.__doc__
        assert build().question.endswith("?") and build().question.count("?") == 1


def test_the_overview_lists_them_all():
    table = papers.overview(seeds=[1])
    assert list(table.index) == list(papers.ABLATIONS)
    assert table["runs at most"]["vip_parts"] == 4 and table["runs at most"]["cilmp_lengths"] == 9


def test_kinds_of_knowledge_are_those_of_the_card_and_more(clip):
    more = {"phantom-cxr": {"local LLM": {"normal lung": ["dark"], "pneumonia": ["white", "gray"]}}}
    ablation = papers.vip_knowledge(["phantom-cxr"], seeds=[1], more=more)
    values = {run["symptoms"].name: run["symptoms"].value for run in combinations(ablation.grids)}
    kinds = ["symptoms", "class names", "templates", "out-of-domain", "useless", "incorrect", "local LLM"]
    assert list(values) == kinds and values["symptoms"] is None
    card = load_card("phantom-cxr")
    assert values["class names"]["pneumonia"] == ["a chest X-ray of pneumonia."]
    assert len(values["templates"]["normal lung"]) == len(card.templates)
    assert values["incorrect"] == card.symptoms("incorrect")
    assert values["local LLM"] == more["phantom-cxr"]["local LLM"]
    assert len(planned(ablation, clip)) == 14


def test_methods_that_are_compared_get_the_same_care(clip):
    """Each trained method has three rates to choose from, the same recipe otherwise, and as many epochs."""
    ablation = papers.family(shots=[16, "all"], seeds=[1])
    grids = [grid for grid in ablation.grids if "lr" in grid]
    assert {grid["method"].name for grid in grids} == set(family_grids.TRAINED)
    for grid in grids:
        published = recipe(METHODS[grid["method"].value]).lr
        assert np.allclose(np.array(grid["lr"]) / published, [1, 30, 1000])
        assert grid["epochs"] == (50 if grid["shots"] == [16] else 3)
    runs = planned(ablation, clip)
    for name, value in ablation.config.items():
        assert {getattr(run.config, name) for run in runs} == {value}
    assert set(METHODS) == {run["method"].value for run in combinations(ablation.grids)}


def test_shipped_studies_hold_what_their_commands_ask_for(clip):
    """The committed runs are those that the ablations' grids make, a rate chosen for each."""
    for name, config in {"few_shot": {}, "vip_parts": {"epochs": 10, "views": 0}}.items():
        ablation = papers.ABLATIONS[name]()
        runs = plan(ablation.grids, None, None, clip, {**ablation.config, **config}, None)
        found = papers.shipped_study(name)
        shipped = found.runs.set_index("run")
        assert set(shipped["status"]) == {"done"}
        assert set(shipped.index) <= {run.id for run in runs}
        rest = [key for key in found.varied if key not in ("lr", "seed")]
        assert (shipped.groupby(rest, dropna=False)["seed"].nunique() == 3).all()
        if "lr" in found.varied:
            assert (shipped.groupby(rest, dropna=False)["lr"].nunique() == 1).all()
        assert len(shipped) == 3 * len(shipped.drop_duplicates(rest))
    few_shot = papers.shipped_study("few_shot").runs
    probes = few_shot.loc[few_shot["method"] == "Linear probe", "n_trainable"]
    assert set(probes) == {2 * (128 + 1)}  # weights and biases, on the embedded CLIP's features
    with pytest.raises(ValueError, match="unknown shipped study 'few_shots'; did you mean 'few_shot'"):
        papers.shipped_study("few_shots")


def test_fewer_symptoms_are_among_the_more_and_differ_by_seed():
    runs = combinations(papers.vip_number(["phantom-derm"], seeds=[1, 2]).grids)
    drawn = {(run["seed"], run["symptoms"].name): run["symptoms"].value for run in runs}
    listed = load_card("phantom-derm").symptoms()
    for seed in (1, 2):
        one, two, four = (drawn[seed, k]["melanoma"] for k in "124")
        assert (len(one), len(two), len(four)) == (1, 2, 4) and drawn[seed, "all"] is None
        assert set(one) < set(two) < set(four) < set(listed["melanoma"])
        assert four == sorted(four, key=listed["melanoma"].index)
        places = [listed["melanoma"].index(phrase) for phrase in four]
        assert drawn[seed, "4"]["nevus"] == [listed["nevus"][place] for place in places]
    assert drawn[1, "4"] != drawn[2, "4"]


def test_a_number_that_the_card_does_not_have_is_left_out():
    runs = combinations(papers.vip_number(["pneumonia"], seeds=[1], numbers=(2, 40)).grids)
    assert [run["symptoms"].name for run in runs if run["method"] == "ViP"] == ["2", "all"]


def test_data_sets_and_cards_serve_as_their_names(clip):
    data, card = load_dataset("phantom-cxr"), load_card("phantom-cxr")
    for build in (papers.vip_number, papers.vip_knowledge, papers.shift):
        named, given, read = (build([one], seeds=[1]) for one in ("phantom-cxr", data, card))
        ids = [[run.id for run in planned(ablation, clip)] for ablation in (named, given, read)]
        assert ids[0] == ids[1] == ids[2]


def test_a_shift_tests_the_same_training_twice(clip):
    runs = planned(papers.shift(["phantom-derm"], seeds=[1], methods=["ZeroShot", "ViP"]), clip)
    assert [(run.method, run.test.name) for run in runs] == [
        (method, test) for method in ("ZeroShot", "ViP") for test in ("phantom-derm", "phantom-derm-shifted")
    ]
    assert runs[2].inputs["train"] == runs[3].inputs["train"]
    assert runs[2].inputs["test"] != runs[3].inputs["test"]
    other = papers.shift(["phantom-derm"], tests={"phantom-derm": "elsewhere.md"}, methods=["ViP"])
    assert other.grids[0]["test"] == ["phantom-derm", "elsewhere.md"]
    with pytest.raises(ValueError, match="card 'derm7pt' has no shifted one; name a data set"):
        papers.shift(["derm7pt"])


def test_methods_for_new_classes_are_those_that_transfer(clip):
    """The methods of `base_to_new`, untrained, all pass to the other half of the classes."""
    for run in planned(papers.base_to_new(seeds=[1]), clip):
        card = run.data.get().data.card
        method = run.kind(clip, card.with_classes(card.classnames[:3]), **run.arguments)
        new = transfer(method, card.with_classes(card.classnames[3:]))
        assert new(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_llms_layers_and_layouts_are_named(clip, monkeypatch, tmp_path):
    made = []

    def fake(card, llm, layout, layer, path):
        made.append((llm, layout, layer, path.name))
        start = torch.arange(128.0).reshape(16, 8) + 200 * len(made)
        return Representations({name: start + 9 * i for i, name in enumerate(card.classnames)})

    monkeypatch.setattr(cilmp_grids, "find_llm", lambda llm: llm.upper())
    monkeypatch.setattr(cilmp_grids, "llm_representations", fake)
    llms = {"SmolLM2": "smollm2", "Gemma 3": "gemma.gguf"}
    variants = papers.llm_variants("phantom-derm", llms, layers=(-1, 0), folder=tmp_path)
    assert [one.name for one in variants[:3]] == [
        "SmolLM2, layer -1",
        "SmolLM2, layer 0",
        "SmolLM2, all layers",
    ]
    assert made[-1] == ("GEMMA.GGUF", "layers", -1, "phantom-derm-Gemma-3-all-layers.safetensors")
    assert len({name for *_, name in made}) == 6
    rows = torch.cat([h for one in variants for h in one.value.states.values()])
    assert torch.allclose(rows.square().mean(dim=1), torch.ones(len(rows)))
    plain = papers.llm_variants("phantom-derm", {"SmolLM2": "smollm2"}, same_size=False, folder=tmp_path)
    assert plain[0].value.states["nevus"].min() == 7 * 200 + 9  # of the seventh call, the second class
    ablation = papers.cilmp_llm({"phantom-derm": variants}, seeds=[1])
    runs = planned(ablation, clip)
    assert ablation.n_runs == len(runs) == 6
    assert [run.settings["method.representations"] for run in runs] == [one.name for one in variants]
    assert ablation.baseline == {"representations": "SmolLM2, layer -1"}


def test_the_shipped_representations_may_be_among_them(clip):
    shipped = shipped_representations("phantom-derm")
    ablation = papers.cilmp_llm({"phantom-derm": [Named("shipped", shipped)]}, seeds=[1])
    assert json.loads(json.dumps(planned(ablation, clip)[0].inputs))["method"] == "CILMP"


def test_clips_are_an_argument(clip):
    ablation = papers.backbones([clip, "tiny"], seeds=[1], methods=["ZeroShot"])
    assert ablation.n_runs == 2 and len(planned(ablation, clip)) == 1  # the same CLIP, given and by name
