"""The papers' ablations: grids that are sound, small, and answer their question."""

from functools import partial

import numpy as np
import pytest
import torch

from medvlp.backbone.clip import Clip, load_clip
from medvlp.data.cards import load_card
from medvlp.data.datasets import load_dataset
from medvlp.knowledge.representations import Representations, shipped_representations
from medvlp.methods import METHODS
from medvlp.study.ablation import papers
from medvlp.study.ablation.grid import Named, combinations, label
from medvlp.study.ablation.papers import ABLATIONS
from medvlp.study.ablation.plan import keys_to_choose, plan
from medvlp.study.saving import transfer
from medvlp.study.training.config import TrainConfig, recipe

MANY = 210  # runs that a default grid may have at most


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny", device="cpu")


def planned(grids, clip, config=None):
    """The runs as `run_ablation` would make them; it raises for a key that a method does not take."""
    return plan(grids, None, None, clip, config, None)


# {ablation: its settings}: what `overview` counts for one seed and its default cards and shots
SETTINGS = {
    "vip_parts": 4,
    "vip_aggregation": 3,
    "vip_knowledge": 2 * 6,
    "vip_number": 2 * 4,
    "vip_context": 7,
    "cilmp_intervention": 3,
    "cilmp_rank": 5,
    "cilmp_lengths": 3 * 3,
    "cilmp_depth": 4,
    "cilmp_averaging": 2,
    "family": 5 + 15 * 3,
    "few_shot": 5 * (2 + 4 * 3),
    "realistic": 13 * 2 * 2,
    "base_to_new": 8,
    "shift": 7 * 2,
    "interventions": 2 * 8,
}


def test_representations_go_to_the_methods_that_read_them_and_change_no_other_run(clip):
    states = Representations({name: torch.ones(9, 12) for name in load_card("phantom-fundus").classnames})
    ablation = ABLATIONS["base_to_new"]
    before, after = (
        planned(ablation.on(seeds=[1], representations=given), clip)
        for given in (None, {"phantom-fundus": states})
    )
    different = [one.method for one, other in zip(before, after, strict=True) if one.id != other.id]
    assert different == ["CILMP"] == [run.method for run in after if "representations" in run.given]


@pytest.mark.parametrize("name", ABLATIONS)
class TestDefaults:
    def test_every_setting_is_a_run_of_its_own(self, name, clip):
        ablation = ABLATIONS[name]
        runs = planned(ablation.on(), clip, ablation.config)
        assert len(runs) == len({run.id for run in runs}) == 3 * SETTINGS[name] <= MANY
        assert {run.protocol.seed for run in runs} == {1, 2, 3}
        assert ablation.question.endswith("?") and ablation.question.count("?") == 1

    def test_there_is_a_baseline_for_every_seed(self, name):
        ablation = ABLATIONS[name]
        runs = combinations(ablation.on())
        found = [
            run["seed"]
            for run in runs
            if all(label(run.get(key)) == value for key, value in ablation.baseline.items())
        ]
        assert set(found) == {1, 2, 3}
        assert len(found) < len(runs), "there is nothing to compare"

    def test_cards_shots_and_seeds_are_arguments(self, name):
        one = combinations(ABLATIONS[name].on(["phantom-cxr"], ["all"], [7]))
        two = ABLATIONS[name].on(["phantom-cxr", "phantom-derm"], ["all", 2], [7, 8])
        assert len(combinations(two)) == 8 * len(one)
        assert {(run["data"], run["num_shots"], run["seed"]) for run in one} == {("phantom-cxr", "all", 7)}


def test_the_overview_lists_them_all():
    table = papers.overview(seeds=[1])
    assert table["runs at most"].to_dict() == SETTINGS


def test_values_are_changed_where_grids_have_the_key():
    grids = ABLATIONS["vip_context"].on(seeds=[1], changes={"n_ctx": [2, 3], "position": "front"})
    assert [grid["n_ctx"] for grid in grids] == [[2, 3]] * 4
    assert {grid["position"] for grid in grids} == {"front"}
    with pytest.raises(ValueError, match="unknown key 'ranks' in the ablation; did you mean 'rank'"):
        ABLATIONS["cilmp_rank"].on(changes={"ranks": [1]})


def test_kinds_of_knowledge_are_those_of_the_card_and_more(clip):
    more = {"phantom-cxr": {"local LLM": {"normal lung": ["dark"], "pneumonia": ["white", "gray"]}}}
    kinds = partial(papers.kinds_of_knowledge, more=more)
    grids = ABLATIONS["vip_knowledge"].on(["phantom-cxr"], seeds=[1], changes={"symptoms": kinds})
    values = {run["symptoms"].name: run["symptoms"].value for run in combinations(grids)}
    kinds = ["symptoms", "class names", "templates", "out-of-domain", "useless", "incorrect", "local LLM"]
    assert list(values) == kinds and values["symptoms"] is None
    card = load_card("phantom-cxr")
    assert values["class names"]["pneumonia"] == ["a chest X-ray of pneumonia."]
    assert len(values["templates"]["normal lung"]) == len(card.templates)
    assert values["incorrect"] == card.symptoms("incorrect")
    assert values["local LLM"] == more["phantom-cxr"]["local LLM"]
    assert len(planned(grids, clip)) == 14


def test_an_underscore_in_a_class_name_is_a_space_in_texts_made_of_it():
    card = load_card("phantom-cxr")
    named = [info.model_copy(update={"name": info.name.replace(" ", "_")}) for info in card.classes]
    where = papers.Where("phantom-cxr", card.model_copy(update={"classes": named}), "all", 1)
    names = {named.name: named.value for named in papers.kinds_of_knowledge(where)}["class names"]
    assert names["normal_lung"] == ["a chest X-ray of normal lung."]


def test_methods_that_are_compared_get_the_same_care(clip):
    """Each trained method has three rates to choose from, the same recipe otherwise, and as many epochs."""
    ablation = ABLATIONS["family"]
    all_grids = ablation.on(num_shots=[16, "all"], seeds=[1])
    grids = [grid for grid in all_grids if "lr" in grid]
    assert {grid["method"].name for grid in grids} == set(papers.TRAINED)
    for grid in grids:
        published = recipe(METHODS[grid["method"].value]).lr
        assert np.allclose(np.array(grid["lr"]) / published, [1, 30, 1000])
        assert grid["epochs"] == (50 if grid["num_shots"] == 16 else 3)
    runs = planned(all_grids, clip, ablation.config)
    for name, value in ablation.config.items():
        assert {getattr(run.config, name) for run in runs} == {value}
    without_validation = {"LPPlusPlus", "SSText"}  # of the ablation "realistic"
    assert set(METHODS) - without_validation == {run["method"].value for run in combinations(all_grids)}


def test_the_realistic_ablation_chooses_nothing_and_draws_each_classs_share(clip):
    ablation = ABLATIONS["realistic"]
    runs = planned(ablation.on(["phantom-fundus"], [4], seeds=[1]), clip, ablation.config)
    assert ablation.tune is None
    for run in runs:
        assert run.config == TrainConfig(**dict(run.kind.recipe) | {"keep": "last", "views": 0, "seed": 1})
        assert run.inputs["val"] is None and run.protocol.scenario in ("standard", "realistic")
    assert len(runs) == 13 * 2, "on phantoms, where the images are the same, too"
    with pytest.raises(ValueError, match="'lr' is chosen on validation images, and a scenario here has none"):
        keys_to_choose(
            planned({"method": "CoOp", "data": "phantom-cxr", "scenario": "relaxed", "lr": [1, 2]}, clip),
            "lr",
        )


def test_interventions_have_the_recipe_of_notebook_04_and_another_for_uneven_classes(clip):
    runs = {run.settings["method"]: run for run in planned(ABLATIONS["interventions"].on(seeds=[2]), clip)}
    cilmp, vip = runs["CILMP, unconditional"], runs["ViP"]
    expected = TrainConfig(epochs=6, lr=0.0025, batch_size=64, views=0, seed=2)
    assert cilmp.config == expected and not cilmp.protocol.average
    assert cilmp.arguments["intervention"] == "unconditional"
    assert vip.config == TrainConfig(epochs=10, lr=0.002, views=0, seed=2)
    assert runs["linear probe, balanced"].arguments["class_weight"] == "balanced"
    uneven = {grid["method"]: grid for grid in ABLATIONS["interventions"].on(["pneumonia"], seeds=[1])}
    wanted = {"epochs": 20, "lr": 0.02, "views": 4, "logit_scale": 100, "class_weight": "balanced"}
    assert wanted.items() <= uneven["ViP"].items() and uneven["ViP"]["metric"] == "balanced accuracy"


def test_shipped_studies_hold_what_their_commands_ask_for(clip):
    """The committed runs are those that the ablations' grids make, a rate chosen for each."""
    for name, config in {"few_shot": {}, "vip_parts": {"epochs": 10, "views": 0}}.items():
        ablation = ABLATIONS[name]
        runs = planned(ablation.on(), clip, {**ablation.config, **config})
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


def test_the_shipped_interventions_are_runs_of_their_ablation(clip):
    study = papers.shipped_study("interventions")
    phantoms = study.runs[study.runs["data"] != "pneumonia"]
    runs = {run.id: run for run in planned(ABLATIONS["interventions"].on(), clip)}
    for _, row in phantoms.iterrows():
        assert (
            runs[row["run"]].settings["method"] == row["method"]
            and runs[row["run"]].protocol.seed == row["seed"]
        )
    trained = phantoms[phantoms["method"].str.match("CILMP|ViP")]
    assert len(phantoms) == 2 * 8 * 3 and len(trained) == 2 * 4 * 3
    assert study.runs["data"].value_counts()["pneumonia"] == 6 * 3
    with pytest.raises(ValueError, match="kept without its predictions"):
        study.predictions(phantoms["run"].iloc[0])


def test_the_shipped_x_ray_runs_are_found_again_on_the_same_images(clip, data_root):
    runs = papers.shipped_study("interventions").runs
    shipped = set(runs.loc[runs["data"] == "pneumonia", "run"])
    assert shipped <= {run.id for run in planned(ABLATIONS["interventions"].on(["pneumonia"]), clip)}


def test_on_x_rays_cilmp_and_vip_lie_above_their_symptoms_and_the_majority_with_their_whole_intervals():
    runs = papers.shipped_study("interventions").with_intervals("accuracy")
    xrays = runs[runs["data"] == "pneumonia"].set_index("method")
    assert runs["accuracy"].between(runs["accuracy low"], runs["accuracy high"]).all()
    zero_shot = xrays.loc["zero-shot, symptoms", "accuracy"].max()
    for method in ("CILMP, conditional", "ViP"):
        assert (xrays.loc[method, "accuracy low"] > max(zero_shot, 390 / 624)).all()
    assert (
        xrays.loc["CILMP, conditional", "accuracy low"] > xrays["accuracy"]["zero-shot, classnames"].max()
    ).all()


def test_fewer_symptoms_are_among_the_more_and_differ_by_seed():
    runs = combinations(ABLATIONS["vip_number"].on(["phantom-derm"], seeds=[1, 2]))
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
    where = papers.Where("pneumonia", load_card("pneumonia"), "all", 1)
    drawn = papers.fewer_symptoms(where, numbers=(2, 40))
    assert [symptoms.name for symptoms in drawn] == ["2", "all"]


@pytest.mark.parametrize("name", ["vip_number", "vip_knowledge", "shift"])
def test_data_sets_and_cards_serve_as_their_names(name, clip):
    data, card = load_dataset("phantom-cxr"), load_card("phantom-cxr")
    named, given, read = (
        [run.id for run in planned(ABLATIONS[name].on([one], seeds=[1]), clip)]
        for one in ("phantom-cxr", data, card)
    )
    assert named == given == read


def test_a_shift_tests_the_same_training_twice(clip):
    shift = ABLATIONS["shift"]
    runs = planned(shift.on(["phantom-derm"], seeds=[1], changes={"method": ["ZeroShot", "ViP"]}), clip)
    assert [(run.method, run.test.name) for run in runs] == [
        (method, test) for method in ("ZeroShot", "ViP") for test in ("phantom-derm", "phantom-derm-shifted")
    ]
    assert runs[2].inputs["train"] == runs[3].inputs["train"]
    assert runs[2].inputs["test"] != runs[3].inputs["test"]
    with pytest.raises(ValueError, match="card 'derm7pt' has no shifted one; name a data set"):
        shift.on(["derm7pt"])


def test_methods_for_new_classes_are_those_that_transfer(clip):
    """The methods of `base_to_new`, untrained, all pass to the other half of the classes."""
    for run in planned(ABLATIONS["base_to_new"].on(seeds=[1]), clip):
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

    monkeypatch.setattr(papers, "find_llm", lambda llm: llm.upper())
    monkeypatch.setattr(papers, "llm_representations", fake)
    llms = {"SmolLM2": "smollm2", "Gemma 3": "gemma.gguf"}
    states = papers.llm_variants("phantom-derm", llms, layers=(-1, 0), folder=tmp_path)
    names = ["SmolLM2, layer -1", "SmolLM2, layer 0", "SmolLM2, all layers"]
    assert [one.name for one in states[:3]] == names
    assert made[-1] == ("GEMMA.GGUF", "layers", -1, "phantom-derm-Gemma-3-all-layers.safetensors")
    assert len({name for *_, name in made}) == 6
    rows = torch.cat([h for one in states for h in one.value.states.values()])
    assert torch.allclose(rows.square().mean(dim=1), torch.ones(len(rows)))
    plain = papers.llm_variants("phantom-derm", {"SmolLM2": "smollm2"}, same_size=False, folder=tmp_path)
    assert plain[0].value.states["nevus"].min() == 7 * 200 + 9  # of the seventh call, the second class
    states.append(Named("shipped", shipped_representations("phantom-derm")))
    ablation = papers.cilmp_llm({"phantom-derm": states})
    runs = planned(ablation.on(seeds=[1]), clip)
    assert len({run.id for run in runs}) == 7
    assert [run.settings["method.representations"] for run in runs] == [one.name for one in states]
    assert ablation.baseline == {"representations": "SmolLM2, layer -1"}


def test_clips_are_a_key_of_grids(clip):
    grids = [{"method": "ZeroShot", "data": "phantom-derm", "num_shots": 2, "clip": [clip, "tiny"]}]
    assert len(combinations(grids)) == 2
    assert len(planned(grids, clip)) == 1, "it is the same CLIP, given and by name"
