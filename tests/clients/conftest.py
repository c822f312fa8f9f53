"""A model small enough to compute by hand, and methods bound to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.base import LocalAlgorithm, find_algorithm
from clients.node.store import ClientStore
from clients.training.account import Account
from clients.training.trainer import Trainer
from fedpers.config import Config, load_config
from fedpers.data import ClientData, Examples
from fedpers.models import PersonalModel
from fedpers.parts import Part, Parts
from fedpers.privacy import Gaussian
from fedpers.privacy.noise import sources

X = [[1.0, 2.0], [2.0, -1.0], [-1.0, 1.0], [0.0, 3.0]]
Y = [0, 1, 1, 0]


class Bound(NamedTuple):
    """A method, the trainer of one client, and the model that both use."""

    algorithm: Any
    trainer: Trainer
    model: PersonalModel
    config: Config


class Toys:
    """Models, parts and methods in two dimensions: features are ``body @ x``."""

    @staticmethod
    def model(classes: int = 2) -> PersonalModel:
        """The body is the identity at first, the head zero."""
        trunk, head = nn.Linear(2, 2, bias=False), nn.Linear(2, classes)
        with torch.no_grad():
            trunk.weight.copy_(torch.eye(2))
            head.weight.zero_()
            head.bias.zero_()
        return PersonalModel(trunk, head)

    @staticmethod
    def body(weight: Sequence[Sequence[float]] | Tensor) -> Part:
        return Part.of({"trunk.weight": torch.as_tensor(weight).float()})

    @staticmethod
    def head(
        weight: Sequence[Sequence[float]] | Tensor, bias: Sequence[float] | None = None
    ) -> Part:
        rows = torch.as_tensor(weight).float()
        given = torch.zeros(len(rows)) if bias is None else torch.tensor(bias)
        return Part.of({"head.weight": rows, "head.bias": given})

    @classmethod
    def parts(cls, body: Any, head: Any, bias: Sequence[float] | None = None) -> Parts:
        return Parts({"body": cls.body(body), "head": cls.head(head, bias)})

    @staticmethod
    def quiet(config: Config, algorithm: Any, data: ClientData, folder: Path) -> Account:
        """A charged account whose phases add no noise."""
        store = ClientStore(folder / "store", "a")
        chosen = sources(config.privacy.deterministic_for_tests, config.seed)
        account = Account(config, algorithm.releases(), "a", data, folder, store, chosen)
        silent = Gaussian(0.0, config.privacy.sampling_rate)
        account.phase = account.phase._replace(mechanism=silent)
        account.charge(*account.once)
        return account

    @staticmethod
    def random(algorithm: LocalAlgorithm, slots: Sequence[str], seed: int) -> Parts:
        """Random parts of the layouts that the model has."""
        generator = torch.Generator().manual_seed(seed)
        layouts = {slot: algorithm.initial[slot] for slot in slots}
        return Parts(
            {
                slot: part.like(torch.randn(part.layout.size, generator=generator))
                for slot, part in layouts.items()
            }
        )

    @classmethod
    def bind(
        cls,
        name: str,
        *overrides: str,
        x: Any = X,
        y: Any = Y,
        classes: int = 2,
        client: str = "a",
        server_round: int = 1,
    ) -> Bound:
        """The method called ``name`` on the toy model; all examples in one batch by default."""
        settings = [f"strategy.name={name}", "training.batch_size=100", "training.lr=0.1"]
        config = load_config(None, [*settings, *overrides])
        found, params = find_algorithm(name, config, ["gate_width"])
        model = cls.model(classes)
        algorithm = found(config, model, params)
        examples = Examples(
            torch.as_tensor(x).float().reshape(-1, 2), torch.as_tensor(y, dtype=torch.int64)
        )
        trainer = Trainer(
            config, model, algorithm, examples, server_round=server_round, client=client
        )
        return Bound(algorithm, trainer, model, config)


@pytest.fixture
def toys() -> type[Toys]:
    return Toys


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Config]:
    """Settings of a run with clients "0" to "3" and public rows; client "3" trains on nothing."""
    rng = np.random.default_rng(4)
    y = np.arange(120) % 3
    x = (np.eye(3, 6)[y] + 0.3 * rng.standard_normal((120, 6))).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    rows = rng.permutation(96)
    split = {}
    for client in range(4):
        train, val, test = np.split(rows[client * 24 : client * 24 + 24], [12, 16])
        split[f"train_{client}"] = train[: 4 * (3 - client)]
        split[f"val_{client}"], split[f"test_{client}"] = val, test
    np.savez(tmp_path / "split.npz", **split)
    settings = [
        *("data.name=npz", f"data.path={tmp_path / 'x.npz'}", "data.partition.name=file"),
        *(f"data.partition.path={tmp_path / 'split.npz'}", "model.name=mlp", "rounds=2"),
        *("training.batch_size=4", "evaluation.outside=10", f"output={tmp_path / 'runs'}"),
    ]
    return lambda name, *overrides: load_config(
        None, [*settings, f"strategy.name={name}", *overrides]
    )


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """``plugin("odd", text)`` writes a module that can be imported; returns its unique name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> str:
        unique = f"{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{unique}.py").write_text(text)
        return unique

    return write
