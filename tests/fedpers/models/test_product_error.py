import pytest
import torch

from fedpers.models.lora import product_error
from fedpers.parts import Part


def body(a: float, b: float) -> Part:
    return Part.of({"q.lora_A": torch.tensor([[float(a)]]), "q.lora_B": torch.tensor([[float(b)]])})


def test_by_hand() -> None:
    # B_i A_i: 1 * 1 = 1 and 3 * 3 = 9, mean 5; mean(B) mean(A) = 2 * 2 = 4; (5 - 4) / 5.
    halves = torch.tensor([0.5, 0.5])
    assert product_error(halves, [body(1, 1), body(3, 3)]) == pytest.approx(0.2)


def test_zero_where_one_factor_is_common() -> None:
    weights = torch.tensor([0.25, 0.75])
    assert product_error(weights, [body(2, 1), body(2, 5)]) == 0


def test_none_without_both_factors() -> None:
    only = Part.of({"q.lora_B": torch.ones(2, 1)})
    assert product_error(torch.ones(1), [only]) is None
