"""What a client counts of its predictions by class, and of how sure the model was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedpers.tasks.checks import (
    check_between,
    check_count,
    check_counts,
    check_modes,
    fields,
)

if TYPE_CHECKING:
    from torch import Tensor

BINS = 10
"""Of confidence, equally wide, as in Guo et al. (2017)."""

MOST_CLASSES = 1000
"""With more classes there is no detail: a line of ``clients.jsonl`` stays below 20 kB a mode."""


@dataclass(frozen=True)
class ModeDetail:
    """One model's predictions on n examples of C classes. Vectors only, no C x C confusions.

    Args:
        predicted: [C], how often each class was predicted.
        right: [C], how often rightly.
        pairs: [C], for class c over the pairs of an example labelled c and one labelled
            otherwise: 2 for each in which the first has the higher probability of c, 1 for a tie.
            That is twice the U of Mann and Whitney (1947).
        binned: [BINS], the predictions whose confidence, the probability of the predicted class,
            is in ((b - 1) / BINS, b / BINS].
        confidence: [BINS], the sums of their confidences.
        binned_right: [BINS], how many of them were right.
    """

    predicted: list[int]
    right: list[int]
    pairs: list[int]
    binned: list[int]
    confidence: list[float]
    binned_right: list[int]

    def check(self, name: str, labelled: list[int], correct: int) -> None:
        """That these can be the counts of examples so labelled, of which ``correct`` are right.

        Raises:
            ValueError: naming the entry under ``name``.
        """
        n, classes = sum(labelled), len(labelled)
        check_counts(f"{name}.predicted", self.predicted, classes, total=n)
        check_counts(f"{name}.right", self.right, classes, total=correct)
        check_counts(f"{name}.pairs", self.pairs, classes)
        for c, labels in enumerate(labelled):
            check_count(f"{name}.right[{c}]", self.right[c], min(labels, self.predicted[c]))
            check_count(f"{name}.pairs[{c}]", self.pairs[c], 2 * labels * (n - labels))
            # An error misses one class and is a false answer of another.
            missed, false = labels - self.right[c], self.predicted[c] - self.right[c]
            check_count(f"{name} errors that involve class {c}", missed + false, n - correct)
        check_counts(f"{name}.binned", self.binned, BINS, total=n)
        check_counts(f"{name}.binned_right", self.binned_right, BINS, total=correct)
        if not isinstance(self.confidence, list) or len(self.confidence) != BINS:
            raise ValueError(f"{name}.confidence: takes a list of {BINS} numbers")
        for b, count in enumerate(self.binned):
            check_count(f"{name}.binned_right[{b}]", self.binned_right[b], count)
            least, most = count * b / BINS, count * (b + 1) / BINS
            check_between(f"{name}.confidence[{b}]", self.confidence[b], least, most)


@dataclass(frozen=True)
class Detail:
    """Counts by class and by confidence, of each model.

    Args:
        labelled: [C], the examples of each class.
        modes: by mode, what the model made of them.
    """

    labelled: list[int]
    modes: dict[str, ModeDetail]

    def check(self, n: int, correct: Mapping[str, int]) -> None:
        """That these can be the counts of ``n`` examples, with so many ``correct`` by mode.

        Raises:
            ValueError: naming the entry.
        """
        if not isinstance(self.labelled, list) or not 1 <= len(self.labelled) <= MOST_CLASSES:
            raise ValueError(f"detail.labelled: takes a list of 1..{MOST_CLASSES} counts")
        check_counts("detail.labelled", self.labelled, len(self.labelled), total=n)
        check_modes("detail.modes", self.modes, set(correct))
        for mode, detail in self.modes.items():
            detail.check(f"detail.{mode}", self.labelled, correct[mode])

    @classmethod
    def of(cls, labels: Tensor, logits: Mapping[str, Tensor]) -> Detail | None:
        """Count logits [n, C], by mode, against ``labels`` [n] of class ids 0..C-1.

        None where there is no model, or more than ``MOST_CLASSES`` classes.
        """
        if not logits:
            return None
        classes = next(iter(logits.values())).shape[1]
        if classes > MOST_CLASSES:
            return None
        labelled = labels.bincount(minlength=classes)
        # Two modes may be one model's: what is counted once is not counted again.
        different = {id(scores): scores for scores in logits.values()}
        counted = {key: _of_mode(labels, scores) for key, scores in different.items()}
        return cls(labelled.tolist(), {mode: counted[id(s)] for mode, s in logits.items()})

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` reads it back."""
        # By hand: asdict copies every number, which is seconds with thousands of clients.
        return {
            "labelled": self.labelled,
            "modes": {m: dict(vars(d)) for m, d in self.modes.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> Detail:
        """What ``to_json`` wrote; whether it is possible, only ``check`` says.

        Raises:
            ValueError: not such an object.
        """
        given = fields(data, "labelled", "modes")
        if not isinstance(given["modes"], Mapping):
            raise ValueError("detail.modes: takes an object by mode")
        names = ModeDetail.__dataclass_fields__
        modes = {m: ModeDetail(**fields(entry, *names)) for m, entry in given["modes"].items()}
        return cls(given["labelled"], modes)


def _of_mode(labels: Tensor, logits: Tensor) -> ModeDetail:
    classes, predicted = logits.shape[1], logits.argmax(dim=1)
    # A model that broke down (NaN) is as unsure as can be.
    probabilities = logits.double().softmax(dim=1).nan_to_num(nan=1 / classes)
    confidence = probabilities.gather(1, predicted[:, None])[:, 0]
    bins = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    hits = predicted == labels
    sums = confidence.new_zeros(BINS).index_add(0, bins, confidence)
    return ModeDetail(
        predicted=predicted.bincount(minlength=classes).tolist(),
        right=predicted[hits].bincount(minlength=classes).tolist(),
        pairs=_pairs(probabilities, labels),
        binned=bins.bincount(minlength=BINS).tolist(),
        confidence=[round(value, 6) for value in sums.tolist()],
        binned_right=bins[hits].bincount(minlength=BINS).tolist(),
    )


def _pairs(probabilities: Tensor, labels: Tensor) -> list[int]:
    """For each class twice Mann and Whitney's U of its examples' probabilities of it against the
    others': 2 for each pair that is in order, 1 for a tie.

    Counted against all examples, of its own class too: m of them make m^2 of that.
    """
    import torch

    columns = probabilities.T.contiguous()
    ordered = columns.sort(dim=1).values
    below = torch.searchsorted(ordered, columns)
    not_above = torch.searchsorted(ordered, columns, right=True)
    own = labels == torch.arange(len(columns))[:, None]
    pairs = ((below + not_above) * own).sum(dim=1) - own.sum(dim=1) ** 2
    return [int(count) for count in pairs.tolist()]
