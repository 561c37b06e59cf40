from .explanations.controls import faithfulness_controls
from .explanations.faithfulness import counterfactual, counterfactual_summary, faithfulness, what_is_seen
from .explanations.figures import counterfactual_figure, faithfulness_figure, twin_figure
from .explanations.patch_maps import (
    attention_rollout,
    localisation,
    occlusion_map,
    patch_map_figure,
    patch_similarity,
)
from .explanations.scores import explanation_figure, symptom_scores_table
from .explanations.twins import claims_of, flip, flip_all, gibberish, with_symptoms
from .figures.ablations import forest_plot, heat_map, intervention_figure
from .figures.basic import contrastive_matrix, interval_plot, save_figure, show_images, symptom_bars
from .figures.curves import name_rate_figure, report_curves, shots_curve, training_curves
from .gallery.doubtful import label_noise_suspects, stability
from .gallery.failures import Failures, failures, right_and_wrong
from .maps.embeddings import Embeddings, class_points, image_points, llm_points, modality_gap, symptom_points
from .maps.figure import map_figure
from .maps.page import scatter_page
from .maps.umap import map_points, what_a_map_hides
from .widgets.intervention_explorer import InterventionExplorer
from .widgets.phantom_lab import PhantomLab
from .widgets.review import SymptomReview, review_table
from .widgets.symptom_explorer import SymptomExplorer
from .widgets.training_monitor import TrainingMonitor
