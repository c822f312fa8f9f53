"""The made-up data of the leak test: what is there, and that neighbours differ by one example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedpers.config import load_config
from fedpers.data import Signature
from fedpers.privacy.neighbours import (
    EDITS,
    PUBLIC,
    TARGETS,
    TEST,
    TRAIN,
    VAL,
    Made,
    another,
    made_up,
)
from fedpers.privacy.noise import known
from fedpers.tasks import Classification

OWN = TRAIN + VAL + TEST
CLIENTS = ["ann", "bob", "eve", "new"]
IMAGE, TEXT = Signature("image", (1, 4, 4)), Signature("text", (2, 7))


def targets(classes: int = 10) -> Tensor:
    task = Classification.numbered(classes)
    return task.made_up(TARGETS, torch.Generator().manual_seed(0))


def rows_that_differ(one: Made, other: Made) -> list[int]:
    x = (one.x != other.x).flatten(1).any(1)
    return (x | (one.y != other.y)).nonzero().view(-1).tolist()


def test_clients_have_repeated_labels_and_one_has_a_single_class() -> None:
    made = made_up(IMAGE, targets(), CLIENTS)
    labels = made.y[: 4 * OWN].view(4, OWN)[:, :TRAIN].tolist()
    assert labels == [[0, 0, 1, 1, 2, 2], [2, 2, 3, 3, 4, 4], [4] * 6, [6, 6, 7, 7, 8, 8]]
    names = f"task.params.names=[{','.join('abcdefghij')}]"
    data = made.federated(load_config(None, ["privacy.enabled=true", names]))
    assert data.clients == CLIENTS[:3] and data.held_out == ["new"]
    assert [len(data.client(c).train) for c in CLIENTS] == [TRAIN] * 4
    assert len(data.public) == PUBLIC and data.task.outputs == 10


@pytest.mark.parametrize("signature", [IMAGE, TEXT], ids=["image", "text"])
@pytest.mark.parametrize("edit", EDITS)
def test_neighbours_differ_by_one_example_a_client(edit: str, signature: Signature) -> None:
    made = made_up(signature, targets(), CLIENTS)
    other = made.with_one_replaced(EDITS[edit], 1)
    assert set(rows_that_differ(made, other)) <= {1, OWN + 1, 2 * OWN + 1}
    assert rows_that_differ(made, other)
    assert other.changed == dict.fromkeys(CLIENTS[:3], 1)
    assert other.x.dtype == made.x.dtype
    if signature is TEXT:
        ids, mask = other.x.unbind(1)
        assert int(ids.min()) >= 0 and bool((ids[mask == 0] == 0).all())
        assert bool((mask.sum(1) > 0).all())


def test_edits_are_what_they_are_called() -> None:
    made = made_up(IMAGE, targets(), CLIENTS)
    replaced = {name: made.with_one_replaced(edit, 0) for name, edit in EDITS.items()}
    same = replaced["another of its class"]
    assert int(same.y[0]) == int(made.y[0]) and not torch.equal(same.x[0], made.x[0])
    assert torch.equal(replaced["another label"].x[0], made.x[0])
    twice = replaced["an input that is there"]
    assert torch.equal(twice.x[0], made.x[1]) and int(twice.y[0]) != int(made.y[1])
    assert int(replaced["a class that was absent"].y[0]) not in made.y[:OWN].tolist()
    assert float(replaced["a far outlier"].x[0].min()) > 1e26
    assert float(replaced["a far negative outlier"].x[0].max()) < -1e26
    assert float(replaced["a tiny input"].x[0].abs().max()) < 1e-6


def test_examples_that_are_not_trained_on_may_be_replaced_too() -> None:
    made = made_up(IMAGE, targets(), CLIENTS)
    other = made.with_one_replaced(another, 0, newcomer=True).with_one_replaced(another, TRAIN)
    assert rows_that_differ(made, other) == [TRAIN, OWN + TRAIN, 2 * OWN + TRAIN, 3 * OWN]
    assert set(other.changed.values()) == {None}


def test_numbers_have_far_targets() -> None:
    numbers = torch.randn(TARGETS, generator=torch.Generator().manual_seed(0))
    made = made_up(Signature("tabular", (3,)), numbers, CLIENTS)
    assert made.y.dtype == torch.float32 and len(made.targets) == TARGETS
    assert float(made.with_one_replaced(EDITS["a far target"], 2).y[2]) == np.float32(1e30)


def test_one_may_be_removed_where_its_number_is_protected() -> None:
    made, config = made_up(IMAGE, targets(), CLIENTS), load_config(None, [])
    fewer = made.with_one_removed().federated(config)
    for client in CLIENTS[:3]:
        kept, all_ = (d.client(client).train for d in (fewer, made.federated(config)))
        assert torch.equal(kept.x, all_.x[: TRAIN - 1]) and torch.equal(kept.y, all_.y[: TRAIN - 1])
    assert fewer.size("new") == TRAIN


def test_clients_may_have_many_examples() -> None:
    made = made_up(IMAGE, targets(), CLIENTS, train=80)
    data = made.with_one_replaced(another, 79).federated(load_config(None, []))
    assert [data.size(client) for client in CLIENTS] == [80] * 4
    assert len(data.client("ann").test) == TEST


def test_two_classes_are_enough() -> None:
    made = made_up(IMAGE, targets(2), CLIENTS, first=3)
    assert set(made.y.tolist()) == {0, 1}
    for edit in EDITS.values():
        made.with_one_replaced(edit, 0)


def test_the_replaced_example_is_both_inside_and_outside_of_samples() -> None:
    """At the rate of a rehearsal, over its rounds and steps, for each place and client."""
    rounds, steps = (1, 2, 3, 10, 20), 2
    for client in CLIENTS[:3]:
        for place in range(TRAIN):
            seen = set()
            for server_round in rounds:
                source = known(0)(server_round, client, "local training", 1)
                seen |= {place in source.sample(TRAIN, 0.5).tolist() for _ in range(steps)}
            assert seen == {True, False}
