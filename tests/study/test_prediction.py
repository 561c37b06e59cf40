"""predict: one file gives what forward gives, or an error that names the file."""

import numpy as np
import pytest
from PIL import Image

from medvlp.methods.base import Method
from medvlp.methods.prompt_tuning.biomedcoop import BiomedCoOp
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.prediction import predict
from tests.methods.small import SYMPTOMS, make_card

CARD = make_card()


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "lesion.png")
    return tmp_path / "lesion.png"


def forward(method, path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = method.clip.preprocess(image.convert("RGB"))
    return method(pixels[None]).softmax(1)[0].numpy()


def test_a_file_gives_the_probabilities_of_forward(clip, picture):
    zero = ZeroShot(clip, CARD)
    prediction = predict(zero, picture)
    assert list(prediction.probabilities.index) == CARD.classnames
    assert prediction.probabilities.to_numpy() == pytest.approx(forward(zero, picture), abs=1e-5)
    assert prediction.classname == CARD.classnames[forward(zero, picture).argmax()]
    assert predict(zero, str(picture)).probabilities.equals(prediction.probabilities)


def test_symptom_scores_explain_the_probabilities(clip, picture):
    scores = predict(ZeroShot(clip, CARD), picture).symptom_scores
    assert list(scores["symptom"]) == [phrase for phrases in SYMPTOMS.values() for phrase in phrases]
    logits = clip.logit_scale * scores.groupby("classname", sort=False)["score"].mean().to_numpy()
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert softmax == pytest.approx(predict(ZeroShot(clip, CARD), picture).probabilities.to_numpy(), abs=1e-4)


def test_a_method_that_scores_no_symptoms_predicts_without(clip, picture):
    for method in (ZeroShot(clip, CARD, "classnames"), BiomedCoOp(clip, CARD)):  # which reads symptoms
        prediction = predict(method, picture)
        assert prediction.symptom_scores is None and abs(prediction.probabilities.sum() - 1) < 1e-6


def test_a_method_without_frozen_features_is_asked_by_forward(clip, picture):
    class Whole(Method):
        def forward(self, images):
            assert not self.training
            return images.mean(dim=(2, 3))

    method = Whole(clip, CARD, {}).train()
    prediction = predict(method, picture)
    assert method.training
    assert prediction.symptom_scores is None
    assert prediction.probabilities.to_numpy() == pytest.approx(forward(method.eval(), picture), abs=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_a_file_and_its_opened_image_are_read_alike(clip, tmp_path, mode):
    grey = np.random.default_rng(1).integers(256, size=(40, 40), dtype=np.uint8)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    image = deep if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "image.png")
    zero = ZeroShot(clip, CARD)
    with Image.open(tmp_path / "image.png") as opened:
        from_pil = predict(zero, opened).probabilities
    assert from_pil.equals(predict(zero, tmp_path / "image.png").probabilities)


def test_the_prediction_shows_class_and_probabilities(clip, picture):
    prediction = predict(ZeroShot(clip, CARD), picture)
    shown = repr(prediction)
    assert shown.startswith(f"Prediction({prediction.classname!r}: melanoma 0.")
    assert f"nevus {prediction.probabilities['nevus']:.3f}" in shown


def test_a_missing_or_broken_file_is_named(clip, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    zero = ZeroShot(clip, CARD)
    with pytest.raises(FileNotFoundError, match="there is no image file .*nowhere.jpg"):
        predict(zero, tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="cannot read image .*notes.png"):
        predict(zero, tmp_path / "notes.png")
