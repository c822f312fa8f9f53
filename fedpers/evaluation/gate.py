"""The gate: who is better served by the global model than by the personal one.

A client has a handful of validation examples, too few to judge by alone: a test that must pass
at every client passes nowhere. So the population decides first, from pooled counts, and a client
overrides it where its own evidence is strong. The fallback is the global model: personalisation
has to earn its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum

from fedpers.evaluation.results import ClientResult
from fedpers.tasks.base import Metric, Tally

FOR_ALL, FOR_ONE = 0.05, 0.01  # the levels of the tests that decide for a population, and a client


def sign_test(wins: int, losses: int) -> float:
    """P[Binomial(wins + losses, 1/2) >= wins]: how likely so many wins are by chance, in 0..1."""
    from scipy.stats import binom

    return float(binom.sf(wins - 1, wins + losses, 0.5))


def choose(results: Sequence[ClientResult]) -> dict[str, str]:
    """For each client "personal" or "global", from wins and losses on validation splits.

    The population takes the personal models if those won significantly more examples than they
    lost, summed over clients (one-sided sign test, level 0.05). A client whose own counts speak for
    the other model (level 0.01) takes that one.
    """
    judged = {r.client: r.val for r in results if _comparable(r.val)}
    won = sum(tally.wins("personal", "global") for tally in judged.values())
    lost = sum(tally.wins("global", "personal") for tally in judged.values())
    common = "personal" if sign_test(won, lost) < FOR_ALL else "global"
    chosen = dict.fromkeys((r.client for r in results), common)
    for client, tally in judged.items():
        gain, loss = tally.wins("personal", "global"), tally.wins("global", "personal")
        if common == "global" and sign_test(gain, loss) < FOR_ONE:
            chosen[client] = "personal"
        if common == "personal" and sign_test(loss, gain) < FOR_ONE:
            chosen[client] = "global"
    return chosen


def gated(results: Sequence[ClientResult]) -> list[ClientResult]:
    """The results with the mode "gated" beside the others: each client under the model chosen.

    Results without both a personal and a global model are returned as they are.
    """
    chosen = choose(results)
    return [_gated(result, chosen) for result in results]


def gate_summary(results: Sequence[ClientResult], metric: Metric) -> dict[str, float | None]:
    """Whom the gate serves with the personal model, and what it misses on test.

    Returns:
        ``coverage_clients``, the share of clients that deploy their personal model, and
        ``coverage_examples``, the share of test examples at these clients; ``oracle_gap``, the
        mean over clients of how much better than the gated model the better of both is, >= 0: how
        far the choice from validation is from the best choice of one model a client. All None where
        no client has both models and test examples.
    """
    chosen = choose(results)
    tested = [r for r in results if r.test.n > 0 and _comparable(r.test)]
    if not tested:
        return dict.fromkeys(("coverage_clients", "coverage_examples", "oracle_gap"))
    personal = [r for r in tested if chosen[r.client] == "personal"]
    missed = []
    for r in tested:
        other = "global" if chosen[r.client] == "personal" else "personal"
        missed.append(max(0.0, metric.gain(r.test, other, chosen[r.client]) or 0.0))
    return {
        "coverage_clients": len(personal) / len(tested),
        "coverage_examples": sum(r.test.n for r in personal) / sum(r.test.n for r in tested),
        "oracle_gap": fsum(missed) / len(tested),
    }


def _gated(result: ClientResult, chosen: Mapping[str, str]) -> ClientResult:
    def add(tally: Tally | None) -> Tally | None:
        if tally is None or not _comparable(tally):
            return tally
        return tally.with_gated(chosen[result.client])

    val, test = add(result.val), add(result.test)
    assert val is not None and test is not None
    return replace(result, val=val, test=test, outside=add(result.outside))


def _comparable(tally: Tally) -> bool:
    return "personal" in tally.modes and "global" in tally.modes
