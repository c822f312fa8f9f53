"""Metrics of classification, from counts that add over clients.

Those from ``Counts.detail`` leave out counts that have none. With few examples a client, a figure
of all examples together says something else than the mean of the clients' figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpers.tasks.counts import Counts
from fedpers.tasks.detail import BINS, ModeDetail


def accuracy(tallies: Sequence[Counts], mode: str) -> float | None:
    """The share of examples that are right, in 0..1."""
    examples = sum(counts.n for counts in tallies)
    return sum(counts.correct[mode] for counts in tallies) / examples if examples else None


def accuracy_less(counts: Counts, mode: str, over: str) -> float:
    """The accuracy of ``mode`` less that of ``over``, in -1..1."""
    return (counts.correct[mode] - counts.correct[over]) / counts.n


def macro_f1(tallies: Sequence[Counts], mode: str) -> float | None:
    """The mean over classes of F1_c = 2 TP_c / (labelled_c + predicted_c), in 0..1.

    Over the classes that labels or predictions have.
    """
    detailed = _detailed(tallies, mode)
    labelled = _added([labelled for labelled, _ in detailed])
    predicted = _added([detail.predicted for _, detail in detailed])
    right = _added([detail.right for _, detail in detailed])
    rows = zip(labelled, predicted, right, strict=True)
    return _mean([2 * r / (y + p) for y, p, r in rows if y + p])


def auc(tallies: Sequence[Counts], mode: str) -> float | None:
    """The area under the ROC curve, in 0..1.

    For class c it is the probability that an example of c has a higher probability of c than one
    of another class at the same client, ties counted half: U_c / (labelled_c (n - labelled_c)),
    exactly, from the counts of pairs (Mann and Whitney 1947; Hanley and McNeil 1982). With two
    classes both give the same; with more it is the mean over classes, one against the rest. Of
    examples of one class there is none.
    """
    detailed = _detailed(tallies, mode)
    pairs = _added([detail.pairs for _, detail in detailed])
    most = _added([[2 * y * (sum(labels) - y) for y in labels] for labels, _ in detailed])
    return _mean([found / there for found, there in zip(pairs, most, strict=True) if there])


def ece(tallies: Sequence[Counts], mode: str) -> float | None:
    """Expected calibration error, sum_b n_b / n |accuracy_b - confidence_b|, in 0..1.

    Over 10 bins of confidence (Guo et al. 2017, equation 3). With few examples it is biased
    upwards, as chance alone moves a bin's accuracy.
    """
    detailed = _detailed(tallies, mode)
    details = [detail for _, detail in detailed]
    examples = sum(sum(labelled) for labelled, _ in detailed)
    if not examples:
        return None
    gaps = [
        abs(sum(d.binned_right[b] for d in details) - math.fsum(d.confidence[b] for d in details))
        for b in range(BINS)
    ]
    return math.fsum(gaps) / examples


def collapse(tallies: Sequence[Counts], mode: str) -> dict[str, float] | None:
    """Whether a model answers with few classes only.

    Returns:
        Means over clients: ``share``, of the predictions that are of the most frequent predicted
        class, beside ``share_labelled``, the same of the labels; ``classes``, how many are ever
        predicted, beside ``classes_labelled``, how many there are. A model has collapsed where
        the first is far above the second, or the third far below the fourth.
    """
    detailed = _detailed(tallies, mode)
    if not detailed:
        return None

    def largest(counts: list[int]) -> float:
        return max(counts) / sum(counts)

    def used(counts: list[int]) -> float:
        return float(sum(count > 0 for count in counts))

    found = {
        "share": [largest(detail.predicted) for _, detail in detailed],
        "share_labelled": [largest(labelled) for labelled, _ in detailed],
        "classes": [used(detail.predicted) for _, detail in detailed],
        "classes_labelled": [used(labelled) for labelled, _ in detailed],
    }
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def _detailed(tallies: Sequence[Counts], mode: str) -> list[tuple[list[int], ModeDetail]]:
    """The labels and the detail of the mode of counts that have examples and detail."""
    return [(c.detail.labelled, c.detail.modes[mode]) for c in tallies if c.n and c.detail]


def _added(rows: Sequence[list[int]]) -> list[int]:
    return [sum(counts) for counts in zip(*rows, strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
