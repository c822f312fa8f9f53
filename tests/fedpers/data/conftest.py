"""Small sources whose inputs say which row they are, so that tests see who owns what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpers.config import load_config
from fedpers.data import Examples, FederatedData, load_data

Load = Callable[..., FederatedData]


NUMBERED = ["data.name=npz", "data.scale=none"]


@pytest.fixture
def numbered(tmp_path: Path) -> Load:
    """Load ``n`` examples, x = the row's number, of an npz file with further arrays."""

    def load(
        *overrides: str, n: int = 200, y: Any = None, **arrays: np.ndarray[Any, Any]
    ) -> FederatedData:
        path = tmp_path / "numbered.npz"
        y = np.arange(n) % 4 if y is None else y
        np.savez(path, x=np.arange(n, dtype=np.float32)[:, None], y=y, **arrays)
        return load_data(load_config(None, [*NUMBERED, f"data.path={path}", *overrides]))

    return load


@pytest.fixture
def rows() -> Callable[[Examples], list[int]]:
    """The row numbers that examples of ``numbered`` carry."""

    def read(examples: Examples) -> list[int]:
        assert examples.x.dtype == torch.float32 and examples.y.dtype == torch.int64
        assert len(examples) == len(examples.x) == len(examples.y)
        return [int(row) for row in examples.x[:, 0]]

    return read


@pytest.fixture
def sides(rows: Callable[[Examples], list[int]]) -> Callable[[FederatedData], dict[str, set[int]]]:
    """All clients' rows by side, and the public ones; fails if a row has two owners."""

    def read(data: FederatedData) -> dict[str, set[int]]:
        found: dict[str, list[int]] = {"public": rows(data.public)}
        for client in data.clients:
            own = data.client(client)
            assert data.size(client) == len(own.train)
            for side in ("train", "val", "test"):
                found.setdefault(side, []).extend(rows(getattr(own, side)))
        everything = [row for side in found.values() for row in side]
        assert len(everything) == len(set(everything))
        return {side: set(numbers) for side, numbers in found.items()}

    return read
