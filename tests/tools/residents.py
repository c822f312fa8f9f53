"""Resident nodes beside a rehearsal's SuperLink, for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from clients.policy.policy import write_policy
from simulations.backends.flower import popen
from simulations.devices.rehearsal import Rehearsal

NOBODY = "0" * 64  # an operator whom nobody is, until a run's owner allows another


def start_resident(
    rehearsed: Rehearsal,
    client: str,
    data: Path,
    keys: Path | None = None,
    *,
    port: int | None = None,
    trusts: Path | None = None,
    key: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``fedpers device run`` for a client, as a SuperNode would be started."""
    folder, policy = rehearsed.space.folder, rehearsed.policy_of(client)
    if not policy.exists():
        write_policy(policy, operators=(NOBODY,))
    options = [
        *("--server", f"127.0.0.1:{port or rehearsed.port}"),
        *("--root-certificates", str(trusts or rehearsed.certificates.ca)),
        *("--key", str(key or folder / f"node-{client}")),
        *("--client", client, "--data", str(data)),
        *("--state", str(folder / f"state-{client}"), "--policy", str(policy)),
        *(("--keys", str(keys)) if keys else ()),
    ]
    with rehearsed.log_of(client).open("ab") as log:
        node = popen(rehearsed.space, ["fedpers", "device", "run", *options], log)
    rehearsed.nodes[client] = node
    return node
