"""The methods by name: for saved files, for ablations, and as public names of the package.

A new method is one file in this folder and one line here.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

HOMES = {
    "ZeroShot": "medvlp.methods.zero_shot",
    "LinearProbe": "medvlp.methods.linear_probe",
    "TextProbe": "medvlp.methods.text_probe",
    "TipAdapter": "medvlp.methods.tip_adapter",
    "CLIPAdapter": "medvlp.methods.clip_adapter",
    "CoOp": "medvlp.methods.coop",
    "CoCoOp": "medvlp.methods.cocoop",
    "KgCoOp": "medvlp.methods.kgcoop",
    "BiomedCoOp": "medvlp.methods.biomedcoop",
    "VPT": "medvlp.methods.vpt",
    "IVLP": "medvlp.methods.ivlp",
    "MaPLe": "medvlp.methods.maple",
    "PromptSRC": "medvlp.methods.promptsrc",
    "ViP": "medvlp.methods.vip",
    "CILMP": "medvlp.methods.cilmp",
}


class _Methods(Mapping[str, "type[nn.Module]"]):
    """{name: class}; a class is imported when it is asked for."""

    def __getitem__(self, name: str) -> "type[nn.Module]":
        return getattr(import_module(HOMES[name]), name)

    def __iter__(self) -> Iterator[str]:
        return iter(HOMES)

    def __len__(self) -> int:
        return len(HOMES)


METHODS = _Methods()
