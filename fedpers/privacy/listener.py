"""Sources of the leak test: the same draws in both worlds, each release noted in a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fedpers.privacy.leaktest import Noised, Path, Transcript
from fedpers.privacy.noise import Source, Sources, known

SKETCH = 16  # numbers that are kept of a gradient, to compare it
WIDE = 64  # examples for which samples are drawn, be there fewer


def listening(transcript: Transcript) -> Sources:
    """The sources of a world."""
    return lambda *path: Listener(transcript, path)


class Listener(Source):
    """A source whose draws are the same in both worlds, and which notes what is released.

    Args:
        transcript: where.
        path: what it is for.
    """

    def __init__(self, transcript: Transcript, path: Path) -> None:
        self._transcript, self._path = transcript, path
        # Of their own: noise that is given out again is not drawn again.
        self._others, self._samples, self._noise = (known(0)(*path, kind) for kind in range(3))
        self._drawn, self._rate = torch.arange(0), 1.0
        self._step = Step()

    def bits(self, count: int) -> bytes:
        """Bytes that the path alone decides."""
        return self._others.bits(count)

    def sample(self, examples: int, rate: float) -> Tensor:
        """As any source's; noted. An example more or less changes nothing for the others."""
        drawn = self._samples.sample(max(examples, WIDE), rate)
        self._drawn, self._rate = drawn[drawn < examples], rate
        return self._drawn

    def witness(self, rows: Sequence[Tensor], factors: Tensor) -> None:
        """Note what each example adds to the sum that comes next; they may come in pieces."""
        self._step.add(rows, factors)

    def noised(self, total: Tensor, deviation: float, noise: Tensor | None = None) -> Tensor:
        """What may be released of a sum; in the second world what was released in the first."""
        step, self._step = self._step, Step()
        rows, lengths, norm = step.rows()
        drawn = self._drawn if len(self._drawn) == len(rows) else torch.arange(len(rows))
        kept = (rows, lengths, drawn, sketch(total[None])[0], norm, self._rate, step.excess(total))
        given = self._transcript.given(self._path)
        if given is None or given.shape != total.shape:
            given = self._noise.noised(total, deviation, noise)
        # Copies: who trains divides what is given out in place.
        found = Noised(tuple(total.shape), deviation, given.clone(), *kept)
        self._transcript.release(self._path, found)
        return given.clone()


class Step:
    """What each example adds to one sum."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._rows: list[Tensor] = []
        self._lengths: list[Tensor] = []
        self._factors: list[Tensor] = []

    def add(self, rows: Sequence[Tensor], factors: Tensor) -> None:
        """Some examples more: what they add before clipping, for each tensor [n, ...], one tensor
        after another; and by what each is clipped, [n]."""
        raw = torch.cat([row.detach().cpu().flatten(1) for row in rows], dim=1)
        # An example whose gradient is not finite is left out.
        raw, factors = torch.nan_to_num(raw, 0.0, 0.0, 0.0), factors.detach().cpu()
        total = factors @ raw
        self._total = total if self._total is None else self._total + total
        self._rows.append(sketch(raw))
        self._lengths.append(torch.linalg.vector_norm(raw, dim=1, dtype=torch.float64))
        self._factors.append(factors.double())

    def rows(self) -> tuple[Tensor, Tensor, float]:
        """The rows' sketches [n, SKETCH] and lengths [n], and the longest row after clipping."""
        if not self._rows:
            return torch.zeros(0, SKETCH), torch.zeros(0), 0.0
        lengths = torch.cat(self._lengths)
        clipped = lengths * torch.cat(self._factors)
        norm = float(clipped.max()) if len(clipped) else 0.0
        return torch.cat(self._rows), lengths.float(), norm

    def excess(self, total: Tensor) -> float:
        """How far a sum is from that of the clipped rows."""
        if self._total is None or self._total.numel() != total.numel():
            return float("inf")
        return float((total.detach().cpu().flatten() - self._total).abs().max())


def sketch(rows: Tensor) -> Tensor:
    """Sixteen sums with known random signs of each row [n, ...]: rows that differ have others."""
    flat = rows.detach().flatten(1).float().cpu()
    flat = flat * signs(flat.shape[1])
    wide = torch.nn.functional.pad(flat, (0, -flat.shape[1] % SKETCH))
    return wide.view(len(flat), wide.shape[1] // SKETCH, SKETCH).sum(1)


@lru_cache
def signs(size: int) -> Tensor:
    """Ones and minus ones, [size]; the same ones each time."""
    generator = torch.Generator().manual_seed(size)
    return 2.0 * torch.randint(2, (size,), generator=generator) - 1
