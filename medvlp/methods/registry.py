"""The methods by name, so that a saved file can name its own."""

from torch import nn

from medvlp.methods.cilmp import CILMP
from medvlp.methods.linear_probe import LinearProbe
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot

METHODS: dict[str, type[nn.Module]] = {
    "ZeroShot": ZeroShot,
    "LinearProbe": LinearProbe,
    "ViP": ViP,
    "CILMP": CILMP,
}
