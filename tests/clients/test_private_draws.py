"""What a private client draws, and from where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sealing_nodes import Stores
from torch import Tensor

from clients.methods.fedavg import FedAvg
from clients.node.host import ClientHost
from fedpers.channels.client_noise_node import ClientNoiseNode
from fedpers.channels.node import Leaving
from fedpers.channels.sealed import bfv_for, ckks_for, client_from, generate
from fedpers.channels.sealed.node import SealedNode
from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.config import Config, load_config
from fedpers.context import Context
from fedpers.data import ClientData
from fedpers.errors import ClientError
from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Part, Parts
from fedpers.privacy.noise import known, secret


def test_what_is_random_in_a_private_forward_pass_is_nobodys_to_know(
    toys: Any, tmp_path: Path
) -> None:
    # FedCP's Gumbel noise goes by the place in the batch: with draws that the server can repeat,
    # an example more would change what all the others contribute.
    def sent(*settings: str, seed: int = 0) -> Tensor:
        bound = toys.bind("fedcp", "privacy.enabled=true", f"seed={seed}", *settings)
        own = bound.trainer.examples
        bound.trainer.account = toys.quiet(
            bound.config, bound.algorithm, ClientData(own, own, own), tmp_path
        )
        slots = ("body", "head", "gate")
        broadcast = toys.random(bound.algorithm, slots, seed=1)
        start = bound.algorithm.receive(broadcast, Parts(), Context("a", 1))
        working = bound.algorithm.train(start, bound.trainer)
        return torch.cat([part.vector for part in bound.algorithm.upload(working).values()])

    fixed = "privacy.deterministic_for_tests=true"
    assert torch.equal(sent(fixed), sent(fixed))
    assert not torch.equal(sent(), sent())


def test_a_private_forward_pass_that_draws_from_torchs_generator_is_refused(
    toys: Any, tmp_path: Path
) -> None:
    class Shaken(FedAvg):
        def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
            return model(x + 0.1 * torch.rand_like(x) if training else x)

    bound = toys.bind("fedavg", "privacy.enabled=true")
    own = bound.trainer.examples
    algorithm = Shaken(bound.config, bound.model, bound.algorithm.params)
    bound.trainer.algorithm = algorithm
    working = algorithm.receive(
        toys.parts(torch.eye(2), torch.zeros(2, 2)), Parts(), Context("a", 1)
    )
    algorithm.train(working, bound.trainer)  # plainly it may
    bound.trainer.account = toys.quiet(bound.config, algorithm, ClientData(own, own, own), tmp_path)
    with pytest.raises(ClientError, match=r"torch's generator.*; draw by model\.uniform$"):
        algorithm.train(working, bound.trainer)
    assert bound.model.source is None


@pytest.mark.parametrize("fold", ["off", "3"])
@pytest.mark.parametrize("method", ["fedavg", "fedcp", "prior"])
def test_a_private_round_comes_out_of_its_sources_alone(
    method: str,
    fold: str,
    small: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With sources that are known all is; with secret ones nothing is, whatever the seeds are."""
    settings = [
        "privacy.enabled=true",
        "privacy.weights=counts",
        "privacy.delta=1e-3",
        "privacy.sampling_rate=0.5",
    ]
    config = small(method, *settings, f"training.fold={fold}")

    def uploads(folder: str, sources: Any) -> list[Any]:
        stores = tmp_path / folder / "state"
        host = ClientHost(config, method, ["gate_width"], stores, sources=sources)
        with monkeypatch.context() as patch:
            for name in (
                "clients.training.gradients.seeded",
                "clients.training.trainer.torch_generator",
            ):
                patch.setattr(name, lambda *_, **__: pytest.fail("a seeded draw"))
            torch.manual_seed(0)
            start = host.algorithm.initial.only(host.algorithm.sends)
            answers = host.train_all(dict.fromkeys("012", start), 1)
        return [(upload, report["examples"]) for upload, report in answers.values()]

    first, again = uploads("a", known(5)), uploads("b", known(5))
    for (one, count), (other, number) in zip(first, again, strict=True):
        assert one.digest() == other.digest() and count == number
    first, again = uploads("c", None), uploads("d", None)
    for (one, _), (other, _) in zip(first, again, strict=True):
        for name, part in one.items():
            assert not torch.equal(other[name].vector, part.vector)
    assert [count for _, count in first] != [count for _, count in again]


def test_shares_and_rounding_are_nobodys_to_know(tmp_path: Path) -> None:
    nothing = Parts({"body": Part.of({"w": torch.full((500,), 0.1)})})
    settings = ("privacy.enabled=true", "privacy.unit=client")

    def opened(scheme: Any, noise: dict[str, Any], *overrides: str) -> Tensor:
        config = load_config(None, list(overrides))
        sealer, kept = SealedNode(config, "run", 8, secret), Stores(tmp_path)
        sealer.__dict__["cipher"] = client_from(generate(scheme(8)).client)
        node = ClientNoiseNode(config, sealer, secret)
        terms = {"groups": [[["body"], False]], "seal_at_once": True, **noise}
        leaving = Leaving("a", 1, nothing, {}, {"channel": terms})
        sealed = node.leave(kept, leaving)
        assert isinstance(sealed, SealedParts)
        return sealer.cipher.open(sealed.sealed[0])

    noise = {"noise": {"sigma": 1.0, "honest": 2}}
    one, other = (opened(ckks_for, noise, *settings) for _ in range(2))
    assert float((one - other).abs().max()) > 0.1
    rounded = [opened(bfv_for, {}, "privacy.enabled=true") for _ in range(2)]
    assert not torch.equal(*rounded)
    plain = [opened(bfv_for, {}) for _ in range(2)]  # reproducible, as all of such a run is
    assert torch.equal(*plain)
