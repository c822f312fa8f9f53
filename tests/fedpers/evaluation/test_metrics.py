import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.evaluation import metrics
from fedpers.evaluation.results import ClientResult
from fedpers.tasks import Classification, Counts

NOTHING = Counts(0, {}, {}, {})
ACCURACY = Classification.metrics["accuracy"]


def client(
    name: str, n: int, base: int, fixed: int, broke: int, outside: Counts | None = None
) -> ClientResult:
    """A client whose global model has ``base`` of n right; the personal one fixed and broke."""
    personal = base + fixed - broke
    test = Counts(
        n, {"global": base, "personal": personal}, {"personal": fixed}, {"personal": broke}
    )
    return ClientResult(name, 100, NOTHING, test, outside)


def of(name: str, right: int, n: int, mode: str = "personal") -> ClientResult:
    return ClientResult(name, 100, NOTHING, Counts(n, {mode: right}, {}, {}))


def test_summary_by_hand() -> None:
    # Accuracies 1/2, 3/4, 1 and 1/4; the client without examples does not count.
    results = [of("a", 2, 4), of("b", 6, 8), of("c", 2, 2), of("d", 1, 4), of("e", 0, 0)]
    got = metrics.summary(results, ACCURACY, "personal")
    # mean      (0.5 + 0.75 + 1 + 0.25) / 4 = 0.625
    # weighted  (2 + 6 + 2 + 1) / (4 + 8 + 2 + 4) = 11/18
    # variance  (0.125^2 + 0.125^2 + 0.375^2 + 0.375^2) / 4 = 0.3125 / 4 = 0.078125
    # worst decile: floor(0.4) = 0, so the one worst client
    assert got == pytest.approx(
        {
            "mean": 0.625,
            "weighted": 11 / 18,
            "std": 0.078125**0.5,
            "worst_decile": 0.25,
            "min": 0.25,
            "max": 1.0,
        }
    )


def test_worst_decile_is_the_mean_of_a_tenth_of_the_clients_rounded_down() -> None:
    # 29 clients with 0..28 of 100 right: the floor(2.9) = 2 worst have 0 and 1, mean 0.005.
    # With a 30th the 3 worst have 0, 1 and 2, mean 0.01.
    results = [of(str(i), i, 100) for i in range(30)]
    for count, worst in [(29, 0.005), (30, 0.01)]:
        summary = metrics.summary(results[:count][::-1], ACCURACY, "personal")
        assert summary is not None and summary["worst_decile"] == pytest.approx(worst)


def test_summary_takes_only_the_clients_that_have_the_mode() -> None:
    results = [of("a", 1, 2), of("b", 1, 4, mode="local")]
    local = metrics.summary(results, ACCURACY, "local")
    assert local is not None and local["mean"] == 0.25
    assert metrics.summary(results, ACCURACY, "gated") is None
    assert metrics.summary(results, ACCURACY, "local", "val") is None
    assert metrics.summary(results, ACCURACY, "local", "outside") is None
    assert metrics.summary([], ACCURACY, "local") is None


def test_rates_and_gain_by_hand() -> None:
    # global right 6 of 10, 1 of 4, 3 of 3; fixed 3, 1, 0; broke 2, 0, 1
    results = [client("a", 10, 6, 3, 2), client("b", 4, 1, 1, 0), client("c", 3, 3, 0, 1)]
    # broke (2 + 0 + 1) of the 6 + 1 + 3 that were right
    assert metrics.breakage_rate(results) == pytest.approx(3 / 10)
    # fixed (3 + 1 + 0) of the 4 + 3 + 0 that were wrong
    assert metrics.fix_rate(results) == pytest.approx(4 / 7)
    # gains 7/10 - 6/10, 2/4 - 1/4, 2/3 - 3/3: (0.1 + 0.25 - 1/3) / 3
    assert metrics.mean_gain(results, ACCURACY, "global") == pytest.approx((0.35 - 1 / 3) / 3)
    assert metrics.mean_gain(results, ACCURACY, "local") is None


def test_gain_over_local_is_paired() -> None:
    both = Counts(4, {"personal": 3, "local": 1}, {}, {})
    results = [ClientResult("a", 9, NOTHING, both), of("b", 0, 4), of("c", 4, 4, mode="local")]
    assert (
        metrics.mean_gain(results, ACCURACY, "local") == 0.5
    )  # 3/4 - 1/4; b and c have only one each


def test_rates_without_a_denominator_are_none() -> None:
    all_right, all_wrong = [client("a", 3, 3, 0, 1)], [client("a", 3, 0, 1, 0)]
    assert metrics.fix_rate(all_right) is None
    assert metrics.breakage_rate(all_right) == pytest.approx(1 / 3)
    assert metrics.breakage_rate(all_wrong) is None
    assert metrics.harmed_share([of("a", 1, 2)]) is None


def test_harmed_share_by_hand() -> None:
    # p = P[Binomial(broke + fixed, 1/2) >= broke]
    #   a: broke 10, fixed 0: 1/1024                    = 0.00098 <= 1/4 * 0.05 = 0.0125
    #   b: broke  6, fixed 0: 1/64                      = 0.01563 <= 2/4 * 0.05 = 0.025
    #   c: broke  5, fixed 1: (6 + 1)/64                = 0.10938 >  3/4 * 0.05 = 0.0375
    #   d: broke  0, fixed 8: 1                                   >  4/4 * 0.05
    # so a and b are harmed, 2 of 4; e has no examples and does not count.
    results = [
        client("a", 40, 20, 0, 10),
        client("b", 40, 20, 0, 6),
        client("c", 40, 20, 1, 5),
        client("d", 40, 20, 8, 0),
        client("e", 0, 0, 0, 0),
    ]
    assert metrics.harmed_share(results) == 0.5
    assert metrics.harmed_clients(results) == ["a", "b"]


def test_harmed_share_is_corrected_for_many_clients() -> None:
    # broke 5, fixed 0: p = 1/32 = 0.03125. Alone, or as both of two clients, it is at most the
    # threshold of the largest rank, 0.05. As one of two, rank 1: 0.03125 > 1/2 * 0.05 = 0.025.
    harmed, same = client("a", 40, 20, 0, 5), client("b", 40, 20, 0, 0)
    assert metrics.harmed_share([harmed]) == 1.0
    assert metrics.harmed_share([harmed, harmed]) == 1.0
    assert metrics.harmed_share([harmed, same]) == 0.0
    # One discordant example less, p = 1/16 = 0.0625, is within chance.
    assert metrics.harmed_share([client("a", 40, 20, 0, 4)]) == 0.0
    assert metrics.harmed_share([client("a", 40, 20, 0, 4)], level=0.07) == 1.0


def test_gini_by_hand() -> None:
    # 3/4, 1/2 and 2/3: 2 (1/4 + 1/12 + 1/6) / (2 * 3 * 23/12)
    three = [of("a", 3, 4), of("b", 1, 2), of("c", 2, 3)]
    assert metrics.gini(three, ACCURACY, "personal") == pytest.approx(2 * 0.5 / (6 * 23 / 12))
    assert metrics.gini([three[0], three[0]], ACCURACY, "personal") == 0
    assert metrics.gini([of("z", 0, 1)], ACCURACY, "personal") is None


def test_out_of_client_by_hand() -> None:
    def outside(n: int, base: int, personal: int) -> Counts:
        labels, ones = torch.zeros(n), torch.ones(n)
        predictions = {"global": ones.clone(), "personal": ones.clone()}
        predictions["global"][:base] = 0
        predictions["personal"][:personal] = 0
        return Counts.of(labels, predictions)

    results = [
        client("a", 5, 1, 0, 0, outside(10, 8, 5)),
        client("b", 5, 1, 0, 0, outside(4, 2, 1)),
        client("c", 5, 1, 0, 0),
    ]
    # global (8/10 + 2/4) / 2, personal (5/10 + 1/4) / 2
    assert metrics.out_of_client(results, ACCURACY) == pytest.approx(
        {"personal": 0.375, "global": 0.65}
    )
    assert metrics.out_of_client(results[2:], ACCURACY) == {"personal": None, "global": None}


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30
    )
)
def test_the_gain_is_what_is_fixed_less_what_is_broken(examples: list[tuple[int, ...]]) -> None:
    labels, g, h = torch.tensor(examples).T
    results = [ClientResult("a", 1, NOTHING, Counts.of(labels, {"global": g, "personal": h}))]
    a_g, a_h = float((g == labels).double().mean()), float((h == labels).double().mean())
    fixed, broken = metrics.fix_rate(results) or 0.0, metrics.breakage_rate(results) or 0.0
    assert a_h - a_g == pytest.approx(fixed * (1 - a_g) - broken * a_g)
    assert metrics.mean_gain(results, ACCURACY, "global") == pytest.approx(a_h - a_g)


@given(
    st.lists(
        st.integers(0, 20).flatmap(
            lambda n: st.integers(0, n).flatmap(
                lambda base: st.tuples(
                    st.just(n), st.just(base), st.integers(0, n - base), st.integers(0, base)
                )
            )
        ),
        max_size=25,
    ),
    st.randoms(use_true_random=False),
)
def test_no_metric_depends_on_the_order_of_clients(
    numbers: list[tuple[int, int, int, int]], shuffler: random.Random
) -> None:
    results = [client(str(i), *row) for i, row in enumerate(numbers)]
    shuffled = list(results)
    shuffler.shuffle(shuffled)
    for metric in (
        lambda rs: metrics.summary(rs, ACCURACY, "personal"),
        metrics.breakage_rate,
        metrics.fix_rate,
        metrics.harmed_share,
        lambda rs: metrics.mean_gain(rs, ACCURACY, "global"),
    ):
        assert metric(shuffled) == metric(results)  # bit for bit
    summary = metrics.summary(results, ACCURACY, "personal")
    if summary is not None:
        slack = 1e-12
        assert summary["min"] - slack <= summary["worst_decile"] <= summary["mean"] + slack
        assert summary["mean"] <= summary["max"] + slack
