"""Randomness, seeded per (run, round, client, purpose), so that no draw depends on the order
in which clients happen to run or on the process that runs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fedpers.compute import CPU


def seed_for(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one purpose, such as ``seed_for(run_seed, round, client, "batches")``.

    Distinct paths give independent seeds (SHA-256 over the path, each piece with its type and
    length, so that ``("1", "23")`` and ``("12", "3")`` differ).
    """
    digest = hashlib.sha256()
    for piece in (seed, *path):
        text = f"{type(piece).__name__}:{piece}".encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def torch_generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator of torch for one purpose."""
    return torch.Generator().manual_seed(seed_for(seed, *path))


def numpy_generator(seed: int, *path: int | str) -> np.random.Generator:
    """A generator of numpy for one purpose."""
    return np.random.default_rng(seed_for(seed, *path))


def drawn_from(device: torch.device) -> bytes:
    """The state of torch's own generators, on the CPU and on ``device``: what changes with each
    draw from them."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return b"".join(state.numpy().tobytes() for state in states)


@contextmanager
def seeded(seed: int, *path: int | str, device: torch.device = CPU) -> Iterator[None]:
    """Within, torch's draws on the CPU, and on ``device`` where it is a GPU, are seeded by
    ``seed_for(seed, *path)``; after, they are as they were."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed, which would reseed the accelerators for good.
        torch.default_generator.manual_seed(seed_for(seed, *path))
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed_for(seed, *path))
        yield
