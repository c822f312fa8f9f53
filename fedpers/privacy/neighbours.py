"""Made-up data for the leak test: a few clients' examples, and the same with one replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedpers.config import Config
from fedpers.data.examples import Examples, Signature, Table
from fedpers.data.federated import FederatedData
from fedpers.data.splits import Split

TRAIN, VAL, TEST, PUBLIC = 6, 2, 2, 6
OF_TOKENS = ("text", "language")
"""The kinds of data that are token ids."""
WORDS = 16  # ids of tokens: every vocabulary has so many
FEW_TOKENS = 8  # of a text for a language model
SPREAD = 0.5  # of a class's examples around its typical one
TARGETS = 256  # made up by the task, of which the distinct ones are taken


class MadeUp(FederatedData):
    """Made-up examples as a node has them; what our tasks make up is scaled already."""

    def __init__(
        self, table: Table, public: np.ndarray, splits: Mapping[str, Split], config: Config
    ) -> None:
        super().__init__(table, public, splits, config)
        if type(self.task).__module__.startswith("fedpers."):
            self._examples = table.examples
        *training, newcomer = splits
        self.clients, self.held_out = training, [newcomer]


@dataclass(frozen=True)
class Made:
    """Made-up examples, client after client (training, validation, test), then the public ones.

    Attributes:
        signature: what a model reads.
        targets: the distinct targets there are, [K, ...]; an example's *class* is its place here.
        clients: their ids; the last is a newcomer, who never trains.
        x: [n, ...].
        classes: [n].
        y: [n, ...], of the classes, but where an edit made another.
        train: training examples of each client.
        seed: of what is drawn.
        changed: by client the training example that was replaced; None where it is another split's.
        removed: whether the last training example of those that train is away instead.
    """

    signature: Signature
    targets: Tensor
    clients: Sequence[str]
    x: Tensor
    classes: Tensor
    y: Tensor
    train: int
    seed: int
    changed: Mapping[str, int | None]
    removed: bool = False

    @property
    def own(self) -> int:
        """Examples of each client."""
        return self.train + VAL + TEST

    def federated(self, config: Config) -> FederatedData:
        """As a node has them."""
        rows, own, cuts = np.arange(len(self.x)), self.own, [self.train, self.train + VAL]
        splits = {
            client: Split(*np.split(rows[k * own : (k + 1) * own], cuts))
            for k, client in enumerate(self.clients)
        }
        if self.removed:
            for client in self.clients[:-1]:
                splits[client] = replace(splits[client], train=splits[client].train[:-1])
        table = Table(self.signature.kind, Examples(self.x, self.y))
        return MadeUp(table, rows[len(splits) * own :], splits, config)

    def with_one_replaced(self, edit: Edit, place: int, *, newcomer: bool = False) -> Made:
        """Each client's example at ``place`` (0..own-1) replaced, for those that train or for the
        newcomer."""
        x, y, classes = self.x.clone(), self.y.clone(), self.classes.clone()
        changed, numbers = dict(self.changed), range(len(self.clients))
        for k in numbers[-1:] if newcomer else numbers[:-1]:
            row = k * self.own + place
            x[row], classes[row] = edit(self, row)
            y[row] = self.targets[classes[row]]
            if edit is far_target and y.is_floating_point():
                y[row] = FAR
            changed[self.clients[k]] = place if place < self.train and not newcomer else None
        return replace(self, x=x, y=y, classes=classes, changed=changed)

    def with_one_removed(self) -> Made:
        """Without the last training example of each client that trains: the draws that choose
        samples are then the others' as before."""
        changed = dict.fromkeys(self.clients[:-1], self.train - 1)
        return replace(self, removed=True, changed=changed)

    def draw(self, kind: int, purpose: int) -> Tensor:
        """An input of a class, [...]."""
        return inputs(self.signature, [kind], self.seed * 1000 + purpose, 1.0)[0]

    def after(self, row: int, steps: int) -> int:
        """The class so many steps after that of a row."""
        return (int(self.classes[row]) + steps) % len(self.targets)


Edit = Callable[[Made, int], tuple[Tensor, int]]
"""From the data and a row of it to the input and the class that take the row's place."""
FAR = 1e30


def made_up(
    signature: Signature,
    targets: Tensor,
    clients: Sequence[str],
    *,
    first: int = 0,
    scale: float = 1.0,
    train: int = TRAIN,
    seed: int = 0,
) -> Made:
    """Examples of which each client has two of a class, and the last that trains has one class.

    Args:
        targets: made up by the task, [TARGETS, ...].
        first: the first client's first class; others follow.
        scale: by which inputs are multiplied.
        train: training examples of each client.
    """
    count = train + VAL + TEST
    distinct, classes = torch.unique(targets, dim=0), []
    for k in range(len(clients)):
        start = first + 2 * k
        own = [start + place // 2 % 3 for place in range(count)]
        classes += [start] * count if k == len(clients) - 2 else own
    classes += [first + k for k in range(PUBLIC)]
    kinds = torch.tensor(classes) % len(distinct)
    x = inputs(signature, kinds.tolist(), seed, scale)
    return Made(signature, distinct, tuple(clients), x, kinds, distinct[kinds], train, seed, {})


def inputs(signature: Signature, classes: Sequence[int], seed: int, scale: float) -> Tensor:
    """Inputs of the classes given, [n, ...]: a typical one of each class, and some spread."""
    generator = torch.Generator().manual_seed(seed)
    if signature.kind in OF_TOKENS:
        return texts(signature, classes, generator)
    typical = [
        torch.randn(signature.shape, generator=torch.Generator().manual_seed(kind))
        for kind in classes
    ]
    spread = torch.randn(len(classes), *signature.shape, generator=generator)
    return scale * (torch.stack(typical) + SPREAD * spread)


def texts(signature: Signature, classes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Texts of several lengths, int64 [n, 2 or 3, length]: token ids, then which are there; for a
    language model also which are scored: all but the first."""
    length = signature.shape[-1]
    ids = torch.randint(1, WORDS, (len(classes), length), generator=generator)
    ids[:, 0] = 1 + torch.tensor(classes) % (WORDS - 1)
    used = torch.randint(1, length + 1, (len(classes), 1), generator=generator)
    return with_masks(signature, ids, (torch.arange(length) < used).long())


def with_masks(signature: Signature, ids: Tensor, mask: Tensor) -> Tensor:
    """Ids and mask [..., length] as inputs [..., 2 or 3, length]."""
    scored = mask * (torch.arange(ids.shape[-1]) > 0)
    return torch.stack([ids * mask, mask, scored][: signature.shape[0]], dim=-2)


def shortened(signature: Signature, targets: Tensor) -> tuple[Signature, Tensor]:
    """What a language model reads and is to say, of a few tokens: what leaks of many does of few,
    and much faster. All else as it is."""
    if signature.kind != "language":
        return signature, targets
    length = min(FEW_TOKENS, signature.shape[-1])
    return Signature(signature.kind, (signature.shape[0], length)), targets[:, : length - 1]


def another(made: Made, row: int) -> tuple[Tensor, int]:
    """Another example, of the next class."""
    kind = made.after(row, 1)
    return made.draw(kind, 1 + row), kind


def same_class(made: Made, row: int) -> tuple[Tensor, int]:
    """Another example of the same class."""
    return made.draw(int(made.classes[row]), 2 + row), int(made.classes[row])


def relabelled(made: Made, row: int) -> tuple[Tensor, int]:
    """The same input under another label."""
    return made.x[row], made.after(row, 1)


def repeated(made: Made, row: int) -> tuple[Tensor, int]:
    """An input that the client has already, under another label."""
    return made.x[row + 1], made.after(row, 2)


def absent(made: Made, row: int) -> tuple[Tensor, int]:
    """An example of a class that the client has no other of."""
    start = row - row % made.own
    own = set(made.classes[start : start + made.own].tolist())
    kind = max(set(range(len(made.targets))) - own, default=int(made.classes[row]))
    return made.draw(kind, 3 + row), kind


def far_target(made: Made, row: int) -> tuple[Tensor, int]:
    """The same input; where a target is a number, a far one."""
    return made.x[row], made.after(row, 3)


def beyond(value: float) -> Edit:
    """The example with an input far from all others, all of one sign; of texts the longest there
    can be, or for a value <= 0 the shortest."""

    def edit(made: Made, row: int) -> tuple[Tensor, int]:
        x = made.x[row]
        if made.signature.kind not in OF_TOKENS:
            return x.abs() * value, int(made.classes[row])
        mask = (torch.arange(x.shape[-1]) < (x.shape[-1] if value > 0 else 1)).long()
        ids = torch.full_like(mask, WORDS - 1)
        return with_masks(made.signature, ids, mask), int(made.classes[row])

    return edit


EDITS: Mapping[str, Edit] = {
    "another one": another,
    "another of its class": same_class,
    "another label": relabelled,
    "an input that is there": repeated,
    "a class that was absent": absent,
    "a far target": far_target,
    "zeros": beyond(0.0),
    "a tiny input": beyond(1e-8),
    "an outlier": beyond(1e4),
    "a negative outlier": beyond(-1e4),
    "a far outlier": beyond(FAR),
    "a far negative outlier": beyond(-FAR),
}
"""What may take an example's place, in words."""
