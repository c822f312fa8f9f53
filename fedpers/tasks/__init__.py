"""Tasks: what is learned, and how it is scored. ``fedpers.tasks.base`` says what one has to do."""

from fedpers.tasks.base import MODES, TASKS, Metric, Tally, Task, task_named
from fedpers.tasks.causal_lm import CausalLM
from fedpers.tasks.classification import Classification, cross_entropy
from fedpers.tasks.counts import Counts
from fedpers.tasks.regression import Regression
from fedpers.tasks.squares import Errors
from fedpers.tasks.token_counts import TokenCounts

__all__ = [
    "MODES",
    "TASKS",
    "CausalLM",
    "Classification",
    "Counts",
    "Errors",
    "Metric",
    "Regression",
    "Tally",
    "Task",
    "TokenCounts",
    "cross_entropy",
    "task_named",
]
