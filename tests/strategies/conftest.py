"""Small runs on digits, and a server in front of toy nodes that misbehave on demand."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedpers.channels.base import Opening
from fedpers.config import Config, load_config
from fedpers.data import FederatedData, load_data
from fedpers.evaluation import ClientResult
from fedpers.models import PersonalModel
from fedpers.parts import Part, Parts
from fedpers.records import pack, unpack
from fedpers.tasks import Counts
from simulations.backends.serial import SerialGrid, _identity, run_serial
from strategies.base import PersonalizedStrategy, find_strategy
from strategies.exchange import send_and_receive
from strategies.run import Run

CLIENTS = 6


@pytest.fixture(autouse=True, scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache folder for all runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDPERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What was logged as a warning or worse."""
    monkeypatch.setattr(
        logging.getLogger("fedpers"), "propagate", True
    )  # a run may have cut it off
    caplog.set_level(logging.WARNING, logger="fedpers")
    return caplog


# -- whole runs ----------------------------------------------------------------------------------


class Files(NamedTuple):
    """The files that a run left."""

    folder: Path
    report: dict[str, Any]
    rounds: list[dict[str, Any]]
    clients: list[dict[str, Any]]

    def failures(self) -> dict[str, str]:
        """The error lines of ``clients.jsonl``, by client."""
        return {line["client"]: line["error"] for line in self.clients if "error" in line}

    def scored(self, server_round: int) -> dict[str, dict[str, Any]]:
        """The results of one evaluation, by client."""
        return {c["client"]: c for c in self.clients if c["round"] == server_round and "test" in c}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a small run: 6 clients with three digits each, two nodes."""
    from sklearn.datasets import load_digits

    y, rng, split = load_digits().target, np.random.default_rng(1), {}
    for client in range(CLIENTS):
        own = np.arange(len(y)) % CLIENTS == client
        rows = np.flatnonzero(own & np.isin(y, [client, client + 1, client + 4]))
        rows = rng.permutation(rows)
        split[f"train_{client}"], split[f"val_{client}"] = rows[:30], rows[30:40]
        split[f"test_{client}"] = rows[40:60]
    path = tmp_path_factory.mktemp("split") / "split.npz"
    np.savez(path, **split)
    return [
        *("data.name=digits", "data.partition.name=file", f"data.partition.path={path}"),
        *("data.public_fraction=0.1", "model.name=mlp", "rounds=2", "simulation.nodes=2"),
        *("training.batch_size=16", "training.lr=0.3", "evaluation.every=1"),
        *("evaluation.outside=20", "evaluation.local_baseline=false"),
        "evaluation.adapters=false",
    ]


@pytest.fixture
def run(digits: list[str], tmp_path: Path) -> Callable[..., Files]:
    """``run("ditto", "rounds=3")``: a small run through the serial backend."""

    def run(name: str, *overrides: str) -> Files:
        config = load_config(None, [*digits, f"strategy.name={name}", *overrides])
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        run_serial(config, folder)
        lines = {
            name: [json.loads(x) for x in (folder / f"{name}.jsonl").read_text().splitlines()]
            for name in ("rounds", "clients")
        }
        report = json.loads((folder / "report.json").read_text())
        return Files(folder, report, lines["rounds"], lines["clients"])

    return run


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """``plugin("odd", text)`` writes a package that can be imported; returns its unique name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> str:
        unique = f"{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / unique).mkdir()
        (tmp_path / unique / "__init__.py").write_text(text)
        return unique

    return write


# -- a server in front of toy nodes --------------------------------------------------------------


class ToyNodes(SerialGrid):
    """Nodes that answer as they are told.

    A client's update is the received parts, all set to its number; it has as many examples.

    Args:
        hosts: each node's clients.
        acts: what clients ("3") or nodes (0) do instead: see the code.
        seen: the body and the parts of each message that came, with the node's number.
    """

    def __init__(
        self, hosts: Sequence[Sequence[str]], acts: Mapping[str | int, str] | None = None
    ) -> None:
        self.hosts, self.acts = [list(clients) for clients in hosts], dict(acts or {})
        self.seen: list[tuple[int, str, dict[str, Any], list[Parts]]] = []
        self.total = 1  # how many nodes each says there are
        self.silent: set[int] = set()
        self.gone: set[int] = set()
        app = ClientApp()
        app.query("roster")(self._roster)
        app.train()(self._train)
        app.evaluate()(self._evaluate)
        app.evaluate("newcomers")(self._newcomers)
        super().__init__(app, nodes=len(self.hosts))

    def node_id(self, node: int) -> int:
        return list(super().get_node_ids())[node]

    def get_node_ids(self) -> list[int]:
        ids = list(super().get_node_ids())
        return [node_id for node, node_id in enumerate(ids) if node not in self.gone]

    def pull_messages(self, message_ids: Any) -> list[Message]:
        lost = {self.node_id(node) for node in self.silent}
        came = super().pull_messages(message_ids)
        return [reply for reply in came if reply.metadata.src_node_id not in lost]

    def _open(self, message: Message, context: Context) -> tuple[int, list[Parts], dict[str, Any]]:
        node = int(context.node_config["partition-id"])
        rows, body = unpack(message.content)
        self.seen.append((node, message.metadata.message_type, body, rows))
        return node, rows, body

    def _roster(self, message: Message, context: Context) -> Message:
        node, _, _ = self._open(message, context)
        act = self.acts.get(node)
        if act == "refuse":
            return _reply(message, [], {"refused": "data.path: got None, takes a file"})
        if act == "mute":
            raise ValueError("no roster today")
        claims = [str(c) for hosted in self.hosts for c in hosted] if act == "holds all" else []
        claims += [client for client in self.hosts[node] if self.acts.get(client) == "held out"]
        body = {
            "clients": self.hosts[node],
            "nodes": self.total,
            "scored": "toy",
            "held_out": claims,
        }
        return _reply(message, [], body)

    def _train(self, message: Message, context: Context) -> Message:
        node, received, body = self._open(message, context)
        rows, reports, failures = [], {}, {}
        for client in body["clients"]:
            act, value = self.acts.get(client), float(client)
            sent = received[body["rows"][client]]
            if act == "fail":
                failures[client] = "ValueError: broken"
                continue
            if act == "nan":
                value = float("nan")
            rows.append(
                Parts({n: p.like(torch.full_like(p.vector, value)) for n, p in sent.items()})
            )
            reports[client] = {"examples": int(client), "loss": 0.5}
            if act == "no examples":
                reports[client] = {"examples": 0, "loss": None}
            if act == "bad report":
                reports[client] = {"examples": -5, "loss": 0.5}
        match self.acts.get(node):
            case "raise":
                raise ValueError("first line\nthe reason")
            case "short":
                rows = rows[:-1]
            case "empty":
                rows = []
            case "shape":
                rows = [Parts({n: Part.of({"w": torch.zeros(3)}) for n in r}) for r in rows]
            case "garbage":
                return Message(RecordDict(), reply_to=message)
            case "list":
                return Message(pack([], []), reply_to=message)  # type: ignore[arg-type]
            case "speaks for all":
                for hosted in self.hosts:
                    reports.update({c: {"examples": 10**9, "loss": 9.0} for c in hosted})
        answer = {"reports": reports, "failures": failures, "seconds": 0.1 + node}
        return _reply(message, rows, answer)

    def _evaluate(self, message: Message, context: Context) -> Message:
        node, _, body = self._open(message, context)
        results, failures, act = [], {}, self.acts.get(node)
        for client in body["clients"]:
            if self.acts.get(client) == "unscored":
                failures[client] = "ValueError: odd"
            elif self.acts.get(client) != "forgotten":
                results.append(result_of(client, right=int(client)).to_json())
        if act == "bad result":
            results = [{"client": "0", "train": -1}]
        if act == "speaks for all":
            results += [result_of(c, right=0).to_json() for hosted in self.hosts for c in hosted]
        return _reply(message, [], {"results": results, "failures": failures, "seconds": 0.0})

    def _newcomers(self, message: Message, context: Context) -> Message:
        node, _, body = self._open(message, context)
        found = [result_of(client, right=int(client)).to_json() for client in body["clients"]]
        results: Any = dict.fromkeys(body["batches"], found)
        if self.acts.get(node) == "bad newcomers":
            results = {"many": found}
        return _reply(message, [], {"results": results, "failures": {}, "seconds": 0.0})


def _reply(message: Message, rows: list[Parts], body: dict[str, Any]) -> Message:
    return Message(pack(rows, body), reply_to=message)


def result_of(client: str, right: int) -> ClientResult:
    """Of ten examples the personal model gets ``right``, the global one 4."""
    fixed, broke = max(right - 4, 0), max(4 - right, 0)
    correct = {"personal": right, "global": 4}
    counts = Counts(10, correct, {"personal": fixed}, {"personal": broke})
    return ClientResult(client, int(client), counts, counts)


class Server(NamedTuple):
    """A run that has met its nodes."""

    run: Run
    grid: ToyNodes

    @property
    def strategy(self) -> Any:
        """What is run."""
        return self.run.method

    def open(self, clients: int, state: Path) -> None:
        """Have the channel take up the run."""
        self.run.channel.open(Opening(self.run.post, clients, {}, state))

    def train(self, server_round: int = 1) -> dict[str, Any]:
        """One round of training; the metrics."""
        messages = self.run.configure_train(server_round, ArrayRecord(), ConfigRecord(), self.grid)
        replies = send_and_receive(self.grid, list(messages), timeout=0.05)
        return dict(self.run.aggregate_train(server_round, replies)[1])

    def evaluate(self, server_round: int = 1) -> dict[str, Any]:
        """One evaluation; the metrics."""
        messages = self.run.configure_evaluate(
            server_round, ArrayRecord(), ConfigRecord(), self.grid
        )
        replies = send_and_receive(self.grid, list(messages), timeout=0.05)
        return dict(self.run.aggregate_evaluate(server_round, replies) or {})


def toy_model(classes: int = 2) -> PersonalModel:
    """Features are ``body @ x`` in two dimensions; the body is the identity, the head zero."""
    trunk, head = nn.Linear(2, 2, bias=False), nn.Linear(2, classes)
    with torch.no_grad():
        trunk.weight.copy_(torch.eye(2))
        head.weight.zero_()
        head.bias.zero_()
    return PersonalModel(trunk, head)


@pytest.fixture
def toy_data(tmp_path: Path) -> Callable[[Config], FederatedData]:
    """One client with ten rows, and 50 public ones, in two dimensions."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((60, 2)).astype(np.float32)
    np.savez(tmp_path / "toy.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    np.savez(tmp_path / "toy_split.npz", train_0=np.arange(5), test_0=np.arange(5, 10))

    def load(config: Config) -> FederatedData:
        config.data.name, config.data.path = "npz", str(tmp_path / "toy.npz")
        config.data.partition.name = "file"
        config.data.partition.path = str(tmp_path / "toy_split.npz")
        config.data.public_fraction = 50 / 60
        return load_data(config)

    return load


@pytest.fixture
def bind(toy_data: Callable[[Config], FederatedData]) -> Callable[..., Any]:
    """``bind("fedavg", "rounds=3")``: the strategy on the toy model, without nodes."""

    def bind(
        name: str,
        *overrides: str,
        model: PersonalModel | None = None,
        kind: type[PersonalizedStrategy] | None = None,
    ) -> Any:
        config = load_config(None, [f"strategy.name={name}", *overrides])
        found = kind or find_strategy(config)
        return found(config, model or toy_model(), toy_data(config))

    return bind


@pytest.fixture
def serve(bind: Callable[..., Any]) -> Iterator[Callable[..., Server]]:
    """``serve("fedavg", hosts=[["1"], ["2"]], acts={"1": "nan"})``: a server and its nodes."""

    def serve(
        name: str,
        *overrides: str,
        hosts: Sequence[Sequence[str]] = (("1", "2"), ("3",)),
        acts: Mapping[str | int, str] | None = None,
        kind: type[PersonalizedStrategy] | None = None,
    ) -> Server:
        run, grid = Run(bind(name, *overrides, kind=kind)), ToyNodes(hosts, acts)
        run.post.grid = grid
        run.roster.refresh(grid, pack([], run.post.header()), timeout=0.05)
        return Server(run, grid)

    with _identity(run_id=1):
        yield serve


@pytest.fixture
def nodes() -> Iterator[type[ToyNodes]]:
    with _identity(run_id=1):
        yield ToyNodes
