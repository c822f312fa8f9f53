"""Parts to and from Flower records: lossless, dtype-preserving, without pickle.

A message carries the parts of several clients as one matrix a part, [clients, size]; sealed parts
as one array of bytes a client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.errors import ClientError
from fedpers.parts import Layout, Part, Parts

Row = Parts | SealedParts
STYPE = "fedpers.sealed.v1"


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
        ClientError: it is sealed.
    """
    if not isinstance(row, Parts):
        raise ClientError("message: got sealed parts, takes plain ones")
    return row


def pack(rows: Sequence[Row], body: Mapping[str, Any]) -> RecordDict:
    """A message's content: ``rows`` (K parts of one layout) and a JSON-able ``body``.

    Raises:
        ValueError: the rows have different parts or shapes.
    """
    if any(isinstance(row, SealedParts) for row in rows):
        return _pack_sealed(rows, body)
    layouts = rows[0].layouts if rows else {}
    if any(row.layouts != layouts for row in rows):
        raise ValueError("rows: got parts of several layouts, takes one layout a message")
    header = {name: layout.to_json() for name, layout in layouts.items()}
    plain = [row for row in rows if isinstance(row, Parts)]
    arrays = ArrayRecord({name: _to_array([row[name] for row in plain]) for name in layouts})
    config = ConfigRecord(
        {"layouts": json.dumps(header), "rows": len(rows), "body": json.dumps(body)}
    )
    return RecordDict({"parts": arrays, "message": config})


def _pack_sealed(rows: Sequence[Row], body: Mapping[str, Any]) -> RecordDict:
    arrays = {}
    for k, row in enumerate(rows):
        if not isinstance(row, SealedParts):
            raise ValueError("rows: got plain parts beside sealed ones, takes one kind a message")
        data = row.to_bytes()
        arrays[str(k)] = Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
    config = ConfigRecord({"sealed": len(rows), "body": json.dumps(body)})
    return RecordDict({"parts": ArrayRecord(arrays), "message": config})


def _unpack_sealed(arrays: ArrayRecord, count: int) -> list[Row]:
    rows: list[Row] = []
    for k in range(count):
        array = arrays[str(k)]
        if array.stype != STYPE:
            raise ValueError(f"array {k}: got {array.stype}, takes {STYPE}")
        try:
            rows.append(SealedParts.from_bytes(array.data))
        except ClientError as error:  # costs its sender, not the others in the message
            rows.append(SealedParts({}, (), (), broken=str(error)))
    return rows


def unpack(content: RecordDict) -> tuple[list[Row], dict[str, Any]]:
    """What ``pack`` packed.

    Raises:
        ClientError: a record is missing or an array does not fit its declared layout.
    """
    try:
        config = content.config_records["message"]
        arrays = content.array_records["parts"]
        if "sealed" in config:
            return _unpack_sealed(arrays, int(str(config["sealed"]))), json.loads(
                str(config["body"])
            )
        layouts = {
            name: Layout.from_json(layout)
            for name, layout in json.loads(str(config["layouts"])).items()
        }
        matrices = {name: _from_array(arrays[name], layout) for name, layout in layouts.items()}
        body, count = json.loads(str(config["body"])), int(str(config["rows"]))
        if any(len(matrix) != count for matrix in matrices.values()):
            raise ValueError(
                f"arrays: got {[len(m) for m in matrices.values()]}, takes {count} rows"
            )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ClientError(f"message: cannot be read ({type(error).__name__}: {error})") from error
    rows: list[Row] = [
        Parts({name: Part(layouts[name], matrix[k]) for name, matrix in matrices.items()})
        for k in range(count)
    ]
    return rows, body


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
