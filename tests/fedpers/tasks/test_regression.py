from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpers.config import Columns, TaskSettings, load_config
from fedpers.data import load_data
from fedpers.data.arrays import to_targets
from fedpers.errors import ConfigError, DataError
from fedpers.outputs import Outputs
from fedpers.tasks import task_named
from fedpers.tasks.regression import Regression, RegressionParams

TASK = Regression(RegressionParams(name="dose", unit="mg", mean=10.0, sd=2.0))


def encoded(y: Any, **params: Any) -> tuple[Any, torch.Tensor]:
    return to_targets(y, "file: y", Columns(label="dose"), TaskSettings("regression", params))


def test_columns_of_numbers() -> None:
    task, y = encoded([1, 2, 4])
    assert task.names == ("dose",) and y.dtype == torch.float64 and y.tolist() == [1, 2, 4]
    assert encoded([0.5], name="weight")[0].names == ("weight",)
    for bad in (["a", "b"], [True, False], [[1.0], [2.0]], []):
        with pytest.raises(
            DataError, match=r"^file: y: got .*takes one number an example"
        ) as caught:
            encoded(bad)
        assert "\n" not in str(caught.value)


def test_the_scale_is_that_of_public_targets_or_as_declared() -> None:
    public = torch.tensor([1.0, 3.0, float("nan")], dtype=torch.float64)
    task = Regression(RegressionParams("dose")).fitted(public)
    assert task.scale == (2.0, 1.0) and task.about.endswith("mean 2 and sd 1, of 2 public examples")
    assert task.scaled(torch.tensor([4.0])).tolist() == [2.0]
    assert TASK.fitted(public) is TASK and TASK.about.endswith("as declared")
    half = Regression(RegressionParams("dose", sd=4.0)).fitted(public)
    assert half.scale == (2.0, 4.0)


@pytest.mark.parametrize("public", [[], [1.0], [2.0, 2.0]])
def test_without_public_targets_the_scale_has_to_be_declared(public: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"^task\.params\.mean: got None, .*declare task\.params"):
        Regression(RegressionParams()).fitted(torch.tensor(public, dtype=torch.float64))


def test_settings_make_the_same_task_elsewhere() -> None:
    found, params = task_named(TASK.settings())
    task, y = found.encode([12.0], "y", Columns(), params)
    assert task.fitted(torch.zeros(0)).scaled(y).tolist() == [1.0] and task.names == ("dose",)


def test_loss_divergence_and_predictions_by_hand() -> None:
    scores = torch.tensor([[1.0], [-2.0]])
    outputs, targets = Outputs(torch.zeros(2, 1), scores), torch.tensor([0.5, 1.0])
    assert TASK.loss(outputs, targets).tolist() == [0.25, 9.0]
    assert float(TASK.divergence(scores, torch.tensor([[0.0], [0.0]]))) == 2.5
    assert TASK.read(scores) == ["12", "6"] and TASK.reading == "dose in mg"
    confidence = TASK.confidence(scores, targets)
    assert confidence[0] > confidence[1]  # the nearer, the surer


def test_a_head_that_is_given_away_predicts_in_the_targets_unit() -> None:
    head = nn.Linear(3, 1)
    x = torch.randn(5, 3)
    expected = 10 + 2 * head(x)
    TASK.unscaled(head)
    torch.testing.assert_close(head(x), expected)


def test_strata_are_tenths() -> None:
    y = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    strata = TASK.strata(y)
    assert torch.bincount(strata).tolist() == [100] * 10
    assert y[strata == 3].max() <= y[strata == 4].min()


def test_numbers_are_dealt_unevenly_by_tenths() -> None:
    config = load_config(
        "configs/diabetes.yaml",
        ["data.partition.name=dirichlet", "data.clients=5", "data.partition.alpha=0.1"],
    )
    data = load_data(config)
    means = [float(data.client(c).train.y.mean()) for c in data.clients]
    assert len(means) == 5 and np.std(means) > 0.3  # of targets whose spread is 1
    even = load_data(load_config("configs/diabetes.yaml", ["data.partition.name=iid"]))
    same = [float(even.client(c).train.y.mean()) for c in even.clients[:5]]
    assert np.std(same) < np.std(means)


def test_natural_clients_of_the_diabetes_data() -> None:
    data = load_data(load_config("configs/diabetes.yaml", []))
    assert len(data.clients) == 13 and "sex 1, 50s" in data.clients
    mean, sd = data.task.scale  # type: ignore[attr-defined]
    assert 130 < mean < 170 and 60 < sd < 90
    assert abs(float(data.public.y.mean())) < 1e-6
