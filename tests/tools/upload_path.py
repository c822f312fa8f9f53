"""The files that one plain upload passes, in a real round that is watched."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from syntax import ROOT

from clients.training.trainer import Trainer
from fedpers.config import load_config
from fedpers.parts import Part, Parts
from fedpers.streaming import StreamingMean
from simulations.backends.serial import SerialGrid, run_serial

# The grid of the serial backend stands for the network.
PASSED = ("clients", "fedpers", "strategies")
ROUND = (
    *("strategy.name=fedavg", "model.name=mlp", "rounds=1", "training.fold=off"),
    *("data.clients=2", "strategy.fraction=0.5", "strategy.min_clients=1", "simulation.nodes=1"),
    *("evaluation.local_baseline=false", "evaluation.adapters=false", "evaluation.outside=0"),
)
OURS = tuple(f"{ROOT}/{package}/" for package in PASSED)
DEEP = 8  # arrays in records in messages in lists


class Watch:
    """A profiler that notes which functions have an upload in hand.

    Attributes:
        files: the functions, by file, in the order in which the upload came.
        numbers: the first of the upload, in both precisions; none before it is trained.
        mixed: the server has its mixture.
    """

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}
        self.numbers: list[bytes] = []
        self.mixed = False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event[:2] == "c_" or not code.co_filename.startswith(OURS):
            return
        file = code.co_filename.removeprefix(f"{ROOT}/")
        sys.setprofile(None)
        if event == "return" and code is Trainer.run.__code__:
            head = arg["head"].vector[:4]
            self.numbers = [head.numpy().tobytes(), head.double().numpy().tobytes()]
        if self.numbers and self.has_in_hand(frame, arg):
            functions = self.files.setdefault(file, [])
            functions += [code.co_qualname] if code.co_qualname not in functions else []
        self.mixed = event == "return" and code is StreamingMean.result.__code__
        sys.setprofile(None if self.mixed else self)

    def has_in_hand(self, frame: FrameType, result: Any) -> bool:
        """Whether a function has the upload: as an argument, a local or its result. Of what an
        object keeps it is not handed anything, but for parts."""
        given = dict(frame.f_locals)
        if not isinstance(given.get("self"), Part | Parts):
            given.pop("self", None)
        return self._in([*given.values(), result], DEEP)

    def _in(self, value: Any, deep: int) -> bool:
        """Whether the numbers are in a value, or in what it holds."""
        if isinstance(value, torch.Tensor):
            value = value.detach().numpy()
        if isinstance(value, np.ndarray | bytes | bytearray):
            data = value.tobytes() if isinstance(value, np.ndarray) else value
            return any(numbers in data for numbers in self.numbers)
        if deep == 0 or isinstance(value, torch.nn.Module | type):
            return False
        held: list[Any] = []
        if isinstance(value, tuple | list):
            held = [*value]
        elif isinstance(value, Mapping) and not isinstance(value, Part | Parts):
            held = [*value.values()]
        elif type(value).__module__.startswith(("flwr", *PASSED)):
            named = [*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ())]
            held = [getattr(value, name, None) for name in named]
        return any(self._in(one, deep - 1) for one in held)


class WatchedGrid(SerialGrid):
    """A grid that has a round watched from its message on."""

    watch: Watch

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As ``SerialGrid`` has it."""
        messages = list(messages)
        if any(message.metadata.message_type == "train" for message in messages):
            sys.setprofile(self.watch)
        return super().push_messages(messages)


def upload_path() -> dict[str, list[str]]:
    """The files of which a function has the one upload of a round in hand, with those functions:
    FedAvg in the clear, from the end of the client's training until the server has its mixture."""
    watch = WatchedGrid.watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        config, run = load_config(None, [*ROUND, f"output={folder}"]), Path(folder) / "run"
        try:
            run_serial(config, run, show=lambda line: None, make_grid=WatchedGrid)
        finally:
            sys.setprofile(None)
    assert watch.numbers and watch.mixed
    return watch.files
