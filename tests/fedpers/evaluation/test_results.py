import json
from typing import Any

import pytest
import torch

from fedpers.evaluation import ClientResult
from fedpers.tasks import Counts, Errors, Tally

Y = torch.tensor([0, 1, 1])
COUNTS = Counts.of(Y, {"global": torch.tensor([0, 0, 1]), "personal": torch.tensor([1, 1, 1])})
ERRORS = Errors.of(Y.float(), {"global": Y / 2, "personal": Y / 3}, 0.0, 1.0)


@pytest.mark.parametrize("tally", [COUNTS, ERRORS])
def test_json_round_trip(tally: Tally) -> None:
    for outside in (None, tally):
        result = ClientResult("a", 9, tally, tally, outside)
        sent = json.loads(json.dumps(result.to_json()))
        assert ClientResult.from_json(sent, type(tally)) == result


def test_the_tally_of_another_task_is_refused() -> None:
    sent = ClientResult("a", 9, COUNTS, COUNTS).to_json()
    with pytest.raises(ValueError, match="takes an object with n, squared"):
        ClientResult.from_json(sent, Errors)


def good() -> dict[str, Any]:
    return COUNTS.to_json()


@pytest.mark.parametrize(
    "change",
    [{"client": ""}, {"client": 3}, {"train": -1}, {"train": None}, {"val": None}, {"outside": 0}],
)
def test_client_result_refuses_garbage(change: dict[str, Any]) -> None:
    data = {"client": "a", "train": 5, "val": good(), "test": good(), "outside": None}
    assert ClientResult.from_json(data, Counts).client == "a"
    with pytest.raises(ValueError, match="takes"):
        ClientResult.from_json(data | change, Counts)
