"""Apple's GPU has no float64: nothing asks for it there.

Whatever is computed with a model's weights counts as lying on that GPU, until `.cpu()`.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medvlp
from medvlp import CILMP, CoOp, LinearProbe, TipAdapter, ViP, ZeroShot, show

AWAY = (Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.__float__)


class OnAppleGpu(Tensor):
    """A tensor that refuses float64 as Apple's GPU does, and so does all that is computed with it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Compute as any tensor does, then look at the type of the result."""
        result = super().__torch_function__(function, types, args, kwargs or {})
        if function in AWAY:
            return result.as_subclass(Tensor) if isinstance(result, Tensor) else result
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, OnAppleGpu) and tensor.dtype == torch.float64:
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64: the framework doesn't support float64."
                )
        return result

    def __deepcopy__(self, memo):
        """Copy a weight or a buffer."""
        there = self.detach().clone().as_subclass(OnAppleGpu)
        memo[id(self)] = nn.Parameter(there, self.requires_grad) if isinstance(self, nn.Parameter) else there
        return memo[id(self)]


def on_apple_gpu(module):
    """The module, with its weights and buffers there."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                there = weight.detach().clone().as_subclass(OnAppleGpu)
                part._parameters[name] = nn.Parameter(there, requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.clone().as_subclass(OnAppleGpu)
    return module


@pytest.fixture(scope="module")
def gpu_clip():
    clip = medvlp.load_clip("tiny", device="cpu")
    on_apple_gpu(clip.model)
    return clip


@pytest.fixture(autouse=True)
def no_float64_on_a_device(monkeypatch):
    make = torch.tensor

    def tensor(*args, device=None, **options):
        made = make(*args, device=device, **options)
        assert device is None or made.dtype != torch.float64
        return made

    monkeypatch.setattr(torch, "tensor", tensor)


@pytest.fixture(scope="module")
def methods(gpu_clip, data):
    made = [ZeroShot, ViP, CILMP, CoOp]
    return {kind.__name__: on_apple_gpu(kind(gpu_clip, data.card)).eval() for kind in made}


@pytest.fixture(scope="module")
def few(data):
    return data.test.subset(range(40))


def test_the_emulation_refuses_float64_until_the_cpu(methods, data):
    logits = methods["CoOp"](methods["CoOp"].clip.preprocess(data.test.image(0))[None])
    assert isinstance(logits, OnAppleGpu) and logits.cpu().double().dtype == torch.float64
    for refused in (
        logits.double,
        lambda: logits.to(torch.float64),
        lambda: logits.softmax(1, torch.float64),
    ):
        with pytest.raises(TypeError, match="doesn't support float64"):
            refused()


@pytest.mark.parametrize("name", ["ZeroShot", "ViP", "CILMP", "CoOp"])
def test_predictions_and_reports(methods, data, few, name):
    method = methods[name]
    assert medvlp.predict(method, few.image(0)).probabilities.sum() == pytest.approx(1)
    medvlp.evaluate(method, few, n_bootstrap=3)
    show.failures(method, few)
    show.right_and_wrong(method, methods["CoOp"], few)


def test_stability(methods, few):
    show.stability(methods["ZeroShot"], few.subset(range(8)))


@pytest.mark.parametrize("kind", [CoOp, ViP, CILMP, TipAdapter, LinearProbe])
def test_training_and_averaging(gpu_clip, data, kind):
    train, val = data.train.subset(range(16)), data.val.subset(range(16))
    method, callbacks = on_apple_gpu(kind(gpu_clip, data.card)), []
    if kind in (CoOp, ViP):
        callbacks = [medvlp.EpochAverage(2), show.TrainingMonitor()]
    config = medvlp.TrainConfig(epochs=2, views=0, keep="last")
    history = medvlp.fit(method, train, val, config, callbacks=callbacks, progress=False)
    assert medvlp.predict(method, val.image(0)).probabilities.sum() == pytest.approx(1)
    if callbacks:
        assert np.isfinite(history["average_weight"]).all()
        assert all(torch.isfinite(weight).all() for weight in method.parameters())


def test_explanations_and_maps(methods, data, few):
    image = few.image(0)
    for name in ("ZeroShot", "ViP", "CILMP"):
        show.explanation_figure(show.symptom_scores_table(methods[name], image), image)
    clip, texts = methods["ZeroShot"].clip, ["a nevus", "a melanoma"]
    maps = [show.patch_similarity(clip, image, texts), show.occlusion_map(clip, image, texts, patches=2)]
    assert all(one.cpu().double().isfinite().all() for one in maps)
    show.attention_rollout(clip, image)
    points = [show.image_points(method, few) for method in (clip, methods["CILMP"])]
    points += [show.class_points(methods["ViP"]), show.symptom_points(methods["ViP"])]
    assert all(np.isfinite(one.vectors).all() for one in points)
    show.label_noise_suspects(few, clip)


def test_what_moves_in_a_notebook(methods, data, few):
    show.SymptomExplorer(methods["ViP"], few)
    show.PhantomLab({"zero-shot": methods["ZeroShot"], "CoOp": methods["CoOp"]})
    show.InterventionExplorer(methods["CILMP"], few)
