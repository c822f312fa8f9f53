"""Clients that train at once, against the same clients one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from party import PRIVACY, SIZES, Party, assert_same
from torch import Tensor, nn

from clients.training.folding import foldable, train_folded
from clients.training.groups import train_group
from clients.training.layers import Fold
from fedpers.errors import ClientError
from fedpers.models import Outputs, PersonalModel
from fedpers.models.backbones import BACKBONES
from fedpers.parts import Parts
from fedpers.phases import Phase, Prox
from fedpers.tasks import cross_entropy


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *(("mlp", "ffa"), ("mlp", "both"), ("vit-tiny", "ffa"), ("vit-tiny", "both")),
        *(("conv1d", "ffa"), ("conv1d", "both"), ("small", "")),
    ],
)
def test_a_group_gives_what_each_client_gives_alone(name: str, share: str) -> None:
    # Sizes from none at all over less than a batch to several, so that some end before others.
    party = Party(name, "training.momentum=0.9", "training.weight_decay=0.01", share=share)
    for phase in party.algorithm.phases():  # with a penalty, and without
        assert foldable(party.model, party.algorithm, phase) is None
        one = party.alone(phase)
        assert_same(one, party.together(phase))
        trained = [phase.model[slot] for slot in phase.trains]
        for k, parts in enumerate(one[0]):  # something was trained where there was something
            for part in trained:
                same = torch.equal(parts[part].vector, party.workings[k][part].vector)
                assert same == (SIZES[k] == 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimisers_blends_references_and_limits(optimizer: str) -> None:
    def loss(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        assert reference is not None
        apart = (outputs.features - reference.features).square().mean(1)
        return cross_entropy(outputs, labels, reference) + apart

    party = Party("mlp", f"training.optimizer={optimizer}", "training.weight_decay=0.1")
    received = {"body": "received.body", "head": "received.head"}
    phase = Phase(
        name="own",
        model={"body": "personal.body", "head": "personal.head"},
        trains=("body", "head"),
        released=False,
        loss=loss,
        reference=received,
        blend=(received, 0.3),
        prox=Prox(0.5, {"head": "received.head"}),
        batch_size=3,
        epochs=3,
        steps=5,
    )
    assert_same(party.alone(phase), party.together(phase))


def test_slots_that_a_phase_does_not_train_are_each_clients_own() -> None:
    party = Party("small", method="fedrep", sizes=(5, 2, 6))
    for phase in party.algorithm.phases():  # the head, then the body under the personal heads
        assert len(phase.trains) == 1
        assert_same(party.alone(phase), party.together(phase))


PARTY = Party("small", "training.momentum=0.5", sizes=(9, 1, 4, 0, 6, 2, 17, 5))
PHASE = PARTY.algorithm.phases()[0]
ALONE, NOTED = PARTY.alone(PHASE)


@settings(max_examples=settings().max_examples * 4 // 5)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
def test_a_result_does_not_depend_on_who_else_is_in_the_group(members: list[int]) -> None:
    trainers = [PARTY.trainers()[k] for k in members]
    found = train_folded(Fold(PARTY.model), PHASE, trainers, [PARTY.workings[k] for k in members])
    assert_same(
        ([ALONE[k] for k in members], [NOTED[k] for k in members]),
        (found, trainers),
    )


def test_the_model_is_left_as_it_was() -> None:
    party = Party("mlp")
    x = party.examples[0].x
    before = [parameter.detach().clone() for parameter in party.model.parameters()]
    logits = party.model(x).logits
    party.together(party.algorithm.phases()[0])
    for parameter, old in zip(party.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    assert torch.equal(party.model(x).logits, logits)


def test_what_cannot_be_trained_at_once_says_why() -> None:
    def reason(name: str, *overrides: str, method: str = "ditto", **fields: Any) -> str:
        party = Party(name, *overrides, method=method, sizes=(2, 2))
        phase = replace(party.algorithm.phases()[-1], **fields)
        return str(foldable(party.model, party.algorithm, phase))

    assert "forward pass of its own" in reason("mlp", method="fedcp")
    assert "across a batch" in reason("mlp", batch_loss=lambda *_: torch.zeros(()))
    assert "does not say what fills the slot 'head'" in reason("mlp", model={"body": "body"})
    assert "Linear layers alone" in reason("conv1d", *PRIVACY)
    assert reason("conv1d", *PRIVACY, released=False) == "None"
    whole = PersonalModel(BACKBONES.get("vit-tiny")((1, 4, 4)), nn.Linear(64, 3))
    party = Party("mlp", method="fedavg")
    phase = party.algorithm.phases()[0]
    assert "no Linear or Conv layer" in str(foldable(whole, party.algorithm, phase))


def test_a_client_that_fails_costs_itself() -> None:
    party = Party("mlp", sizes=(5, 4, 6))
    party.examples[1].x[2] = float("nan")
    trainers = party.trainers()
    results = train_group(party.algorithm, Fold(party.model), trainers, party.workings)
    assert isinstance(results[1], ClientError)
    for k, trainer in enumerate(party.trainers()):
        if k != 1:
            expected = party.algorithm.train(party.workings[k], trainer)
            parts = results[k]
            assert isinstance(parts, Parts)
            assert_same(([expected], [trainer]), ([parts], [trainers[k]]))


@pytest.mark.parametrize(
    "method", ["fedavg", "ditto", "fedrep", "feddpa", "apfl", "pfedsim", "fedala"]
)
def test_whole_methods_at_once_and_one_by_one(method: str) -> None:
    share = "a-only" if method == "fedavg" else "ffa"
    party = Party("mlp", method=method, share=share, sizes=(5, 0, 9))
    one, other = party.trainers(), party.trainers()
    alone = [party.algorithm.train(w, t) for w, t in zip(party.workings, one, strict=True)]
    together = train_group(party.algorithm, Fold(party.model), other, party.workings)
    found = [parts for parts in together if isinstance(parts, Parts)]
    assert_same((alone, one), (found, other))


@pytest.mark.parametrize("name", ["mlp", "vit-tiny", "conv1d", "small"])
def test_a_group_in_bfloat16_stays_near_one_in_float32(name: str) -> None:
    rounded, exact = Party(name, "training.precision=bfloat16"), Party(name)
    phase, same = rounded.algorithm.phases()[0], exact.algorithm.phases()[0]
    (alone, _), (together, _) = rounded.alone(phase), rounded.together(phase)
    expected, _ = exact.together(same)
    for k, n in enumerate(SIZES):
        for part in [phase.model[slot] for slot in phase.trains] if n else []:
            wanted, start = expected[k][part].vector, rounded.workings[k][part].vector
            for found in (alone[k][part].vector, together[k][part].vector):
                assert found.dtype == torch.float32
                apart = (found - wanted).norm() / (wanted - start).norm()
                assert 0 < apart < 0.15  # of the way that was trained
