"""The widgets for notebooks. Each is thin over functions and methods that a script can call as well.

Every one shows itself at the end of a cell, can be used with the keyboard alone, and has `static()`: a figure
for those who read the notebook without running it.
"""

from medvlp.show.widgets.intervention_explorer import InterventionExplorer
from medvlp.show.widgets.phantom_lab import PhantomLab
from medvlp.show.widgets.symptom_explorer import SymptomExplorer
from medvlp.show.widgets.training_monitor import TrainingMonitor

__all__ = ["InterventionExplorer", "PhantomLab", "SymptomExplorer", "TrainingMonitor"]
