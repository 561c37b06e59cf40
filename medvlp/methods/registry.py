"""The methods by name, so that a saved file can name its own."""

from torch import nn

from medvlp.data.names import unknown_name
from medvlp.methods.linear_probe import LinearProbe
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot

METHODS: dict[str, type[nn.Module]] = {
    "ZeroShot": ZeroShot,
    "LinearProbe": LinearProbe,
    "ViP": ViP,
}


def method_class(name: str) -> type[nn.Module]:
    """The class of a method; ValueError, with the nearest name, for an unknown one."""
    if name not in METHODS:
        raise ValueError(unknown_name("method", name, METHODS))
    return METHODS[name]
