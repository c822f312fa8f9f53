"""``training.precision``: layers compute in bfloat16, and all that is kept is float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.node.host import ClientHost
from clients.training.folded import Group
from fedpers.config import Config
from fedpers.context import Context
from fedpers.errors import ConfigError
from fedpers.parts import Parts
from fedpers.tasks import cross_entropy

CLIENTS = "012"
Small = Callable[..., Config]


def trained(host: ClientHost, rounds: int) -> tuple[list[float], list[Parts]]:
    """The clients' mean loss in each round, each going on from its own upload; the last ones."""
    initial = host.algorithm.initial.only(host.algorithm.sends)
    sent, losses = dict.fromkeys(CLIENTS, initial), []
    for server_round in range(1, rounds + 1):
        answers: dict[str, Any] = host.train_all(sent, server_round)
        sent = {client: answer[0] for client, answer in answers.items()}
        losses.append(sum(report["loss"] for _, report in answers.values()) / len(CLIENTS))
    return losses, list(sent.values())


@pytest.mark.parametrize("fold", ["off", "3"])
def test_it_trains_as_float32_does_up_to_rounding(fold: str, small: Small, tmp_path: Path) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        settings = (f"training.fold={fold}", f"training.precision={precision}", "training.lr=1")
        config = small("fedavg", *settings, "data.scale=none")
        host = ClientHost(config, "fedavg", [], tmp_path / precision / "state")
        found[precision] = trained(host, 5)
        dtypes = {part.layout.dtype for parts in found[precision][1] for part in parts.values()}
        assert dtypes == {torch.float32}
    (losses, parts), (expected, exact) = found["bfloat16"], found["float32"]
    assert losses[-1] < 0.8 * losses[0]
    assert losses == pytest.approx(expected, rel=0.02)
    for own, other in zip(parts, exact, strict=True):
        assert own.digest() != other.digest()
        for name, part in other.items():
            torch.testing.assert_close(own[name].vector, part.vector, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("fold", ["off", "3"])
def test_losses_are_of_float32_outputs_and_predictions_are_float32(
    fold: str, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(outputs: Any, labels: Any, reference: Any) -> Any:
        logits = outputs.logits  # a value that bfloat16 cannot hold was not computed in it
        seen.append((logits.dtype, bool((logits.bfloat16() == logits).all())))
        return cross_entropy(outputs, labels, reference)

    config = small("ditto", f"training.fold={fold}", "training.precision=bfloat16")
    host = ClientHost(config, "ditto", [], tmp_path / "state")
    watching = [replace(phase, loss=watched) for phase in host.algorithm.phases()]
    monkeypatch.setattr(host.algorithm, "phases", lambda: watching)
    groups: list[int] = []
    padded = Group.padded

    def counted(self: Group, batches: Any) -> Any:
        groups.append(len(batches))
        return padded(self, batches)

    monkeypatch.setattr(Group, "padded", counted)
    initial = host.algorithm.initial.only(host.algorithm.sends)
    generator = torch.Generator().manual_seed(3)
    parts = Parts(
        {n: p.like(torch.randn(p.layout.size, generator=generator)) for n, p in initial.items()}
    )
    answers = host.train_all(dict.fromkeys(CLIENTS, parts), 1)
    assert all(isinstance(answer, tuple) for answer in answers.values())
    assert bool(groups) == (fold == "3")
    assert set(seen) == {(torch.float32, True)}
    trainer = host.trainer("0", 1)
    working = host.algorithm.receive(parts, Parts(), Context("a", 1))
    logits = host.algorithm.predict("global", working, trainer.examples.x, trainer, "test")
    assert logits is not None and not bool((logits.bfloat16() == logits).all())


def test_it_is_refused_where_gradients_are_clipped_one_by_one(small: Small, tmp_path: Path) -> None:
    def host(*overrides: str) -> ClientHost:
        config = small("ditto", "training.precision=bfloat16", *overrides)
        return ClientHost(config, "ditto", [], tmp_path / "state")

    with pytest.raises(ConfigError) as caught:
        host("privacy.enabled=true")
    assert str(caught.value) == (
        "training.precision: got 'bfloat16', takes float32 with privacy: what is clipped to a "
        "bound must be computed as finely"
    )
    host("privacy.enabled=true", "privacy.unit=client")
    with pytest.raises(ConfigError, match=r"training\.precision: got 'half', takes"):
        host("training.precision=half")
