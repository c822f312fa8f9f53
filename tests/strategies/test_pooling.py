"""Sums over all clients beside the rounds: the same through every channel, noised and charged."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError, FedpersError
from fedpers.models import build_model
from fedpers.models.whitening import WHITENING, whitening_of
from fedpers.moments import Frame, frame_rows, rows
from fedpers.parts import Part, Parts
from strategies.files import KNOWN

WHITE = ["model.whiten=sums"]
SEALED = ["encryption.enabled=true", "encryption.scheme=bfv"]
MASKED = ["encryption.enabled=true", "encryption.scheme=masked"]
PRIVATE = ["privacy.enabled=true", "privacy.epsilon=8", "privacy.deterministic_for_tests=true"]


def whitening(run: Any, *settings: str) -> tuple[Any, Part]:
    """A run, and how it whitened."""
    made = run("fedavg", *WHITE, *settings)
    return made, Parts.load(made.folder / KNOWN)[WHITENING]


def test_the_sum_is_that_over_all_training_examples(run: Any, digits: list[str]) -> None:
    _, found = whitening(run, "rounds=1")
    config = load_config(None, [*digits, "strategy.name=fedavg", *WHITE])
    data = load_data(config)
    model, classes = build_model(config, data), data.task.outputs
    train = [data.client(client).train for client in data.clients]
    z = [model.stem(own.x) for own in train]
    frame = Frame.of(frame_rows(torch.cat(z)).mean(0))
    made = [rows(one, own.y, classes, frame) for one, own in zip(z, train, strict=True)]
    known = whitening_of(torch.cat(made).double().mean(0), classes, frame)
    torch.testing.assert_close(found.vector, known.vector, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channel", [SEALED, MASKED], ids=["bfv", "masked"])
def test_a_server_that_reads_no_vector_whitens_as_well(run: Any, channel: list[str]) -> None:
    plain, known = whitening(run, "rounds=2")
    hidden, found = whitening(run, "rounds=2", *channel)
    # What is quantised is as fine as the channel; the ridge keeps that from mattering.
    assert float((found.vector - known.vector).norm() / known.vector.norm()) < 0.1
    accuracy = [one.report["accuracy"]["personal"]["mean"] for one in (plain, hidden)]
    assert accuracy[0] > 0.5 and accuracy[1] == pytest.approx(accuracy[0], abs=0.05)


def test_the_first_trained_layer_reads_white_features(run: Any, digits: list[str]) -> None:
    _, found = whitening(run, "rounds=1")
    config = load_config(None, [*digits, "strategy.name=fedavg", *WHITE])
    data = load_data(config)
    model = build_model(config, data)
    x = torch.cat([data.client(client).train.x for client in data.clients])
    before = model(x).features
    model.whiten(found["centre"], found["whitener"])
    after = model.prepared(x)
    assert float(after.mean(0).abs().max()) < 0.2
    model.after_stem = True
    cached = model(after).features
    model.after_stem = False
    torch.testing.assert_close(model(x).features, cached)
    assert not torch.allclose(before, cached)


def test_private_sums_are_noised_and_charged(run: Any) -> None:
    private, found = whitening(run, "rounds=2", *PRIVATE, "strategy.fraction=1.0")
    _, known = whitening(run, "rounds=2")
    assert float((found.vector - known.vector).norm() / known.vector.norm()) > 0.1
    assert bool(torch.isfinite(found.vector).all())
    ledgers = [*private.folder.rglob("ledgers/*.json")]
    assert ledgers
    for ledger in ledgers:
        releases = json.loads(ledger.read_text())["releases"]
        sigmas = {release["sigma"] for release in releases}
        assert len(sigmas) == 2  # the training's, and the sum's own
    assert private.report["privacy"]["epsilon_max"] <= 8 + 1e-6


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["strategy.combine=median"], "strategy.combine"),
        (["strategy.max_update_norm=1.0"], "max_update_norm"),
        (["privacy.enabled=true", "privacy.unit=client", "privacy.delta=1e-5"], "unit=client"),
        (["model.lora=null", "model.name=cnn"], "first trained layer reads [1, 8, 8]"),
    ],
    ids=["robust", "clipped", "client", "images"],
)
def test_what_cannot_be_summed_is_refused_in_one_line(run: Any, more: list[str], says: str) -> None:
    with pytest.raises((ConfigError, FedpersError)) as caught:
        run("fedavg", *WHITE, "model.pretrain.task=none", *more)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_public_rows_whiten_without_asking_anybody(run: Any) -> None:
    made = run("fedavg", "model.whiten=public", "rounds=2")
    assert made.failures() == {} and not (made.folder / KNOWN).exists()
    assert made.report["accuracy"]["personal"]["mean"] > 0.5
