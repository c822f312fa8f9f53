"""SerialGrid: the messages of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedpers.config import Config
from fedpers.errors import ConfigError
from simulations.backends.bundle import load_app
from simulations.backends.serial import SerialGrid, _identity, log, run_serial, shown

TOYS = Path(__file__).parents[2] / "tools"
TOY = {"serverapp": "toy_server:app", "clientapp": "toy_client:app"}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ClientApp:
    monkeypatch.syspath_prepend(str(TOYS))
    app = load_app("toy_client:app", search=str(TOYS))
    assert isinstance(app, ClientApp)
    return app


def ask(grid: SerialGrid, kind: str, node: int, value: int = 1) -> Message:
    content = RecordDict({"number": MetricRecord({"value": value})})
    with _identity(run_id=1):
        message = Message(content, dst_node_id=node, message_type=f"query.{kind}")
        (reply,) = grid.send_and_receive([message])
    # The node has changed its copy only.
    assert message.content["number"]["value"] == value
    assert reply.metadata.reply_to_message_id == message.metadata.message_id != ""
    assert reply.metadata.src_node_id == message.metadata.dst_node_id
    return reply


def test_each_node_has_its_own_partition_and_state(client: ClientApp) -> None:
    grid = SerialGrid(client, nodes=3)
    first, second, third = grid.get_node_ids()
    assert [ask(grid, "add", n, 10).content["number"]["value"] for n in (first, third)] == [10, 12]
    times = [ask(grid, "count", n).content["number"]["times"] for n in (first, first, second)]
    assert times == [1, 2, 1]


def test_an_exception_becomes_an_error_reply(client: ClientApp) -> None:
    grid = SerialGrid(client, nodes=1)
    lines: list[str] = []
    with shown(lines.append):
        reply = ask(grid, "fail", *grid.get_node_ids())
    assert not reply.has_content()
    assert reply.error.code == 2  # ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "no answer" in str(reply.error.reason)
    (line,) = lines
    assert line.startswith("node 2 raised\nTraceback")


def test_a_node_that_is_not_there_is_an_error_reply(client: ClientApp) -> None:
    assert ask(SerialGrid(client, nodes=1), "add", 99).error.code == 5


def test_a_reply_is_pulled_once_and_unknown_ids_give_nothing(client: ClientApp) -> None:
    grid = SerialGrid(client, nodes=2)
    content = RecordDict({"number": MetricRecord({"value": 0})})
    with _identity(run_id=1):
        messages = [Message(content, dst_node_id=n, message_type="query.add") for n in (2, 3)]
        first, second = grid.push_messages(messages)
    assert first != second
    (reply,) = grid.pull_messages([second, "unknown"])
    assert reply.content["number"]["value"] == 1
    assert list(grid.pull_messages([second])) == []
    assert len(list(grid.pull_messages([first]))) == 1


def test_nodes_compute_with_their_own_number_of_threads(client: ClientApp) -> None:
    app = ClientApp()

    @app.query("threads")
    def threads(message: Message, context: object) -> Message:
        number = MetricRecord({"value": torch.get_num_threads()})
        torch.set_num_threads(1)
        return Message(RecordDict({"number": number}), reply_to=message)

    before = torch.get_num_threads()
    grid = SerialGrid(app, nodes=1, threads=2)
    assert ask(grid, "threads", *grid.get_node_ids()).content["number"]["value"] == 2
    assert torch.get_num_threads() == before


def test_run_serial_runs_a_server_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOYS)
    lines: list[str] = []
    run_serial(Config(), tmp_path, **TOY, show=lines.append)  # type: ignore[arg-type]
    assert lines[0].endswith(f"with {tmp_path}")
    assert lines[1:] == ["answers [40, 41]"]


def test_run_serial_raises_what_the_server_app_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TOYS)
    monkeypatch.setenv("TOY", "user")
    handlers = list(log.handlers)
    with pytest.raises(ConfigError, match=r"data\.clients: got 0"):
        run_serial(Config(), tmp_path, **TOY)  # type: ignore[arg-type]
    assert log.handlers == handlers
