"""Metrics over clients, from their counts.

A client has n examples of a split; ``h`` is the model in question (by default the personal one)
and ``g`` the global one. A metric is None where no client has what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpers.evaluation.counts import ClientResult, Counts


def accuracy_summary(
    results: Sequence[ClientResult], mode: str, split: str = "test"
) -> dict[str, float] | None:
    """How the accuracies a_i (0..1) of the clients with examples are distributed.

    Args:
        split: "val", "test" or "outside" (other clients' data).

    Returns:
        ``mean`` over clients; ``weighted`` by their examples (the pooled accuracy);
        ``std`` of the population; ``worst_decile``, the mean of the floor(N / 10), at least one,
        lowest; ``min``; ``max``.
    """
    scored = _scored(results, split, mode)
    if not scored:
        return None
    accuracies = sorted(c.correct[mode] / c.n for c in scored)
    mean = _mean(accuracies)
    return {
        "mean": mean,
        "weighted": sum(c.correct[mode] for c in scored) / sum(c.n for c in scored),
        "std": math.sqrt(_mean([(a - mean) ** 2 for a in accuracies])),
        "worst_decile": _mean(accuracies[: max(1, len(accuracies) // 10)]),
        "min": accuracies[0],
        "max": accuracies[-1],
    }


def breakage_rate(
    results: Sequence[ClientResult], mode: str = "personal", split: str = "test"
) -> float | None:
    """#{h wrong, g right} / #{g right}, pooled over clients, as in PERG (2509.19358)."""
    scored = _scored(results, split, mode, "global")
    return _ratio(sum(c.broke[mode] for c in scored), sum(c.correct["global"] for c in scored))


def fix_rate(
    results: Sequence[ClientResult], mode: str = "personal", split: str = "test"
) -> float | None:
    """#{h right, g wrong} / #{g wrong}, pooled over clients."""
    scored = _scored(results, split, mode, "global")
    wrong = sum(c.n - c.correct["global"] for c in scored)
    return _ratio(sum(c.fixed[mode] for c in scored), wrong)


def mean_gain(
    results: Sequence[ClientResult], over: str, mode: str = "personal", split: str = "test"
) -> float | None:
    """The mean over clients of a_i of ``mode`` less a_i of ``over``, in -1..1."""
    scored = _scored(results, split, mode, over)
    gains = [(c.correct[mode] - c.correct[over]) / c.n for c in scored]
    return _mean(gains) if gains else None


def harmed_share(
    results: Sequence[ClientResult],
    mode: str = "personal",
    split: str = "test",
    *,
    level: float = 0.05,
) -> float | None:
    """The share of clients whose ``h`` is significantly worse than ``g``.

    Client i has b examples that h broke and c that it fixed. Were h no worse, b of these b + c
    would be Binomial(b + c, 1/2) at most: the one-sided exact sign test (McNemar) gives
    p_i = P[Binomial(b + c, 1/2) >= b]. Over clients, the false discovery rate is held at
    ``level`` as in Benjamini and Hochberg (1995).
    """
    compared = len(_scored(results, split, mode, "global"))
    return _ratio(len(harmed_clients(results, mode, split, level=level)), compared)


def harmed_clients(
    results: Sequence[ClientResult],
    mode: str = "personal",
    split: str = "test",
    *,
    level: float = 0.05,
) -> list[str]:
    """The clients that ``harmed_share`` counts, by id."""
    judged = [(r.client, c) for r in results for c in _scored([r], split, mode, "global")]
    if not judged:
        return []
    from scipy.stats import binom, false_discovery_control

    b = [c.broke[mode] for _, c in judged]
    discordant = [c.broke[mode] + c.fixed[mode] for _, c in judged]
    p = binom.sf([broke - 1 for broke in b], discordant, 0.5)
    significant = false_discovery_control(p, method="bh") <= level
    return [client for (client, _), harmed in zip(judged, significant, strict=True) if harmed]


def gini(results: Sequence[ClientResult], mode: str, split: str = "test") -> float | None:
    """How unequal the clients' accuracies are: sum_ij |a_i - a_j| / (2 N sum_i a_i), in 0..1.

    Gini's coefficient: 0 where all are the same. None where all are 0.
    """
    accuracies = sorted(c.correct[mode] / c.n for c in _scored(results, split, mode))
    total, count = math.fsum(accuracies), len(accuracies)
    if not total:
        return None
    # The double sum over sorted values: the k-th smallest counts 2k - N - 1 times, twice.
    weighted = [(2 * k - count - 1) * a for k, a in enumerate(accuracies, start=1)]
    return max(0.0, math.fsum(weighted) / (count * total))


def out_of_client(results: Sequence[ClientResult]) -> dict[str, float | None]:
    """The mean accuracy on other clients' data, of the personal and the global model."""
    means: dict[str, float | None] = {}
    for mode in ("personal", "global"):
        summary = accuracy_summary(results, mode, "outside")
        means[mode] = summary["mean"] if summary else None
    return means


def _scored(results: Sequence[ClientResult], split: str, *modes: str) -> list[Counts]:
    """The counts of the clients that have examples in the split, and all of ``modes``."""
    counts: list[Counts | None] = [getattr(result, split) for result in results]
    return [c for c in counts if c and c.n > 0 and all(mode in c.correct for mode in modes)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # fsum: the same bits in every order


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
