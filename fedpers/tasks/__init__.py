"""Tasks: what is learned, and how it is scored. ``fedpers.tasks.base`` says what one has to do."""

from fedpers.tasks.base import MODES, TASKS, Metric, Tally, Task, task_named
from fedpers.tasks.classification import Classification, cross_entropy
from fedpers.tasks.counts import Counts

__all__ = [
    "MODES",
    "TASKS",
    "Classification",
    "Counts",
    "Metric",
    "Tally",
    "Task",
    "cross_entropy",
    "task_named",
]
