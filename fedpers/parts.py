"""Parts: the named groups of tensors that travel between server and clients.

A *part* ("body", "head", "gate") holds named tensors of one dtype in one contiguous vector, so
that combining, encrypting and sending work on vectors while a model reads tensors by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FORMAT = "1"  # of the files
BLOCK = 2**15  # columns of a product at a time
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a part's tensors, in order, and their common dtype."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: torch.dtype = torch.float32

    @cached_property
    def size(self) -> int:
        """Number of scalars in the part."""
        return sum(prod(shape) for _, shape in self.shapes)

    @cached_property
    def spans(self) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        """For each tensor: where it starts and ends in the vector, and its shape."""
        spans, start = {}, 0
        for name, shape in self.shapes:
            spans[name] = (start, start + prod(shape), shape)
            start += prod(shape)
        return spans

    def to_json(self) -> dict[str, Any]:
        """A JSON form; ``from_json`` reads it back."""
        return {"dtype": str(self.dtype).removeprefix("torch."), "shapes": self.shapes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: the dtype is neither float32 nor bfloat16, or a size is negative.
        """
        if data["dtype"] not in DTYPES:
            raise ValueError(f"dtype: got {data['dtype']!r}, takes {' or '.join(DTYPES)}")
        shapes = tuple((str(name), tuple(int(n) for n in shape)) for name, shape in data["shapes"])
        if any(n < 0 for _, shape in shapes for n in shape):
            raise ValueError(f"shapes: got {shapes!r}, takes sizes >= 0")
        return cls(shapes, DTYPES[data["dtype"]])


class Part(Mapping[str, torch.Tensor]):
    """Named tensors over one vector: ``part["head.weight"]`` is a view of ``part.vector``."""

    __slots__ = ("layout", "vector")

    def __init__(self, layout: Layout, vector: torch.Tensor) -> None:
        """Lay ``layout`` over ``vector`` [layout.size], which is not copied.

        Raises:
            ValueError: the vector has another shape or dtype than the layout says.
        """
        if vector.shape != (layout.size,) or vector.dtype != layout.dtype:
            raise ValueError(
                f"part: got {tuple(vector.shape)} of {vector.dtype}, "
                f"takes ({layout.size},) of {layout.dtype}"
            )
        self.layout, self.vector = layout, vector

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Part:
        """Copy ``tensors`` (all float32, or all bfloat16) into a part, in their order.

        Raises:
            ValueError: no tensor, mixed dtypes, or a dtype that parts do not carry.
        """
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) != 1 or not dtypes <= set(DTYPES.values()):
            raise ValueError(f"part: got dtypes {dtypes}, takes tensors of one of {list(DTYPES)}")
        layout = Layout(tuple((name, tuple(t.shape)) for name, t in tensors.items()), dtypes.pop())
        return cls(layout, torch.cat([t.detach().cpu().reshape(-1) for t in tensors.values()]))

    def like(self, vector: torch.Tensor) -> Part:
        """A part of the same layout over another vector."""
        return Part(self.layout, vector.to(self.layout.dtype))

    def __getitem__(self, name: str) -> torch.Tensor:
        start, end, shape = self.layout.spans[name]
        return self.vector[start:end].view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.spans)

    def __len__(self) -> int:
        return len(self.layout.spans)

    def __repr__(self) -> str:
        return f"Part({self.layout.size} x {self.layout.dtype}, {len(self)} tensors)"


class Parts(Mapping[str, Part]):
    """Parts by name. Treated as immutable: methods return new ones that share vectors."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Mapping[str, Part] | None = None) -> None:
        self._parts = dict(parts or {})

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __or__(self, other: Mapping[str, Part]) -> Parts:
        """These parts with those of ``other`` added or put in their place."""
        return Parts({**self._parts, **other})

    def __repr__(self) -> str:
        return f"Parts({self._parts!r})"

    def only(self, names: Iterable[str]) -> Parts:
        """The parts called ``names``, in that order."""
        return Parts({name: self._parts[name] for name in names})

    @property
    def layouts(self) -> dict[str, Layout]:
        """Each part's layout."""
        return {name: part.layout for name, part in self.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors."""
        return sum(part.vector.nbytes for part in self.values())

    def first_not_finite(self) -> str | None:
        """The name of the first part that holds a NaN or an infinity, or None."""
        for name, part in self.items():
            # What is not finite shows in the sum, had in one pass; or the sum is too large itself.
            if not isfinite(part.vector.sum()) and not bool(torch.isfinite(part.vector).all()):
                return name
        return None

    def save(self, path: Path) -> None:
        """Write a safetensors file: a vector a part; layouts and a SHA-256 in its metadata."""
        layouts = {name: layout.to_json() for name, layout in self.layouts.items()}
        # Cloned, since safetensors refuses tensors that share memory (rows of one message).
        vectors = {name: part.vector.clone() for name, part in self.items()}
        metadata = {"format": FORMAT, "layouts": json.dumps(layouts), "sha256": self.digest()}
        save_file(vectors, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Parts:
        """Read what ``save`` wrote, bit for bit.

        Raises:
            ValueError: it is of another format, or was changed since.
            SafetensorError, OSError, KeyError: it is no such file.
        """
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"format: got {metadata.get('format')}, takes {FORMAT}")
            layouts = json.loads(metadata["layouts"])
            parts = cls(
                {n: Part(Layout.from_json(x), file.get_tensor(n)) for n, x in layouts.items()}
            )
        if parts.digest() != metadata["sha256"]:
            raise ValueError("its content is not what was saved (SHA-256 differs)")
        return parts

    def digest(self) -> str:
        """SHA-256 over names, layouts and values."""
        digest = hashlib.sha256()
        for name, part in self.items():
            digest.update(json.dumps([name, part.layout.to_json()]).encode())
            digest.update(part.vector.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def bank(slot: str, copies: Sequence[Part]) -> dict[str, Part]:
    """Several copies of a slot's part, ``slot@0`` and so on."""
    return {f"{slot}@{k}": part for k, part in enumerate(copies)}


def stack(updates: Sequence[Parts], name: str) -> torch.Tensor:
    """Part ``name`` of K updates as a float32 matrix X [K, size]."""
    return torch.stack([update[name].vector for update in updates]).float()


def combine(weights: torch.Tensor, updates: Sequence[Parts]) -> list[Parts]:
    """Y = W X, the only arithmetic that the server does on clients' tensors.

    Args:
        weights: W [R, K], rows that sum to 1: which mixture each of R recipients gets.
        updates: X, the K clients' parts, all of the same layouts.

    Returns:
        R parts. Computed in float32 and returned in the parts' own dtype.

    Raises:
        ValueError: W has not one column an update.
    """
    if weights.ndim != 2 or weights.shape[1] != len(updates):
        got = tuple(weights.shape)
        raise ValueError(f"weights: got {got}, takes [rows, {len(updates)}], a column an update")
    mixed: list[dict[str, Part]] = [{} for _ in range(weights.shape[0])]
    for name, part in updates[0].items():
        for row, vector in zip(mixed, product(weights.float(), updates, name), strict=True):
            row[name] = part.like(vector)
    return [Parts(row) for row in mixed]


def product(weights: torch.Tensor, updates: Sequence[Parts], name: str) -> torch.Tensor:
    """W X for one part, in blocks of columns that stay in a core's cache.

    Args:
        weights: W [R, K], float32.
        updates: the K clients' parts.
        name: of the part.

    Returns:
        [R, size], float32.
    """
    size = updates[0][name].layout.size
    out = torch.empty(len(weights), size)
    for start in range(0, size, BLOCK):
        block = [update[name].vector[start : start + BLOCK] for update in updates]
        torch.matmul(weights, torch.stack(block).float(), out=out[:, start : start + BLOCK])
    return out
