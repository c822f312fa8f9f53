"""Owners of devices and operators of runs, for tests: a policy that allows just a run, signed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clients.policy.policy import write_policy
from clients.policy.wishes import just
from fedpers.config import Config
from fedpers.permit import Permit, public_of

OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HOUR = 3600.0


def allowing(path: Path, config: Config, algorithm: str, **rules: Any) -> Path:
    """A policy in ``path`` that allows just a run of ``config``, but for ``rules``."""
    path.unlink(missing_ok=True)
    write_policy(path, operators=(public_of(OPERATOR),), **{**just(config, algorithm), **rules})
    return path


def permitted(
    config: Config,
    algorithm: str,
    server_params: Sequence[str] = (),
    *,
    key: Ed25519PrivateKey = OPERATOR,
    expires: float | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """A permit as it is in a message."""
    until = time.time() + HOUR if expires is None else expires
    return asdict(Permit.signed(key, config, algorithm, server_params, until, run))


def permit_in(path: Path, config: Config) -> Path:
    """A permit in a file, for the method that the settings name."""
    from strategies.base import find_strategy

    strategy = find_strategy(config)
    path.write_text(json.dumps(permitted(config, strategy.client_side(), strategy.param_names())))
    return path
