"""What a client sends under privacy by client, whatever becomes of its training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clients.methods.fedavg import FedAvg
from clients.node.answers import answer
from clients.node.host import ClientHost
from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.config import Config
from fedpers.errors import DataError
from fedpers.parts import Parts
from fedpers.phases import Phase

BY_CLIENT = (
    *("privacy.enabled=true", "privacy.unit=client", "privacy.max_grad_norm=0.5"),
    "model.cache=false",
)
CLIENTS = ["0", "1", "2", "3"]  # the last without examples
Small = Callable[..., Config]


class Fails(FedAvg):
    """Cannot be trained where an input is large."""

    def phases(self) -> list[Phase]:
        (phase,) = super().phases()

        def loss(outputs: Any, labels: Tensor, reference: Any) -> Tensor:
            if float(outputs.features.detach().abs().max()) > 100:
                raise ValueError("this client's data show")
            return F.cross_entropy(outputs.logits, labels, reduction="none")

        return [Phase(name="odd", model=phase.model, trains=phase.trains, released=True, loss=loss)]


@pytest.fixture
def host(request: pytest.FixtureRequest, small: Small, tmp_path: Path) -> ClientHost:
    """A node of four clients, of which the second fails."""
    config = small("fedavg", *BY_CLIENT, *getattr(request, "param", ()))
    made = ClientHost(config, "fedavg", [], tmp_path / "run" / "state")
    made.algorithm = Fails(config, made.model, made.algorithm.params)
    given = made.examples.client

    def client(name: str) -> Any:
        found = given(name)
        if name == "1":
            found.train.x.fill_(1e5)
        return found

    made.examples.client = client  # type: ignore[method-assign]
    return made


def sent(host: ClientHost) -> Parts:
    torch.manual_seed(7)
    initial = host.algorithm.initial.only(host.algorithm.sends)
    return Parts(
        {n: p.like(p.vector + 0.1 * torch.randn(len(p.vector))) for n, p in initial.items()}
    )


def test_a_client_that_fails_sends_what_it_received(host: ClientHost) -> None:
    body = {"clients": CLIENTS, "round": 1, "rows": dict.fromkeys(CLIENTS, 0)}
    rows, told = answer("train", host, [sent(host)], body)
    assert len(rows) == 4 and told["failures"] == {}
    assert {tuple(report) for report in told["reports"].values()} == {("examples", "loss")}
    assert {report["examples"] for report in told["reports"].values()} == {1}
    uploads = dict(zip(CLIENTS, rows, strict=True))
    for name, part in sent(host).items():
        assert torch.equal(uploads["1"][name].vector, part.vector)
        assert not torch.equal(uploads["0"][name].vector, part.vector)
    notes = list(host.stores.glob("*.log"))
    assert "this client's data show" in notes[0].read_text()


def known_to(host: ClientHost, client: str) -> dict[str, str]:
    """What a server says of its clients' identities."""
    said = host.channel.introduction(host, [client], {"mixes_rows": False})
    return {"registry": str(said["identities"])}


@pytest.mark.parametrize(
    "host", [("encryption.enabled=true", "encryption.scheme=ckks")], indirect=True
)
def test_a_client_that_fails_adds_its_share_of_the_noise(host: ClientHost) -> None:
    terms = {
        "groups": [[["body", "head"], False]],
        "noise": {"sigma": 2.0, "honest": 4},
        "mixes_rows": False,
        "seal_at_once": True,
        "layouts": {name: layout.to_json() for name, layout in host.declared.items()},
    }
    body = {"clients": ["1"], "round": 1, "rows": {"1": 0}, "channel": terms}
    (row,), told = answer("train", host, [sent(host)], body)
    assert told["failures"] == {} and isinstance(row, SealedParts)
    (opened,) = host.channel.arrive(host, [row], {**body, "channel": known_to(host, "1")})
    shares = [(part.vector - sent(host)[name].vector) for name, part in opened.items()]
    # sigma C / sqrt(4) = .5, known to 1 / sqrt(2 * 899).
    assert float(torch.cat(shares).std()) == pytest.approx(0.5, rel=0.1)


def test_a_client_that_is_not_there_is_still_an_error(host: ClientHost) -> None:
    answers = host.train_all(dict.fromkeys(["0", "stranger"], sent(host)), 1)
    assert isinstance(answers["stranger"], DataError) and isinstance(answers["0"], tuple)
