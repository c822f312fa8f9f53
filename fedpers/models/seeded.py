"""Initialising layers from a seed of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedpers.seeding import seed_for


@contextmanager
def seeded(seed: int, *path: int | str) -> Iterator[None]:
    """Within, torch's CPU draws are seeded by ``seed_for(seed, *path)``; after, as they were."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators for good.
        torch.default_generator.manual_seed(seed_for(seed, *path))
        yield
