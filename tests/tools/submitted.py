"""Apps that a rehearsal's SuperLink is given, whose two sides may be anybody's."""

from __future__ import annotations

from pathlib import Path

from fedpers.config import Config
from simulations.backends.bundle import write_bundle
from simulations.backends.flower import CONNECTION, flwr, follow
from simulations.backends.launcher import CLIENTAPP, SERVERAPP, run_config
from simulations.devices.rehearsal import Rehearsal


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
