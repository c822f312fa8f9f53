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

from fedpers.evaluation.counts import ClientResult, Counts

POPULATION_LEVEL = 0.05
CLIENT_LEVEL = 0.01


def sign_test(wins: int, losses: int) -> float:
    """P[Binomial(wins + losses, 1/2) >= wins]: how likely so many wins are by chance, in 0..1."""
    from scipy.stats import binom

    return float(binom.sf(wins - 1, wins + losses, 0.5))


def choose(results: Sequence[ClientResult]) -> dict[str, str]:
    """For each client "personal" or "global", from the counts on validation splits.

    The population takes the personal models if those fixed significantly more examples than they
    broke, summed over clients (one-sided sign test, level 0.05). A client whose own counts speak
    for the other model (level 0.01) takes that one.
    """
    judged = {r.client: r.val for r in results if _comparable(r.val)}
    fixed = sum(counts.fixed["personal"] for counts in judged.values())
    broke = sum(counts.broke["personal"] for counts in judged.values())
    common = "personal" if sign_test(fixed, broke) < POPULATION_LEVEL else "global"
    chosen = dict.fromkeys((r.client for r in results), common)
    for client, counts in judged.items():
        gain, loss = counts.fixed["personal"], counts.broke["personal"]
        if common == "global" and sign_test(gain, loss) < CLIENT_LEVEL:
            chosen[client] = "personal"
        if common == "personal" and sign_test(loss, gain) < CLIENT_LEVEL:
            chosen[client] = "global"
    return chosen


def gated(results: Sequence[ClientResult]) -> list[ClientResult]:
    """The results with the mode "gated" beside the others: each client under the model chosen.

    Results without both a personal and a global model are returned as they are.
    """
    chosen = choose(results)
    return [_gated(result, chosen) for result in results]


def gate_summary(results: Sequence[ClientResult]) -> dict[str, float | None]:
    """Whom the gate serves with the personal model, and what it misses on test.

    Returns:
        ``coverage_clients``, the share of clients that deploy their personal model, and
        ``coverage_examples``, the share of test examples at these clients; ``oracle_gap``, the
        mean over clients of max(a_personal, a_global) - a_gated, >= 0: how far the choice from
        validation counts is from the best choice of one model a client. All None where no
        client has both models and test examples.
    """
    chosen = choose(results)
    tested = [r for r in results if r.test.n > 0 and _comparable(r.test)]
    if not tested:
        return dict.fromkeys(("coverage_clients", "coverage_examples", "oracle_gap"))
    personal = [r for r in tested if chosen[r.client] == "personal"]
    missed = []
    for r in tested:
        right = r.test.correct
        best = max(right["personal"], right["global"])
        missed.append((best - right[chosen[r.client]]) / r.test.n)
    return {
        "coverage_clients": len(personal) / len(tested),
        "coverage_examples": sum(r.test.n for r in personal) / sum(r.test.n for r in tested),
        "oracle_gap": fsum(missed) / len(tested),
    }


def _gated(result: ClientResult, chosen: Mapping[str, str]) -> ClientResult:
    def add(counts: Counts | None) -> Counts | None:
        if counts is None or not _comparable(counts):
            return counts
        personal = chosen[result.client] == "personal"
        mode, detail = chosen[result.client], counts.detail
        if detail is not None:
            detail = replace(detail, modes={**detail.modes, "gated": detail.modes[mode]})
        return Counts(
            counts.n,
            {**counts.correct, "gated": counts.correct[mode]},
            {**counts.fixed, "gated": counts.fixed["personal"] if personal else 0},
            {**counts.broke, "gated": counts.broke["personal"] if personal else 0},
            detail,
        )

    val, test = add(result.val), add(result.test)
    assert val is not None and test is not None
    return replace(result, val=val, test=test, outside=add(result.outside))


def _comparable(counts: Counts) -> bool:
    return "personal" in counts.correct and "global" in counts.correct
