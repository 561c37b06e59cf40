"""predict: what people have gives what forward gives, or an error that names it."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medvlp.data.images import ImageError
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
    shown = f"Prediction({prediction.classname!r}: melanoma {prediction.probabilities['melanoma']:.3f}, nevus"
    assert repr(prediction).startswith(shown)


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


# ---------------------------------------------------------------- what people have

PIXELS = np.random.default_rng(2).integers(256, size=(40, 50, 3), dtype=np.uint8)


def ways_to_have(folder):
    """The same image in everything that it may come in."""
    path = folder / "lesion.png"
    Image.fromarray(PIXELS).save(path)
    content = path.read_bytes()
    ways = {"a path": path, "its text": str(path), "bytes": content, "bytearray": bytearray(content)}
    ways |= {"a view of bytes": memoryview(content), "a buffer": io.BytesIO(content)}
    ways |= {"a PIL image": Image.fromarray(PIXELS), "an open PIL image": Image.open(path)}
    ways |= {"uint8": PIXELS, "int64": PIXELS.astype(np.int64), "uint16": PIXELS.astype(np.uint16) * 257}
    ways |= {f"float{bits}": (PIXELS / 255).astype(f"f{bits // 8}") for bits in (32, 64)}
    ways |= {"big-endian": (PIXELS.astype(np.uint16) * 257).astype(">u2"), "a view": PIXELS[::-1][::-1]}
    ways |= {"with alpha": np.concatenate([PIXELS, np.full((40, 50, 1), 255, dtype=np.uint8)], axis=2)}
    channels_first = torch.from_numpy(PIXELS).movedim(2, 0)
    ways |= {"a tensor": channels_first, "a tensor of floats": channels_first / 255}
    upload = {"name": "lesion.png", "type": "image/png", "size": len(content), "content": memoryview(content)}
    return ways | {"an upload": upload}


def test_one_image_in_all_that_people_have(clip, tmp_path):
    zero = ZeroShot(clip, CARD)
    ways = ways_to_have(tmp_path)
    expected = predict(zero, ways["a path"]).probabilities
    for name, image in ways.items():
        assert predict(zero, image).probabilities.equals(expected), name


def test_a_folder_without_labels_becomes_a_table(clip, tmp_path):
    zero, folder = ZeroShot(clip, CARD), tmp_path / "new"
    folder.mkdir()
    for name, pixels in {"b.png": PIXELS, "a, 1.jpg": PIXELS[::-1].copy()}.items():
        Image.fromarray(pixels).save(folder / name)
    predict(zero, folder).table().to_csv(tmp_path / "predictions.csv", index=False)
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table["id"].tolist() == ["a, 1.jpg", "b.png"]
    for row in table.to_dict("records"):
        alone = predict(zero, folder / row["id"])
        assert row["predicted"] == alone.classname and alone.id == str(folder / row["id"])
        assert row["confidence"] == pytest.approx(alone.probabilities.max(), rel=1e-12)
        probabilities = [row[f"P({classname})"] for classname in CARD.classnames]
        assert probabilities == pytest.approx(alone.probabilities.tolist(), rel=1e-12)
    upload = {"name": "up.png", "content": (folder / "b.png").read_bytes()}
    mixed = predict(zero, [folder / "b.png", PIXELS, upload]).table()
    assert mixed["id"].tolist() == [str(folder / "b.png"), "", "up.png"]
    assert len(predict(zero, []).table()) == 0


def test_several_images_in_all_that_people_have(clip, tmp_path):
    """A list, a tuple, a folder, and the value of an upload: a prediction each, in order."""
    zero = ZeroShot(clip, CARD)
    first, second = tmp_path / "a.png", tmp_path / "b.PNG"
    for path, pixels in ((second, PIXELS[::-1].copy()), (first, PIXELS)):
        Image.fromarray(pixels).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    expected = [predict(zero, path).probabilities for path in (first, second)]
    assert not expected[0].equals(expected[1])
    uploads = tuple({"name": p.name, "content": memoryview(p.read_bytes())} for p in (first, second))
    for images in (
        [first, second],
        (str(first), Image.open(second)),
        tmp_path,
        str(tmp_path),
        uploads,
    ):
        several = predict(zero, images)
        assert all(one.probabilities.equals(alone) for one, alone in zip(several, expected, strict=True))
    assert predict(zero, []) == predict(zero, ()) == []


def test_the_value_of_an_upload_widget(clip, tmp_path):
    widgets = pytest.importorskip("ipywidgets")
    upload = widgets.FileUpload(accept="image/*", multiple=True)
    assert predict(ZeroShot(clip, CARD), upload.value) == []
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    file = {"name": "a.png", "type": "image/png", "size": 9, "last_modified": 0}
    file["content"] = content.getvalue()
    upload.set_state({"value": [file]})
    (prediction,) = predict(ZeroShot(clip, CARD), upload.value)
    assert prediction.probabilities.equals(predict(ZeroShot(clip, CARD), PIXELS).probabilities)


def test_grey_arrays_by_the_rules_of_files(clip, tmp_path):
    zero = ZeroShot(clip, CARD)
    grey = PIXELS[..., 0]
    expected = predict(zero, Image.fromarray(grey)).probabilities
    tensor = torch.from_numpy(grey.copy())
    deep = grey.astype(np.uint16) * 257
    for image in (grey, grey[..., None], deep, deep.astype(np.int32), grey / 255, tensor, tensor[None]):
        assert predict(zero, image).probabilities.equals(expected)
    mask = grey > 99
    assert predict(zero, mask).probabilities.equals(predict(zero, mask.astype(np.uint8) * 255).probabilities)
    hounsfield = np.linspace(-1000, 1000, 2000).reshape(40, 50)
    Image.fromarray(hounsfield.astype(np.float32)).save(tmp_path / "ct.tif")
    assert predict(zero, hounsfield).probabilities.equals(predict(zero, tmp_path / "ct.tif").probabilities)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((2, 40, 50, 3), dtype=np.uint8), r"array of shape \(2, 40, 50, 3\), uint8.*give a list"),
        (np.zeros((3, 40, 50), dtype=np.uint8), r"\(3, 40, 50\).*\(H, W, 3\)"),
        (np.zeros((40, 50, 2)), r"\(40, 50, 2\)"),
        (np.zeros(40), r"\(40,\)"),
        (np.zeros((0, 50, 3)), r"\(0, 50, 3\)"),
        (PIXELS.astype(np.float32), "colours of float32 must be within 0..1, these go from 0.0 to 255.0"),
        (PIXELS / 255 - 0.5, "must be within 0..1"),
        (np.full((4, 4, 3), np.nan), "must be within 0..1"),
        (PIXELS.astype(int) - 1, "must be within 0..65535, these go from -1"),
        (PIXELS.astype(int) * 65536, "must be within 0..65535"),
        (PIXELS.astype(complex), "complex128.*integers, floats or bool"),
        (np.array([["a"]]), "integers, floats or bool"),
        (torch.zeros(40, 50, 3), r"\(40, 50, 3\).*\(3, H, W\)"),
        (torch.randn(3, 40, 50), "must be within 0..1"),
        (b"", "it is empty"),
        (b"no image", "of 8 bytes: it is no image that Pillow knows"),
        (7, "an image is a path, bytes, a PIL image, an array or a tensor"),
        (None, "an image is a path"),
        ({"name": "my.png", "content": b"x"}, "my.png: it is no image"),
        ([[1, 2], [3, 4]], "an image is a path"),
        ({"a": 1}, "an image is a path"),  # what is no upload
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:20],
)
def test_what_is_no_image_is_refused_with_what_is(clip, image, said):
    with pytest.raises(ImageError, match=rf"cannot read image .*{said}"):
        predict(ZeroShot(clip, CARD), image)


def test_a_folder_without_images_and_a_missing_file_are_named(clip, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no image file .*nowhere.jpg"):
        predict(ZeroShot(clip, CARD), tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match=f"no images in the folder {tmp_path}"):
        predict(ZeroShot(clip, CARD), tmp_path)
