"""Methods and backbones that leak, as packages from outside; each is tried without the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clients.leaktest.rehearsal import Rehearsal, libraries
from fedpers.config import load_config
from fedpers.data import Signature
from fedpers.privacy.leaktest import Finding
from fedpers.privacy.neighbours import TARGETS
from fedpers.tasks import task_named

PLUGINS = Path(__file__).parent / "plugins"
IMAGES = Signature("image", (1, 8, 8))
Try = Callable[..., Finding | None]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Try:
    """``tried("counts:Ranked")``: what the leak test finds in a method."""
    monkeypatch.syspath_prepend(str(PLUGINS))

    def find(
        algorithm: str, *overrides: str, signature: Signature = IMAGES, classes: int = 10
    ) -> Finding | None:
        settings = ["model.name=mlp", "privacy.enabled=true", "privacy.steps=2", "rounds=20"]
        config = load_config(None, [*settings, f"strategy.name={algorithm}", *overrides])
        if "sd" not in config.task.params:
            config.task.params["names"] = [str(k) for k in range(classes)]
        kind, params = task_named(config.task)
        some = torch.zeros(1, dtype=torch.int64 if "names" in config.task.params else torch.float32)
        targets = kind.of(some, params).made_up(TARGETS, torch.Generator().manual_seed(0))
        given = (signature, targets, ["ann", "bob", "eve"], libraries())
        return Rehearsal(config, algorithm, ["distill"], *given).refusal()

    return find
