"""Training: one loop for the short trainings of a search and for a full training, with timm's recipe options."""

from nasvit.training.examples import Examples, batch_index
from nasvit.training.loop import HISTORY, Moment, Numerics, StepGuard, TrainResult, Watch, evaluate, train
from nasvit.training.loss import batch_loss
from nasvit.training.optimiser import Average, default_lr, learning_rate, parameter_groups
from nasvit.training.recipe import Recipe
from nasvit.training.state import Checkpoint
from nasvit.training.world import ALONE, World, joined

__all__ = ["ALONE", "HISTORY", "Average", "Checkpoint", "Examples", "Moment", "Numerics", "Recipe", "StepGuard", "TrainResult", "Watch",
           "World", "batch_index", "batch_loss", "default_lr", "evaluate", "joined", "learning_rate", "parameter_groups", "train"]
