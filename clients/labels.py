"""What several methods know of a client's labels: how many examples of each class it has."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clients.training.trainer import Trainer
from fedpers.parts import Part, Parts

COUNTS = "personal.counts"
"""The working part in which the counts are kept; a method hands it on in its ``receive``."""


def counted(working: Parts, trainer: Trainer) -> Parts:
    """The working parts with the client's label counts.

    They are counted by ``trainer.release_counts`` in the first round, so that private runs noise
    and charge them once, and stay the same for all: the method declares ``releases_counts``.
    """
    if COUNTS in working:
        return working
    labels = F.one_hot(trainer.examples.y.cpu(), trainer.task.outputs).float()
    return working | {COUNTS: Part.of({"counts": trainer.release_counts(labels)})}


def with_label_shares(working: Parts, trainer: Trainer) -> Parts:
    """The working parts with the client's label shares in the slot ``labels``, see ``counted``."""
    working = counted(working, trainer)
    return working | {"labels": Part.of({"labels.shares": label_shares(working)})}


def restricted(scores: Tensor, shares: Tensor, alpha: float) -> Tensor:
    """Scores [batch, C] for the restricted softmax: times (1 - alpha) share / largest share + alpha
    (FedRS, MAP; arXiv 2404.09232)."""
    return scores * ((1 - alpha) * shares / shares.max() + alpha)


def label_shares(working: Parts) -> Tensor:
    """The client's label shares (n_k + 1) / (n + C), [C], from counts that ``counted`` gave."""
    return smoothed(working[COUNTS]["counts"])


def smoothed(counts: Tensor) -> Tensor:
    """(n_k + 1) / (n + C), [C]."""
    return (counts + 1) / (counts.sum() + len(counts))
