"""The leak test: does anything leave a client that its account does not pay for?

Two worlds run the same code, one on made-up data and one on the same with one example replaced.
What the first releases, sums with noise, is given out again in the second as it was: noise makes
every outcome possible in both, and what it costs to tell them apart is what the account pays for.
Whatever leaves must then be the same to the last bit, for all else is made of the releases. Of the
releases themselves only the sums differ, by the replaced example's own clipped gradient: the
gradients of all others are compared.

This file knows nothing of clients: it holds the comparison; ``listener`` has the sources.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpers.parts import Parts
from fedpers.privacy.hidden import moved
from fedpers.privacy.mechanisms import Release

OTHERS = 1e-5  # of the longest gradient: by how much others' may differ, as sums in floats do
SUMS = 1e-4  # likewise, for a sum and what it is made of
FOLDED = 1e-3  # likewise, for what a group's steps give and what single ones do
Path = tuple[int | str, ...]
"""Of a source: round, client, purpose."""

PER_EXAMPLE = (
    "let the forward pass, the loss and counts look at each example alone, and released phases "
    "start from received parts"
)
HIDDEN = "keep what a client remembers in a part, personal.*, and nothing of its data elsewhere"
STATELESS = "let what is sent be made of received parts and of what released phases trained"


class Finding(NamedTuple):
    """Something that leaves unpaid: where it shows, what moves, and what to do about it."""

    where: str
    what: str
    cure: str

    def line(self) -> str:
        """For a refusal."""
        return f"{self.what} ({self.where})"


class Noised(NamedTuple):
    """One sum that noise was added to.

    Attributes:
        shape, deviation: of the sum, and of the noise.
        released: the outcome.
        rows: of each example's gradient, as it is before it is clipped, a sketch [n, SKETCH].
        lengths: of those, [n].
        examples: whose those are, [n].
        total: the sum's sketch, [SKETCH].
        norm: of the longest of what examples add to the sum.
        rate: at which examples were sampled.
        excess: how far the sum is from that of the rows; infinite where none were shown.
    """

    shape: tuple[int, ...]
    deviation: float
    released: Tensor
    rows: Tensor
    lengths: Tensor
    examples: Tensor
    total: Tensor
    norm: float
    rate: float
    excess: float


TENSORS = ("released", "rows", "lengths", "examples", "total")


class Said(NamedTuple):
    """What leaves a client, or a node, in one answer."""

    kind: str
    server_round: int
    client: str
    parts: Parts
    words: Mapping[str, Any]

    @property
    def where(self) -> str:
        """For a refusal."""
        who = f" of client {self.client}" if self.client else ""
        return f"the answer{who} to {self.kind!r} in round {self.server_round}"


class Transcript:
    """What one world releases and says.

    Args:
        before: the world to compare with, whose releases are given out again.
        changed: by client the training example that is another one than there, None for one that
            is not trained on; a client that is not named has the same examples.
        folded: the other world trained one by one, this one trains in groups: examples' gradients
            are not seen, and the sums are compared, of the same data.
    """

    def __init__(
        self,
        before: Transcript | None = None,
        changed: Mapping[str, int | None] | None = None,
        *,
        folded: bool = False,
    ) -> None:
        self.before, self.changed, self.folded = before, dict(changed or {}), folded
        self.noised: dict[Path, list[Noised]] = {}
        self.said: list[Said] = []
        self.state: Mapping[str, str] = {}
        self.findings: list[Finding] = []

    def find(self, where: str, what: str, cure: str) -> None:
        """Note something that leaves unpaid."""
        self.findings.append(Finding(where, what, cure))

    def given(self, path: Path) -> Tensor | None:
        """The outcome of the next release for a path, if the other world had one."""
        others = self.before.noised.get(path, []) if self.before is not None else []
        place = len(self.noised.get(path, []))
        return others[place].released if place < len(others) else None

    def release(self, path: Path, found: Noised) -> None:
        """Note a release, and compare it."""
        own = self.noised.setdefault(path, [])
        own.append(found)
        where = _where(path)
        if not self.folded and found.excess > SUMS * found.norm:
            what = "a sum is noised of which it is not shown what each example adds"
            if found.excess < float("inf"):
                what = f"a noised sum holds {found.excess:.2g} beside what each example adds"
            self.find(where, what, PER_EXAMPLE)
        if self.before is None:
            return
        others = self.before.noised.get(path, [])
        if len(others) < len(own):
            self.find(where, "there is a release more", STATELESS)
        elif self.folded:
            self._compare_folded(where, others[len(own) - 1], found)
        else:
            self._compare(path, others[len(own) - 1], found)

    def say(self, said: Said) -> None:
        """Note an answer, and compare it."""
        words = json.loads(json.dumps(said.words, sort_keys=True, default=repr))
        said = said._replace(words=words)
        self.said.append(said)
        if self.before is None:
            return
        if len(self.before.said) < len(self.said):
            self.find(said.where, "there is an answer more", STATELESS)
            return
        other = self.before.said[len(self.said) - 1]
        if (what := difference(other, said, FOLDED if self.folded else 0.0)) is not None:
            self.find(said.where, what, STATELESS)

    def finish(self, state: Mapping[str, str]) -> None:
        """Look for what the other world had and this one has not.

        Args:
            state: what code remembers at the end, by name, as digests.
        """
        self.state = state
        if self.before is None:
            return
        if not self.folded and (name := moved(self.before.state, state)) is not None:
            self.find("after the last round", f"{name} is in another state", HIDDEN)
        for path, others in self.before.noised.items():
            if len(others) > len(self.noised.get(path, [])):
                self.find(_where(path), "there is a release less", STATELESS)
        for said in self.before.said[len(self.said) :]:
            self.find(said.where, "there is an answer less", STATELESS)

    def _compare(self, path: Path, one: Noised, other: Noised) -> None:
        where = _where(path)
        if one.shape != other.shape:
            self.find(where, f"a sum of {one.shape} becomes one of {other.shape}", STATELESS)
        elif one.deviation != other.deviation:
            what = f"the noise's deviation moves from {one.deviation:.4g} to {other.deviation:.4g}"
            self.find(where, what, STATELESS)
        else:
            self._compare_rows(path, one, other)

    def _compare_rows(self, path: Path, one: Noised, other: Noised) -> None:
        """Those of all examples but the replaced one."""
        changed = self.changed.get(str(path[1]))
        left, right = ((n.examples != (-1 if changed is None else changed)) for n in (one, other))
        if not torch.equal(one.examples[left], other.examples[right]):
            self.find(_where(path), "other examples are sampled", STATELESS)
            return
        # Before they are clipped: else their lengths would not be seen.
        scale = one.lengths[left].clamp_min(max(one.norm, 1e-30))
        shares = (one.rows[left] - other.rows[right]).abs().amax(1) / scale
        if len(shares) and not float(shares.max()) <= OTHERS:
            what = f"other examples' gradients move by {float(shares.max()):.2g} of themselves"
            self.find(_where(path), what, PER_EXAMPLE)

    def _compare_folded(self, where: str, alone: Noised, together: Noised) -> None:
        gap = float((alone.total - together.total).abs().max())
        if alone.shape != together.shape or gap > FOLDED * max(alone.norm, 1e-6):
            what = f"the sum of a client trained in a group is another one, by {gap:.2g}"
            self.find(where, what, "set training.fold=off")

    # -- between processes --------------------------------------------------------------------

    def save(self, folder: File) -> None:
        """Write it to a folder."""
        tensors: dict[str, Tensor] = {}
        noised: list[Any] = []
        said: list[Any] = []
        for path, releases in self.noised.items():
            for found in releases:
                for name in TENSORS:
                    tensors[f"{len(noised)}.{name}"] = getattr(found, name).clone()
                rest = [found.shape, found.deviation]
                noised.append([path, *rest, found.norm, found.rate, found.excess])
        for k, answer in enumerate(self.said):
            answer.parts.save(folder / f"said-{k}.safetensors")
            said.append([answer.kind, answer.server_round, answer.client, answer.words])
        save_file(tensors, folder / "noised.safetensors")
        (folder / "transcript.json").write_text(
            json.dumps(
                {
                    "noised": noised,
                    "said": said,
                    "findings": self.findings,
                    "state": dict(self.state),
                }
            )
        )

    @classmethod
    def load(cls, folder: File) -> Transcript:
        """Read what ``save`` wrote."""
        found, tensors = cls(), load_file(folder / "noised.safetensors")
        content = json.loads((folder / "transcript.json").read_text())
        for k, (path, shape, deviation, *rest) in enumerate(content["noised"]):
            kept = [tensors[f"{k}.{name}"] for name in TENSORS]
            values = [tuple(shape), deviation, *kept, *rest]
            found.noised.setdefault(tuple(path), []).append(Noised._make(values))
        for k, (kind, server_round, client, words) in enumerate(content["said"]):
            parts = Parts.load(folder / f"said-{k}.safetensors")
            found.said.append(Said(kind, server_round, client, parts, words))
        found.state = content["state"]
        found.findings = [Finding(*finding) for finding in content["findings"]]
        return found


def difference(one: Said, other: Said, tolerance: float) -> str | None:
    """What of an answer moved, and by how much; None where nothing did.

    Args:
        tolerance: by how much a value may differ, of the largest; 0 for not in a bit.
    """
    if (one.kind, one.server_round, one.client) != (other.kind, other.server_round, other.client):
        return f"{one.where} becomes {other.where}"
    if one.parts.layouts != other.parts.layouts:
        return f"what is sent changes from {_described(one.parts)} to {_described(other.parts)}"
    for name, part in one.parts.items():
        first, second = part.vector, other.parts[name].vector
        if torch.equal(first.view(torch.uint8), second.view(torch.uint8)):
            continue
        first, second = first.float(), second.float()
        gap = (first - second).abs()
        gap = torch.where(first.isfinite() & second.isfinite(), gap, torch.inf)
        if tolerance == 0 or not float(gap.max()) <= tolerance * float(first.abs().max()):
            count = int((gap > 0).sum())
            return f"part {name!r} moves by {float(gap.max()):.2g}, in {count} of {len(gap)} values"
    return _changed("", one.words, other.words)


def _changed(name: str, one: Any, other: Any) -> str | None:
    """The first value in two JSON values that is another one, by its name."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            inner = f"{name}.{key}" if name else str(key)
            if (found := _changed(inner, one.get(key), other.get(key))) is not None:
                return found
        return None
    before, after = json.dumps(one), json.dumps(other)  # in which NaN is NaN
    return None if before == after else f"{name} changes from {before} to {after}"


def _described(parts: Parts) -> str:
    shapes = [f"{name} ({part.layout.size} {part.layout.dtype})" for name, part in parts.items()]
    return ", ".join(shapes).replace("torch.", "") or "nothing"


def unpaid(transcript: Transcript, charged: Mapping[str, Sequence[Release]], bound: float) -> None:
    """Note the releases that the ledgers do not cover.

    Args:
        charged: by client what its ledger holds.
        bound: to which gradients are clipped; what an example adds to counts is bounded by 1.
    """
    left = {client: {r: r.steps for r in releases} for client, releases in charged.items()}
    for path, releases in transcript.noised.items():
        account = left.get(str(path[1]), {})
        for found in releases:
            fits = [r for r, steps in account.items() if steps > 0 and covers(r, found, bound)]
            if not fits:
                what = f"a release with noise of {found.deviation:.4g} is not in the ledger"
                transcript.find(_where(path), what, "declare it in phases() or releases_counts")
                continue
            account[max(fits, key=lambda r: r.mechanism.sigma)] -= 1


def covers(charged: Release, found: Noised, bound: float) -> bool:
    """Whether a release in the ledger pays for a noised sum."""
    sigma, rate = charged.mechanism.sigma, charged.mechanism.rate
    return found.rate <= rate and any(
        found.norm <= limit * (1 + SUMS) and found.deviation >= sigma * limit * (1 - 1e-6)
        for limit in (bound, 1.0)
    )


def _where(path: Path) -> str:
    server_round, client, purpose = (*path, "", "", "")[:3]
    return f"{str(purpose)!r} of client {client} in round {server_round}"
