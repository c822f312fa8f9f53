"""Several clients of one node, trained one by one and at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clients.base import LocalAlgorithm, find_algorithm
from clients.node.store import ClientStore
from clients.training.account import Account
from clients.training.folding import train_folded
from clients.training.layers import Fold
from clients.training.trainer import Trainer
from fedpers.config import Lora, load_config
from fedpers.context import Context
from fedpers.data import ClientData, Examples
from fedpers.models import PersonalModel
from fedpers.models.backbones import BACKBONES
from fedpers.models.lora import add_lora
from fedpers.parts import Parts
from fedpers.phases import Phase
from fedpers.privacy import Release
from fedpers.privacy.noise import known

SIZES = (7, 0, 3, 13, 4, 1)
SHAPES = {"mlp": (6,), "vit-tiny": (1, 4, 4), "conv1d": (2, 8), "small": (6,)}
TRAINING = ("training.batch_size=4", "training.epochs=2", "training.lr=0.1")
PRIVACY = ("privacy.enabled=true", "privacy.deterministic_for_tests=true", "privacy.steps=3")


class Party:
    """Clients of one node: a small model, a method, examples and the parts that each starts from.

    Args:
        name: mlp, vit-tiny or conv1d with LoRA; small is an MLP that is trained whole.
        share: LoRA's.
        method: its name.
        given: another model and the clients' examples, whatever name, sizes and share say.
    """

    def __init__(
        self,
        name: str,
        *overrides: str,
        sizes: Sequence[int] = SIZES,
        share: str = "both",
        method: str = "ditto",
        given: tuple[PersonalModel, list[Examples]] | None = None,
    ) -> None:
        self.config = load_config(None, [f"strategy.name={method}", *TRAINING, *overrides])
        torch.manual_seed(5)
        self.model = given[0] if given else model_of(name, share)
        found, params = find_algorithm(method, self.config, ["gate_width"])
        self.algorithm: LocalAlgorithm = found(self.config, self.model, params)
        if given:
            self.examples, sizes = given[1], [len(own) for own in given[1]]
        else:
            self.examples = [
                Examples(torch.randn(n, *SHAPES[name]), torch.randint(0, 3, (n,))) for n in sizes
            ]
        first = {s: p.like(p.vector + shake(p.vector)) for s, p in self.algorithm.initial.items()}
        self.workings = []
        for _ in sizes:
            own = {f"personal.{s}": p.like(p.vector + shake(p.vector)) for s, p in first.items()}
            self.workings.append(self.algorithm.receive(Parts(first), Parts(own), Context("a", 1)))

    def trainers(self, accounts: Sequence[Account | None] | None = None) -> list[Trainer]:
        """Fresh ones, for clients "0", "1", ..."""
        return [
            Trainer(
                self.config,
                self.model,
                self.algorithm,
                examples,
                server_round=2,
                client=str(k),
                account=accounts[k] if accounts else None,
            )
            for k, examples in enumerate(self.examples)
        ]

    def accounts(self, folder: Path, release: Release | None = None) -> list[Account | None]:
        """Charged accounts, none for clients without examples."""
        made: list[Account | None] = []
        for k, examples in enumerate(self.examples):
            if not len(examples):
                made.append(None)
                continue
            none = examples.take(torch.arange(0))
            store, data = ClientStore(folder / "stores", str(k)), ClientData(examples, none, none)
            draws = known(self.config.seed)
            account = Account(
                self.config, self.algorithm.releases(), str(k), data, folder, store, draws
            )
            # Each client has noise of its own, as it has where it has spent before.
            mechanism = account.phase.mechanism
            own = replace(mechanism, sigma=mechanism.sigma * (1 + k / 10))
            account.phase = release or account.phase._replace(mechanism=own)
            account.charge()
            made.append(account)
        return made

    def alone(
        self, phase: Phase, accounts: Sequence[Account | None] | None = None
    ) -> tuple[list[Parts], list[Trainer]]:
        """Each client one by one, and the trainers with what they noted."""
        trainers = self.trainers(accounts)
        found = [t.run(phase, w) for t, w in zip(trainers, self.workings, strict=True)]
        return found, trainers

    def together(
        self, phase: Phase, accounts: Sequence[Account | None] | None = None
    ) -> tuple[list[Parts], list[Trainer]]:
        """All of them at once."""
        trainers = self.trainers(accounts)
        return train_folded(Fold(self.model), phase, trainers, self.workings), trainers


def model_of(name: str, share: str) -> PersonalModel:
    if name == "small":
        trunk: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU())
        return PersonalModel(trunk, nn.Linear(5, 3))
    backbone = BACKBONES.get(name)(SHAPES[name])
    backbone.requires_grad_(False)
    add_lora(backbone, Lora(rank=2, share=share), 3)
    head = nn.Linear(backbone.feature_dim, 3)
    return PersonalModel(backbone, head, private_b=share == "a-only")


def shake(vector: Tensor) -> Tensor:
    """Away from the zeros that adapters start at, where gradients vanish."""
    return 0.1 * torch.randn(vector.shape)


def assert_same(
    one: tuple[Sequence[Parts], Sequence[Trainer]], other: tuple[Sequence[Parts], Sequence[Trainer]]
) -> None:
    for parts, expected in zip(other[0], one[0], strict=True):
        assert list(parts) == list(expected)
        for name, part in expected.items():
            assert parts[name].layout == part.layout
            torch.testing.assert_close(parts[name].vector, part.vector, rtol=0, atol=1e-5)
    for trainer, reference in zip(other[1], one[1], strict=True):
        assert trainer.losses == pytest.approx(reference.losses, abs=1e-5)
        assert trainer.noise == pytest.approx(reference.noise, rel=1e-6)
