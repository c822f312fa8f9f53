import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpers.evaluation import ClientResult, metrics
from fedpers.evaluation.gate import choose, gate_summary, gated
from fedpers.tasks import Errors
from fedpers.tasks.regression import Regression, RegressionParams, mae, r_squared, rmse

NOTHING = Errors.of(torch.zeros(0), {}, 0.0, 1.0)
RMSE = Regression.metrics["rmse"]


def errors(targets: list[float], tolerance: float = 0.0, **predictions: list[float]) -> Errors:
    found = {mode.rstrip("_"): torch.tensor(p) for mode, p in predictions.items()}
    return Errors.of(torch.tensor(targets), found, tolerance, 1.0)


# Errors of the personal model 1, 0, 2, 0 and of the global one 2, 0, 1, 3.
FOUR = errors([1.0, 2.0, 3.0, 6.0], personal=[2.0, 2.0, 5.0, 6.0], global_=[3.0, 2.0, 4.0, 9.0])


def test_sums_by_hand() -> None:
    assert FOUR.n == 4
    assert FOUR.squared == {"personal": 5.0, "global": 14.0}
    assert FOUR.absolute == {"personal": 3.0, "global": 6.0}
    assert (FOUR.total, FOUR.squares) == (12.0, 50.0)
    assert FOUR.wins("personal", "global") == 2 and FOUR.wins("global", "personal") == 1
    assert FOUR.stakes("global") == (4, 4)


def test_a_win_is_by_more_than_the_tolerance() -> None:
    given_ = {"personal": [2.0, 2.0, 5.0, 6.0], "global_": [3.0, 2.0, 4.0, 9.0]}
    by_one = errors([1.0, 2.0, 3.0, 6.0], 1.0, **given_)
    # Errors that differ by 1 are the same now; 0 against 3 is not.
    assert by_one.won == {"personal": {"global": 1}, "global": {"personal": 0}}


def test_metrics_by_hand() -> None:
    assert rmse([FOUR], "personal") == pytest.approx(math.sqrt(5 / 4))
    assert mae([FOUR], "global") == pytest.approx(6 / 4)
    # Around their mean of 3 the targets have 4 + 1 + 0 + 9 = 14.
    assert r_squared([FOUR], "personal") == pytest.approx(1 - 5 / 14)
    assert r_squared([FOUR], "global") == pytest.approx(0.0)
    two = errors([0.0, 0.0], personal=[1.0, 1.0])
    assert r_squared([two], "personal") is None and r_squared([NOTHING], "personal") is None
    # Together: 5 + 2 over 6; around the mean of 2: 50 - 6 * 4 = 26.
    assert rmse([FOUR, two], "personal") == pytest.approx(math.sqrt(7 / 6))
    assert r_squared([FOUR, two], "personal") == pytest.approx(1 - 7 / 26)
    assert RMSE.gain(FOUR, "personal", "global") == pytest.approx(math.sqrt(3.5) - math.sqrt(1.25))


def test_summary_and_rates_over_clients() -> None:
    good = errors([0.0] * 4, personal=[1.0] * 4, global_=[2.0] * 4)
    bad = errors([0.0] * 4, personal=[5.0] * 4, global_=[2.0] * 4)
    results = [ClientResult("a", 9, good, good), ClientResult("b", 9, bad, bad)]
    found = metrics.summary(results, RMSE, "personal")
    # The worst is the largest; together sqrt((4 + 100) / 8).
    weighted = math.sqrt(104 / 8)
    expected = {"mean": 3, "weighted": weighted, "std": 2, "worst_decile": 5, "min": 1, "max": 5}
    assert found == pytest.approx(expected)
    assert metrics.mean_gain(results, RMSE, "global") == pytest.approx((1 - 3) / 2)
    assert metrics.breakage_rate(results) == metrics.fix_rate(results) == 0.5


def test_who_loses_every_time_is_harmed_and_the_gate_sees_it() -> None:
    good = errors([0.0] * 20, personal=[1.0] * 20, global_=[2.0] * 20)
    bad = errors([0.0] * 10, personal=[5.0] * 10, global_=[2.0] * 10)
    results = [ClientResult(c, 9, good, good) for c in "abc"] + [ClientResult("x", 9, bad, bad)]
    assert metrics.harmed_clients(results) == ["x"]
    assert choose(results) == {"a": "personal", "b": "personal", "c": "personal", "x": "global"}
    after = gated(results)
    assert [r.test.squared["gated"] for r in after] == [20.0] * 3 + [40.0]  # type: ignore[attr-defined]
    assert after[-1].test.wins("gated", "personal") == 10
    assert after[-1].test.wins("global", "gated") == after[-1].test.wins("gated", "global") == 0
    assert gate_summary(after, RMSE)["oracle_gap"] == 0
    for result in after:
        assert Errors.from_json(json.loads(json.dumps(result.test.to_json()))) == result.test


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), max_size=20),
    st.floats(0, 1e3),
    st.floats(1e-3, 1e3),
)
def test_json_round_trip(rows: list[tuple[float, ...]], tolerance: float, spread: float) -> None:
    y, g, h = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).T
    tally = Errors.of(y, {"global": g, "personal": h}, tolerance, spread)
    assert Errors.from_json(json.loads(json.dumps(tally.to_json()))) == tally
    assert tally.wins("personal", "global") + tally.wins("global", "personal") <= tally.n


def test_a_model_that_broke_down_is_far_off_and_can_be_sent() -> None:
    odd = torch.tensor([math.nan, math.inf, -math.inf])
    tally = Errors.of(torch.zeros(3), {"personal": odd, "global": torch.zeros(3)}, 0.0, 2.0)
    assert tally.absolute["personal"] == 3 * 2e6 and tally.wins("global", "personal") == 3
    assert Errors.from_json(tally.to_json()) == tally


@pytest.mark.parametrize("shape", [(3, 1), (2,), ()])
def test_what_would_broadcast_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"predictions.global: got .* takes \[n\]"):
        Errors.of(torch.zeros(3), {"global": torch.zeros(shape)}, 0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"n": -1}, "n:"),
        ({"n": 2.0}, "n:"),
        ({"squared": {"personal": 5.0, "other": 1.0}}, "squared:"),
        ({"squared": {"personal": -1.0, "global": 14.0}}, "squared.personal"),
        ({"squared": {"personal": math.nan, "global": 14.0}}, "squared.personal"),
        ({"squared": {"personal": math.inf, "global": 14.0}}, "squared.personal"),
        ({"absolute": {"personal": 3.0}}, "absolute:"),
        ({"absolute": {"personal": 9.0, "global": 6.0}}, "absolute.personal"),  # 4 * 5 < 9²
        ({"absolute": {"personal": 1.0, "global": 6.0}}, "absolute.personal"),  # 1² < 5
        ({"total": 15.0}, "total:"),  # 4 * 50 < 15²
        ({"total": math.nan}, "total:"),
        ({"squares": math.inf}, "squares:"),
        ({"won": {"personal": {"global": 2}}}, "won:"),
        ({"won": {"personal": {"global": 2}, "global": 3}}, "won.global"),
        ({"won": {"personal": {"global": 5}, "global": {"personal": 0}}}, "won.personal.global"),
        ({"won": {"personal": {"global": 2}, "global": {"personal": 3}}}, r"won\."),
        ({"won": {"personal": {"global": True}, "global": {"personal": 1}}}, "won.personal"),
    ],
)
def test_from_json_refuses_garbage(change: dict[str, Any], names: str) -> None:
    assert Errors.from_json(FOUR.to_json()) == FOUR
    with pytest.raises(ValueError, match=f"^{names}") as error:
        Errors.from_json(FOUR.to_json() | change)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_tolerance_and_scale_come_from_the_settings() -> None:
    task = Regression(RegressionParams(mean=10.0, sd=2.0, tolerance=3.0))
    scores = {"personal": torch.tensor([[0.0], [0.0]]), "global": torch.tensor([[1.0], [2.0]])}
    tally = task.tally(scores, torch.tensor([0.0, 0.0]))  # both are 10
    assert tally.squared == {"personal": 0.0, "global": 20.0}  # off by 2 and 4
    assert tally.wins("personal", "global") == 1
