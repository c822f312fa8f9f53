"""Rounds of whole Flower simulations, as ``fedpers run`` starts them, read from their files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median

from fedpers.config import Config
from simulations.backends.launcher import launch
from simulations.bench.processes import round_of
from simulations.bench.rounds import task_config, tiny_config
from simulations.bench.row import Row, folder_of_data, medians

CLIENTS = 1000


def median_round(config: Config, run_folder: Path, nodes: int, first: int) -> float:
    """The median seconds of a round's training and combining: from the first message that the
    server makes to the new global model, waiting for Flower included.

    Args:
        config: the run, with absolute paths.
        run_folder: the run's own folder, absolute, not there yet.
        nodes: the number of SuperNodes; as many of them compute at once as there are cores.
        first: the round to start from; those before it load data and warm up.

    Raises:
        RunError: the run did not complete.
    """
    config.simulation.nodes = nodes
    launch(config, run_folder, show=lambda line: None)
    lines = (run_folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = {line["round"]: line["seconds"] for line in map(json.loads, lines)}
    return float(median(s["train"] + s["combine"] for k, s in seconds.items() if k >= first))


def task_flower(name: str, repeats: int) -> Row:
    """What asking a client costs in whole Flower simulations; ``repeats`` does not apply."""
    rounds, seconds = 4, []
    for nodes in (CLIENTS, 2):
        with folder_of_data() as folder:
            config = task_config(folder, CLIENTS - 1, rounds)  # and the one that trains
            seconds.append(median_round(config, folder / "run", nodes, 2) / CLIENTS)
    usual, ours = seconds
    return Row(
        name,
        f"a client's share of a round of FedAvg through Flower and Ray, nobody but one with data "
        f"to train on: {CLIENTS} clients, a SuperNode each",
        f"as many clients, 2 SuperNodes (wall time, medians of rounds 2 to {rounds})",
        usual,
        ours,
        10.0,
    )


def tiny_flower(name: str, repeats: int, clients: int = CLIENTS) -> Row:
    """A whole round of very small clients through Flower, against no Flower at all."""
    rounds = 8
    with folder_of_data() as folder:
        config = tiny_config(folder, clients, rounds)
        with round_of("tiny-loop", config, folder / "usual", 2) as loop:
            # Before and after: the loop's processes and Flower's would share the cores.
            (before,) = medians([loop], repeats, time.perf_counter)
            ours = median_round(config, folder / "ours", 2, 3)
            (after,) = medians([loop], repeats, time.perf_counter)
    return Row(
        name,
        f"{clients} clients of an MLP 64-32-10 with 10 examples, a client: a plain loop of torch "
        "and the mean, half of the clients in each of two processes",
        f"a round of FedAvg through Flower and Ray, 2 SuperNodes (wall time, median of rounds 3 to "
        f"{rounds}, training and combining; the target is at most twice the loop's time)",
        (before + after) / 2 / clients,
        ours / clients,
        0.5,
    )
