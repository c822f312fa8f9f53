"""What the models of one client say after a prompt, side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from rich.table import Table

from clients.training.view import fill
from fedpers.data.tokens import load_tokenizer
from fedpers.errors import ConfigError
from fedpers.models.backbones import Backbone
from simulations.experiments.predict import FinishedRun


class Continuation(NamedTuple):
    """What a model says.

    Attributes:
        mode: base, global or personal.
        text: without the prompt.
        tokens: how many they were.
        seconds: that it took.
    """

    mode: str
    text: str
    tokens: int
    seconds: float


def continuations(run: FinishedRun, client: str, prompt: str, most: int) -> list[Continuation]:
    """The likeliest continuation by each model that there is, at most ``most`` tokens.

    Raises:
        ConfigError: the run is of no language model, or the prompt is empty.
    """
    trunk = run.model.trunk
    if not run.data.task.predicts_text or not isinstance(trunk, Backbone):
        raise ConfigError("RUN", str(run.folder), "a run of a language model")
    tokenizer = load_tokenizer(run.config.model.name)
    ids = torch.tensor(tokenizer(prompt)["input_ids"], dtype=torch.int64)
    if not len(ids):
        raise ConfigError("--prompt", prompt, "a text of at least one token")
    found = []
    for mode in _filled(run, client):
        started = time.perf_counter()
        said = trunk.generate(ids, most)
        seconds = time.perf_counter() - started
        text = tokenizer.decode(said, skip_special_tokens=True)
        found.append(Continuation(mode, str(text), len(said), seconds))
    return found


def _filled(run: FinishedRun, client: str) -> Iterator[str]:
    """Each mode, while the resident model is filled with its parts."""
    fill(run.model, {slot: slot for slot in run.algorithm.slots}, run.algorithm.initial)
    yield "base"
    run.load(client)  # what never leaves a client is its own in its global model, too
    if run.fill_global():
        yield "global"
    run.load(client)
    yield "personal"


def table(client: str, prompt: str, found: list[Continuation]) -> Table:
    """A row a model."""
    shown = Table(title=f"client {client}, after: {prompt!r}")
    for name in ("model", "continuation", "tokens", "a second"):
        shown.add_column(name, justify="right" if name in ("tokens", "a second") else "left")
    for said in found:
        speed = f"{said.tokens / max(said.seconds, 1e-9):.1f}"
        shown.add_row(said.mode, said.text.strip(), str(said.tokens), speed)
    return shown
