"""Run the ServerApp and the ClientApp in this process, one message after another.

Without Ray, SuperLink or threads: a debugger stops anywhere, and a run starts at once. The same
seed gives the same numbers as through Ray.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedpers.compute import node_count
from fedpers.config import Config
from simulations.backends.bundle import load_app
from simulations.backends.launcher import CLIENTAPP, SERVERAPP, run_config

log = logging.getLogger("fedpers")

_SERVER = 1  # the id that Flower gives a SuperLink's own node


class SerialGrid(Grid):
    """A grid whose nodes are this process.

    Args:
        app: what each node runs.
        nodes: how many nodes there are. Node k has ``partition-id`` k, ``num-partitions``
            ``nodes`` and a ``Context`` of its own.
        threads: what a node's computations may use, as Ray's workers are limited too: sums
            over another number of threads differ in the last bits.
    """

    def __init__(self, app: ClientApp, *, nodes: int, threads: int = 1) -> None:
        self.app, self.threads = app, threads
        self._run = Run.create_empty(run_id=1)
        self._contexts = {
            _SERVER + 1 + k: Context(
                run_id=self._run.run_id,
                node_id=_SERVER + 1 + k,
                node_config={"partition-id": k, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for k in range(nodes)
        }
        self._sent = 0
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Take ``run`` as the run that this grid belongs to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that this grid belongs to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message; the constructor of ``Message`` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes' ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have the messages answered at once, in their order; their ids."""
        ids = []
        for message in messages:
            self._sent += 1
            ids.append(_identify(message, f"message-{self._sent}"))
            # A node gets a copy and gives one back, as if they had travelled.
            reply = copy.deepcopy(self._answer(copy.deepcopy(message)))
            _identify(reply, f"reply-{self._sent}")
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, each of them once."""
        return [self._replies.pop(one) for one in message_ids if one in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """The replies to ``messages``; ``timeout`` is of no use, as they are there at once."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            reason = f"there is no node {message.metadata.dst_node_id}"
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return self.app(message, context)
        except Exception as error:  # a node that fails answers with an error, as in Flower
            log.warning("node %d raised", context.node_id, exc_info=True)
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        finally:
            torch.set_num_threads(threads)


def run_serial(
    config: Config,
    run_folder: Path,
    *,
    resume: bool = False,
    serverapp: str = SERVERAPP,
    clientapp: str = CLIENTAPP,
    show: Callable[[str], None] = print,
    make_grid: Callable[..., SerialGrid] = SerialGrid,
) -> None:
    """Run ``config`` in this process and return when it has completed.

    Args:
        config: the settings, with absolute paths.
        run_folder: the run's own folder, absolute.
        resume: go on with the run that is in it.
        serverapp: ``package.module:app`` of the ServerApp.
        clientapp: the same of the ClientApp.
        show: called with each line to show.
        make_grid: makes the grid, a ``SerialGrid`` or one that derives from it.

    Raises:
        FedpersError: as the ServerApp raises it, like anything else that it raises.
    """
    search = os.getcwd()
    server: ServerApp = load_app(serverapp, search=search)
    client: ClientApp = load_app(clientapp, search=search)
    simulation = config.simulation
    grid = make_grid(client, nodes=node_count(simulation), threads=simulation.cpus_per_node)
    with tempfile.TemporaryDirectory(prefix="fedpers-") as folder, _identity(grid.run.run_id):
        settings = Path(folder) / "settings.yaml"
        settings.write_text(config.to_yaml(), encoding="utf-8")
        context = Context(
            run_id=grid.run.run_id,
            node_id=_SERVER,
            node_config={},
            state=RecordDict(),
            run_config=dict(run_config(settings, run_folder, resume)),
        )
        with shown(show):
            server(grid, context)


@contextmanager
def shown(show: Callable[[str], None]) -> Iterator[None]:
    """Show what this package logs in this process, except the error that it also raises."""
    handler, level = _Handler(show), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Handler(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if not text.startswith("error: "):
            self.show(text)


@contextmanager
def _identity(run_id: int) -> Iterator[None]:
    """A ``Message`` asks Flower's process-wide identity who sends it."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, _SERVER
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def _identify(message: Message, message_id: str) -> str:
    # Flower's own grids set it in this way; there is no public setter.
    message.metadata.__dict__["_message_id"] = message_id
    return message_id
