import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.tasks.counts import Counts

MODES = ["personal", "global", "gated", "local"]


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    """Counts of random predictions: any modes, any number of examples, none included."""
    n = draw(st.integers(0, 12))
    ids = st.lists(st.integers(0, 2), min_size=n, max_size=n)
    modes = draw(st.lists(st.sampled_from(MODES), unique=True))
    labels = torch.tensor(draw(ids), dtype=torch.long)
    return Counts.of(labels, {m: torch.tensor(draw(ids), dtype=torch.long) for m in modes})


def test_of_counts_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1])
    # right:   global + + - - -     personal - + + + -     local - - - - +
    got = Counts.of(
        labels,
        {
            "global": torch.tensor([0, 1, 0, 1, 0]),
            "personal": torch.tensor([1, 1, 2, 0, 2]),
            "local": torch.tensor([2, 0, 0, 2, 1]),
        },
    )
    assert got == Counts(
        n=5,
        correct={"global": 2, "personal": 3, "local": 1},
        fixed={"personal": 2, "local": 1},  # personal: the third and fourth; local: the fifth
        broke={"personal": 1, "local": 2},  # personal: the first; local: the first two
    )


def test_of_without_a_global_model_compares_nothing() -> None:
    got = Counts.of(torch.tensor([0, 1]), {"local": torch.tensor([0, 0])})
    assert got == Counts(2, {"local": 1}, {}, {})


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (4,), ()])
def test_of_refuses_predictions_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"predictions.global: got .* takes \[n\]"):
        Counts.of(torch.zeros(3), {"global": torch.zeros(shape)})


@given(counts())
def test_json_round_trip(test: Counts) -> None:
    assert Counts.from_json(json.loads(json.dumps(test.to_json()))) == test


def good() -> dict[str, object]:
    return {
        "n": 10,
        "correct": {"global": 6, "personal": 7},
        "fixed": {"personal": 3},
        "broke": {"personal": 2},
    }


def test_from_json_takes_the_good_one_that_the_bad_ones_differ_from() -> None:
    assert Counts.from_json(good() | {"more": 1}).n == 10


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"n": -1}, "n:"),
        ({"n": True}, "n:"),
        ({"n": 10.0}, "n:"),
        ({"n": "10"}, "n:"),
        ({"n": None}, "n:"),
        ({"n": 10**400}, "n:"),
        ({"correct": {"global": 6, "personal": 11}}, "correct.personal"),
        ({"correct": {"global": 6, "personal": float("nan")}}, "correct.personal"),
        ({"correct": {"global": 6, "personal": 7, "other": 1}}, "correct:"),
        ({"correct": ["personal"]}, "correct:"),
        ({"correct": {"personal": 7}}, "fixed:"),  # fixed against which global model?
        ({"fixed": {}}, "fixed:"),
        ({"fixed": {"personal": 3, "global": 0}}, "fixed:"),
        ({"broke": None}, "broke:"),
        ({"fixed": {"personal": 5}, "broke": {"personal": 4}}, "fixed.personal"),  # 4 were wrong
        ({"fixed": {"personal": -1}}, "fixed.personal"),
        ({"correct": {"global": 1, "personal": 2}}, "broke.personal"),  # only 1 was right
        ({"broke": {"personal": 1}}, "correct.personal"),  # 6 + 3 - 1 is not 7
    ],
)
def test_from_json_refuses_garbage(change: dict[str, object], names: str) -> None:
    with pytest.raises(ValueError, match=f"^{names}") as error:
        Counts.from_json(good() | change)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, 3, [], "n", {}, {"n": 1}])
def test_from_json_refuses_what_is_not_counts(data: object) -> None:
    with pytest.raises(ValueError, match="takes an object with"):
        Counts.from_json(data)
