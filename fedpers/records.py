"""Parts to and from Flower records: lossless, dtype-preserving, without pickle.

A message carries the parts of several clients as one matrix a part, [clients, size]; opaque parts
as one array of bytes a client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedpers.channels.kinds import KINDS
from fedpers.channels.opaque import Opaque
from fedpers.errors import ClientError
from fedpers.parts import Layout, Part, Parts

Row = Parts | Opaque
BEYOND = (OverflowError, RecursionError)
LAYOUTS = 2**22  # characters of all layouts in a message
DIGITS = 20  # of a whole number
KNOWN = "known"


def same(one: Row | None, other: Row | None) -> bool:
    """Whether two rows are one, or plain parts of the same values."""
    if one is other:
        return True
    if not (isinstance(one, Parts) and isinstance(other, Parts)) or one.layouts != other.layouts:
        return False
    return all(torch.equal(one[name].vector, other[name].vector) for name in one)


def in_the_clear(row: Row) -> Parts:
    """A row that has to be plain parts.

    Raises:
        ClientError: it is opaque.
    """
    if not isinstance(row, Parts):
        raise ClientError("message: got opaque parts, takes plain ones")
    return row


def pack(rows: Sequence[Row], body: Mapping[str, Any]) -> RecordDict:
    """A message's content: ``rows`` (K updates or mixtures) and a JSON-able ``body``.

    Plain rows may lack parts that others have; a part has one layout in all of them.

    Raises:
        ValueError: a part has several layouts, or plain rows are beside opaque ones.
    """
    plain = [row for row in rows if isinstance(row, Parts)]
    if len(plain) < len(rows):
        return _pack_opaque(rows, body)
    layouts: dict[str, Layout] = {}
    where: dict[str, list[int]] = {}
    for k, row in enumerate(plain):
        for name, layout in row.layouts.items():
            if layouts.setdefault(name, layout) != layout:
                raise ValueError(f"rows: got part {name!r} in several layouts, takes one a message")
            where.setdefault(name, []).append(k)
    arrays = ArrayRecord({n: _to_array([plain[k][n] for k in where[n]]) for n in layouts})
    header = {name: layout.to_json() for name, layout in layouts.items()}
    config: dict[str, Any] = {
        "layouts": json.dumps(header),
        "rows": len(rows),
        "body": json.dumps(body),
    }
    some = {name: places for name, places in where.items() if len(places) < len(rows)}
    if some:
        config["where"] = json.dumps(some)
    return RecordDict({"parts": arrays, "message": ConfigRecord(config)})


def _pack_opaque(rows: Sequence[Row], body: Mapping[str, Any]) -> RecordDict:
    arrays = {}
    for k, row in enumerate(rows):
        if not isinstance(row, Opaque):
            raise ValueError("rows: got plain parts beside opaque ones, takes one kind a message")
        data = row.to_bytes()
        arrays[str(k)] = Array(dtype="uint8", shape=(len(data),), stype=row.stype, data=data)
    config = ConfigRecord({"opaque": len(rows), "body": json.dumps(body)})
    return RecordDict({"parts": ArrayRecord(arrays), "message": config})


def _unpack_opaque(arrays: ArrayRecord, count: int) -> list[Row]:
    rows: list[Row] = []
    for k in range(count):
        array = arrays[str(k)]
        kind = KINDS.get(array.stype)
        if kind is None:
            raise ValueError(f"array {k}: got {array.stype}, takes {', '.join(KINDS)}")
        try:
            rows.append(kind.from_bytes(array.data))
        except ClientError as error:
            rows.append(kind.unreadable(str(error)))
    return rows


def read_json(text: str) -> Any:
    """JSON from a stranger.

    Raises:
        ValueError, RecursionError: it is none, a key comes twice, or a whole number is too long.
    """
    return json.loads(text, parse_int=_whole, object_pairs_hook=_once)


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"got a number of {len(digits)} digits, takes at most {DIGITS}")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("got a key twice, takes each once")
    return found


def unpack(content: RecordDict, most: int | None = None) -> tuple[list[Row], dict[str, Any]]:
    """What ``pack`` packed.

    Args:
        most: the most rows that there may be.

    Raises:
        ClientError: a record is missing, an array does not fit its declared layout, or it is beyond
            what any message is.
    """
    try:
        config = content.config_records["message"]
        arrays, body = content.array_records["parts"], read_json(str(config["body"]))
        count = _whole(str(config["opaque" if "opaque" in config else "rows"]))
        if not 0 <= count <= (count if most is None else most):
            raise ValueError(f"rows: got {count}, takes at most {most}")
        if "opaque" in config:
            return _unpack_opaque(arrays, count), body
        header = str(config["layouts"])
        if len(header) > LAYOUTS:
            raise ValueError(f"layouts: got {len(header)} characters, takes at most {LAYOUTS}")
        layouts = {name: Layout.from_json(layout) for name, layout in read_json(header).items()}
        some = read_json(str(config.get("where", "{}")))
        where = {name: _places(some.get(name, range(count)), count) for name in layouts}
        matrices = {name: _from_array(arrays[name], layout) for name, layout in layouts.items()}
        if any(len(matrix) != len(where[name]) for name, matrix in matrices.items()):
            raise ValueError(
                f"arrays: got {[len(m) for m in matrices.values()]}, takes {count} rows"
            )
    except (KeyError, TypeError, ValueError, AttributeError, *BEYOND) as error:
        raise ClientError(f"message: cannot be read ({type(error).__name__}: {error})") from error
    found: list[dict[str, Part]] = [{} for _ in range(count)]
    for name, matrix in matrices.items():
        for k, vector in zip(where[name], matrix, strict=True):
            found[k][name] = Part(layouts[name], vector)
    return [Parts(parts) for parts in found], body


def pack_known(content: RecordDict, parts: Parts) -> None:
    """Put parts that all clients have into a message, beside its rows."""
    if parts:
        own = pack([parts], {})
        content[KNOWN], content[f"{KNOWN} message"] = own["parts"], own["message"]


def unpack_known(content: RecordDict) -> Parts:
    """What ``pack_known`` put there; nothing where it put nothing.

    Raises:
        ClientError: as ``unpack``.
    """
    if KNOWN not in content.array_records:
        return Parts()
    own = {"parts": content.array_records[KNOWN]}
    about = content.config_records.get(f"{KNOWN} message", ConfigRecord())
    rows, _ = unpack(RecordDict({**own, "message": about}), most=1)
    return in_the_clear(rows[0]) if rows else Parts()


def _places(given: Any, count: int) -> list[int]:
    """Which rows have a part: increasing numbers below ``count``."""
    places = [int(k) for k in given]
    if places != sorted(set(places) & set(range(count))):
        raise ValueError(f"places: got {given}, takes increasing numbers below {count}")
    return places


def _to_array(parts: Sequence[Part]) -> Array:
    matrix = torch.stack([part.vector for part in parts])
    if matrix.dtype == torch.bfloat16:  # numpy has none, its bits travel as int16
        matrix = matrix.view(torch.int16)
    return Array(matrix.numpy())


def _from_array(array: Array, layout: Layout) -> torch.Tensor:
    try:
        matrix = torch.from_numpy(array.numpy())
    except Exception as error:  # whatever numpy makes of a stranger's bytes
        raise ValueError(f"array: {error}") from None
    wire = torch.int16 if layout.dtype == torch.bfloat16 else layout.dtype
    if matrix.dtype != wire or matrix.ndim != 2 or matrix.shape[1] != layout.size:
        raise ValueError(
            f"array: got {tuple(matrix.shape)} of {matrix.dtype}, "
            f"takes [clients, {layout.size}] of {wire}"
        )
    return matrix.view(layout.dtype) if matrix.dtype != layout.dtype else matrix
