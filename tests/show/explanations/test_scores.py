import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from medvlp import CILMP, CoOp, ViP, ZeroShot
from medvlp.show import explanation_figure, symptom_scores_table


@pytest.fixture(scope="module")
def cilmp(clip, data):
    method = CILMP(clip, data.card).eval()
    with torch.no_grad():  # interventions far from their start, so that the image matters
        for site in method.sites:
            for part in (site.prefix, site.suffix):
                part.W2.normal_(std=0.3)
                part.G1.normal_(std=0.3)
    return method


def test_the_mean_of_a_class_is_what_zero_shot_decides_by(clip, data):
    method, image = ZeroShot(clip, data.card), data.test.image(5)
    table = symptom_scores_table(method, image)
    logits = method(clip.preprocess(image)[None])[0]  # (2,)
    means = table.groupby("classname", sort=False)["score"].mean().to_numpy()
    np.testing.assert_allclose(clip.logit_scale * means, logits.detach().numpy(), rtol=1e-4)
    feature = clip.encode_images(clip.preprocess(image)[None])
    again = symptom_scores_table(method, feature[0])
    np.testing.assert_allclose(again["score"], table["score"], rtol=1e-5)


def test_vip_tells_its_weights_symptom_by_symptom(clip, data):
    symptoms = {"melanoma": ["blue veil", "many colors", "jagged edges"], "nevus": ["round"]}
    method = ViP(clip, data.card, symptoms=symptoms)
    table = symptom_scores_table(method, data.test.image(0))
    assert list(table["symptom"]) == ["blue veil", "many colors", "jagged edges", "round"]
    np.testing.assert_allclose(table.groupby("classname")["weight"].sum(), 1, rtol=1e-5)
    weights = method.merge_weights().set_index("symptom")["weight"]
    np.testing.assert_allclose(table.set_index("symptom")["weight"], weights[table["symptom"]])
    assert "weight" not in symptom_scores_table(ViP(clip, data.card, aggregation="mean"), data.test.image(0))


def test_the_intervention_s_share_is_the_difference_to_another_cilmp_without_it(clip, data, cilmp):
    plain = CILMP(clip, data.card, intervention="none").eval()
    with torch.no_grad():
        plain.ctx.copy_(cilmp.ctx)
        plain.image_prompts.copy_(cilmp.image_prompts)
        for one, other in zip(plain.sites, cilmp.sites, strict=True):
            one.A.copy_(other.A)
            one.B.copy_(other.B)
    image = data.test.image(3)
    pixels = clip.preprocess(image)[None]
    table = symptom_scores_table(cilmp, image)
    with torch.no_grad():
        own, without = cilmp(pixels)[0], plain(pixels)[0]
    assert (own - without).abs().max() > 0.01
    np.testing.assert_allclose(table["score"] * cilmp.logit_scale, own.numpy(), rtol=1e-4)
    np.testing.assert_allclose(table["score without"] * cilmp.logit_scale, without.numpy(), rtol=1e-4)
    np.testing.assert_allclose(table["probability without"], without.softmax(0).numpy(), rtol=1e-3)
    np.testing.assert_allclose(table["change"], table["score"] - table["score without"])


def test_the_mean_image_s_prompt_is_one_s_own_where_all_images_are_alike(clip, data, cilmp):
    image = data.test.image(3)
    others = torch.stack([clip.preprocess(data.test.image(i)) for i in range(6)])
    with torch.no_grad():
        own, reference = cilmp.image_features(clip.preprocess(image)[None]), cilmp.image_features(others)
    alike = symptom_scores_table(cilmp, image, reference=own.repeat(3, 1))
    np.testing.assert_allclose(alike["own image"], 0, atol=1e-5)
    table = symptom_scores_table(cilmp, image, reference=reference)
    assert table["own image"].abs().max() > 1e-4
    np.testing.assert_allclose(table["score"], alike["score"], atol=1e-5)


def test_a_method_without_symptoms_says_so(clip, data):
    with pytest.raises(ValueError, match="no symptoms to score"):
        symptom_scores_table(CoOp(clip, data.card), data.test.image(0))


def test_figures_take_every_table_and_hostile_words(clip, data, cilmp):
    image = Image.new("L", (40, 50), 90)
    words = {"melanoma": ["<script>alert(1)</script>", "$\\frac{1}{$"], "nevus": ["50 % & $x$"]}
    for method in (ZeroShot(clip, data.card, symptoms=words), ViP(clip, data.card, symptoms=words)):
        table = symptom_scores_table(method, image)
        assert table["score"].notna().all()
        fig = explanation_figure(table, image)
        fig.canvas.draw()
        labels = [label.get_text() for label in fig.axes[-1].get_yticklabels()]
        assert labels == [*words["melanoma"], *words["nevus"]]
    vip = explanation_figure(symptom_scores_table(ViP(clip, data.card), image), image, "nevus", "melanoma")
    assert isinstance(vip, Figure)
    vip.canvas.draw()
    weights = vip.axes[-1].child_axes[0].patches
    table = symptom_scores_table(ViP(clip, data.card), image)
    np.testing.assert_allclose([bar.get_width() for bar in weights], table["weight"], rtol=1e-5)
    reference = torch.eye(clip.embed_dim)[:2]
    fig = explanation_figure(symptom_scores_table(cilmp, image, reference), true="nevus")
    fig.canvas.draw()
    assert "true: nevus" in fig.axes[0].get_title()
