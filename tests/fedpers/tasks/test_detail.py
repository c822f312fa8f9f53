import copy
from typing import Any

import pytest
import torch

from fedpers.evaluation.gate import gated
from fedpers.evaluation.results import ClientResult
from fedpers.tasks.counts import Counts


def good() -> dict[str, Any]:
    labels = torch.tensor([0, 0, 1, 1, 1])
    logits = torch.tensor([[2.0, 0], [0, 1], [0, 3], [0, 0.2], [1, 0]])
    return Counts.of_logits(labels, {"personal": logits}).to_json()


def test_an_old_line_without_detail_loads() -> None:
    data = good()
    assert Counts.from_json(data).detail is not None
    del data["detail"]
    assert Counts.from_json(data).detail is None
    assert "detail" not in Counts.from_json(data).to_json()


HUGE = 10**400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labelled", [2, 4]),  # 6 of 5 examples
        ("labelled", [5, -0.0]),
        ("labelled", []),
        ("labelled", [5] + [0] * 1000),
        ("labelled", "23"),
        ("labelled", {"0": 5}),
        ("labelled", [True, 4]),
        ("labelled", [-1, 6]),
        ("modes", {}),
        ("modes", []),
        ("predicted", [2, 3, 0]),
        ("predicted", [2, 2]),
        ("predicted", [HUGE, 5 - HUGE]),
        ("predicted", None),
        ("right", [0, 3]),  # then nothing is left that the two missed could be predicted as
        ("right", [3, 0]),  # only 2 are labelled 0
        ("right", [1, 1]),  # 3 were right
        ("pairs", [0, 13]),  # at most 2 * 3 * 2
        ("pairs", [0, -1]),
        ("pairs", [0.5, 0]),
        ("pairs", [0]),
        ("binned", [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),  # the confidences are not below .1
        ("binned", [1] * 10),
        ("binned_right", [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("binned_right", [0] * 10),
        ("confidence", [float("nan")] + [0.0] * 9),
        ("confidence", [0.0] * 10),
        ("confidence", [10.0] * 10),
        ("confidence", ["0"] * 10),
        ("confidence", [HUGE] * 10),
        ("confidence", [0.0] * 9),
        ("confidence", 5.0),
    ],
)
def test_a_hostile_detail_is_refused_in_one_short_line(key: str, value: object) -> None:
    data = good()
    Counts.from_json(copy.deepcopy(data))  # what the bad ones differ from
    inner = data["detail"] if key in ("labelled", "modes") else data["detail"]["modes"]["personal"]
    inner[key] = value
    with pytest.raises(ValueError, match="takes") as error:
        Counts.from_json(data)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


@pytest.mark.parametrize("detail", [[], 3, "x", {}, {"labelled": [5]}, {"labelled": 1, "modes": 2}])
def test_what_is_no_detail_is_refused(detail: object) -> None:
    with pytest.raises(ValueError, match="takes"):
        Counts.from_json(good() | {"detail": detail})


def test_modes_are_those_that_were_counted() -> None:
    data = good()
    data["detail"]["modes"]["local"] = data["detail"]["modes"]["personal"]
    with pytest.raises(ValueError, match=r"detail\.modes"):
        Counts.from_json(data)


def test_the_gate_takes_the_detail_of_the_chosen_model() -> None:
    labels = torch.tensor([0, 1])
    models = {"personal": torch.eye(2), "global": -torch.eye(2)}
    val = Counts.of_logits(labels.repeat(20), {m: x.repeat(20, 1) for m, x in models.items()})
    result = ClientResult("a", 9, val, Counts.of_logits(labels, models))
    detail = gated([result])[0].test.detail
    assert detail is not None
    assert detail.modes["gated"] == detail.modes["personal"] != detail.modes["global"]
