"""One round on a GPU against the same on the CPU. Where there is none, ``test_elsewhere.py`` shows
that nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.node.host import ClientHost
from fedpers.config import Config
from fedpers.parts import Parts
from fedpers.privacy.noise import known
from fedpers.seeding import seeded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
# The noise is the same, so that little of it keeps the clients' own work in sight.
PRIVATE = (
    *("privacy.enabled=true", "privacy.deterministic_for_tests=true", "privacy.epsilon=1e6"),
    "privacy.max_grad_norm=1e-2",
)
Small = Callable[..., Config]


def one_round(config: Config, method: str, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """What the clients upload, and how they are scored."""
    host = ClientHost(config, method, [], folder / "state")
    assert host.model.device.type == ("cuda" if config.simulation.gpus_per_node else "cpu")
    generator = torch.Generator().manual_seed(7)
    initial = host.algorithm.initial.only(host.algorithm.sends)
    parts = {
        n: p.like(p.vector + 0.1 * torch.randn(len(p.vector), generator=generator))
        for n, p in initial.items()
    }
    answers: dict[str, Any] = host.train_all(dict.fromkeys("0123", Parts(parts)), 1)
    assert all(isinstance(answer, tuple) for answer in answers.values()), answers
    assert host.groups.known == (1 if config.training.fold == "off" else 3)
    scores = [host.evaluate(client, 1, Parts(parts)) for client in "0123"]
    return {client: answer[0] for client, answer in answers.items()}, scores


@pytest.mark.parametrize("fold", ["off", "3"])
@pytest.mark.parametrize(
    ("method", "overrides"), [("fedavg", ()), ("ditto", ()), ("fedavg", PRIVATE)]
)
def test_a_round_on_a_gpu_is_one_on_the_cpu(
    method: str, overrides: tuple[str, ...], fold: str, small: Small, tmp_path: Path
) -> None:
    found = []
    for gpus in ("0", "1"):
        settings = (f"training.fold={fold}", f"simulation.gpus_per_node={gpus}", *overrides)
        found.append(one_round(small(method, *settings), method, tmp_path / gpus))
    (expected, scores), (uploads, own) = found
    for client, parts in expected.items():
        for name, part in parts.items():
            vector = uploads[client][name].vector
            assert vector.device.type == "cpu"
            torch.testing.assert_close(vector, part.vector, rtol=0, atol=1e-3)
    assert [(s.test.n, s.val.n) for s in own] == [(s.test.n, s.val.n) for s in scores]


@pytest.mark.parametrize("fold", ["off", "3", "auto"])
def test_bfloat16_trains_on_a_gpu(fold: str, small: Small, tmp_path: Path) -> None:
    settings = ("simulation.gpus_per_node=1", "training.precision=bfloat16")
    config = small("ditto", *settings, f"training.fold={fold}")
    host = ClientHost(config, "ditto", [], tmp_path / "state")
    initial = host.algorithm.initial.only(host.algorithm.sends)
    answers = host.train_all(dict.fromkeys("0123", initial), 1)
    assert all(isinstance(answer, tuple) for answer in answers.values()), answers
    if fold != "off":  # what memory takes was measured
        assert host.groups.fold is not None and host.groups.fold.most >= 3


def test_a_gpus_draws_are_seeded_within_and_left_as_they_were() -> None:
    gpu = torch.device("cuda")
    torch.cuda.manual_seed(5)
    expected = torch.rand(2, device=gpu)
    torch.cuda.manual_seed(5)
    draws = []
    for _ in range(2):
        with seeded(1, "a", device=gpu):
            draws.append(torch.rand(3, device=gpu))
    assert torch.equal(*draws)
    assert torch.equal(torch.rand(2, device=gpu), expected)


def test_noise_is_the_cpus() -> None:
    total = torch.linspace(-3, 3, 20_000)
    there = known(0)("a").noised(total.cuda(), 2.0)
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), known(0)("a").noised(total, 2.0))
