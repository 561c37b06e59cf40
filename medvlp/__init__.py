"""medvlp: knowledge-guided prompt tuning of CLIP for medical images, to learn from and to build on.

For teaching and research. Not a medical device.
"""

from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.features import image_features
from medvlp.data.cards import DataCard, list_cards, load_card
from medvlp.data.datasets import Data, ImageSet, load_dataset
from medvlp.data.phantoms import get_world
from medvlp.methods.linear_probe import LinearProbe
from medvlp.methods.parameters import trainable_parameters
from medvlp.methods.vip import ViP
from medvlp.methods.zero_shot import ZeroShot
from medvlp.study.callbacks import Callback
from medvlp.study.config import TrainConfig
from medvlp.study.evaluation import Report, evaluate
from medvlp.study.prediction import Prediction, predict
from medvlp.study.saving import load, save
from medvlp.study.training import fit

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Clip",
    "Data",
    "DataCard",
    "ImageSet",
    "LinearProbe",
    "Prediction",
    "Report",
    "TrainConfig",
    "ViP",
    "ZeroShot",
    "evaluate",
    "fit",
    "get_world",
    "image_features",
    "list_cards",
    "load",
    "load_card",
    "load_clip",
    "load_dataset",
    "predict",
    "save",
    "trainable_parameters",
]
