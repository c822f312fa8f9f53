"""The one door through which what a node sends comes in: what it may hold is bounded here.

A value that a field of the whole reply may not have costs the reply, and so its sender; one of a
client costs that client. What is read later has types, ranges and lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import isfinite
from typing import Any

from fedpers.errors import ClientError
from fedpers.tasks.checks import MOST

LINE = 300  # characters of a reason or a word
NAME = 200  # of a client's id
NODES = 10**6  # and clients of one
BEYOND = 1e30  # no number is
SPENDING = ("epsilon", "delta", "sigma", "mu")


def bounded(body: Any, clients: Collection[str]) -> dict[str, Any]:
    """The body of a reply, each field as it may be.

    Args:
        body: as it came.
        clients: whom the reply is about; what it says of others is left out.

    Raises:
        ClientError: it holds what no reply may.
    """
    if not isinstance(body, dict):
        raise ClientError(f"reply: got a body that is a {type(body).__name__}, takes an object")
    return {name: FIELDS.get(name, _as_it_is)(body[name], clients) for name in body}


def shown(text: str) -> str:
    """A node's text as it may be shown: one short line without control characters."""
    line = " ".join(text[: 8 * LINE].split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= LINE else f"{line[:LINE]} ..."


def _as_it_is(value: Any, clients: Collection[str]) -> Any:
    return value  # of a channel's own messages, or a method's: whoever asked it knows its type


def _refuse(what: str, takes: str) -> ClientError:
    return ClientError(f"reply: {what}: takes {takes}")


def _seconds(value: Any, clients: Collection[str]) -> float:
    if not _number(value, least=0):
        raise _refuse("times", "numbers of seconds")
    return float(value)


def _nodes(value: Any, clients: Collection[str]) -> int:
    if type(value) is not int or not 1 <= value <= NODES:
        raise _refuse("nodes", f"a whole number from 1 to {NODES}")
    return value


def _names(value: Any, clients: Collection[str]) -> list[str]:
    if not isinstance(value, list) or len(value) > NODES:
        raise _refuse("clients", f"a list of at most {NODES} ids")
    for name in value:
        if type(name) is not str or not 1 <= len(name) <= NAME or not name.isprintable():
            raise _refuse("clients", f"ids of 1 to {NAME} characters that can be printed")
    return value


def _flag(value: Any, clients: Collection[str]) -> bool:
    if type(value) is not bool:
        raise _refuse("held_back", "true or false")
    return value


def _text(value: Any, clients: Collection[str]) -> str:
    if type(value) is not str:
        raise _refuse("words", "text")
    return shown(value)


def _object(value: Any, clients: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refuse("channel", "an object")
    return value


def _each(of: Callable[[Any], Any]) -> Callable[[Any, Collection[str]], dict[str, Any]]:
    """An object with an entry for some of the clients; one that cannot be is left out."""

    def read(value: Any, clients: Collection[str]) -> dict[str, Any]:
        given = value if isinstance(value, dict) else {}
        found = {client: of(given[client]) for client in clients if client in given}
        return {client: one for client, one in found.items() if one is not None}

    return read


def _reason(value: Any) -> str:
    return shown(value) if isinstance(value, str) else "it failed, and says nothing that is text"


def _report(value: Any) -> dict[str, Any] | None:
    """A report of a client's training."""
    if not isinstance(value, dict):
        return None
    examples, loss = value.get("examples"), value.get("loss")
    if type(examples) is not int or not 0 <= examples <= MOST:
        return None
    if isinstance(loss, float) and not isfinite(loss):
        loss = None  # of a model that broke down, as its update shows
    if loss is not None and not _number(loss):
        return None
    report = {**value, "loss": loss}
    if not _noise(report.get("noise", {})):
        del report["noise"]
    return report | _spending(report)


def _noise(value: Any) -> bool:
    """The noise's standard deviation by part."""
    return isinstance(value, dict) and all(_number(one, least=0) for one in value.values())


def _spending(value: Any) -> dict[str, float | None]:
    """What a client has spent; a number that cannot be is none."""
    given = value if isinstance(value, Mapping) else {}
    return {
        name: given[name] if _number(given[name], least=0) else None
        for name in SPENDING
        if name in given
    }


def _mapping(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _number(value: Any, least: float = -BEYOND) -> bool:
    return type(value) in (int, float) and least <= value <= BEYOND


FIELDS: dict[str, Callable[[Any, Collection[str]], Any]] = {
    "clients": _names,
    "held_out": _names,
    "nodes": _nodes,
    "scored": _text,
    "needs": _text,
    "refused": _text,
    "channel": _object,
    "reports": _each(_report),
    "failures": _each(_reason),
    "spent": _each(_spending),
    "told": _each(_mapping),
    "answers": _each(_mapping),
    "held_back": _flag,
    "encrypt": _seconds,
    "decrypt": _seconds,
}
