"""``seal``: a server in front of nodes that seal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sealing_nodes import SealingNodes, Server

from simulations.backends.serial import _identity


@pytest.fixture
def seal(bind: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``seal("fedavg", scheme="bfv", spoils={"1": raw_bytes})``."""

    def seal(
        name: str, *overrides: str, scheme: str = "bfv", spoils: Any = None, **more: Any
    ) -> Server:
        settings = ["encryption.enabled=true", f"encryption.scheme={scheme}", *overrides]
        return Server(
            bind(name, *settings),
            SealingNodes(scheme, tmp_path / "stores", spoils=spoils, **more),
            tmp_path,
        )

    with _identity(run_id=1):
        yield seal
