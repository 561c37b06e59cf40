"""An argument of the wrong kind is named: what it is, and what it should be."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import medvlp
import medvlp.show

# classes that the package fills in itself, and settings that pydantic checks: a ValueError of its own
BUILT = {"Clip", "Data", "DataCard", "Failures", "ImageSet", "Method", "Prediction", "Report", "Study"}
BUILT |= {"Representations", "SymptomSet", "Named", "EpochAverage"}
BUILT |= {"AnnotatedConfig", "PretrainConfig", "TrainConfig"}
TABLE = pd.DataFrame({"a": [1]})


def signature(public: Any) -> dict[str, tuple[Any, bool]]:
    """Each argument's annotation, and whether it must be given."""
    hints = get_type_hints(public.__init__ if isinstance(public, type) else public)
    parameters = inspect.signature(public).parameters.items()
    return {name: (hints[name], one.default is one.empty) for name, one in parameters}


PUBLIC = {
    name: getattr(package, name)
    for package in (medvlp, medvlp.show)
    for name in package.__all__
    if name not in BUILT
}
OWN_WORDS = {("Embeddings", "vectors"), ("run_ablation", "config")}  # other errors speak of these
PLAIN = re.compile(
    r"(str|int|float|bool|Any|None| \| |Literal\[.*\]|torch\.device)+"
)  # has a check of its own
CASES = [
    (name, argument, kind)
    for name, public in PUBLIC.items()
    for argument, (kind, _) in signature(public).items()
    if not PLAIN.fullmatch(inspect.formatannotation(kind)) and "pydantic" not in str(kind)
    if "numpy._typing" not in str(kind) and (name, argument) not in OWN_WORDS
    if not (
        isinstance(public, type) and issubclass(public, medvlp.Method) and argument not in ("clip", "card")
    )
]


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> dict[str, Any]:
    """A value that fits, by the name of the argument."""
    data = medvlp.load_dataset("phantom-derm", num_shots=2)
    clip = medvlp.load_clip("tiny", device="cpu")
    zero = medvlp.ZeroShot(clip, data.card)
    cilmp = medvlp.CILMP(clip, data.card)
    images = data.test.subset(range(4))
    report = medvlp.evaluate(zero, images, n_bootstrap=1)
    values = {"clip": clip, "card": data.card, "train": images, "val": images, "images": images}
    values |= {"method": zero, "right": zero, "wrong": zero, "cilmp": cilmp, "methods": {"zero": zero}}
    values |= {"report": report, "reports": report, "baseline": report, "make": lambda: zero}
    values |= {"image": images.image(0), "symptoms": zero.symptoms, "world": images.world}
    values |= {"latents": images.latents, "embeddings": medvlp.show.symptom_points(zero), "fig": plt.figure()}
    values |= dict.fromkeys(("table", "comparison", "runs", "maps", "hidden", "scores", "histories"), TABLE)
    values |= dict.fromkeys(("summaries", "tables"), {"one": TABLE}) | {"points": TABLE}
    values |= dict.fromkeys(("texts", "titles", "captions", "phrases"), ["a text"])
    values |= dict.fromkeys(("labels", "p", "similarity", "vectors"), np.eye(2)) | {
        "grid": {"method": ["ViP"]}
    }
    values |= dict.fromkeys(("bayes", "chance", "seed", "num_shots"), 1) | {"config": medvlp.PretrainConfig()}
    values |= dict.fromkeys(("name", "model", "attribute", "x", "y", "made_by", "name_or_path"), "accuracy")
    values |= {"classname": data.card.classnames[0]}
    values |= dict.fromkeys(("store", "name_or_card_path"), tmp_path_factory.mktemp("somewhere"))
    return values | {"client": None, "path": values["store"] / "method.safetensors"}


def required(public: Any, right: dict[str, Any]) -> dict[str, Any]:
    kinds = {name: kind for name, (kind, needed) in signature(public).items() if needed}
    arrays = {name: right["vectors"] for name, kind in kinds.items() if "Tensor |" in str(kind)}
    configs = {name: kind() for name, kind in kinds.items() if kind is medvlp.AnnotatedConfig}
    return {name: right[name] for name in kinds} | arrays | configs


def wrong_values(kind: Any) -> list[Any]:
    """What no argument of this kind should take."""
    words, kinds = inspect.formatannotation(kind), get_args(kind) or (kind,)
    values: list[Any] = [object()] if "Callable" in words else [object(), pd.DataFrame]
    if type(None) not in kinds:
        values.append(None)
    if not any(word in words for word in ("str", "Path", "Any", "Sequence")):
        values += ["images/xray", ["images/xray"], {"images": "xray"}]
    if kind == Sequence[str]:
        values += ["one text", [3]]
    if kind == Mapping[str, medvlp.Method]:
        values += [["a list"], {"zero": "zero-shot"}]
    return values


@pytest.mark.parametrize(("name", "argument", "kind"), CASES, ids=lambda value: str(value)[:20])
def test_the_argument_is_named(name, argument, kind, right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    public = PUBLIC[name]
    for value in wrong_values(kind):
        with pytest.raises((TypeError, ValueError)) as raised:
            public(**required(public, right) | {argument: value})
        words = str(raised.value)
        assert argument in words and re.search("should be|must be|an image is a path", words), (
            f"{value!r}: {words}"
        )


@pytest.mark.parametrize("columns", [["a"], []])
@pytest.mark.parametrize(
    ("name", "argument", "kind"),
    [
        case
        for case in CASES
        if "DataFrame" in str(case[2]) and case[0] not in ("in_words", "to_markdown", "save")
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_table_of_something_else_is_named(name, argument, kind, columns, right):
    public, table = PUBLIC[name], pd.DataFrame({column: [1] for column in columns})
    value = {"one": table} if str(kind).startswith("collections.abc.Mapping") else table
    with pytest.raises(ValueError, match="no column|has no|unknown column|of 1 points|of 0 points"):
        public(**required(public, right) | {argument: value})


def test_a_long_text_is_shortened_in_an_error(right, tmp_path):
    long, clip, card = "word " * 20_000, right["clip"], right["card"]
    lists = {"melanoma": [long], "nevus": ["round"]}
    for call in (
        lambda: medvlp.load_clip(long),
        lambda: medvlp.load_clip(f"{long}/openai"),
        lambda: medvlp.load_clip(f"local-dir:{long}"),
        lambda: medvlp.llm_representations(card, llm=long),
        lambda: medvlp.load_card(long),
        lambda: medvlp.get_world(long),
        lambda: card.label_of(long),
        lambda: clip.encode_texts([long]),
        lambda: medvlp.ZeroShot(clip, card, symptoms={long: ["round"]}),
        lambda: medvlp.ZeroShot(clip, card, knowledge="templates", templates=[long]),
        lambda: medvlp.ViP(clip, card, symptoms=lists),
        lambda: medvlp.CoOp(clip, card, ctx_init=long),
        lambda: medvlp.TrainConfig(metric=long),
        lambda: medvlp.show.save_figure(right["fig"], f"{long}/a", "a notebook", tmp_path),
        lambda: medvlp.show.flip(right["images"], long),
        lambda: medvlp.show.failures(long, right["images"]),
    ):
        with pytest.raises((TypeError, ValueError, FileNotFoundError)) as raised:
            call()
        assert "word word" in str(raised.value) and len(str(raised.value)) < 3000


@pytest.mark.parametrize(
    "wrong", [{"n": 2.5}, {"n": 0}, {"agree": "vote"}, {"max_words": "12"}, {"threshold": 2.0}]
)
def test_a_setting_of_generate_symptoms_that_is_out_of_range_is_told_in_one_line(wrong, right):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=f"{name}.*{re.escape(repr(value))}") as raised:
        medvlp.generate_symptoms(right["card"], object(), "model", **wrong)
    assert str(raised.value).startswith(("generate_symptoms: ", "unknown ")) and "\n" not in str(raised.value)
    with pytest.raises(TypeError, match="missing a required argument: 'model'"):
        medvlp.generate_symptoms(right["card"], object())
    with pytest.raises(TypeError, match="unexpected keyword argument 'base_url'"):
        medvlp.generate_symptoms(right["card"], object(), "model", base_url="http://localhost")


def test_a_path_in_an_error_acts_unseen_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        medvlp.load_card(tmp_path / "none\x1b[31m.md")
    assert "\x1b" not in str(raised.value) and r"none\x1b[31m.md" in str(raised.value)


METHOD_ARGUMENTS = [
    (name, argument)
    for name, public in PUBLIC.items()
    if isinstance(public, type) and issubclass(public, medvlp.Method)
    for argument, (kind, _) in signature(public).items()
    if argument not in ("clip", "card") and kind is not bool
]


@pytest.mark.parametrize(("name", "argument"), METHOD_ARGUMENTS)
def test_an_argument_of_a_method_is_named(name, argument, right):
    with pytest.raises(TypeError, match=f"^{name}: {argument} is of kind complex; it should be "):
        PUBLIC[name](right["clip"], right["card"], **{argument: 1j})


WHOLE_NUMBERS = [
    (name, argument)
    for name, public in PUBLIC.items()
    for argument, (kind, _) in signature(public).items()
    if kind in (int, int | None)
]


@pytest.mark.parametrize(("name", "argument"), WHOLE_NUMBERS)
def test_a_number_that_should_be_whole_is_named(name, argument, right):
    public = PUBLIC[name]
    with pytest.raises((TypeError, ValueError), match=f"{argument} is 2.5; it should be (int|a valid int)"):
        public(**required(public, right) | {argument: 2.5})
