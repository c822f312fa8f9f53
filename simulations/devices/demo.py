"""``fedpers devices demo``: a deployment on this machine, and an outsider who tries to get in."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from clients.node.fleet import Fleet
from fedpers.config import Config
from fedpers.errors import RunError
from simulations.devices.gateway import BRINGS, has_nginx
from simulations.devices.outsider import INTRUDER, Impostor, table, tries
from simulations.devices.rehearsal import Rehearsal, make_files, rehearsal


def demo(config: Config, folder: Path, show: Callable[[str], None] = print) -> None:
    """Make data and keys for as many devices as ``strategy.min_clients``, and run ``config`` on
    them, behind the gateway; then have an outsider try what he can.

    Where nginx is not installed there is no gateway and no outsider, and it says so.

    Args:
        config: the settings of a run on devices.
        folder: the run's own folder.
        show: called with each line to show.

    Raises:
        FedpersError: a mistake that the user can mend.
        RunError: the run did not complete, or somebody got in.
    """
    began, lines = time.monotonic(), list[str]()

    def told(line: str) -> None:
        lines.append(line)
        show(line)

    closed = has_nginx()
    if not closed:
        show(f"nginx is not installed, and no gateway is before the SuperLink: {BRINGS}")
    with rehearsal(closed=closed) as rehearsed, ExitStack() as ended:
        files = make_files(config, rehearsed.space.folder)
        settings, names = files.config, list(files.data)
        for client in [*names, INTRUDER] if closed else names:
            rehearsed.register(client)
        if closed:
            rehearsed.open_gateway([*names, INTRUDER])
            settings = replace(settings, federation=str(rehearsed.federation))
            own, key = rehearsed.certificate_of(INTRUDER), rehearsed.space.path(f"node-{INTRUDER}")
            impostor = Impostor(Fleet(rehearsed.access(own, key)), names[0])
            ended.callback(impostor.stop)
        for client, data in files.data.items():
            rehearsed.start_device(client, data, files.keys.get(client))
        show(_described(rehearsed, len(names)))
        try:
            rehearsed.run(settings, folder, told)
        except RunError as error:
            raise RunError(f"{error}; {_keep_logs(rehearsed, folder)}") from None
        if closed:
            found = list(tries(rehearsed, names, lines))
            for line in table(found):
                show(line)
            if got_in := [one for one in found if not one.refused]:
                raise RunError(f"{got_in[0].who} got in: {got_in[0].what} ({got_in[0].answer})")
        show(f"the rehearsal took {time.monotonic() - began:.0f} s")


def _described(rehearsed: Rehearsal, devices: int) -> str:
    if rehearsed.gateway is None:
        return f"SuperLink on port {rehearsed.port} with TLS, {devices} devices"
    network = "in a network of its own"
    if rehearsed.space.shares:
        network = f"in the machine's network: {rehearsed.space.shares}"
    return f"gateway on port {rehearsed.gateway.port}, SuperLink {network}, {devices} devices"


def _keep_logs(rehearsed: Rehearsal, run_folder: Path) -> str:
    run_folder.mkdir(parents=True, exist_ok=True)
    logs = [rehearsed.space.path("superlink.log"), *map(rehearsed.log_of, rehearsed.nodes)]
    for log in logs:
        with suppress(OSError):
            shutil.copy(log, run_folder)
    return f"Flower's and the devices' logs are in {run_folder}"
