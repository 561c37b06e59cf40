"""The widgets without a browser: what their functions compute, and what their controls do."""

import base64
import io
import math
import re
import sys

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from medvlp import CILMP, CoOp, TrainConfig, ViP, ZeroShot, fit, get_world, load_dataset, predict
from medvlp.data.cards import ClassInfo
from medvlp.data.html import LITERAL, literal
from medvlp.show import (
    InterventionExplorer,
    PhantomLab,
    SymptomExplorer,
    SymptomReview,
    TrainingMonitor,
    with_symptoms,
)
from medvlp.show.explanations.scores import KeptRank, with_rank
from medvlp.show.widgets.intervention_explorer import rank_effect
from medvlp.show.widgets.parts import WIDGET_VIEW, table_html
from medvlp.show.widgets.phantom_lab import draw_phantom
from medvlp.show.widgets.symptom_explorer import LEFT_OUT
from tests.methods.small import make_card, make_set

HOSTILE = '<script>alert(1)</script> & $x_1$ "spots" \''


@pytest.fixture(scope="module")
def cilmp(clip, data):
    return CILMP(clip, data.card, seed=3).eval()


def all_widgets(box) -> list:
    return [box, *(one for child in getattr(box, "children", ()) for one in all_widgets(child))]


def shown_html(box) -> str:
    return "\n".join(one.value for one in all_widgets(box) if isinstance(one, ipywidgets.HTML))


# --- symptom explorer ---


def test_a_method_with_other_symptoms_keeps_what_it_has_learned(clip, data, pixels):
    vip = ViP(clip, data.card, csc=True, seed=5)
    with torch.no_grad():
        vip.g.add_(1.0)
    f = clip.encode_images(pixels)
    same = with_symptoms(vip, vip.symptoms)
    torch.testing.assert_close(same.logits_from_features(f), vip.logits_from_features(f))
    one = {name: phrases[:1] for name, phrases in vip.symptoms.items()}
    T = vip.symptom_features()[[0, len(vip.symptoms["melanoma"])]]  # the attention on one symptom is 1
    t = F.normalize(vip.g + T, dim=-1)
    torch.testing.assert_close(with_symptoms(vip, one).logits_from_features(f), vip.logit_scale * f @ t.T)
    assert len(vip.symptoms["melanoma"]) == 8  # the method itself stays as it was


def test_leaving_a_symptom_out_changes_the_mean_that_zero_shot_decides_by(zero, data, clip):
    explorer = SymptomExplorer(zero, data.test, 3)
    before = predict(zero, data.test.image(3))
    np.testing.assert_allclose(explorer.probabilities()["before"], before.probabilities, rtol=1e-5)
    np.testing.assert_allclose(explorer.probabilities()["now"], before.probabilities, rtol=1e-5)
    explorer.toggle(0)
    explorer.toggle(9)
    table = explorer.table()
    np.testing.assert_allclose(table["score"], before.symptom_scores["score"], rtol=1e-4, atol=1e-6)
    assert (~table["used"]).to_numpy().nonzero()[0].tolist() == [0, 9]
    means = table[table["used"]].groupby("classname", sort=False)["score"].mean()
    expected = torch.tensor(clip.logit_scale * means.to_numpy()).softmax(dim=0)
    np.testing.assert_allclose(explorer.probabilities()["now"], expected, rtol=1e-4)
    explorer.toggle(9)
    explorer.toggle(0)
    np.testing.assert_allclose(explorer.probabilities()["now"], before.probabilities, rtol=1e-5)


def test_own_symptoms_are_scored_and_taken_back_by_reset(zero, data, clip):
    explorer = SymptomExplorer(zero, data.test)
    explorer.add("melanoma", "  brown   dots ")
    table = explorer.table()
    row = table[table["symptom"] == "brown dots"].iloc[0]
    cosine = explorer.features @ clip.encode_texts(["brown dots."]).T
    assert row["score"] == pytest.approx(cosine.item(), abs=1e-5)
    assert row["own"] and row["used"] and row["classname"] == "melanoma" and table["own"].sum() == 1
    assert row.name == 8  # at the end of its class
    explorer.reset()
    assert len(explorer.table()) == 16 and not explorer.table()["own"].any()


def test_a_refused_symptom_changes_nothing(zero, data):
    explorer = SymptomExplorer(zero, data.test)
    before = explorer.table()
    for classname, phrase, message in (
        ("nevi", "dots", "did you mean 'nevus'"),
        ("nevus", " . ", "the symptom is empty"),
        ("nevus", "a clean rim", "is a symptom of 'nevus' already"),
        ("nevus", "dots " * 90, "takes at most 77"),
    ):
        with pytest.raises(ValueError, match=message):
            explorer.add(classname, phrase)
    for row in range(7):
        explorer.toggle(row)
    with pytest.raises(ValueError, match="the last symptom of 'melanoma'"):
        explorer.toggle(7)
    assert explorer.used[7]
    explorer.reset()
    pd.testing.assert_frame_equal(explorer.table(), before)


def test_the_decision_says_where_it_has_moved(zero, data):
    explorer = SymptomExplorer(zero, data.test)
    moved = []
    for index in range(20):
        explorer.choose(index)
        explorer.reset()
        explorer.toggle(0)
        chances = explorer.probabilities()
        before, now = chances["before"].idxmax(), chances["now"].idxmax()
        moved.append(before != now)
        assert explorer.decision().startswith(f"Decision: {now}")
        assert (f"own symptoms it is {before}" in explorer.decision()) == moved[-1]
    assert any(moved) and not all(moved)


def test_the_symptom_explorers_controls(zero, data):
    explorer = SymptomExplorer(zero, data.test, 3)
    box = explorer.box
    melanoma, nevus = explorer._lists["melanoma"], explorer._lists["nevus"]
    buttons = melanoma.buttons.children
    assert LEFT_OUT not in melanoma.bars.value
    buttons[1].click()
    assert buttons[1].description == "✗ several different colors" and not explorer.used[1]
    assert LEFT_OUT in melanoma.bars.value
    assert melanoma.buttons.children == buttons  # the same widgets: focus stays
    explorer._index.value = 4
    assert explorer.index == 4 and "image 4 of" in explorer._picture.value
    explorer._classname.value, explorer._text.value = "nevus", "brown dots"
    explorer._add.click()
    assert nevus.buttons.children[8].description == "✓ brown dots" and explorer._text.value == ""
    nevus.buttons.children[0].click()
    assert not explorer.used[explorer.symptoms.index(("nevus", "clear warm tones"))]
    explorer._text.value = " "
    explorer._add.click()
    assert 'role="alert"' in shown_html(box) and explorer._text.value == " "
    explorer._reset.click()
    assert 'role="alert"' not in shown_html(box) and all(explorer.used)
    assert len(nevus.buttons.children) == 8


# --- phantom lab ---


@pytest.mark.parametrize("name", ["derm", "cxr", "fundus"])
def test_whole_strengths_give_the_pixels_of_the_world(name):
    world = get_world(name)
    latents = world.sample(3, seed=4)
    names = [a.name for a in world.attributes]
    for drawn, present, seed in zip(world.render(latents), latents.attributes, latents.seeds, strict=True):
        strengths = dict(zip(names, present.float().tolist(), strict=True))
        image = np.asarray(draw_phantom(world, strengths, int(seed)))
        assert np.array_equal(image, drawn.permute(1, 2, 0).numpy())
        half = draw_phantom(world, strengths | {names[0]: 0.5}, int(seed))
        assert not np.array_equal(np.asarray(half), image)


def test_the_lab_shows_what_the_methods_and_the_best_rule_say(zero, clip, data):
    vip = ViP(clip, data.card)
    lab = PhantomLab({"zero-shot": zero, "ViP": vip}, seed=1)
    lab.set("veil", 0)
    chances = lab.probabilities()
    for name, method in (("zero-shot", zero), ("ViP", vip)):
        np.testing.assert_allclose(chances[name], predict(method, lab.image).probabilities, rtol=1e-4)
    world = get_world("derm")
    present = torch.tensor([[strength >= 0.5 for strength in lab.strengths.values()]])
    np.testing.assert_allclose(chances["best rule"], world.posterior(present)[0], rtol=1e-6)
    scores = lab.scores()
    mine = scores[(scores["method"] == "zero-shot") & (scores["symptom"] == "a blue-white veil")].iloc[0]
    start = draw_phantom(world, lab.start, lab.image_seed)
    old, new = (
        predict(zero, image).symptom_scores.set_index("symptom").loc["a blue-white veil", "score"]
        for image in (start, lab.image)
    )
    assert mine["score"] == pytest.approx(new, abs=1e-5)
    assert mine["change"] == pytest.approx(new - old, abs=1e-5) and mine["change"] < -0.1
    assert "zero-shot: nevus (at the start melanoma)" in lab.decisions()
    lab.reset()
    assert lab.scores()["change"].abs().max() < 1e-6 and "at the start" not in lab.decisions()


def test_a_lab_of_some_classes_and_of_a_method_without_symptoms(clip):
    data = load_dataset("phantom-fundus").of_classes(["severe retinopathy", "no retinopathy"])
    lab = PhantomLab({"CoOp": CoOp(clip, data.card)}, seed=1)
    assert list(lab.probabilities().index) == ["severe retinopathy", "no retinopathy"]
    np.testing.assert_allclose(lab.probabilities().sum(), 1)
    assert lab.scores().empty and "Symptom scores" not in shown_html(lab.box)
    assert len(lab.static().axes) == 10


def test_the_labs_controls(zero):
    lab = PhantomLab({"zero-shot": zero}, seed=2)
    sliders = lab.box and lab._sliders
    assert [one.description for one in sliders.values()] == [a.name for a in lab.world.attributes]
    assert sliders["veil"].value == 100
    sliders["veil"].value = 30
    assert lab.strengths["veil"] == 0.3 and "veil 30" in lab._picture.value
    lab._seed.value = 5
    assert lab.seed == 5 and {n: s.value / 100 for n, s in sliders.items()} == lab.strengths == lab.start
    sliders["dots"].value = 50
    lab._reset.click()
    assert lab.strengths == lab.start and sliders["dots"].value == 100 * lab.start["dots"]


# --- intervention explorer ---


@pytest.mark.parametrize("intervention", ["conditional", "unconditional"])
def test_the_whole_rank_is_the_method_and_rank_0_leaves_the_rows_alone(clip, data, pixels, intervention):
    cilmp = CILMP(clip, data.card, intervention=intervention, seed=2).eval()
    with torch.no_grad():
        for site in cilmp.sites:
            site.prefix.R.mul_(torch.linspace(0.5, 2, 8))  # no longer orthonormal, as after training
        f = cilmp.image_features(pixels)
        torch.testing.assert_close(with_rank(cilmp, 8).class_features(f), cilmp.class_features(f))
        edges = with_rank(cilmp, 0).slot_vectors(f, 1).edges[0]  # (n_cls, P + S, w)
        h = torch.cat([cilmp.h_first, cilmp.h_last], dim=1)
        torch.testing.assert_close(edges, h @ cilmp.sites[1].A.T @ cilmp.sites[1].B.T)


def test_the_kept_edit_is_the_closest_of_its_rank_to_the_edit(cilmp, pixels):
    with torch.no_grad():
        site, h = cilmp.sites[2].prefix, cilmp.h_first
        f = cilmp.image_features(pixels)
        whole = (site(h, f) - h).flatten(1, 2)  # (B, n, d)
        for k in (1, 3):
            x, Q = KeptRank(site, k).edits(h, f)
            U, sigma, V = torch.linalg.svd(whole, full_matrices=False)
            closest = U[..., :k] * sigma[:, None, :k] @ V[:, :k]
            torch.testing.assert_close((x @ Q.T).flatten(1, 2), closest, atol=1e-4, rtol=1e-3)


def test_the_effect_of_a_rank(cilmp, pixels):
    with torch.no_grad():
        f = cilmp.image_features(pixels[:1])
        table = rank_effect(cilmp, f, 8).set_index("classname")
        chances = cilmp(pixels[:1])[0].softmax(dim=0)
        plain, full = with_rank(cilmp, 0).class_features(f)[0], cilmp.class_features(f)[0]
        angle = torch.rad2deg((plain * full).sum(dim=1).clamp(max=1).arccos())
        edits = rows = 0
        for site in cilmp.sites:
            for part, h in ((site.prefix, cilmp.h_first), (site.suffix, cilmp.h_last)):
                edits = edits + (part(h, f)[0] - h).square().sum(dim=(1, 2))
                rows = rows + h.square().sum(dim=(1, 2))
    np.testing.assert_allclose(table["probability"], chances, rtol=1e-4)
    np.testing.assert_allclose(table["angle"], angle, atol=0.05)
    np.testing.assert_allclose(table["edit"], (edits / rows).sqrt(), rtol=1e-4)
    none = rank_effect(cilmp, f, 0)
    assert none["angle"].max() < 1e-6 and none["edit"].max() == 0
    lengths = [rank_effect(cilmp, f, k)["edit"].iloc[0] for k in (1, 2, 8)]
    assert lengths == sorted(lengths)


def test_looking_leaves_the_method_as_it_was(cilmp, pixels):
    before = {name: tensor.clone() for name, tensor in cilmp.state_dict().items()}
    other = with_rank(cilmp, 2)
    assert other.clip is cilmp.clip and not isinstance(cilmp.sites[0].prefix, KeptRank)
    with torch.no_grad():
        assert not torch.allclose(other(pixels), cilmp(pixels))
    assert all(torch.equal(before[name], tensor) for name, tensor in cilmp.state_dict().items())


def test_the_intervention_explorer_and_its_controls(cilmp, data):
    explorer = InterventionExplorer(cilmp, data.test, 1)
    expected = predict(cilmp, data.test.image(1)).probabilities
    np.testing.assert_allclose(explorer.table()["as trained"], expected, rtol=1e-4)
    box = explorer.box
    assert "now: rank 8 of 8" in shown_html(box)
    explorer._kept.value = 2
    assert explorer.kept == 2 and "now: rank 2 of 8" in shown_html(box)
    np.testing.assert_allclose(explorer.table()["now"], explorer.effect(2)["probability"])
    explorer._on.value = False
    table = explorer.table()
    assert "now: edit off" in shown_html(box) and table["now"].equals(table["without edit"])
    explorer._index.value = 0
    assert explorer.index == 0 and explorer.kept == 2 and not explorer.on
    curve = explorer.curve()
    assert curve["kept"].tolist() == [k for k in range(9) for _ in range(2)]
    assert [len(line.get_xdata()) for line in explorer.static().axes[1].lines] == [9, 9]


# --- training monitor ---


def test_the_monitor_has_the_history_and_starts_anew_with_each_run(clip, data, tmp_path):
    train, val = data.train.subset(range(64)), data.val.subset(range(64))
    config, monitor = TrainConfig(epochs=3, views=1, batch_size=32), TrainingMonitor("macro F1")
    for seed in (1, 2):
        vip = ViP(clip, data.card, seed=seed)
        history = fit(vip, train, val, config, callbacks=[monitor], progress=False)
    pd.testing.assert_frame_equal(monitor.table(), history[list(monitor.table().columns)], check_dtype=False)
    assert set(history.columns) - set(monitor.table().columns) == {"best"}
    loss, metric = monitor.static().axes
    assert loss.lines[0].get_ydata().tolist() == history["loss"].tolist()
    assert metric.get_ylabel() == "validation macro F1"
    html = monitor.html()
    assert "epoch 3: lr" in html and html.count("<tr") == 4 and 'alt="curves of training' in html

    other = TrainingMonitor("macro F1")
    other.load_state_dict(monitor.state_dict())
    pd.testing.assert_frame_equal(other.table(), monitor.table())


def test_the_monitor_without_validation_and_with_an_unknown_metric(clip, data):
    train, val = data.train.subset(range(64)), data.val.subset(range(64))
    config, monitor = TrainConfig(epochs=2, views=1, keep="last"), TrainingMonitor()
    history = fit(ViP(clip, data.card), train, None, config, callbacks=[monitor], progress=False)
    assert monitor.static().axes[0].lines[0].get_ydata().tolist() == history["loss"].tolist()
    with pytest.raises(ValueError, match="unknown metric 'acuracy' in the history; did you mean 'accuracy'"):
        fit(ViP(clip, data.card), train, val, config, callbacks=[TrainingMonitor("acuracy")], progress=False)
    assert "no epoch yet" in TrainingMonitor().html()


@pytest.mark.parametrize(
    "row",
    [
        {"val_accuracy": 0.5},
        {"val_accuracy": math.nan, "val_loss": 0.1},
        {"val_loss": 0.1, "val_accuracy": 0.5},
        {},
    ],
)
def test_the_monitor_draws_what_there_is(row):
    monitor = TrainingMonitor()
    assert len(monitor.static().axes) == 1  # before the first epoch
    for epoch in (1, 2):
        monitor.on_epoch_end(None, epoch, {"epoch": epoch, "loss": 0.5} | row)
    assert len(monitor.static().axes) == (2 if "val_accuracy" in row else 1)
    assert "epoch 2: loss 0.5" in monitor.html()


# --- all of them ---


def test_the_intervention_explorer_says_the_class_and_where_the_decision_has_moved(cilmp, data):
    edited = InterventionExplorer(cilmp, data.test)
    edited._effects = {
        k: pd.DataFrame({"classname": data.card.classnames, "probability": p, "angle": 0.0, "edit": 0.0})
        for k, p in ((0, [0.9, 0.1]), (edited.rank, [0.3, 0.7]))
    }
    edited.switch(False)
    first, second = data.card.classnames
    true = data.card.classnames[int(data.test.labels[0])]
    said = f"Decision: {first}, probability 0.90. As trained it is {second}. True class: {true}."
    assert edited.decision() == said


def test_text_is_shown_letter_by_letter(clip):
    assert literal(HOSTILE).startswith('<span class="tex2jax_ignore mathjax_ignore">&lt;script&gt;')
    table = pd.DataFrame({HOSTILE: [HOSTILE, "dots"], "score": [0.1, 0.2]})
    assert "<script" not in table_html(table, {"score": "red"}, HOSTILE)
    names = ["plain", HOSTILE, "<i>x</i>"]
    card = make_card()
    card = card.model_copy(update={"classes": [ClassInfo(name=name) for name in names]})
    symptoms = {"plain": ["$\\nosuch{$"], HOSTILE: [HOSTILE, "dots"], "<i>x</i>": ["<img src=x onerror=a()>"]}
    explorer = SymptomExplorer(ZeroShot(clip, card, symptoms=symptoms), make_set(card, [1, 2, 0]))
    explorer.box._repr_mimebundle_()
    explorer.toggle(1)
    explorer._show()
    explorer._do(lambda: explorer.add(HOSTILE, HOSTILE))
    html = shown_html(explorer.box)
    assert "&lt;script&gt;" in html
    tags = set(re.findall(r"<\s*/?\s*(\w+)", html))
    in_a_table = {"style", "table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert tags <= {"p", "span", "div", "img"} | in_a_table
    assert not re.search(r"<img(?! alt=\"image \d+ of [\w-]+\" style=)", html)
    for kind in ("span", "div"):  # dollars only where MathJax does not look
        html = re.sub(rf'<{kind} class="{LITERAL}">.*?</{kind}>', "", html, flags=re.DOTALL)
    assert "$" not in html
    explorer.static().canvas.draw()  # no formula: a broken one would be an error
    assert "$\\nosuch{$" in [label.get_text() for label in explorer.static().axes[1].get_yticklabels()]


@pytest.mark.parametrize(
    ("value", "low", "drawn"),
    [
        (0.5, 0.0, "red 32.5%, transparent 32.5%"),  # 65 per cent of the cell are the axis
        (-0.1, -0.1, "red 5.9%, transparent 5.9%"),
        (0.4, -0.1, "transparent 5.9%, red 5.9%, red 29.5%, transparent 29.5%"),
    ],
)
def test_a_bar_reaches_from_zero_to_its_value(value, low, drawn):
    html = table_html(pd.DataFrame({"score": [value]}), {"score": "red"}, axis=(low, 1.0))
    assert f"linear-gradient(90deg, {drawn})" in html


@pytest.fixture(scope="module")
def explorers(zero, cilmp, data):
    return [
        SymptomExplorer(zero, data.test),
        PhantomLab({"zero-shot": zero}),
        InterventionExplorer(cilmp, data.test),
    ]


def test_every_widget_leaves_a_picture_and_words_in_the_notebook(explorers):
    for explorer in explorers:
        bundle, metadata = explorer._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "image/png", WIDGET_VIEW}
        assert " at 0x" not in bundle["text/plain"]
        width, height = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size
        assert metadata == {"image/png": {"width": width // 2, "height": height // 2}} and width > 800
        assert (bundle, metadata) == explorer._repr_mimebundle_()


def test_without_ipywidgets_the_picture_stays_and_the_error_says_what_to_install(zero, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    explorer = SymptomExplorer(zero, data.test)
    assert set(explorer._repr_mimebundle_()[0]) == {"text/plain", "image/png"}
    review = SymptomReview(data.card.symptoms(), data.card)
    assert isinstance(review.table(), pd.DataFrame)
    for make in (lambda: explorer.box, lambda: review.widget):
        with pytest.raises(ImportError, match=r'pip install "medvlp\[notebooks\]"'):
            make()


def test_every_control_is_labelled_and_every_picture_has_words(explorers, data):
    kinds = ipywidgets.Button | ipywidgets.Dropdown | ipywidgets.Checkbox | ipywidgets.IntSlider
    texts = ipywidgets.Text | ipywidgets.BoundedIntText
    review = SymptomReview(data.card.symptoms(), data.card)
    n_texts = 0
    for box in (*(explorer.box for explorer in explorers), review.widget):
        controls = [one for one in all_widgets(box) if isinstance(one, kinds | texts)]
        assert len(controls) > 2
        for words in ("description", "tooltip"):
            assert all(getattr(one, words) for one in controls)
            assert len({getattr(one, words) for one in controls}) == len(controls)
        assert not any(getattr(one, "description_allow_html", False) for one in controls)
        assert not any(one.tabbable is False for one in controls)
        assert all('alt="' in tag for tag in re.findall("<img[^>]*>", shown_html(box)))
        # sent whole, so that no press of a button overtakes the last letters
        assert not any(one.continuous_update for one in controls if isinstance(one, texts))
        n_texts += sum(isinstance(one, texts) for one in controls)
    assert n_texts == 2 + len(review.phrases["melanoma"]) + 2


def test_a_large_image_is_embedded_small(zero, data):
    large = Image.effect_noise((2000, 1500), 80).convert("RGB")
    explorer = SymptomExplorer(zero, data.test)
    explorer.image = large
    assert explorer.box and len(explorer._picture.value) < 200_000


def test_errors_say_what_is_wrong_and_what_to_do(clip, data, zero, cilmp):
    card = make_card()
    images = make_set(card, [0])
    for call, message in (
        (lambda: SymptomExplorer(CoOp(clip, data.card), data.test), "this CoOp has no symptoms to score"),
        (
            lambda: SymptomExplorer(ZeroShot(clip, data.card, "classnames"), data.test),
            "has no symptoms to score",
        ),
        (lambda: SymptomExplorer(zero, images), "set of card 'lesions' has 'melanoma', 'nevus', 'keratosis'"),
        (lambda: SymptomExplorer(zero, data.test, 2000), "no image 2000; the 2000 images are counted from 0"),
        (lambda: PhantomLab({}), "no method to watch"),
        (lambda: PhantomLab({"a": ZeroShot(clip, card)}), "needs a phantom card"),
        (lambda: PhantomLab({"a": zero, "b": ZeroShot(clip, card)}), "of the cards phantom-derm, lesions"),
        (lambda: PhantomLab({"a": zero}).set("vail", 1), "did you mean 'veil'"),
        (lambda: PhantomLab({"a": zero}).set("veil", 2), "must be 0 .absent. to 1 .present., got 2"),
        (lambda: draw_phantom(get_world("derm"), {"veil": 1}, 1), "no strength for 'colors'"),
        (lambda: InterventionExplorer(zero, data.test), "ZeroShot intervenes in no representations"),
        (
            lambda: InterventionExplorer(CILMP(clip, data.card, intervention="none"), data.test),
            "no intervention",
        ),
        (lambda: with_rank(cilmp, 9), "kept must be from 0 to 8, the method's rank, got 9"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
