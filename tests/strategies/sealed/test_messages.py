"""Messages of sealed updates that cannot be read, or are not what was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from sealing_nodes import MEANS, expected
from spoils import malformed

from fedpers.records import unpack


def no_arrays(content: RecordDict) -> None:
    del content["parts"]


def no_message(content: RecordDict) -> None:
    del content["message"]


def body_of(text: str) -> Callable[[RecordDict], None]:
    def write(content: RecordDict) -> None:
        content.config_records["message"]["body"] = text

    return write


def one_too_many(content: RecordDict) -> None:
    content.config_records["message"]["opaque"] = 3


def one_too_few(content: RecordDict) -> None:
    content.config_records["message"]["opaque"] = 1


def another_type(content: RecordDict) -> None:
    arrays = content.array_records["parts"]
    arrays["0"] = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=b"x")


WHOLE = [no_arrays, no_message, one_too_many, one_too_few, another_type]
WHOLE += [body_of("["), body_of("[" * 100_000), body_of("[]"), body_of("9" * 5000)]


@pytest.mark.parametrize("spoil", WHOLE)
@pytest.mark.parametrize("name", ["fedavg", "perada"])
def test_a_message_that_cannot_be_read_costs_its_nodes_clients(
    seal: Any, name: str, spoil: Any
) -> None:
    server = seal(name, *MEANS[name], spoils={0: spoil})
    assert sorted(server.train()) == ["1", "2"]
    assert server.mean() == pytest.approx(expected(name, [3, 4]), abs=2e-4)


def test_a_round_without_any_good_update_mixes_nothing(
    seal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = seal("fedavg", spoils=dict.fromkeys("1234", malformed))
    before = server.strategy.parts
    assert sorted(server.train()) == list("1234") and server.strategy.parts is before
    assert (
        "round 1: 0 of at least 1 clients are left; client 1: update: sealed: chunk" in caplog.text
    )
    server.grid.spoils.clear()
    assert server.train(2) == {} and server.mean() == pytest.approx(3.0, abs=2e-4)


def test_what_comes_before_it_is_asked_for_is_not_mixed(seal: Any) -> None:
    """A node that seals with its training, where weights are not known yet."""
    server = seal("fedavg")
    train = server.grid._train

    def eager(message: Message, context: Context) -> Message:
        content = message.content
        _, body = unpack(content)
        body["channel"]["seal_at_once"] = True
        content.config_records["message"]["body"] = json.dumps(body)
        return train(message, context)

    server.grid.layouts = dict(server.strategy.layouts)
    app = ClientApp()
    app.train()(eager)
    app.query("channel")(server.grid._channel)
    server.grid.app = app
    assert server.train() == {}
    assert server.mean() == pytest.approx(expected("fedavg", [1, 2, 3, 4]), abs=2e-4)
