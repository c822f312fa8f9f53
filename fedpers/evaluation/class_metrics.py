"""Metrics from a client's counts by class and by confidence (``Counts.detail``).

Each is computed at each client and then averaged over clients, so that a client with few examples
counts as much as one with many; clients without the counts are left out, and where there is none
a metric is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedpers.evaluation.counts import ClientResult, Counts
from fedpers.evaluation.detail import BINS, ModeDetail


def macro_f1(results: Sequence[ClientResult], mode: str, split: str = "test") -> float | None:
    """The mean over a client's classes of F1_c = 2 TP_c / (labelled_c + predicted_c), in 0..1.

    Over the classes that its labels or its predictions have; averaged over clients.
    """
    return _mean_over_clients(results, mode, split, _macro_f1)


def auc(results: Sequence[ClientResult], mode: str, split: str = "test") -> float | None:
    """The area under the ROC curve, in 0..1, averaged over clients.

    For class c it is the probability that an example of c has a higher probability of c than one
    of another class, ties counted half: U_c / (labelled_c (n - labelled_c)), exactly, from the
    counts of pairs (Mann and Whitney 1947; Hanley and McNeil 1982). With two classes both give
    the same; with more it is the mean over the client's classes, one against the rest. A client
    whose examples are of one class has none and is left out.
    """
    return _mean_over_clients(results, mode, split, _auc)


def ece(results: Sequence[ClientResult], mode: str, split: str = "test") -> float | None:
    """Expected calibration error, sum_b n_b / n |accuracy_b - confidence_b|, in 0..1.

    Over 10 bins of confidence (Guo et al. 2017, equation 3), averaged over clients. With few
    examples a client it is biased upwards, as chance alone moves a bin's accuracy; see
    ``ece_pooled``.
    """
    return _mean_over_clients(results, mode, split, lambda counts, d: _ece([d], counts.n))


def ece_pooled(results: Sequence[ClientResult], mode: str, split: str = "test") -> float | None:
    """The same error over the examples of all clients together: their bins are added first."""
    detailed = _detailed(results, mode, split)
    examples = sum(counts.n for counts, _ in detailed)
    return _ece([detail for _, detail in detailed], examples) if detailed else None


def collapse(
    results: Sequence[ClientResult], mode: str, split: str = "test"
) -> dict[str, float] | None:
    """Whether a model answers with few classes only.

    Returns:
        Means over clients: ``share``, of the predictions that are of the most frequent predicted
        class, beside ``share_labelled``, the same of the labels; ``classes``, how many are ever
        predicted, beside ``classes_labelled``, how many there are. A model has collapsed where
        the first is far above the second, or the third far below the fourth.
    """
    detailed = [
        (c.n, d.predicted, c.detail.labelled)
        for c, d in _detailed(results, mode, split)
        if c.detail
    ]
    if not detailed:
        return None
    return {
        "share": _mean([max(predicted) / n for n, predicted, _ in detailed]),
        "share_labelled": _mean([max(labelled) / n for n, _, labelled in detailed]),
        "classes": _mean([float(sum(p > 0 for p in predicted)) for _, predicted, _ in detailed]),
        "classes_labelled": _mean([float(sum(y > 0 for y in y_)) for _, _, y_ in detailed]),
    }


def _macro_f1(counts: Counts, detail: ModeDetail) -> float:
    assert counts.detail is not None
    rows = zip(counts.detail.labelled, detail.predicted, detail.right, strict=True)
    return _mean([2 * right / (y + p) for y, p, right in rows if y + p])


def _auc(counts: Counts, detail: ModeDetail) -> float | None:
    assert counts.detail is not None
    rows = zip(counts.detail.labelled, detail.pairs, strict=True)
    areas = [pairs / (2 * y * (counts.n - y)) for y, pairs in rows if 0 < y < counts.n]
    return _mean(areas) if areas else None


def _ece(details: Sequence[ModeDetail], examples: int) -> float:
    gaps = [
        abs(sum(d.binned_right[b] for d in details) - math.fsum(d.confidence[b] for d in details))
        for b in range(BINS)
    ]
    return math.fsum(gaps) / examples


def _mean_over_clients(
    results: Sequence[ClientResult],
    mode: str,
    split: str,
    metric: Callable[[Counts, ModeDetail], float | None],
) -> float | None:
    found = [metric(counts, detail) for counts, detail in _detailed(results, mode, split)]
    values = [value for value in found if value is not None]
    return _mean(values) if values else None


def _detailed(
    results: Sequence[ClientResult], mode: str, split: str
) -> list[tuple[Counts, ModeDetail]]:
    """The counts of the clients that have examples and detail of the mode."""
    counts: list[Counts | None] = [getattr(result, split) for result in results]
    return [
        (c, c.detail.modes[mode]) for c in counts if c and c.n and c.detail and mode in c.correct
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
