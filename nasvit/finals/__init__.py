"""From a pick to a product: full training with a test score, and what it leaves on disk. Torch stands inside; the files do not need it."""

from nasvit.finals.plan import FinalPlan
from nasvit.finals.session import Task, known_plan, train_in_full
from nasvit.finals.subject import Subject
from nasvit.finals.trained import Trained, load_trained

__all__ = ["FinalPlan", "Subject", "Task", "Trained", "known_plan", "load_trained", "train_in_full"]
