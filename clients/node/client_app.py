"""The ClientApp: what a node answers. One message a round for all the clients it hosts."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from clients.leaktest.verdict import check_leaks
from clients.node.answers import answer
from clients.node.device import Device
from clients.node.door import Answered, Body, Rows
from clients.node.failures import Reasons
from clients.node.host import ClientHost
from clients.node.keeper import Keeper, keeper_of, stores_of
from clients.node.pooling import take_known
from clients.node.resident import host_of
from clients.policy.enforcement import Enforcement, Refused
from fedpers.config import config_from_json
from fedpers.failures import FAILED, POLICY
from fedpers.records import KNOWN, in_the_clear, pack, unpack, unpack_known

app = ClientApp()


@app.query("roster")
def roster(message: Message, context: Context) -> Message:
    """Which clients this node hosts.

    The first message of a run: a node that cannot run the method as configured says so in one
    line, before anything was trained.
    """

    def work(rows: Rows, body: Body) -> Answered:
        body["nodes"] = context.node_config.get("num-partitions", 1)
        body["node"] = context.node_config.get("partition-id", 0)
        try:
            device = Device.of(context.node_config)
            if device is not None:
                device.claim()
            if device is not None and body["base"] is not None:
                for row in rows:  # the second time it is asked
                    device.keep_base(in_the_clear(row))
                if not device.base(body["base"]):
                    return [], {"needs": "base"}
            host = _host(body, context)
            host.check()
            check_leaks(host.config, *host.method, host.data, host.run)
            return answer("roster", host, [], body)
        except Exception as error:  # asking again would not mend it
            return [], {"refused": _reasons(body, context).of_refusal(error)}

    return _reply("roster", message, context, work)


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


@app.query("channel")
def channel(message: Message, context: Context) -> Message:
    """Answer a message of the channel's own."""

    def work(rows: Rows, body: Body) -> Answered:
        return answer("channel", _keeper(body, context), rows, body)

    return _reply("channel", message, context, work)


@app.query("poll")
def poll(message: Message, context: Context) -> Message:
    """Answer the method's poll."""
    return _by_host("poll", message, context)


@app.train("pool")
def train_pool(message: Message, context: Context) -> Message:
    """What the clients named add to a sum over all."""
    return _by_host("pool", message, context)


@app.query("method")
def method(message: Message, context: Context) -> Message:
    """Answer a message of the method's own."""
    return _by_host("method", message, context)


def _by_host(kind: str, message: Message, context: Context) -> Message:
    def work(rows: Rows, body: Body) -> Answered:
        return answer(kind, _host(body, context), rows, body)

    return _reply(kind, message, context, work)


def _reply(
    kind: str, message: Message, context: Context, work: Callable[[Rows, Body], Answered]
) -> Message:
    """The reply with what ``work`` makes of the message; on a device, if its policy allows it.

    Flower sends the text of an error that escapes: where reasons stay on the node, one word does.
    """
    body: Body = {}
    try:
        if (device := Device.of(context.node_config)) is not None:
            Enforcement(device).admit(kind, message.content)
        rows, body = unpack(message.content)
        body[KNOWN] = unpack_known(message.content)
        return Message(pack(*work(rows, body)), reply_to=message)
    except Refused:
        return _refusal(kind, message)
    except Exception as error:
        reasons = _reasons(body, context)
        if reasons.leave:
            raise
        reasons.note(message.metadata.message_type, error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, FAILED), reply_to=message)


def _refusal(kind: str, message: Message) -> Message:
    """One word; the device's log has the reason."""
    if kind == "roster":
        return Message(pack([], {"refused": POLICY}), reply_to=message)
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, POLICY), reply_to=message)


def _reasons(body: Body, context: Context) -> Reasons:
    """What may be told of failures; nothing where the message does not say under which settings."""
    try:
        device = Device.of(context.node_config)
        stores = stores_of(body["run_folder"], device)
        return Reasons.at(config_from_json(body["settings"]), device, stores)
    except Exception:
        return Reasons(leave=False, home=None)


def _host(body: Body, context: Context) -> ClientHost:
    host = host_of(
        body["settings"],
        body["algorithm"],
        tuple(body["server_params"]),
        body["run_folder"],
        Device.of(context.node_config),
        body["base"],
        body["schema"],
    )
    take_known(host, body[KNOWN])
    return host


def _keeper(body: Body, context: Context) -> Keeper:
    """The node's stores and channel: a simulation's host has them, a device's process need not load
    its model for them."""
    device = Device.of(context.node_config)
    if device is None:
        return _host(body, context)
    return keeper_of(body["settings"], body["algorithm"], body["run_folder"], device)
