"""How many clients train at once: what is faster, what folds, and what memory takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from party import Party, assert_same, model_of
from torch import Tensor, nn

from clients.base import LocalAlgorithm
from clients.training import groups
from clients.training.groups import disagreement, group_size, most_clients, train_group
from clients.training.layers import Fold
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Parts
from fedpers.phases import Phase
from fedpers.tasks import cross_entropy


def test_the_size_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(party: Party, setting: str) -> int:
        return group_size(
            setting, Fold(party.model), party.algorithm, party.trainers(), party.workings
        )

    party = Party("small")
    assert size(party, "off") == 1
    assert size(party, "5") == 5
    assert size(party, "auto") in (1, *groups.SIZES)
    assert size(Party("small", sizes=(4, 0)), "5") == 1  # nobody to train with
    assert size(Party("small", method="pfedsim"), "5") == 5
    assert size(Party("small", method="apfl"), "5") == 1  # its phases hang on the client
    monkeypatch.setattr(groups, "SLOW", 0.0)
    assert size(party, "auto") == 1


class Uncalled(nn.Module):
    """A trunk that reads a layer's weight and never calls the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight.T


class Across(nn.Module):
    """A trunk that looks across the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y - y.mean(0)


@pytest.mark.parametrize(("trunk", "why"), [(Uncalled, "does not call"), (Across, "differ")])
def test_a_trunk_that_does_not_fold_is_found_out(trunk: type[nn.Module], why: str) -> None:
    fold = Fold(PersonalModel(trunk(), nn.Linear(5, 3)))
    assert why in str(disagreement(fold, torch.randn(4, 6)))
    assert disagreement(Fold(model_of("mlp", "both")), torch.randn(4, 6)) is None


@pytest.mark.parametrize(("rows", "fits"), [(44, 11), (43, 5), (16, 2), (7, 1)])
def test_a_group_that_memory_does_not_take_is_halved_for_good(rows: int, fits: int) -> None:
    party = Party("mlp", sizes=(6,) * 11)
    tried: list[int] = []

    def loss(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        if len(tried) == 0 or tried[-1] != len(labels):
            tried.append(len(labels))
        if len(labels) > rows:
            raise torch.OutOfMemoryError
        return cross_entropy(outputs, labels, reference)

    phase = replace(party.algorithm.phases()[0], loss=loss, epochs=1)  # a batch of 4, one of 2
    expected, _ = party.alone(phase)
    algorithm, fold = one_phase(party, phase), Fold(party.model)
    for _ in range(2):
        tried.clear()
        found = train_group(algorithm, fold, party.trainers(), party.workings)
        assert_same((expected, []), ([p for p in found if isinstance(p, Parts)], []))
        assert fold.most == (sys.maxsize if fits == 11 else fits)
    # The second time nothing was too much: no more at once than what went well.
    assert max(tried) == 4 * fits


def one_phase(party: Party, phase: Phase) -> LocalAlgorithm:
    class OnePhase(type(party.algorithm)):  # type: ignore[misc]
        def phases(self) -> Sequence[Phase]:
            return [phase]

    return OnePhase(party.config, party.model, party.algorithm.params)


@pytest.mark.parametrize(
    ("one", "two", "free", "most"),
    [
        (100, 150, 1000, 15),  # 800 - 100 = 700 are left for 14 more at 50 each
        (100, 150, 999, 14),  # 799 - 100 = 699 are not enough for the 14th
        (100, 150, 125, 1),  # one alone fills the 80 %
        (100, 150, 50, 1),  # never none
        (100, 100, 200, sys.maxsize),  # a second one costs nothing that can be seen
        (100, 90, 100, 1),
    ],
)
def test_so_many_clients_fit_into_free_memory(one: int, two: int, free: int, most: int) -> None:
    assert most_clients(one, two, free) == most


def test_a_client_that_breaks_the_trial_does_not_stop_the_others() -> None:
    party = Party("mlp", sizes=(6,) * 3)
    party.examples[1].x[0] = float("nan")
    trainers = party.trainers()
    size = group_size("auto", Fold(party.model), party.algorithm, trainers, party.workings)
    assert size == 1
