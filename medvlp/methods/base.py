"""Method: what `fit`, `evaluate`, `predict`, `save` and the figures may ask of one, and what it learns."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.data.cards import DataCard
from medvlp.data.errors import brief, check_choice, check_kinds, free_name, listed
from medvlp.data.html import Table
from medvlp.data.image_sets import ImageSet

LONG = ("symptoms", "representations")  # arguments that `print` leaves out


@dataclass(frozen=True)
class Reading:
    """How a method reads images where `fit` lets it fit itself, as keywords of `image_features`.

    Attributes:
        cache_dir: Of the image features; by default their own.
        progress: Show bars.
        num_workers: Processes that read images.
    """

    cache_dir: str | Path | None = None
    progress: bool = True
    num_workers: int | None = None


READING = Reading()


class Method(nn.Module):
    """A classifier of images, built from a frozen clip and a card. Every method derives from it.

        f = image_features(images)                 (B, 3, H, W) -> (B, D), L2-normalised
        t = class_features()                       (n_cls, D), L2-normalised
        logits = exp(logit_scale) * f . t          (B, n_cls), `logits_from_features`

    A method sets `text_features` or overrides `class_features`, or overrides `logits_from_features`. It
    overrides `image_features` only if it changes the image tower. All else has defaults.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        arguments: `locals()` of the method's own __init__. Its arguments become `config`.

    Attributes:
        recipe: Fields of `TrainConfig` that the method was published with, over the defaults.
        average: The average over epochs that it was published with, which `fit` takes; see `EpochAverage`.
        symptoms: {classname: [phrase, ...]} that it scores; None for a method that scores none.
        conditional: Whether the classes' text features depend on the image.
        modality: What the class features are: "text", or "weights" that no text gave.
        logit_scale: The factor on cosines, exp(logit_scale) in the formulas.
        config: The arguments by name, fit for JSON; `type(method)(clip, card, **config)` builds it again.

    Raises:
        TypeError: an argument of one of the package's methods that is of the wrong kind.
        ValueError: a logit_scale that is not above 0.

    Example:
        >>> import medvlp, torch
        >>> class NamesOnly(medvlp.Method):
        ...     def __init__(self, clip, card, *, template="a photo of a {}."):
        ...         super().__init__(clip, card, locals())
        ...         texts = [template.replace("{}", name) for name in card.plain_names]
        ...         self.constant("text_features", clip.encode_texts(texts))
        >>> method = NamesOnly(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"))
        >>> method.config, method.keeps_image_tower
        ({'template': 'a photo of a {}.'}, True)
        >>> method(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 2])
    """

    recipe: ClassVar[Mapping[str, Any]] = {}
    average: ClassVar[Mapping[str, Any] | None] = None
    conditional: ClassVar[bool] = False
    modality: ClassVar[str] = "text"
    symptoms: dict[str, list[str]] | None = None

    def __init__(self, clip: Clip, card: DataCard, arguments: Mapping[str, Any]) -> None:
        """Keep clip, card and arguments; see the class."""
        kinds = {"self": self, "clip": clip, "card": card}
        if hasattr(clip, "preprocess"):
            del kinds["clip"]  # something of your own may stand for a Clip
        check_kinds(Method.__init__, kinds)
        super().__init__()
        self.clip, self.card = clip, card
        self.config = {name: arguments[name] for name in arguments_of(type(self)) if name in arguments}
        module = type(self).__init__.__module__ or ""  # there is none for code that `exec` was given
        if module.startswith("medvlp."):  # a mapping's values have errors of their own
            given = {name: one for name, one in self.config.items() if not isinstance(one, Mapping)}
            check_kinds(type(self).__init__, {"self": self} | given)
        logit_scale = self.config.get("logit_scale")
        if logit_scale is not None and not logit_scale > 0:
            raise ValueError(f"logit_scale must be above 0, got {logit_scale}; None takes the CLIP's own.")
        self.logit_scale = clip.logit_scale if logit_scale is None else logit_scale
        self.logit_bias = getattr(clip, "logit_bias", 0.0)

    @property
    def keeps_image_tower(self) -> bool:
        """Whether its image features are the CLIP's own, so that they are computed once and kept."""
        kind = type(self)
        return kind.image_features is Method.image_features and kind.forward is Method.forward

    @property
    def fits_before_training(self) -> bool:
        """Whether `before_training` does some of the fitting, so that `fit` may have no steps to take."""
        return type(self).before_training is not Method.before_training

    def forward(self, images: Tensor) -> Tensor:
        """Logits of preprocessed images: (B, 3, H, W) -> (B, n_cls)."""
        return self.logits_from_features(self.image_features(images))

    def image_features(self, images: Tensor) -> Tensor:
        """f: features of preprocessed images, (B, 3, H, W) -> (B, D), L2-normalised."""
        return self.clip.encode_images(images)

    def logits_from_features(self, image_features: Tensor) -> Tensor:
        """Logits of normalised image features: (B, D) -> (B, n_cls)."""
        t = self.class_features(image_features) if self.conditional else self.class_features()
        scale, f = self.logit_scale, image_features.to(t)
        logits = scale * (f[:, None] * t).sum(dim=-1) if self.conditional else scale * f @ t.T  # (B, n_cls)
        return logits + self.logit_bias

    def class_features(self, f: Tensor | None = None) -> Tensor:
        """t: the classes' features, (n_cls, D), L2-normalised.

        A `conditional` method takes normalised image features f (B, D), and gives (B, n_cls, D).
        """
        if not hasattr(self, "text_features"):
            raise NotImplementedError(f"{type(self).__name__} has no class features.")
        return self.text_features

    def adapted(self, image_features: Tensor) -> Tensor:
        """What is held against the classes, normalised: (B, D) -> (B, D); by default the features given."""
        return image_features

    def symptom_features(self) -> Tensor:
        """T: the features of all symptoms, class after class, (N, D), not normalised."""
        raise NotImplementedError(f"{type(self).__name__} has no symptom features.")

    def symptom_scores(self, image_features: Tensor) -> dict[str, Tensor]:
        """Cosines with every symptom, by class: (B, D) normalised -> {classname: (B, m_c)}.

        Raises:
            ValueError: a method without symptoms.
        """
        check_symptoms(self)
        counts = [len(phrases) for phrases in self.symptoms.values()]  # m_c
        T = F.normalize(self.symptom_features(), dim=-1)  # (N, D)
        cosines = image_features.to(T) @ T.T  # (B, N)
        return dict(zip(self.symptoms, cosines.split(counts, dim=-1), strict=True))

    def training_logits(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n_cls), and a penalty that is added to each image's cross-entropy, (B,), by default 0.

        `inputs` are normalised image features (B, D) where `keeps_image_tower`, else images (B, 3, H, W).
        """
        logits = self.logits_from_features(inputs) if self.keeps_image_tower else self(inputs)
        return logits, logits.new_zeros(len(logits))

    def before_training(self, train: ImageSet, val: ImageSet | None, reading: Reading = READING) -> None:
        """What `fit` calls once before the first step."""

    def after_training(self, val: ImageSet | None, reading: Reading = READING) -> None:
        """What `fit` calls once with the weights that are kept."""

    def constant(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor that moves with the module and follows from `config`, so is not saved."""
        self.register_buffer(name, tensor.detach().to(self.clip.device), persistent=False)

    def extra_repr(self) -> str:
        """What distinguishes this method from another, for `print`."""
        shown = [f"{name}={value!r}" for name, value in self.config.items() if name not in LONG]
        return ", ".join([f"card={self.card.name!r}", *shown])


def arguments_of(kind: type[Method]) -> dict[str, Parameter]:
    """The arguments of a method's constructor after clip and card, by name.

    Where it passes **kwargs on, these are also those of the class that it derives from.
    """
    arguments: dict[str, Parameter] = {}
    for base in kind.__mro__[: kind.__mro__.index(Method)]:
        if "__init__" in vars(base):
            parameters = list(signature(base.__init__).parameters.values())[1:]  # without self
            named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
            arguments |= {one.name: one for one in named[2:] if one.name not in arguments}
            if named == parameters:
                break
    return arguments


def check_named_arguments(kind: type[Method]) -> None:
    """Raise TypeError if a constructor takes *args alone: by name nothing could be given to it again."""
    kinds = {parameter.kind for parameter in signature(kind).parameters.values()}
    if Parameter.VAR_POSITIONAL in kinds and Parameter.VAR_KEYWORD not in kinds:
        raise TypeError(
            f"{kind.__name__} takes *args, which have no names, so it cannot be built again from a file or a "
            "grid; write them out in its __init__, or take **kwargs too and pass both on."
        )


def check_symptoms(method: Method) -> None:
    """Raise ValueError unless the method scores symptoms."""
    if method.symptoms is None:
        raise ValueError(
            f"this {type(method).__name__} has no symptoms to score; use "
            "ZeroShot(clip, card, knowledge='symptoms') or ViP(clip, card)."
        )


def check_at_least(least: float, numbers: Mapping[str, float]) -> None:
    """Raise ValueError unless each of the numbers, given by name, is `least` or more."""
    for name, value in numbers.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")


def own_tensors(method: Method) -> dict[str, Tensor]:
    """The tensors that a method has beside its CLIP, by name: what is trained, kept and saved.

    These are the entries of `state_dict` that are not the CLIP's. What follows from the configuration (token
    ids, encoded texts) is registered with `persistent=False`, and so is not among them.
    """
    frozen = {id(tensor) for tensor in (*method.clip.parameters(), *method.clip.buffers())}
    state = method.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in frozen}


def load_own_tensors(method: Method, tensors: dict[str, Tensor], where: str) -> None:
    """Copy `tensors` into the method's own, in place; `where` names their origin in errors.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape or type. Nothing is copied then.
    """
    own, kind = own_tensors(method), type(method).__name__
    missing = [name for name in own if name not in tensors]
    if missing:
        raise ValueError(f"{where} lacks {listed(missing)}, which {kind} needs.")
    for name, tensor in tensors.items():
        check_choice(f"tensor of {kind}", name, own, where)
        if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(
                f"{brief(name)} in {where} is {_kind(tensor)}, but {kind} here has {_kind(own[name])}; "
                "it was made with another configuration."
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def learned_parameters(method: Method) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name.

    Those that require gradients. Where none does, but the method `fits_before_training`, as a linear probe,
    its own parameters: what it only stores, such as the features of training images, are buffers.
    """
    parameters = dict(method.named_parameters())
    by_gradient = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if by_gradient or not method.fits_before_training:
        return by_gradient
    frozen = {id(parameter) for parameter in method.clip.parameters()}
    return {name: parameter for name, parameter in parameters.items() if id(parameter) not in frozen}


def trainable_parameters(method: Method) -> pd.DataFrame:
    """`learned_parameters` as a table: index part, columns shape and count, and their total last.

    Example:
        >>> import medvlp
        >>> coop = medvlp.CoOp(medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm"), n_ctx=4)
        >>> medvlp.trainable_parameters(coop).index.tolist()
        ['ctx', 'total']
    """
    check_kinds(trainable_parameters, locals())
    rows = {
        name: (" x ".join(map(str, parameter.shape)), parameter.numel())
        for name, parameter in learned_parameters(method).items()
    }
    rows[free_name("total", rows)] = ("", sum(count for _, count in rows.values()))
    return Table.from_dict(rows, orient="index", columns=["shape", "count"]).rename_axis("part")


def _kind(tensor: Tensor) -> str:
    size = " x ".join(map(str, tensor.shape)) or "one number"
    return f"{size} ({str(tensor.dtype).removeprefix('torch.')})"
