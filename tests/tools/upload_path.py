"""The files that one plain upload passes, in a real round that is watched."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from syntax import ROOT

from clients.training.trainer import Trainer
from fedpers.config import load_config
from simulations.backends.serial import run_serial
from strategies.base import PersonalizedStrategy

# The grid of the serial backend stands for the network.
PASSED = ("clients", "fedpers", "strategies")
ROUND = (
    *("strategy.name=fedavg", "model.name=mlp", "rounds=1", "training.fold=off"),
    *("data.clients=2", "strategy.fraction=0.5", "strategy.min_clients=1", "simulation.nodes=1"),
    *("evaluation.local_baseline=false", "evaluation.adapters=false", "evaluation.outside=0"),
)


class Watch:
    """A profiler that notes whose code runs from the end of a training to the mixture."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.trained, self.mixed = False, False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "return" and code is Trainer.run.__code__:
            self.trained = True
        if self.trained and not self.mixed:
            file = os.path.relpath(code.co_filename, ROOT)
            if file.partition("/")[0] in PASSED:
                self.files.setdefault(file, code.co_qualname)
        if event == "return" and code is PersonalizedStrategy.aggregate_train.__code__:
            self.mixed = True


def upload_path() -> dict[str, str]:
    """The files whose code runs for the one upload of a round of FedAvg, in the clear, in this
    order: from the end of the client's training until the server has its mixture. With each the
    function by which it was entered."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [*ROUND, f"output={folder}"])
        sys.setprofile(watch)
        try:
            run_serial(config, Path(folder) / "run", show=lambda line: None)
        finally:
            sys.setprofile(None)
    assert watch.trained and watch.mixed
    return watch.files
