"""Clients add the noise: shares that add up to all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from garbage import garbage
from sealing_nodes import Stores, pair
from spoils import foreign, malformed

from fedpers.channels.client_noise_node import ClientNoiseNode
from fedpers.channels.node import Leaving
from fedpers.channels.sealed import client_from, server_from
from fedpers.channels.sealed.node import SealedNode
from fedpers.config import load_config
from fedpers.errors import ConfigError
from fedpers.parts import Part, Parts
from fedpers.privacy.noise import known
from fedpers.records import unpack

BY_CLIENT = ("privacy.enabled=true", "privacy.unit=client", "privacy.deterministic_for_tests=true")


@pytest.mark.parametrize("honest", [2, 5])
def test_shares_of_honest_clients_add_up_to_all_of_the_noise(honest: int, tmp_path: Path) -> None:
    """The sum of so many, as the server has it sealed and a client opens it."""
    size, sigma, norm = 20_000, 1.5, 0.5
    config = load_config(None, [*BY_CLIENT, f"privacy.max_grad_norm={norm}"])
    sealer = SealedNode(config, "run", 8, known(0))
    sealer.__dict__["cipher"] = client_from(pair("ckks", 0).client)
    node = ClientNoiseNode(config, sealer, known(0))
    terms = {"groups": [[["body"], False]], "noise": {"sigma": sigma, "honest": honest}}
    body = {"channel": {**terms, "seal_at_once": True}}
    nothing = Parts({"body": Part.of({"w": torch.zeros(size)})})
    leaving = [Leaving(str(k), 1, nothing, {}, body) for k in range(honest)]
    shares = [node.leave(Stores(tmp_path), one) for one in leaving]
    server = server_from(pair("ckks", 0).server)
    total = server.add(share.sealed[0] for share in shares)
    noise = sealer.cipher.open(total)
    # The spread of 20,000 values is known to 0.5 %; their mean to 0.7 % of it.
    assert float(noise.std()) == pytest.approx(sigma * norm, rel=0.02)
    assert abs(float(noise.mean())) < 0.03 * sigma * norm
    alone = sealer.cipher.open(shares[0].sealed[0])
    assert float(alone.std()) == pytest.approx(sigma * norm / honest**0.5, rel=0.02)


def test_all_clients_are_told_the_same_share(seal: Any) -> None:
    server = seal("fedavg", *BY_CLIENT, "encryption.honest=0.5", "strategy.fraction=0.75")
    messages = server.run.configure_train(1, ArrayRecord(), ConfigRecord(), server.grid)
    told = [unpack(message.content)[1]["channel"]["noise"] for message in messages]
    sigma = server.strategy.channel.mechanism.sigma
    assert told == [{"sigma": sigma, "honest": 2}] * len(told)  # of 3 that are asked


@pytest.mark.parametrize("spoil", [foreign, malformed])
@pytest.mark.parametrize(("broken", "mixed"), [("12", True), ("124", False)])
def test_a_round_with_too_few_shares_mixes_nothing(
    seal: Any, spoil: Any, broken: str, mixed: bool
) -> None:
    server = seal("fedavg", *BY_CLIENT, spoils=dict.fromkeys(broken, spoil))
    before = server.strategy.parts
    assert sorted(server.train()) == list(broken)
    assert (server.strategy.parts is not before) == mixed  # of 4, 2 have to come
    if mixed:
        assert server.mean() == pytest.approx(3.5, abs=2e-4)


def test_noise_that_would_be_clipped_is_refused_before_it_is_charged(
    seal: Any, tmp_path: Path
) -> None:
    server = seal("fedavg", *BY_CLIENT, "privacy.max_grad_norm=50")
    spent = server.strategy.channel.budget.spent
    with pytest.raises(ConfigError, match=r"encryption\.range: got 8\.0, takes \d+ or more, so"):
        server.train()
    assert server.strategy.channel.budget.spent == spent


def test_a_mean_with_too_few_shares_is_no_state(seal: Any) -> None:
    """Whose noise is missing spoiled the sum, and was left out of it."""
    server = seal("fedavg", *BY_CLIENT, "encryption.honest=1.0")
    server.grid.spoils["3"] = lambda sealed: garbage(server.grid.cipher, sealed)
    before = server.strategy.parts
    assert list(server.train()) == ["3"] and server.strategy.parts is before
    server.grid.spoils.clear()
    assert server.train(2) == {} and server.strategy.parts is not before
