import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpers.tasks import class_metrics
from fedpers.tasks.counts import Counts
from fedpers.tasks.detail import MOST_CLASSES

NOTHING = Counts(0, {}, {}, {})


def logits(p1: list[float]) -> Tensor:
    """Of two classes, such that the second has these probabilities."""
    return torch.tensor([[1 - p, p] for p in p1], dtype=torch.float64).log()


def counted(labels: list[int], p1: list[float]) -> Counts:
    return Counts.of_logits(torch.tensor(labels), {"personal": logits(p1)})


def mean(metric: Callable[..., float | None], tallies: list[Counts]) -> float | None:
    """Over clients that have it."""
    values = [metric([tally], "personal") for tally in tallies]
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


# a predicts 0 1 1 1, b 1 0, c 0 0 0
THREE = [
    counted([0, 0, 1, 1], [0.21, 0.58, 0.55, 0.88]),
    counted([1, 1], [0.73, 0.35]),
    counted([0, 1, 0], [0.45, 0.45, 0.15]),
]


def test_counts_by_hand() -> None:
    detail = THREE[0].detail
    assert detail is not None and detail.labelled == [2, 2]
    mode = detail.modes["personal"]
    assert mode.predicted == [1, 3] and mode.right == [1, 2]
    # Of the four pairs .55 > .21, .88 > .21 and .88 > .58 are in order, for either class.
    assert mode.pairs == [6, 6]
    # Confidences .79 | .58 (wrong) .55 | .88, in the bins up to .8, .6 and .9.
    assert mode.binned == [0, 0, 0, 0, 0, 2, 0, 1, 1, 0]
    assert mode.binned_right == [0, 0, 0, 0, 0, 1, 0, 1, 1, 0]
    assert mode.confidence == [0, 0, 0, 0, 0, 1.13, 0, 0.79, 0.88, 0]
    tied = THREE[2].detail
    assert tied is not None
    assert tied.modes["personal"].pairs == [3, 3]  # .45 against .45 and .15: 1 and 2


def test_macro_f1_by_hand() -> None:
    # a: 2*1/(2+1) and 2*2/(2+3); b: 0/(0+1) and 2*1/(2+1); c: 2*2/(2+3) and 0/(1+0)
    expected = ((2 / 3 + 4 / 5) / 2 + (0 + 2 / 3) / 2 + (4 / 5 + 0) / 2) / 3
    assert mean(class_metrics.macro_f1, THREE) == pytest.approx(expected)
    # A class that neither is there nor is predicted does not count: one of one is right.
    assert class_metrics.macro_f1([counted([1], [0.9])], "personal") == 1
    # Together: 4 and 5 labelled, 5 and 4 predicted, 3 and 3 right, of nine.
    pooled = (2 * 3 / (4 + 5) + 2 * 3 / (5 + 4)) / 2
    assert class_metrics.macro_f1(THREE, "personal") == pytest.approx(pooled)


def test_auc_by_hand() -> None:
    # a: 3 of 4 pairs; b has one class only; c: half and one of 2 pairs.
    assert mean(class_metrics.auc, THREE) == pytest.approx((3 / 4 + 1.5 / 2) / 2)
    # Together, pairs within clients: 3 + 1.5 of 4 + 2.
    assert class_metrics.auc(THREE, "personal") == pytest.approx(4.5 / 6)
    assert class_metrics.auc([THREE[1]], "personal") is None


def test_calibration_error_by_hand() -> None:
    # a: |1 - 1.13| + |1 - .79| + |1 - .88| = .46 over 4; b: |1 - .73| + |0 - .65| = .92 over 2;
    # c: |1 - 1.1| + |1 - .85| = .25 over 3
    expected = (0.46 / 4 + 0.92 / 2 + 0.25 / 3) / 3
    assert mean(class_metrics.ece, THREE) == pytest.approx(expected)
    # Pooled: up to .6 |2 - 2.23|, up to .7 |0 - .65|, up to .8 |2 - 1.52|, up to .9 |2 - 1.73|.
    pooled = class_metrics.ece(THREE, "personal")
    assert pooled == pytest.approx((0.23 + 0.65 + 0.48 + 0.27) / 9)


def test_collapse_by_hand() -> None:
    assert class_metrics.collapse(THREE, "personal") == pytest.approx(
        {
            "share": (3 / 4 + 1 / 2 + 1) / 3,
            "share_labelled": (2 / 4 + 1 + 2 / 3) / 3,
            "classes": (2 + 2 + 1) / 3,
            "classes_labelled": (2 + 1 + 2) / 3,
        }
    )


def test_without_detail_the_metrics_are_none_and_such_counts_are_left_out() -> None:
    plain = Counts(4, {"personal": 2}, {}, {})
    for metric in (
        class_metrics.macro_f1,
        class_metrics.auc,
        class_metrics.ece,
        class_metrics.collapse,
    ):
        assert metric([plain], "personal") is None and metric([], "personal") is None
        assert metric([NOTHING], "personal") is None
        assert metric([plain, *THREE], "personal") == metric(THREE, "personal")


@settings(max_examples=settings().max_examples * 2 // 5)
@given(st.integers(2, 5), st.integers(2, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_agrees_with_scikit_learn(classes: int, n: int, seed: int, coarse: bool) -> None:
    from sklearn.metrics import f1_score, roc_auc_score

    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    scores = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    scores = scores.round() if coarse else scores  # many ties
    counts = Counts.of_logits(labels, {"personal": scores})
    y, p = labels.numpy(), scores.softmax(1).numpy()
    predicted = scores.argmax(1).numpy()
    f1 = f1_score(y, predicted, average="macro", zero_division=0)
    assert class_metrics.macro_f1([counts], "personal") == pytest.approx(f1)
    both = [c for c in range(classes) if 0 < (y == c).sum() < n]
    if both:
        auc = np.mean([roc_auc_score(y == c, p[:, c]) for c in both])
        assert class_metrics.auc([counts], "personal") == pytest.approx(auc)
    assert counts.correct["personal"] == int((predicted == y).sum())
    assert Counts.from_json(json.loads(json.dumps(counts.to_json()))) == counts


def test_a_model_that_broke_down_is_counted_as_unsure() -> None:
    broken = torch.tensor([[math.nan, 0.0], [math.inf, 0.0], [0.0, 3.0]])
    counts = Counts.of_logits(torch.tensor([0, 1, 1]), {"personal": broken})
    assert counts.detail is not None
    assert counts.detail.modes["personal"].confidence[4] == 1.0  # twice 1/2
    Counts.from_json(counts.to_json())


def test_no_detail_without_a_model_with_too_many_classes_or_when_not_asked() -> None:
    labels = torch.tensor([0, 1])
    assert Counts.of_logits(labels, {}).detail is None
    assert Counts.of_logits(labels, {"local": torch.eye(2)}, detail=False).detail is None
    assert Counts.of_logits(labels, {"local": torch.zeros(2, MOST_CLASSES)}).detail is not None
    assert Counts.of_logits(labels, {"local": torch.zeros(2, MOST_CLASSES + 1)}).detail is None
    empty = Counts.of_logits(labels[:0], {"local": torch.zeros(0, 2)})
    assert empty.detail is not None and Counts.from_json(empty.to_json()) == empty
