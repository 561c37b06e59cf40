"""The public names and where each lives: the one list, for people, type checkers and lazy_loader."""

from .backbone.clip import Clip, load_clip
from .backbone.features import image_features
from .backbone.pretrain import PretrainConfig, pretrain
from .backbone.pretrain_annotated import AnnotatedConfig, pretrain_annotated
from .data.cards import DataCard, list_cards, load_card
from .data.datasets import Data, ImageSet, load_dataset
from .data.phantoms.worlds import captions, get_world
from .data.splits import few_shot
from .knowledge.local_llm import local_llm
from .knowledge.representations import Representations, llm_representations, shipped_representations
from .knowledge.symptoms.generate import generate_symptoms
from .knowledge.symptoms.sets import SymptomSet
from .methods.adapters.clip_adapter import CLIPAdapter
from .methods.adapters.linear_probe import LinearProbe
from .methods.adapters.lp_plus_plus import LPPlusPlus
from .methods.adapters.ss_text import SSText
from .methods.adapters.text_probe import TextProbe
from .methods.adapters.tip_adapter import TipAdapter
from .methods.base import Method, trainable_parameters
from .methods.cilmp import CILMP
from .methods.prompt_tuning.biomedcoop import BiomedCoOp
from .methods.prompt_tuning.cocoop import CoCoOp
from .methods.prompt_tuning.coop import CoOp
from .methods.prompt_tuning.ivlp import IVLP
from .methods.prompt_tuning.kgcoop import KgCoOp
from .methods.prompt_tuning.maple import MaPLe
from .methods.prompt_tuning.promptsrc import PromptSRC
from .methods.prompt_tuning.vpt import VPT
from .methods.vip import ViP
from .methods.zero_shot import ZeroShot
from .show.widgets.review import SymptomReview, review_table
from .study.ablation.grid import Named
from .study.ablation.papers import overview, shipped_study
from .study.ablation.statistics import holm
from .study.ablation.study import Study, run_ablation
from .study.ablation.tables import in_words, to_markdown
from .study.attributes import attribute_accuracy, attribute_agreement
from .study.cross_validation import compare, cross_validate
from .study.evaluation import Report, evaluate
from .study.prediction import Prediction, predict
from .study.saving import load, save
from .study.training.callbacks import EpochAverage
from .study.training.config import TrainConfig, recipe
from .study.training.fit import fit
