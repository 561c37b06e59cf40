"""medvlp: knowledge-guided prompt tuning of CLIP for medical images, to learn from and to build on.

For teaching and research. Not a medical device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medvlp.methods.registry import HOMES

if TYPE_CHECKING:
    from medvlp.backbone.clip import Clip, load_clip
    from medvlp.backbone.features import image_features
    from medvlp.data.cards import DataCard, list_cards, load_card
    from medvlp.data.datasets import Data, ImageSet, load_dataset
    from medvlp.data.phantoms.worlds import get_world
    from medvlp.knowledge.llm.local_llm import local_llm
    from medvlp.knowledge.llm.representations import (
        Representations,
        llm_representations,
        shipped_representations,
    )
    from medvlp.knowledge.symptoms.generate import generate_symptoms
    from medvlp.knowledge.symptoms.sets import SymptomSet
    from medvlp.methods.biomedcoop import BiomedCoOp
    from medvlp.methods.cilmp import CILMP
    from medvlp.methods.clip_adapter import CLIPAdapter
    from medvlp.methods.cocoop import CoCoOp
    from medvlp.methods.coop import CoOp
    from medvlp.methods.ivlp import IVLP
    from medvlp.methods.kgcoop import KgCoOp
    from medvlp.methods.linear_probe import LinearProbe
    from medvlp.methods.maple import MaPLe
    from medvlp.methods.parameters import trainable_parameters
    from medvlp.methods.promptsrc import PromptSRC
    from medvlp.methods.text_probe import TextProbe
    from medvlp.methods.tip_adapter import TipAdapter
    from medvlp.methods.vip import ViP
    from medvlp.methods.vpt import VPT
    from medvlp.methods.zero_shot import ZeroShot
    from medvlp.show.widgets.review import SymptomReview, review_table
    from medvlp.study.ablation.grid import Named
    from medvlp.study.ablation.study import Study, run_ablation
    from medvlp.study.evaluation import Report, evaluate
    from medvlp.study.prediction import Prediction, predict
    from medvlp.study.saving import load, save
    from medvlp.study.training.averaging import EpochAverage
    from medvlp.study.training.config import TrainConfig, recipe
    from medvlp.study.training.fit import fit

__version__ = "0.1.0"

# Where each public name lives. A name is imported when it is first used: `import medvlp` stays quick.
_HOMES = HOMES | {
    "Clip": "medvlp.backbone.clip",
    "Data": "medvlp.data.datasets",
    "DataCard": "medvlp.data.cards",
    "EpochAverage": "medvlp.study.training.averaging",
    "ImageSet": "medvlp.data.datasets",
    "Named": "medvlp.study.ablation.grid",
    "Prediction": "medvlp.study.prediction",
    "Report": "medvlp.study.evaluation",
    "Representations": "medvlp.knowledge.llm.representations",
    "Study": "medvlp.study.ablation.study",
    "SymptomReview": "medvlp.show.widgets.review",
    "SymptomSet": "medvlp.knowledge.symptoms.sets",
    "TrainConfig": "medvlp.study.training.config",
    "evaluate": "medvlp.study.evaluation",
    "fit": "medvlp.study.training.fit",
    "generate_symptoms": "medvlp.knowledge.symptoms.generate",
    "get_world": "medvlp.data.phantoms.worlds",
    "image_features": "medvlp.backbone.features",
    "list_cards": "medvlp.data.cards",
    "llm_representations": "medvlp.knowledge.llm.representations",
    "load": "medvlp.study.saving",
    "load_card": "medvlp.data.cards",
    "load_clip": "medvlp.backbone.clip",
    "load_dataset": "medvlp.data.datasets",
    "local_llm": "medvlp.knowledge.llm.local_llm",
    "predict": "medvlp.study.prediction",
    "recipe": "medvlp.study.training.config",
    "review_table": "medvlp.show.widgets.review",
    "run_ablation": "medvlp.study.ablation.study",
    "save": "medvlp.study.saving",
    "shipped_representations": "medvlp.knowledge.llm.representations",
    "trainable_parameters": "medvlp.methods.parameters",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        from medvlp.data.errors import unknown_name

        raise AttributeError(unknown_name("name", name, _HOMES, "medvlp"))
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion in an editor."""
    return [*__all__, "__version__"]
