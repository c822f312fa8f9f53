"""What holds for every method, and what sets the simple ones apart."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clients.base import algorithms, find_algorithm
from clients.training.trainer import Trainer
from fedpers.config import load_config
from fedpers.context import Context
from fedpers.data import load_data
from fedpers.errors import ConfigError
from fedpers.models import build_model
from fedpers.parts import Parts

METHODS = [name for name in algorithms.names() if name != "ifca"]  # copies of a slot: test_ifca.py
BOTH = ("body", "head")
# The branch that is sent reads nothing personal: it can be made private alone.
CLEAN = ["apfl", "ditto", "fedavg", "fedavg-ft", "fedbabu", "feddpa", "perada", "pfedsim"]


def test_the_methods_are_all_here() -> None:
    assert {
        *("fedavg", "fedavg-ft", "local", "fedper", "fedrep", "fedbabu", "ditto", "apfl"),
        *("fedala", "fedcp", "feddpa", "perada", "pfedsim", "prior"),
    } <= set(METHODS)


def broadcast_of(toys: Any, algorithm: Any, seed: int) -> Parts:
    sent: Parts = toys.random(algorithm, algorithm.sends, seed)
    if "prior" in sent:  # a distribution
        own = sent["prior"]["prior.own"].softmax(0)
        pair = {"prior.own": own, "prior.population": own}
        sent = sent | {"prior": type(sent["prior"]).of(pair)}
    return sent


@pytest.mark.parametrize("name", METHODS)
def test_two_rounds_of_any_method(toys: Any, name: str) -> None:
    bound = toys.bind(name)
    algorithm, trainer = bound.algorithm, bound.trainer
    kept = Parts()
    for server_round in (1, 2):
        broadcast = broadcast_of(toys, algorithm, server_round)
        working = algorithm.receive(broadcast, kept, Context("a", 1))
        for slot, part in broadcast.items():
            assert working[f"received.{slot}"] is part
        working = algorithm.train(working, trainer)
        upload, kept = algorithm.upload(working), algorithm.keep(working)
        assert upload.layouts == {slot: algorithm.initial[slot].layout for slot in algorithm.sends}
        assert all(part.startswith("personal.") for part in kept)
        moved = [s for s in upload if not torch.equal(upload[s].vector, broadcast[s].vector)]
        # In round 1 a body learns nothing through a head of zeros.
        assert server_round == 1 or moved == list(algorithm.sends)
    working = algorithm.tune(
        algorithm.receive(broadcast_of(toys, algorithm, 3), kept, Context("a", 1)), trainer
    )
    working = algorithm.recall(working, trainer)
    for mode in ("personal", "global"):
        logits = algorithm.predict(mode, working, torch.randn(5, 2), trainer, "test")
        has_global = name not in ("local", "fedper", "fedrep", "dfedalt", "gpfl")
        assert (logits is not None) == (mode == "personal" or has_global)
        assert logits is None or (logits.shape == (5, 2) and bool(logits.isfinite().all()))


@pytest.mark.parametrize("name", METHODS)
def test_without_examples_a_client_sends_what_it_received(toys: Any, name: str) -> None:
    bound = toys.bind(name, x=[], y=[])
    algorithm, trainer = bound.algorithm, bound.trainer
    broadcast = broadcast_of(toys, algorithm, 1)
    working = algorithm.train(algorithm.receive(broadcast, Parts(), Context("a", 1)), trainer)
    upload = algorithm.upload(working)
    for slot in set(upload) - {"prior"}:
        torch.testing.assert_close(upload[slot].vector, broadcast[slot].vector)
    if "prior" in upload:
        assert upload["prior"]["prior.own"].tolist() == [0.5, 0.5]
    working = algorithm.tune(
        algorithm.receive(broadcast, algorithm.keep(working), Context("a", 1)), trainer
    )
    working = algorithm.recall(working, trainer)
    logits = algorithm.predict("personal", working, torch.randn(3, 2), trainer, "test")
    assert logits.shape == (3, 2) and bool(logits.isfinite().all())


@pytest.mark.parametrize("name", METHODS)
def test_declared_phases_fill_every_slot_and_are_those_that_run(toys: Any, name: str) -> None:
    bound = toys.bind(name)
    algorithm = bound.algorithm
    working = algorithm.receive(broadcast_of(toys, algorithm, 1), Parts(), Context("a", 1))
    phases = algorithm.phases()
    assert len({phase.name for phase in phases}) == len(phases)
    for phase in phases:
        assert set(phase.model) == set(algorithm.slots) and set(phase.trains) <= set(phase.model)
        assert set(phase.model.values()) <= set(working)
    algorithm.train(working, bound.trainer)
    assert set(bound.trainer.losses) == {phase.name for phase in phases}
    # What is sent must be declared as released.
    if algorithm.sends:
        assert phases[-1].released


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_sent_is_plain_training_of_what_was_received(toys: Any, name: str) -> None:
    """Whatever the client keeps, the upload is that of a client that keeps nothing."""
    plain = toys.bind("fedavg")
    bound = toys.bind(name)
    broadcast = broadcast_of(toys, bound.algorithm, 1)
    if name == "fedbabu":
        broadcast = broadcast | {"head": bound.algorithm.initial["head"]}
    uploads = []
    for seed in (None, 7):
        kept = Parts()
        if seed is not None:
            other = toys.random(bound.algorithm, bound.algorithm.keeps, seed)
            kept = Parts({f"personal.{slot}": part for slot, part in other.items()})
        working = bound.algorithm.receive(broadcast, kept, Context("a", 1))
        uploads.append(bound.algorithm.upload(bound.algorithm.train(working, bound.trainer)))
    assert torch.equal(uploads[0]["body"].vector, uploads[1]["body"].vector)
    if name != "fedbabu":
        expected = plain.algorithm.train(
            plain.algorithm.receive(broadcast, Parts(), Context("a", 1)), plain.trainer
        )
        for slot in BOTH:  # one batch: the order of examples does not matter
            torch.testing.assert_close(uploads[1][slot].vector, expected[slot].vector)


@pytest.mark.parametrize("name", METHODS)
def test_a_newcomer_personalises_in_the_model_that_predicts(toys: Any, name: str) -> None:
    bound = toys.bind(name, "training.batch_size=1")
    algorithm = bound.algorithm
    working = algorithm.receive(broadcast_of(toys, algorithm, 1), Parts(), Context("a", 1))
    x = bound.trainer.examples.x
    recalled = algorithm.recall(working, bound.trainer)
    before = algorithm.predict("personal", recalled, x, bound.trainer, "test")
    assert algorithm.tune(working, bound.trainer, 0) is working
    assert all(phase.steps == 3 and not phase.released for phase in algorithm.newcomer(3))
    working = algorithm.tune(working, bound.trainer, 3)
    working = algorithm.recall(working, bound.trainer)
    after = algorithm.predict("personal", working, x, bound.trainer, "test")
    assert torch.equal(before, after) == (name == "prior")


def test_local_sends_nothing_and_goes_on_from_its_own(toys: Any) -> None:
    bound = toys.bind("local")
    first = bound.algorithm.train(
        bound.algorithm.receive(Parts(), Parts(), Context("a", 1)), bound.trainer
    )
    assert bound.algorithm.upload(first) == Parts()
    again = bound.algorithm.receive(Parts(), bound.algorithm.keep(first), Context("a", 1))
    for slot in BOTH:
        assert again[f"personal.{slot}"] is first[f"personal.{slot}"]
    plain = toys.bind("fedavg")
    initial = plain.algorithm.initial
    expected = plain.algorithm.train(
        plain.algorithm.receive(initial, Parts(), Context("a", 1)), plain.trainer
    )
    for slot in BOTH:
        assert torch.equal(first[f"personal.{slot}"].vector, expected[slot].vector)


def test_fedper_keeps_its_head_and_takes_the_body(toys: Any) -> None:
    bound = toys.bind("fedper")
    body = Parts({"body": toys.body([[1.0, 1.0], [0.0, 1.0]])})
    first = bound.algorithm.receive(body, Parts(), Context("a", 1))
    assert torch.equal(first["personal.head"].vector, bound.algorithm.initial["head"].vector)
    own = Parts({"personal.head": toys.head([[1.0, 0.0], [0.0, 2.0]])})
    working = bound.algorithm.receive(body, own, Context("a", 1))
    logits = bound.algorithm.predict(
        "personal", working, torch.tensor([[1.0, 3.0]]), bound.trainer, "test"
    )
    # Features ((1 + 3), 3), then the own head: (4, 6).
    assert logits.tolist() == [[4.0, 6.0]]
    assert (
        bound.algorithm.predict("global", working, torch.zeros(1, 2), bound.trainer, "test") is None
    )
    assert list(bound.algorithm.keep(bound.algorithm.train(working, bound.trainer))) == [
        "personal.head"
    ]


def test_fedrep_moves_the_head_first_and_then_the_body_under_it(toys: Any) -> None:
    settings = ["strategy.params.head_epochs=3", "training.epochs=2", "training.lr=0.2"]
    bound = toys.bind("fedrep", *settings)
    algorithm, trainer = bound.algorithm, bound.trainer
    start = toys.random(algorithm, BOTH, seed=6)
    kept = Parts({"personal.head": start["head"]})
    working = algorithm.receive(start.only(["body"]), kept, Context("a", 1))
    first, second = algorithm.phases()
    after_head = trainer.run(first, working)
    assert after_head["body"] is working["body"]
    after_both = trainer.run(second, after_head)
    assert after_both["personal.head"] is after_head["personal.head"]

    body = start["body"]["trunk.weight"].clone().requires_grad_(True)
    head = start["head"]["head.weight"].clone().requires_grad_(True)
    bias = start["head"]["head.bias"].clone().requires_grad_(True)
    x, y = trainer.examples.x, trainer.examples.y
    for trained, epochs in (((head, bias), 3), ((body,), 2)):
        for _ in range(epochs):
            loss = F.cross_entropy(x @ body.T @ head.T + bias, y)
            gradients = torch.autograd.grad(loss, trained)
            for tensor, gradient in zip(trained, gradients, strict=True):
                tensor.data -= 0.2 * gradient
    torch.testing.assert_close(after_both["personal.head"]["head.weight"], head.detach())
    torch.testing.assert_close(after_both["personal.head"]["head.bias"], bias.detach())
    torch.testing.assert_close(after_both["body"]["trunk.weight"], body.detach())
    # The head never leaves, but the body's gradients flow through it.
    assert [phase.released for phase in (first, second)] == [True, True]


def test_fedbabus_head_never_moves_and_is_the_same_everywhere(toys: Any) -> None:
    settings = ["training.weight_decay=0.1", "training.momentum=0.9", "training.epochs=3"]
    bound = toys.bind("fedbabu", *settings, client="a")
    algorithm = bound.algorithm
    head = algorithm.initial["head"].vector
    assert head.abs().sum() > 0
    other = toys.bind("fedbabu", *settings, client="b").algorithm
    assert torch.equal(head, other.initial["head"].vector)
    assert not torch.equal(head, toys.bind("fedbabu", "seed=1").algorithm.initial["head"].vector)
    body = Parts({"body": toys.body([[1.0, 1.0], [0.0, 1.0]])})
    working = algorithm.train(algorithm.receive(body, Parts(), Context("a", 1)), bound.trainer)
    assert torch.equal(working["head"].vector, head)
    assert list(algorithm.upload(working)) == ["body"] and algorithm.keep(working) == Parts()
    assert not torch.equal(working["body"].vector, body["body"].vector)
    # The global model is the received body under that head.
    x = torch.tensor([[1.0, 2.0]])
    logits = algorithm.predict(
        "global", algorithm.receive(body, Parts(), Context("a", 1)), x, bound.trainer, "test"
    )
    start = algorithm.initial["head"]
    expected = torch.tensor([[3.0, 2.0]]) @ start["head.weight"].T + start["head.bias"]
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("tune", ["all", "head"])
def test_fedbabu_tunes_a_copy_before_it_predicts(toys: Any, tune: str) -> None:
    params = [f"strategy.params.tune={tune}", "strategy.params.tune_epochs=4"]
    bound = toys.bind("fedbabu", *params)
    received = bound.algorithm.receive(
        Parts({"body": toys.body(torch.eye(2))}), Parts(), Context("a", 1)
    )
    tuned = bound.algorithm.tune(received, bound.trainer)
    changed = {n for n in tuned if not torch.equal(tuned[n].vector, received[n].vector)}
    assert changed == ({"personal.body", "personal.head"} if tune == "all" else {"personal.head"})


def test_fine_tuning_starts_from_what_was_received_each_time(toys: Any) -> None:
    params = ["strategy.params.tune_epochs=3", "strategy.params.tune_lr=0.5"]
    bound = toys.bind("fedavg-ft", *params)
    broadcast = toys.random(bound.algorithm, BOTH, seed=1)
    stale = toys.random(bound.algorithm, BOTH, seed=2)
    kept = Parts({f"personal.{slot}": part for slot, part in stale.items()})
    tuned = bound.algorithm.tune(
        bound.algorithm.receive(broadcast, kept, Context("a", 1)), bound.trainer
    )
    # Three epochs of one batch at 0.5 are FedAvg's local training at these settings.
    plain = toys.bind("fedavg", "training.epochs=3", "training.lr=0.5")
    expected = plain.algorithm.train(
        plain.algorithm.receive(broadcast, Parts(), Context("a", 1)), plain.trainer
    )
    for slot in BOTH:
        torch.testing.assert_close(tuned[f"personal.{slot}"].vector, expected[slot].vector)
        assert tuned[slot] is broadcast[slot]
    assert bound.algorithm.keep(tuned) == Parts()


def test_pfedsim_keeps_what_it_trained_last(toys: Any) -> None:
    bound = toys.bind("pfedsim")
    broadcast = toys.random(bound.algorithm, BOTH, seed=1)
    working = bound.algorithm.train(
        bound.algorithm.receive(broadcast, Parts(), Context("a", 1)), bound.trainer
    )
    kept, upload = bound.algorithm.keep(working), bound.algorithm.upload(working)
    assert set(kept) == {"personal.body", "personal.head"}
    later = bound.algorithm.receive(
        toys.random(bound.algorithm, BOTH, seed=2), kept, Context("a", 1)
    )
    x = bound.trainer.examples.x
    for mode, parts in (("personal", upload), ("global", later)):
        logits = bound.algorithm.predict(mode, later, x, bound.trainer, "test")
        body, head = parts["body"]["trunk.weight"], parts["head"]
        expected = x @ body.T @ head["head.weight"].T + head["head.bias"]
        torch.testing.assert_close(logits, expected)


def test_the_prior_corrects_by_the_logarithm_of_two_distributions(toys: Any) -> None:
    # Labels 0, 0, 1 of three classes: (2 + 1, 1 + 1, 0 + 1) / (3 + 3) = (1/2, 1/3, 1/6).
    x = [[1.0, 2.0], [0.0, 1.0], [3.0, 3.0]]
    bound = toys.bind("prior", "strategy.params.tau=2", x=x, y=[0, 0, 1], classes=3)
    algorithm = bound.algorithm
    own = torch.tensor([1 / 2, 1 / 3, 1 / 6])
    population = torch.tensor([0.2, 0.2, 0.6])
    pair = {"prior.own": population, "prior.population": population}
    prior = type(algorithm.initial["prior"]).of(pair)
    weight = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    broadcast = toys.parts(torch.eye(2), weight, [0.5, 0.0, -0.5]) | {"prior": prior}
    working = algorithm.tune(algorithm.receive(broadcast, Parts(), Context("a", 1)), bound.trainer)
    probe = torch.tensor([[1.0, 2.0]])
    plain = algorithm.predict("global", working, probe, bound.trainer, "test")
    assert plain.tolist() == [[1.5, 2.0, 2.5]]
    corrected = algorithm.predict("personal", working, probe, bound.trainer, "test")
    # + 2 (ln own - ln population) = 2 (ln 2.5, ln 5/3, ln 5/18).
    shift = [2 * math.log(2.5), 2 * math.log(5 / 3), 2 * math.log(5 / 18)]
    torch.testing.assert_close(corrected, plain + torch.tensor([shift]))
    # It is the own distribution that is sent, for the server to average.
    upload = algorithm.upload(algorithm.train(working, bound.trainer))
    for name in ("prior.own", "prior.population"):
        torch.testing.assert_close(upload["prior"][name], own)


def test_what_a_method_does_not_take_is_refused() -> None:
    config = load_config(None, ["strategy.name=ditto", "strategy.params.nu=1"])
    with pytest.raises(ConfigError, match=r"strategy\.params\.nu: got 1, takes one of: mu, "):
        find_algorithm("ditto", config, ())
    _, params = find_algorithm("ditto", config, ["nu"])  # the server side takes it
    assert params.mu == 1.0
    with pytest.raises(ConfigError, match=r"strategy\.params\.mu: got 0"):
        find_algorithm("ditto", load_config(None, ["strategy.params.mu=0"]), ())
    with pytest.raises(ConfigError, match=r"strategy\.name: got 'pathlib:Path', takes a subclass"):
        find_algorithm("pathlib:Path", config, ())
    with pytest.raises(ConfigError, match=r"strategy\.name: got 'no-such', takes one of apfl, "):
        find_algorithm("no-such", config, ())


@pytest.mark.parametrize("name", METHODS)
def test_a_only_adapters_are_for_methods_that_share_a_body_and_keep_none(
    toys: Any, name: str, tmp_path: Any
) -> None:
    import numpy as np

    x = np.random.default_rng(0).random((40, 6), dtype=np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(40) % 3)
    split = {"train_0": np.arange(10), "test_0": np.arange(10, 20)}
    np.savez(tmp_path / "split.npz", **split)
    settings = [f"strategy.name={name}", "model.name=mlp", "model.lora.share=a-only"]
    settings += ["data.name=npz", f"data.path={tmp_path / 'x.npz'}", "data.partition.name=file"]
    config = load_config(None, [*settings, f"data.partition.path={tmp_path / 'split.npz'}"])
    found, params = find_algorithm(name, config, ())
    model = build_model(config, load_data(config))
    whole = {"apfl", "ditto", "eb", "fedala", "fedavg-ft", "fedbabu", "feddpa", "fedsoup", "map"}
    whole |= {"perada", "pfedgraph", "pfedsim"}
    if name in whole:
        with pytest.raises(ConfigError, match=r"model\.lora\.share: got 'a-only', takes ffa or"):
            found(config, model, params)
    else:
        algorithm = found(config, model, params)
        broadcast = broadcast_of(toys, algorithm, 1)
        working = algorithm.receive(broadcast, Parts(), Context("a", 1))
        assert "personal.private" in working and "private" not in algorithm.upload(working)
        assert all(p.model["private"] == "personal.private" for p in algorithm.phases())
        assert any("private" in phase.trains for phase in algorithm.phases())
        # What a client has trained of it, it finds again in the next round.
        data = load_data(config).client("0").train
        trainer = Trainer(config, model, algorithm, data, server_round=1, client="0")
        kept = algorithm.keep(algorithm.train(working, trainer))
        again = algorithm.receive(broadcast, kept, Context("a", 1))
        assert again["personal.private"] is kept["personal.private"]
        moved = algorithm.keep(algorithm.train(again, trainer))["personal.private"].vector
        assert not torch.equal(moved, algorithm.initial["private"].vector)
