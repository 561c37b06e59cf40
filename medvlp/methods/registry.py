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
    "LinearProbe": "medvlp.methods.adapters.linear_probe",
    "TextProbe": "medvlp.methods.adapters.text_probe",
    "TipAdapter": "medvlp.methods.adapters.tip_adapter",
    "CLIPAdapter": "medvlp.methods.adapters.clip_adapter",
    "LPPlusPlus": "medvlp.methods.adapters.lp_plus_plus",
    "SSText": "medvlp.methods.adapters.ss_text",
    "CoOp": "medvlp.methods.prompt_tuning.coop",
    "CoCoOp": "medvlp.methods.prompt_tuning.cocoop",
    "KgCoOp": "medvlp.methods.prompt_tuning.kgcoop",
    "BiomedCoOp": "medvlp.methods.prompt_tuning.biomedcoop",
    "VPT": "medvlp.methods.prompt_tuning.vpt",
    "IVLP": "medvlp.methods.prompt_tuning.ivlp",
    "MaPLe": "medvlp.methods.prompt_tuning.maple",
    "PromptSRC": "medvlp.methods.prompt_tuning.promptsrc",
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
