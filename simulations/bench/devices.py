"""Rounds of the rehearsal of a deployment: Flower's own nodes beside the devices' own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from subprocess import Popen

from fedpers.config import load_config
from simulations.bench.row import Row, folder_of_data
from simulations.devices.rehearsal import Rehearsal, make_files, rehearsal

CONFIG = Path("configs/devices.yaml")
SETTINGS = ("rounds=3", "evaluation.diagnostics=true", "evaluation.local_baseline=false")
BESIDE = re.compile(r"s of work, ([0-9.]+) s to fetch it, ([0-9.]+) s to send")

Start = Callable[[Rehearsal], Callable[..., Popen[bytes]]]


def devices(name: str, repeats: int) -> Row:
    """A round of three devices, from the messages to the new global model; ``repeats`` does not
    apply."""
    usual, _ = _rounds(lambda found: found.start_node)
    ours, beside = _rounds(lambda found: found.start_device)
    return Row(
        name,
        "a round of the rehearsal with Flower's SuperNodes, which start a process a message",
        f"with nodes that stay and run what is installed there; a message costs {beside:.2f} s "
        "over its work (wall times, medians)",
        usual,
        ours,
        4.0,
    )


def _rounds(start: Start) -> tuple[float, float]:
    """The median seconds of a round, and of what a message costs a node over its work."""
    config = load_config(CONFIG, list(SETTINGS))
    with folder_of_data() as folder, rehearsal() as found:
        files = make_files(config, found.space.folder)
        for client, data in files.data.items():
            found.register(client)
            start(found)(client, data, files.keys.get(client))
        found.run(files.config, folder / "run", lambda line: None)
        logs = [found.log_of(client).read_text(encoding="utf-8") for client in files.data]
        lines = (folder / "run" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    beside = [float(a) + float(b) for log in logs for a, b in BESIDE.findall(log)]
    return median(s["train"] + s["combine"] for s in seconds), median(beside or [0.0])
