"""Metrics over clients, from their tallies.

A client has n examples of a split; ``h`` is the model in question (by default the personal one)
and ``g`` the global one. A metric is None where no client has what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpers.evaluation.results import ClientResult
from fedpers.tasks.base import Metric, Tally


def summary(
    results: Sequence[ClientResult], metric: Metric, mode: str, split: str = "test"
) -> dict[str, float] | None:
    """How the figures v_i of the clients with examples are distributed.

    Args:
        split: "val", "test" or "outside" (other clients' data).

    Returns:
        ``mean`` over clients; ``weighted``, of all their examples together; ``std`` of the
        population; ``worst_decile``, the mean of the floor(N / 10), at least one, worst; ``min``;
        ``max``.
    """
    values = _values(results, metric, mode, split)
    if not values:
        return None
    together = pooled(results, metric, mode, split)
    assert together is not None
    average = _mean(values)
    worst = sorted(values, reverse=metric.better == "lower")
    return {
        "mean": average,
        "weighted": together,
        "std": math.sqrt(_mean([(v - average) ** 2 for v in values])),
        "worst_decile": _mean(worst[: max(1, len(worst) // 10)]),
        "min": min(values),
        "max": max(values),
    }


def mean(
    results: Sequence[ClientResult], metric: Metric, mode: str, split: str = "test"
) -> float | None:
    """The mean of a metric over the clients that have it: each counts the same."""
    values = _values(results, metric, mode, split)
    return _mean(values) if values else None


def pooled(
    results: Sequence[ClientResult], metric: Metric, mode: str, split: str = "test"
) -> float | None:
    """A metric over the examples of all clients together."""
    tallies = tallies_of(results, split, mode)
    return metric.of(tallies, mode) if tallies else None


def breakage_rate(
    results: Sequence[ClientResult], mode: str = "personal", split: str = "test"
) -> float | None:
    """#{h wrong, g right} / #{g right}, pooled over clients, as in PERG (2509.19358); where a task
    has no right and wrong, #{g better} / n."""
    found = tallies_of(results, split, mode, "global")
    losable = sum(tally.stakes("global")[1] for tally in found)
    return _ratio(sum(tally.wins("global", mode) for tally in found), losable)


def fix_rate(
    results: Sequence[ClientResult], mode: str = "personal", split: str = "test"
) -> float | None:
    """#{h right, g wrong} / #{g wrong}, pooled over clients; or #{h better} / n."""
    found = tallies_of(results, split, mode, "global")
    winnable = sum(tally.stakes("global")[0] for tally in found)
    return _ratio(sum(tally.wins(mode, "global") for tally in found), winnable)


def mean_gain(
    results: Sequence[ClientResult],
    metric: Metric,
    over: str,
    mode: str = "personal",
    split: str = "test",
) -> float | None:
    """The mean over clients of how much better v_i of ``mode`` is than v_i of ``over``."""
    found = [metric.gain(t, mode, over) for t in tallies_of(results, split, mode, over)]
    gains = [gain for gain in found if gain is not None]
    return _mean(gains) if gains else None


def harmed_share(
    results: Sequence[ClientResult],
    mode: str = "personal",
    split: str = "test",
    *,
    level: float = 0.05,
) -> float | None:
    """The share of clients whose ``h`` is significantly worse than ``g``.

    Client i has b examples that h lost to g and c that it won. Were h no worse, b of these b + c
    would be Binomial(b + c, 1/2) at most: the one-sided exact sign test (McNemar) gives
    p_i = P[Binomial(b + c, 1/2) >= b]. Over clients, the false discovery rate is held at
    ``level`` as in Benjamini and Hochberg (1995).
    """
    compared = len(tallies_of(results, split, mode, "global"))
    return _ratio(len(harmed_clients(results, mode, split, level=level)), compared)


def harmed_clients(
    results: Sequence[ClientResult],
    mode: str = "personal",
    split: str = "test",
    *,
    level: float = 0.05,
) -> list[str]:
    """The clients that ``harmed_share`` counts, by id."""
    judged = [(r.client, c) for r in results for c in tallies_of([r], split, mode, "global")]
    if not judged:
        return []
    from scipy.stats import binom, false_discovery_control

    b = [c.wins("global", mode) for _, c in judged]
    discordant = [c.wins("global", mode) + c.wins(mode, "global") for _, c in judged]
    p = binom.sf([broke - 1 for broke in b], discordant, 0.5)
    significant = false_discovery_control(p, method="bh") <= level
    return [client for (client, _), harmed in zip(judged, significant, strict=True) if harmed]


def gini(
    results: Sequence[ClientResult], metric: Metric, mode: str, split: str = "test"
) -> float | None:
    """How unequal the clients' figures are: sum_ij |v_i - v_j| / (2 N sum_i v_i), in 0..1.

    Gini's coefficient: 0 where all are the same. None where all are 0, or one is negative.
    """
    values = sorted(_values(results, metric, mode, split))
    total, count = math.fsum(values), len(values)
    if not total or values[0] < 0:
        return None
    # The double sum over sorted values: the k-th smallest counts 2k - N - 1 times, twice.
    weighted = [(2 * k - count - 1) * v for k, v in enumerate(values, start=1)]
    return max(0.0, math.fsum(weighted) / (count * total))


def out_of_client(results: Sequence[ClientResult], metric: Metric) -> dict[str, float | None]:
    """The mean of a metric on other clients' data, of the personal and the global model."""
    return {mode: mean(results, metric, mode, "outside") for mode in ("personal", "global")}


def tallies_of(results: Sequence[ClientResult], split: str, *modes: str) -> list[Tally]:
    """The tallies of the clients that have examples in the split, and all of ``modes``."""
    tallies: list[Tally | None] = [getattr(result, split) for result in results]
    return [t for t in tallies if t and t.n > 0 and all(mode in t.modes for mode in modes)]


def _values(results: Sequence[ClientResult], metric: Metric, mode: str, split: str) -> list[float]:
    found = [metric.of([tally], mode) for tally in tallies_of(results, split, mode)]
    return [value for value in found if value is not None]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)  # fsum: the same bits in every order


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
