"""Thousands of clients on one machine: ``python -m simulations.bench.scale --clients 10000``.

Makes digits-sized data (scikit-learn's digits, redrawn with noise, 15 examples a client), runs
FedAvg with LoRA in one process, and prints each round with the time and the memory it took.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

EXAMPLES, CLASSES = 15, 3  # of a client
NOISE = 0.1


def make_data(path: Path, clients: int, seed: int = 0) -> None:
    """Write an npz of ``clients`` times 15 images of 8 x 8, three digits a client."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    of_class = [np.flatnonzero(y == k) for k in range(10)]
    each = EXAMPLES // CLASSES
    rows = np.concatenate(
        [
            rng.choice(of_class[k], each)
            for _ in range(clients)
            for k in rng.choice(10, CLASSES, replace=False)
        ]
    )
    images = x[rows] / 8 - 1 + NOISE * rng.standard_normal((len(rows), x.shape[1]))
    owner = np.repeat(np.arange(clients), EXAMPLES)
    np.savez(path, x=images.astype(np.float32).reshape(-1, 1, 8, 8), y=y[rows], client=owner)


def main() -> None:
    """Parse the arguments, make the data, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the clients, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fold", default="32", help="training.fold: off, auto or a number")
    arguments = parser.parse_args()

    from fedpers.config import load_config
    from simulations.backends.serial import run_serial

    started, process = time.perf_counter(), psutil.Process()

    def show(line: str) -> None:
        if line.startswith("round "):
            now = process.memory_info().rss / 1e9
            line += f"  {now:.2f} GB after {time.perf_counter() - started:.0f} s"
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="fedpers-scale-") as folder:
        data = Path(folder) / "data.npz"
        make_data(data, arguments.clients)
        settings = [
            *("data.name=npz", f"data.path={data}", "data.partition.name=natural"),
            *("data.public_fraction=0", "data.val_fraction=0.1", "data.test_fraction=0.2"),
            *("model.name=mlp", "strategy.name=fedavg", f"strategy.fraction={arguments.fraction}"),
            *("training.batch_size=16", "training.lr=0.3", f"training.fold={arguments.fold}"),
            *(f"rounds={arguments.rounds}", f"evaluation.every={arguments.rounds}"),
            *("evaluation.local_baseline=false", "evaluation.outside=0"),
            "evaluation.adapters=false",
        ]
        run_serial(load_config(None, settings), Path(folder) / "run", show=show)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.2f} GB, {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
