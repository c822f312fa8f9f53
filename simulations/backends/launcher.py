"""Run a simulation through Flower's SuperLink and Ray: ``launch``.

Each launch has a SuperLink of its own, with its own port, home and empty working folder, so
that no other run's environment, working folder or code can leak into it, and it is gone at the
end. Success is what Flower's run status says, not that a command returned.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedpers.compute import node_count
from fedpers.config import Config
from fedpers.errors import RunError
from simulations.backends.bundle import write_bundle
from simulations.backends.flower import (
    CONNECTION,
    LOG,
    Space,
    flwr,
    follow,
    free_port,
    joins_cluster,
    last_line,
    listens,
    popen,
    private_space,
)

SERVERAPP = "strategies.server_app:app"
CLIENTAPP = "clients.node.client_app:app"
OPEN = "any user of this machine may have Flower's SuperLink run code; Ray asks for a token"


def launch(
    config: Config,
    run_folder: Path,
    *,
    resume: bool = False,
    serverapp: str = SERVERAPP,
    clientapp: str = CLIENTAPP,
    verbose: bool = False,
    show: Callable[[str], None] = print,
) -> None:
    """Run ``config`` as a Flower simulation and return when it has completed.

    Args:
        config: the settings, with absolute paths.
        run_folder: the run's own folder, absolute. After a failure it holds Flower's log.
        resume: go on with the run that is in it.
        serverapp: ``package.module:app`` of the ServerApp.
        clientapp: the same of the ClientApp.
        verbose: show Flower's log too, not just what fedpers says.
        show: called with each line to show.

    Raises:
        FedpersError: a mistake that the user can mend, as the ServerApp named it.
        RunError: the run did not complete.
    """
    with private_space(_shares(config)) as space:
        if space.shares:
            show(f"network: the machine's, {space.shares}: {OPEN}")
        settings, events = space.path("settings.yaml"), space.path("events.jsonl")
        settings.write_text(config.to_yaml(), encoding="utf-8")
        write_bundle(
            space.path("app"),
            serverapp=serverapp,
            clientapp=clientapp,
            run_config=run_config(settings, run_folder, resume),
            events=events,
            search=Path.cwd(),
        )
        show("starting Flower and Ray")
        superlink = _start_superlink(space)
        run_id = _submit(space, config)
        try:
            follow(space, run_id, superlink, show, verbose=verbose)
        except RunError as error:
            raise RunError(f"{error}; {_keep_log(space, run_folder)}") from None


def run_config(settings: Path, run_folder: Path, resume: bool) -> dict[str, str]:
    """What the ServerApp is told: all settings in a file, and the run's folder."""
    names = ("overrides", "strategy", "rounds", "clients", "epsilon", "seed")
    not_set = dict.fromkeys(names, "")
    where = {"run-dir": str(run_folder), "resume": str(run_folder) if resume else ""}
    return {"config": str(settings), **where, **not_set}


def _shares(config: Config) -> str:
    """Why a run has to share the machine's network; nothing if it need not."""
    kind, _, name = config.model.name.partition(":")
    if joins_cluster():
        return "for the cluster at RAY_ADDRESS"
    if config.simulation.network == "shared":
        return "by simulation.network"
    if config.data.name.startswith("hub:"):
        return f"as data.name={config.data.name} may be a download"
    if kind in ("hf", "sentence") and name != "minilm" and not Path(name).is_dir():
        return f"as model.name={config.model.name} may be a download"
    return ""


def _start_superlink(space: Space) -> subprocess.Popen[bytes]:
    """Start a SuperLink on a free port and note its address for Flower's commands."""
    for _ in range(3):  # another process may take the port before the SuperLink does
        port = free_port()
        options = ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
        with space.path("superlink.log").open("ab") as log:
            superlink = popen(space, ["flower-superlink", *options], log)
        if listens(space, superlink, port):
            text = f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
            space.path("home").joinpath("config.toml").write_text(text, encoding="utf-8")
            return superlink
    said = space.path("superlink.log").read_text(encoding="utf-8", errors="replace")
    raise RunError(f"Flower's SuperLink did not start: {last_line(said)}")


def _submit(space: Space, config: Config) -> str:
    """Hand the app to the SuperLink; the run's id."""
    simulation = config.simulation
    federation = (
        f"num-supernodes={node_count(simulation)}"
        f" client-resources-num-cpus={simulation.cpus_per_node}"
        f" client-resources-num-gpus={float(simulation.gpus_per_node)}"
    )
    app = str(space.path("app"))
    answer = flwr(space, "run", app, CONNECTION, "--federation-config", federation)
    return str(answer["run-id"])


def _keep_log(space: Space, run_folder: Path) -> str:
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        with (run_folder / LOG).open("wb") as kept:
            for name in ("superlink.log", LOG):
                with suppress(FileNotFoundError), space.path(name).open("rb") as log:
                    shutil.copyfileobj(log, kept)
    except OSError as error:
        return f"Flower's log cannot be kept ({error})"
    return f"Flower's log is in {run_folder / LOG}"
