"""The ClientApp: what a node answers. One message a round for all the clients it hosts."""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.answers import Answered, Body, answer, refusal
from clients.device import Device
from clients.host import ClientHost, host_of
from clients.keeper import Keeper, keeper_of
from fedpers.data import Task
from fedpers.records import in_the_clear, pack, unpack

app = ClientApp()


@app.query("roster")
def roster(message: Message, context: Context) -> Message:
    """Which clients this node hosts.

    The first message of a run: a node that cannot run the method as configured says so in one
    line, before anything was trained.
    """
    rows, body = unpack(message.content)
    body["nodes"] = context.node_config.get("num-partitions", 1)
    body["node"] = context.node_config.get("partition-id", 0)
    try:
        device = Device.of(context.node_config)
        if device is not None and body["base"] is not None:
            for row in rows:  # the second time it is asked
                device.keep_base(in_the_clear(row))
            if not device.base(body["base"]):
                return _reply(message, ([], {"needs": "base"}))
        host = _host(body, context)
    except Exception as error:  # asking again would not mend it
        return _reply(message, refusal(error))
    return _reply(message, answer("roster", host, [], body))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients named."""
    return _by_host("train", message, context)


@app.train("baseline")
def train_baseline(message: Message, context: Context) -> Message:
    """Train the local-only baseline of the clients named."""
    return _by_host("baseline", message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the clients named."""
    return _by_host("evaluate", message, context)


@app.evaluate("newcomers")
def evaluate_newcomers(message: Message, context: Context) -> Message:
    """Evaluate clients that never trained."""
    return _by_host("newcomers", message, context)


@app.query("export")
def export(message: Message, context: Context) -> Message:
    """Save the clients' evaluated models as PEFT folders, on this machine."""
    return _by_host("export", message, context)


@app.train("seal")
def seal(message: Message, context: Context) -> Message:
    """Seal what the clients named kept, multiplied by their weights."""
    return _by_keeper("seal", message, context)


@app.query("open")
def open_means(message: Message, context: Context) -> Message:
    """Open means that the server needs in the clear."""
    return _by_keeper("open", message, context)


@app.query("similarity")
def similarity(message: Message, context: Context) -> Message:
    """For each client named, the weights of all clients by the similarity of their heads."""
    return _by_keeper("similarity", message, context)


@app.query("forget")
def forget(message: Message, context: Context) -> Message:
    """Throw away the key that was made for the run."""
    return _by_keeper("forget", message, context)


def _by_host(kind: str, message: Message, context: Context) -> Message:
    rows, body = unpack(message.content)
    return _reply(message, answer(kind, _host(body, context), rows, body))


def _by_keeper(kind: str, message: Message, context: Context) -> Message:
    rows, body = unpack(message.content)
    return _reply(message, answer(kind, _keeper(body, context), rows, body))


def _host(body: Body, context: Context) -> ClientHost:
    return host_of(
        body["settings"],
        body["algorithm"],
        tuple(body["server_params"]),
        body["run_folder"],
        Device.of(context.node_config),
        body["base"],
        Task(body["task"][0], tuple(body["task"][1]), body["task"][2]),
    )


def _keeper(body: Body, context: Context) -> Keeper:
    """The node's stores and key: a simulation's host has them, a device's process need not load
    its model for them."""
    device = Device.of(context.node_config)
    if device is None:
        return _host(body, context)
    return keeper_of(body["settings"], body["run_folder"], device)


def _reply(message: Message, answered: Answered) -> Message:
    return Message(pack(*answered), reply_to=message)
