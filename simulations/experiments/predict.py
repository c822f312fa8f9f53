"""Use what a run left: its models' predictions side by side, and one client's model for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor

from clients.base import LocalAlgorithm, find_algorithm
from clients.training.view import EVALUATION_BATCH, fill
from fedpers.config import Config, load_config
from fedpers.context import Context
from fedpers.data import Signature, load_data
from fedpers.data.arrays import check_finite, read_arrays, to_inputs
from fedpers.data.images import SUFFIXES, images_of
from fedpers.data.sources import CONVABUSE
from fedpers.data.tables import csv_inputs
from fedpers.errors import ConfigError, DataError, line_of
from fedpers.models import build_model
from fedpers.models.adapter_folder import load_adapter
from fedpers.models.export import export_model
from fedpers.models.whitening import WHITENING, whiten
from fedpers.parts import Parts
from fedpers.tasks.base import Task
from simulations.experiments.runs import SETTINGS, find_run
from simulations.experiments.stopped import save_models
from strategies.base import find_strategy
from strategies.files import GLOBAL, KNOWN
from strategies.roster import natural_order

SHOWN = 8  # clients that an error names


@dataclass(frozen=True)
class Predictions:
    """What the models of one client say of n examples.

    Attributes:
        client: its id.
        scores: [n, ...] by mode, ``personal`` and ``global``; without the latter where the
            method, or the run's folder, has no global model.
        task: what they are scores of.
        gate: which of them the gate deploys, None where there is nothing to choose from.
        note: how the personal model differs from the one that the run scored, or "".
    """

    client: str
    scores: Mapping[str, Tensor]
    task: Task
    gate: str | None
    note: str = ""


class FinishedRun:
    """The models in a run's folder, loaded one client at a time into one resident model.

    Args:
        path: the run's folder, or one that holds runs, for the newest of them.

    Attributes:
        clients: the folder of each client's model, by its id.

    Raises:
        ConfigError: no run, or one without the clients' models.
        DataError: the run's data are not there any more; the frozen model may be made from them.
    """

    def __init__(self, path: Path) -> None:
        self.folder = find_run(path)
        self.config = load_config(self.folder / SETTINGS)
        stopped = not (self.folder / "report.json").exists()
        if not stopped:
            self.clients = client_folders(self.folder)
        self.data = load_data(self.config)
        self.model = build_model(self.config, self.data)
        if stopped:
            save_models(self.folder, self.config, self.model)
            self.clients = client_folders(self.folder)
        if (known := self.folder / KNOWN).exists():
            whiten(self.model, Parts.load(known)[WHITENING])
        strategy = find_strategy(self.config)
        name, theirs = strategy.client_side(), strategy.param_names()
        found, params = find_algorithm(name, self.config, theirs)
        self.algorithm: LocalAlgorithm = found(self.config, self.model, params)

    def client(self, name: str) -> str:
        """The client called ``name``, or the one at that place (from 0) if none is called so.

        Raises:
            ConfigError: there is none.
        """
        known = list(self.clients)
        if name in known:
            return name
        if name.isdecimal() and int(name) < len(known):
            return known[int(name)]
        shown = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
        takes = f"one of {shown}, or a number from 0 to {len(known) - 1}"
        raise ConfigError("--client", name, takes)

    def load(self, client: str) -> dict[str, Any]:
        """Put a client's model into the resident one; its manifest."""
        return load_adapter(self.model, self.clients[client])

    def predict(self, client: str, x: Tensor) -> Predictions:
        """The predictions of one client's models for inputs ``x`` [n, ...]."""
        manifest = self.load(client)
        scores = {"personal": self._scores(x)}
        if self.fill_global():
            scores["global"] = self._scores(x)
        gate, note = manifest.get("gate"), ""
        if self.algorithm.chooses:
            note = f"personal: the model that was saved; the run chose {self.algorithm.chooses}"
        gate = gate if "global" in scores else None
        return Predictions(client, scores, self.data.task, gate, note)

    def export(self, client: str, folder: Path) -> None:
        """Write one client's personal model to ``folder``; see ``fedpers.models.export``.

        Raises:
            ConfigError: the folder is there already.
        """
        if folder.exists():
            raise ConfigError("--out", str(folder), "a folder that is not there yet")
        manifest = self.load(client)
        export_model(self.model, folder.resolve(), self.config, self.data, manifest)

    def fill_global(self) -> bool:
        """Put the global model into the resident one, which holds a client's; if there is any."""
        path, filling = self.folder / GLOBAL, self.algorithm.filled("global")
        if filling is None or not path.exists():
            return False
        # What never leaves a client is its own in its global model, too.
        own = [slot for slot in self.model.slots if slot == "private"]
        private = Parts({f"personal.{slot}": self.model.read(slot) for slot in own})
        try:
            context = Context(client="", server_round=self.config.rounds)
            working = self.algorithm.receive(Parts.load(path), private, context)
            fill(self.model, filling, working)
        except (SafetensorError, KeyError, ValueError) as error:
            reason = line_of(error)
            raise DataError(f"{path}: cannot be read as the global model ({reason})") from None
        return True

    @torch.no_grad()
    def _scores(self, x: Tensor) -> Tensor:
        batches = torch.split(x, EVALUATION_BATCH)
        return torch.cat([self.algorithm.forward(self.model, batch).scores for batch in batches])


def client_folders(run: Path) -> dict[str, Path]:
    """The folder of each client's saved model, by id, in a stable order.

    Raises:
        ConfigError: the run has saved none.
        DataError: it cannot be seen whose one is.
    """
    found = {}
    for manifest in (run / "adapters").glob("*/manifest.json"):
        try:
            client = str(json.loads(manifest.read_text(encoding="utf-8"))["client"])
        except (ValueError, KeyError, TypeError) as error:
            reason = line_of(f"{type(error).__name__}: {error}")
            raise DataError(f"{manifest}: cannot be read ({reason}); remove it") from None
        found[client] = manifest.parent
    if not found:
        takes = "a run that has been evaluated, with evaluation.adapters=true"
        raise ConfigError("RUN", str(run), takes)
    return {client: found[client] for client in sorted(found, key=natural_order)}


def read_inputs(path: Path, config: Config, signature: Signature) -> Tensor:
    """Inputs [n, ...] like a run's data: array ``x`` of a ``.npz`` file, columns of a csv file, or
    an image or a folder of some, in the order of their names.

    The columns are those that the run's settings name for features, text or image. uint8 pixels
    are scaled as those of the data are.

    Raises:
        ConfigError: no such file, of another format, or without the columns.
        DataError: it cannot be read, or has another shape than the run's data.
    """
    shape = ", ".join(str(size) for size in signature.shape)
    columns = CONVABUSE if config.data.name == "convabuse" else config.data.columns
    named = bool(columns.features or columns.text or columns.image)
    takes = []
    if signature.kind != "text":
        takes.append(f"a .npz file with x [n, {shape}]")
    if named:
        wanted = [*columns.features, *columns.text, *([columns.image] if columns.image else [])]
        takes.append(f"a .csv file with {', '.join(wanted)}")
    fits = {".npz": signature.kind != "text", ".csv": named}
    pictures = []
    if signature.kind == "image":
        takes.append("an image, or a folder of images")
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        pictures = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not pictures and (not path.is_file() or not fits.get(path.suffix)):
        raise ConfigError("--input", str(path), " or ".join(takes))
    if pictures:
        names = [str(file) for file in pictures]
        kind, x = images_of(names, path, Path(), config.data.image_size)
        x = x.expand(-1, signature.shape[0], -1, -1) if x.shape[1] == 1 else x
    elif path.suffix == ".csv":
        kind, x = csv_inputs(path, config, columns)
    else:
        arrays = read_arrays(path)
        if "x" not in arrays:
            got = ", ".join(arrays) or "no array"
            raise DataError(f"{path}: got {got}, takes array x")
        kind, x = to_inputs(arrays["x"], f"{path}: x")
    filled = config.data.missing != "error" and kind == "tabular"
    check_finite(x.nan_to_num(nan=0.0) if filled else x, f"{path}: inputs")
    if len(x) == 0:
        raise DataError(f"{path}: got no example, takes at least one")
    # Texts are padded to the longest of their file.
    if kind != signature.kind or (kind != "text" and x.shape[1:] != signature.shape):
        got = ", ".join(str(size) for size in x.shape[1:])
        raise DataError(f"{path}: got [n, {got}] ({kind}), takes [n, {shape}] ({signature.kind})")
    return x


def table(found: Predictions) -> Table:
    """A row an example: what each model predicts."""
    shown = Table(title=f"client {found.client}: {found.task.reading}")
    shown.add_column("example", justify="right")
    shown.add_column("personal")
    shown.add_column("global")
    shown.add_column(f"gated: {found.gate}" if found.gate else "gated")
    modes = ("personal", "global", found.gate)
    cells = {mode: found.task.read(scores) for mode, scores in found.scores.items()}
    for example in range(len(found.scores["personal"])):
        row = [cells[mode][example] if mode in cells else "-" for mode in modes]
        shown.add_row(str(example), *row)
    if found.note:
        shown.caption = found.note
    return shown
