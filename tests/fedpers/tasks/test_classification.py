from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedpers.config import Columns, TaskSettings
from fedpers.data.arrays import to_targets
from fedpers.errors import ConfigError, DataError
from fedpers.outputs import Outputs
from fedpers.tasks import Classification, task_named


def encoded(y: Any, where: str = "y", classes: int | None = None, *names: str) -> torch.Tensor:
    settings = TaskSettings("classification", {"names": list(names)})
    return to_targets(y, where, Columns(classes=classes), settings)[1]


def names(y: Any, classes: int | None = None) -> tuple[str, ...]:
    return to_targets(y, "y", Columns(classes=classes))[0].names


def test_labels_by_number_or_by_sorted_text() -> None:
    assert encoded(np.array([2, 0, 1, 2], np.uint8)).tolist() == [2, 0, 1, 2]
    assert encoded([True, False]).tolist() == [1, 0]
    assert encoded(["dog", "cat", "emu", "cat"]).tolist() == [1, 0, 2, 0]
    assert encoded(["dog", "cat"]).dtype == torch.int64


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 2, 0], "got classes 0, 2, takes 0, 1"),
        ([1, 2, 1], "got classes 1, 2"),
        ([-1, 0, 1], "got classes -1"),
        (list(range(1, 20)), r"8, \.\.\., takes"),
        ([0, 0], "the one class 0"),
        ([0.0, 1.0], "float64"),
        ([[0], [1]], r"shape \(2, 1\)"),
        ([[0], [1, 2]], "got lists"),
        ([], r"shape \(0,\)"),
        ([None, {}], "object"),
    ],
)
def test_bad_labels_are_one_line(y: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encoded(y, "file: y")

    assert str(caught.value).startswith("file: y: got") and "\n" not in str(caught.value)


def test_names_are_kept() -> None:
    assert names(["dog", "cat", "dog"]) == ("cat", "dog")
    assert names([1, 0]) == ("0", "1") and names([True, False]) == ("False", "True")
    assert names([1, 1], classes=3) == ("0", "1", "2")


def test_names_that_are_given_take_numbers_and_text() -> None:
    assert encoded([2, 0], "y", None, "cat", "dog", "emu").tolist() == [2, 0]
    assert encoded(["emu", "cat"], "y", None, "cat", "dog", "emu").tolist() == [2, 0]
    for y, shown in (([3, 0], "int64 such as 3"), (["cow", "cat"], "<U3 such as cow")):
        with pytest.raises(DataError, match=f"{shown}, takes integers in 0..2 or cat, dog, emu"):
            encoded(y, "y", None, "cat", "dog", "emu")


def test_numbers_to_predict_are_told_to_be_a_regression() -> None:
    with pytest.raises(DataError, match=r"float64 .*; for numbers to predict set task\.name=regr"):
        encoded([0.5, 1.5])
    with pytest.raises(DataError, match=r"^data: y: got torch\.float32 .*task\.name=regression"):
        Classification.of(torch.zeros(3), Classification.Params())


def test_settings_make_the_same_task_elsewhere() -> None:
    task = Classification(["cat", "dog"])
    found, params = task_named(task.settings())
    again, y = found.encode(["dog", "dog"], "y", Columns(), params)
    assert again.names == task.names and y.tolist() == [1, 1]


def test_an_unknown_task_or_parameter_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^task\.name: got 'ranking', takes one of causal-lm, "):
        task_named(TaskSettings("ranking"))
    with pytest.raises(ConfigError, match=r"^task\.params\.unit: got 'kg', takes one of: names"):
        task_named(TaskSettings("classification", {"unit": "kg"}))


def test_loss_divergence_and_confidence_by_hand() -> None:
    task = Classification(["a", "b"])
    scores = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    outputs = Outputs(torch.zeros(2, 1), scores)
    expected = torch.tensor([np.log(2), np.log(1 + np.e)], dtype=torch.float32)
    torch.testing.assert_close(task.loss(outputs, torch.tensor([0, 1])), expected)
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    p = torch.softmax(teacher[0], 0)
    kl = (p * (p.log() - np.log(0.5))).sum() / 2  # of the first; the second is the teacher's own
    torch.testing.assert_close(task.divergence(scores, teacher), kl)
    # log p - log(1 - p) is the difference of two logits.
    torch.testing.assert_close(
        task.confidence(scores, torch.tensor([0, 1])), torch.tensor([0.0, -1.0])
    )
    assert F.cross_entropy(scores, torch.tensor([0, 1])) == pytest.approx(float(expected.mean()))


def test_predictions_are_read_by_name() -> None:
    scores = torch.tensor([[0.0, 0.0, 9.0], [np.log(3.0), 0.0, -99.0]])
    assert Classification(["cat", "dog", "emu"]).read(scores) == ["emu (1.000)", "cat (0.750)"]
