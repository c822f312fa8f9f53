"""Matrices of a report: numbers in shaded cells, or a small picture where they are many."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import TypeVar

from fedpers.evaluation.page import esc

Item = TypeVar("Item")

BLUE = (40, 130, 205)
"""Legible on light and on dark; the value is in how much of it covers the page."""

CELLS = 40
"""With more rows, or more columns than half of it, a matrix is a picture without numbers."""

MOST_PIXELS = 400


def label_grid(
    clients: Sequence[str], labelled: Sequence[Sequence[int]], called: Sequence[str] = ()
) -> str:
    """Examples by client (rows) and class (columns), sorted by the most frequent class.

    Args:
        called: what the classes are called; by their numbers beyond that.
    """
    classes = max(len(row) for row in labelled)
    padded = [[*row, *[0] * (classes - len(row))] for row in labelled]
    order = sorted(range(len(clients)), key=lambda k: _profile(padded[k]))
    columns = [*called[:classes], *(str(c) for c in range(len(called), classes))]
    names, rows = [clients[k] for k in order], [padded[k] for k in order]
    shares = [[value / (sum(row) or 1) for value in row] for row in rows]
    if len(rows) <= CELLS and classes <= CELLS // 2:
        return cells(names, columns, rows, shares)
    label = f"Share of each of {classes} classes at {len(rows)} clients"
    ramp = '<span class="soft">none <span class="ramp"></span> all of a client’s examples</span>'
    across = "".join(f"<span>{esc(c)}</span>" for c in columns) if classes <= CELLS // 2 else ""
    image = picture(shares, label, height=max(160, min(420, 2 * len(rows))))
    return f'<div class="across" aria-hidden="true">{across}</div>{image}{ramp}'


def similarity_grid(matrix: Sequence[Sequence[float]]) -> str:
    """A K x K matrix of numbers as a picture, shaded from the least to the most off the diagonal.

    The diagonal, where a client meets itself, is left empty.
    """
    k = len(matrix)
    others = [matrix[i][j] for i in range(k) for j in range(k) if i != j]
    low, high = min(others), max(others)
    width = (high - low) or 1.0
    shares = [[0.0 if i == j else (matrix[i][j] - low) / width for j in range(k)] for i in range(k)]
    label = f"Similarity of {k} clients, from {low:.3f} to {high:.3f}"
    ramp = f'<span class="soft">{low:.3f} <span class="ramp"></span> {high:.3f}</span>'
    return f'<div style="max-width:26rem">{picture(shares, label)}</div>{ramp}'


def cells(
    names: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[int]],
    shares: Sequence[Sequence[float]],
) -> str:
    """A table with a background for each cell; ``shares`` are in 0..1, zeros stay empty."""
    head = "".join(f'<th scope="col">{esc(column)}</th>' for column in columns)
    lines = []
    for name, row, share in zip(names, rows, shares, strict=True):
        found = "".join(
            f'<td style="background:rgba(var(--heat),{0.75 * part:.2f})">{value or ""}</td>'
            for value, part in zip(row, share, strict=True)
        )
        lines.append(f'<tr><th scope="row" title="{esc(name)}">{esc(name)}</th>{found}')
    return (
        '<div class="scroll" tabindex="0"><table class="cells"><thead><tr>'
        f'<th scope="col">client</th>{head}</tr></thead><tbody>{"</tr>".join(lines)}</tr>'
        "</tbody></table></div>"
    )


def picture(shares: Sequence[Sequence[float]], label: str, height: int | None = None) -> str:
    """Numbers in 0..1, [rows][columns], as an image inside the page."""
    shares = [_thinned(row) for row in _thinned(shares)]
    style = f' style="height:{height}px"' if height else ""
    data = base64.b64encode(png(shares)).decode("ascii")
    return (
        f'<img class="heat"{style} alt="{esc(label)}" '
        f'width="{len(shares[0])}" height="{len(shares)}" src="data:image/png;base64,{data}">'
    )


def png(shares: Sequence[Sequence[float]]) -> bytes:
    """A PNG of one pixel a number: 0 is transparent, 1 is opaque ``BLUE``."""
    lines = b"".join(
        b"\0" + b"".join(bytes((*BLUE, round(255 * min(1.0, max(0.0, v))))) for v in row)
        for row in shares
    )
    header = struct.pack(">IIBBBBB", len(shares[0]), len(shares), 8, 6, 0, 0, 0)  # 8 bits, RGBA
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _profile(row: Sequence[int]) -> tuple[int, float]:
    top = max(range(len(row)), key=row.__getitem__)
    return top, -row[top] / (sum(row) or 1)


def _thinned(items: Sequence[Item]) -> Sequence[Item]:
    if len(items) <= MOST_PIXELS:
        return items
    return [items[round(k * (len(items) - 1) / (MOST_PIXELS - 1))] for k in range(MOST_PIXELS)]
