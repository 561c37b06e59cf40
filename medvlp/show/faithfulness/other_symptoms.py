"""A method that reads other symptoms, with all that it has learned as it was."""

from collections.abc import Mapping, Sequence

from torch import nn

from medvlp.methods.parameters import load_own_tensors, own_tensors


def check_symptoms(method: nn.Module) -> None:
    """Raise ValueError unless the method scores symptoms."""
    if getattr(method, "symptoms", None) is None or not hasattr(method, "symptom_scores"):
        raise ValueError(
            f"this {type(method).__name__} has no symptom scores; give "
            "ZeroShot(clip, card, knowledge='symptoms') or ViP(clip, card)."
        )


def with_symptoms(method: nn.Module, symptoms: Mapping[str, Sequence[str]]) -> nn.Module:
    """The same method with other symptoms: its configuration and what it has learned stay.

    Args:
        method: `ZeroShot` with symptoms, or `ViP`, whose learned context and merge prompt then read the new
            symptoms without any training.
        symptoms: {classname: [phrase, ...]}, at least one for every class.

    Raises:
        ValueError: a method without symptom scores; symptoms that the method does not take.
    """
    check_symptoms(method)
    config = method.config | {"symptoms": {name: list(phrases) for name, phrases in symptoms.items()}}
    other = type(method)(method.clip, method.card, **config)
    load_own_tensors(other, own_tensors(method), f"the trained {type(method).__name__}")
    return other.eval()
