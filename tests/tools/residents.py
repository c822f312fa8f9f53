"""Nodes beside a rehearsal's SuperLink, resident and stock, and apps that it is sent, for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from clients.policy.policy import write_policy
from fedpers.config import Config
from simulations.backends.bundle import write_bundle
from simulations.backends.flower import CONNECTION, flwr, follow, free_port, popen
from simulations.backends.launcher import CLIENTAPP, SERVERAPP, run_config
from simulations.devices.rehearsal import Rehearsal

NOBODY = "0" * 64  # an operator whom nobody is, until a run's owner allows another


def start_resident(
    rehearsed: Rehearsal, client: str, data: Path, keys: Path | None = None, *more: str
) -> subprocess.Popen[bytes]:
    """Start ``fedpers device run`` for a client whose key is registered."""
    folder, policy = rehearsed.space.folder, rehearsed.policy_of(client)
    if not policy.exists():
        write_policy(policy, operators=(NOBODY,))
    options = [
        *("--server", f"127.0.0.1:{rehearsed.port}"),
        *("--root-certificates", str(rehearsed.certificates.ca)),
        *("--key", str(folder / f"node-{client}"), "--client", client, "--data", str(data)),
        *("--state", str(folder / f"state-{client}"), "--policy", str(policy)),
        *(("--keys", str(keys)) if keys else ()),
        *more,
    ]
    return _start(rehearsed, client, "fedpers", "device", "run", *options)


def start_stock(
    rehearsed: Rehearsal, client: str, data: Path, keys: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start Flower's own SuperNode for it."""
    folder = rehearsed.space.folder
    config = {"client-id": client, "data": data, "state": folder / f"state-{client}"}
    config |= {"policy": rehearsed.policy_of(client)} | ({"keys": keys} if keys else {})
    options = [
        *("--superlink", f"127.0.0.1:{rehearsed.port}", "--port", str(free_port())),
        *("--root-certificates", str(rehearsed.certificates.ca)),
        *("--auth-supernode-private-key", str(folder / f"node-{client}")),
        *("--node-config", " ".join(f'{k}="{v}"' for k, v in config.items())),
    ]
    return _start(rehearsed, client, "flower-supernode", *options)


def _start(rehearsed: Rehearsal, client: str, *command: str) -> subprocess.Popen[bytes]:
    home = rehearsed.space.folder / f"home-{client}"
    home.mkdir(exist_ok=True)
    with rehearsed.log_of(client).open("ab") as log:
        node = popen(rehearsed.space, command, log, env={"FLWR_HOME": str(home)})
    rehearsed.nodes[client] = node
    return node


def submit(
    rehearsed: Rehearsal,
    config: Config,
    run_folder: Path,
    *,
    search: Path,
    serverapp: str = SERVERAPP,
    clientapp: str = CLIENTAPP,
) -> list[str]:
    """Run an app whose two sides may be anybody's, found in ``search``; the lines of its run.

    Raises:
        RunError: it did not complete.
    """
    space, lines = rehearsed.space, list[str]()
    settings, events = space.path("settings.yaml"), space.path("events.jsonl")
    settings.write_text(config.to_yaml(), encoding="utf-8")
    events.unlink(missing_ok=True)
    write_bundle(
        space.path("app"),
        serverapp=serverapp,
        clientapp=clientapp,
        run_config=run_config(settings, run_folder, False),
        events=events,
        search=search,
    )
    answer = flwr(space, "run", str(space.path("app")), CONNECTION)
    follow(space, str(answer["run-id"]), rehearsed.superlink, lines.append, verbose=False)
    return lines
