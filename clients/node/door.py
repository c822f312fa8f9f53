"""The one door out of a client under privacy: what each answer may hold, field by field.

Noised parts, numbers that are charged or computed from settings and the account, fixed words, and
times rounded coarsely. Whatever else a handler, a method or a plug-in puts into an answer, by
whatever name, is not sent. With ``privacy.unit=client`` the fields are the same: the server is
trusted with the updates, and its files and its log are not made for anything else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clients.node.keeper import Keeper
from fedpers.failures import FAILED, SPENT
from fedpers.parts import Layout
from fedpers.pooling import POOLED
from fedpers.records import Row
from fedpers.tasks.checks import MOST

log = logging.getLogger("fedpers")

Rows = list[Row]
Body = dict[str, Any]
Answered = tuple[Rows, Body]


@dataclass(frozen=True)
class Asked:
    """The message that an answer is to: what its fields are held against."""

    host: Keeper
    body: Mapping[str, Any]

    @property
    def clients(self) -> list[str]:
        """The clients that the message names."""
        return [str(client) for client in self.body.get("clients", ())]

    @property
    def parts(self) -> list[str]:
        """The parts that the method sends."""
        return list(self.host.declared)

    @property
    def stats(self) -> list[str]:
        """The numbers that the method reports."""
        return [stat.name for stat in self.host.reports]

    @property
    def polls(self) -> list[str]:
        """The numbers that the method tells to a poll."""
        return [stat.name for stat in self.host.polls]

    @property
    def diagnostics(self) -> bool:
        """Whether results, losses and exact times are sent, without noise."""
        return bool(self.host.config.evaluation.diagnostics)


class Undeclared(Exception):
    """A value that its field may not hold."""


Kind = Callable[[Any, Asked], Any]
"""A kind of value: gives it as it may leave, or raises ``Undeclared``."""


def number(value: Any, asked: Asked) -> float:
    """Charged, or computed from settings and the account alone."""
    return float(_of(value, int, float))  # an integer may have any number of digits


def count(value: Any, asked: Asked) -> int:
    """Of examples: as noised and charged, else 1, or 0 at a client without any."""
    found = int(_of(value, int))
    if not 0 <= found <= (1 if asked.host.config.privacy.weights == "uniform" else MOST):
        raise Undeclared
    return found


def whole(value: Any, asked: Asked) -> int:
    """Of nodes, as the node's own config says."""
    return min(int(_of(value, int)), MOST)


def flag(value: Any, asked: Asked) -> bool:
    """Yes or no, by the settings."""
    return bool(_of(value, bool))


def flags(value: Any, asked: Asked) -> list[bool]:
    """Whether sums of updates are as honest clients' are, which theirs are whatever their data."""
    return [bool(_of(one, bool)) for one in value]


def text(value: Any, asked: Asked) -> str:
    """Of the code, of a key's public half, or a signature."""
    return str(_of(value, str))


def word(value: Any, asked: Asked) -> str:
    """Of a failure."""
    if value not in (SPENT, FAILED):
        raise Undeclared
    return str(value)


def names(value: Any, asked: Asked) -> list[str]:
    """Of clients that the node hosts."""
    if not set(value) <= set(asked.host.hosted):
        raise Undeclared
    return [str(name) for name in value]


def weights(value: Any, asked: Asked) -> list[float]:
    """Of heads that are alike, rounded to 0.01."""
    return [round(float(_of(weight, int, float)), 2) for weight in value]


def seconds(value: Any, asked: Asked) -> float:
    """A time; rounded down to a power of two, and to 0 below one second, but for diagnostics."""
    exact = float(_of(value, int, float))
    return exact if asked.diagnostics else coarse(exact)


def diagnostic(value: Any, asked: Asked) -> Any:
    """What is sent for diagnostics only: without them it may be empty."""
    empty = value is None or value == [] or value == {} or _all_empty(value)
    if not (asked.diagnostics or empty):
        raise Undeclared
    return value


@dataclass(frozen=True)
class Each:
    """One of ``field`` for each of the message's ``clients``, or for each of the method's
    ``parts``, ``stats`` or ``polls``; others are nobody's business."""

    of: str
    field: Field


Field = Kind | Each | dict[str, "Field"]

SPENDING: dict[str, Field] = dict.fromkeys(("epsilon", "delta", "sigma", "mu"), number)
REPORT: dict[str, Field] = {
    "examples": count,
    "loss": diagnostic,
    "noise": Each("parts", number),
    "method": Each("stats", number),
    **SPENDING,
}
TIMES: dict[str, Field] = {"encrypt": seconds, "decrypt": seconds}
FIELDS: dict[str, dict[str, Field]] = {
    "roster": {
        "clients": names,
        "held_out": names,
        "nodes": whole,
        "scored": text,
        "channel": {"id": text, "next": text, "context": text, "identities": text, "tag": whole},
    },
    "train": {
        "reports": Each("clients", REPORT),
        "failures": Each("clients", word),
        "spent": Each("clients", SPENDING),
        **TIMES,
    },
    "poll": {
        "told": Each("clients", Each("polls", number)),
        "failures": Each("clients", word),
        "spent": Each("clients", SPENDING),
    },
    "pool": {
        "reports": Each("clients", {**REPORT, "method": diagnostic}),
        "failures": Each("clients", word),
        "spent": Each("clients", SPENDING),
        **TIMES,
    },
    "method": {"failures": Each("clients", word)},  # no noise covers what it would answer
    "channel": {
        "failures": Each("clients", word),
        "rows": Each("clients", weights),
        "opens": flags,
        "agreed": Each("clients", text),
        **TIMES,
    },
    # What no noise covers, whether it worked included.
    "baseline": {"failures": diagnostic},
    "evaluate": {"results": diagnostic, "held_back": flag, "failures": diagnostic},
    "newcomers": {"results": diagnostic, "failures": diagnostic},
    "export": {"failures": diagnostic},
}


def leave(kind: str, host: Keeper, body: Mapping[str, Any], answered: Answered) -> Answered:
    """An answer as it may leave: the declared fields, in the declared order, and nothing else.

    Args:
        kind: of the message that is answered.
        host: who answers.
        body: of that message.
        answered: what the answer would be.

    Raises:
        ClientError: a row is not what was declared.
    """
    asked, (rows, told) = Asked(host, body), answered
    return _rows(kind, asked, rows), _through(FIELDS[kind], told, asked, kind)


def coarse(exact: float) -> float:
    """Seconds, rounded down to a power of two, and to 0 below 1.

    >>> [coarse(s) for s in (0.7, 1.9, 5.0)]
    [0.0, 1.0, 4.0]
    """
    return 2.0 ** math.floor(math.log2(exact)) if exact >= 1 else 0.0


def undeclared(where: str) -> None:
    """Something was in an answer that may not leave: it does not, and the node's log says so."""
    log.error("not sent, as no answer of a private client may hold it: %s", where)


def _through(field: Field, value: Any, asked: Asked, where: str) -> Any:
    if callable(field):
        return field(value, asked)
    if not isinstance(value, Mapping):
        raise Undeclared
    if isinstance(field, Each):
        field = dict.fromkeys(getattr(asked, field.of), field.field)
    for name in value:
        if name not in field:
            undeclared(f"{where}.{name}")
    return dict(_fields(field, value, asked, where))


def _fields(
    fields: Mapping[str, Field], value: Mapping[str, Any], asked: Asked, where: str
) -> Iterator[tuple[str, Any]]:
    for name, field in fields.items():
        if name in value:
            try:
                yield name, _through(field, value[name], asked, f"{where}.{name}")
            except (Undeclared, TypeError, ValueError, OverflowError):
                undeclared(f"{where}.{name}")


def _rows(kind: str, asked: Asked, rows: Rows) -> Rows:
    channel, terms = asked.host.channel, asked.body.get("channel", {})
    if kind == "channel" and asked.body.get("kind") in channel.opens:
        return rows
    if kind not in ("train", "pool", "channel"):
        if rows:
            undeclared(f"{kind}: parts")
        return []
    if kind == "pool":
        size = int(asked.body["size"])
        declared = {POOLED: Layout(((POOLED, (size,)),))}
        return [channel.as_declared(row, declared, terms) for row in rows]
    return [channel.as_declared(row, asked.host.declared, terms) for row in rows]


def _of(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise Undeclared
    return value


def _all_empty(value: Any) -> bool:
    return isinstance(value, Mapping) and not any(value.values())
