import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.evaluation import ClientResult
from fedpers.evaluation.gate import choose, gate_summary, gated, sign_test
from fedpers.tasks import Classification, Counts

ACCURACY = Classification.metrics["accuracy"]


def counts(n: int, right: int, fixed: int, broke: int) -> Counts:
    correct = {"global": right, "personal": right + fixed - broke}
    return Counts(n, correct, {"personal": fixed}, {"personal": broke})


def client(name: str, fixed: int, broke: int) -> ClientResult:
    return ClientResult(name, 100, counts(40, 20, fixed, broke), counts(50, 30, 4, 3))


def test_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(2, 0) == 0.25  # both of two
    assert sign_test(4, 1) == pytest.approx(6 / 32)  # (5 + 1) of 32
    assert sign_test(1, 4) == pytest.approx(31 / 32)


def test_the_population_decides_where_no_client_could() -> None:
    # 2 fixed, 0 broke: 1/4 each, not significant; 10 of 10 together: 1/1024.
    few = [client(str(k), 2, 0) for k in range(5)]
    assert set(choose(few).values()) == {"personal"}
    # 6 against 4: P[Binomial(10, 1/2) >= 6] = 386/1024, so the fallback.
    mixed = [client("a", 3, 2), client("b", 3, 2)]
    assert set(choose(mixed).values()) == {"global"}


def test_a_client_overrides_on_strong_evidence_only() -> None:
    crowd = [client(str(k), 5, 0) for k in range(10)]
    # 7 losses of 7: 1/128 < 0.01. 6 of 6: 1/64, not enough.
    chosen = choose([*crowd, client("strong", 0, 7), client("weak", 0, 6)])
    assert chosen["strong"] == "global"
    assert chosen["weak"] == "personal"
    chosen = choose([client("a", 0, 9), client("b", 0, 9), client("other", 7, 0)])
    assert chosen == {"a": "global", "b": "global", "other": "personal"}


def test_gated_counts_are_those_of_the_chosen_model() -> None:
    results = gated([*(client(str(k), 5, 0) for k in range(10)), client("harmed", 0, 7)])
    assert results[0].test.correct["gated"] == 31
    assert results[0].test.fixed["gated"] == 4
    assert results[0].test.broke["gated"] == 3
    assert results[-1].test.correct["gated"] == 30
    assert results[-1].test.broke["gated"] == 0


def test_without_a_global_model_there_is_no_gate() -> None:
    only = ClientResult("a", 3, Counts(2, {"personal": 1}, {}, {}), Counts(0, {}, {}, {}))
    assert gated([only]) == [only]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=8))
def test_the_choice_does_not_depend_on_test_counts(pairs: list[tuple[int, int]]) -> None:
    results = [client(str(k), *pair) for k, pair in enumerate(pairs)]
    others = [ClientResult(r.client, r.train, r.val, counts(50, 0, 50, 0)) for r in results]
    assert choose(results) == choose(others)


def test_summary_by_hand() -> None:
    # The population takes the personal models; "harmed" overrides and takes the global one.
    # On test personal has 31 of 50 right and global 30, but at "late" 20 and 30.
    crowd = [client(str(k), 5, 0) for k in range(8)]
    late = ClientResult("late", 100, counts(40, 20, 5, 0), counts(50, 30, 0, 10))
    untested = ClientResult("untested", 100, counts(40, 20, 5, 0), counts(0, 0, 0, 0))
    got = gate_summary([*crowd, client("harmed", 0, 7), late, untested], ACCURACY)
    assert got["coverage_clients"] == pytest.approx(9 / 10)
    assert got["coverage_examples"] == pytest.approx(450 / 500)
    # harmed misses 31 - 30 of 50, late 30 - 20 of 50
    assert got["oracle_gap"] == pytest.approx((1 / 50 + 10 / 50) / 10)


def test_summary_without_both_models_is_none() -> None:
    only = ClientResult("a", 3, Counts(2, {"personal": 1}, {}, {}), Counts(2, {"local": 1}, {}, {}))
    assert (
        set(gate_summary([only], ACCURACY).values())
        == {None}
        == set(gate_summary([], ACCURACY).values())
    )
