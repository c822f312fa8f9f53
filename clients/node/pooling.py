"""What a client adds to a sum over all clients, beside the rounds; and what all have in known."""

from __future__ import annotations

from typing import Any

import torch

from clients.node.host import PERSONAL, Answer, ClientHost
from clients.training.trainer import Trainer
from fedpers import moments
from fedpers.context import Context, Said
from fedpers.errors import ClientError
from fedpers.models.whitening import WHITENING, whiten
from fedpers.parts import Part, Parts
from fedpers.pooling import FRAME, MOMENTS, POOLED

LONGEST = 3**0.5  # of a row of moments


def take_known(host: ClientHost, known: Parts) -> None:
    """Take up what all clients have, in the clear: how features are whitened, what the server has
    chosen or estimated of sums."""
    if known.digest() == host.known.digest():
        return
    before, host.known = host.known, known
    new = known.get(WHITENING)
    old = before.get(WHITENING)
    if new is not None and (old is None or not torch.equal(new.vector, old.vector)):
        whiten(host.model, new)
        host.work_on(host.data)


def pool(
    host: ClientHost, client: str, what: str, body: dict[str, Any], broadcast: Parts, said: Said
) -> Answer:
    """The mean of a client's rows as a part, and its report. A private client pays for it once.

    Args:
        what: ``moments``, or one of the method's ``pools``.
        body: of the message: ``round``, its number, and ``of``, the last round that was trained.
        broadcast: what came.

    Raises:
        BudgetSpent: it would exceed the client's budget.
        ClientError: the method has no such sum, or rows that are none.
    """
    number, server_round = int(body["round"]), int(body["of"])
    store, account, algorithm = host.store(client), host.account(client), host.algorithm
    if what not in (known := algorithm.releases().pools):
        raise ClientError(f"pool: got {what!r}, takes {', '.join(known) or 'none'}")
    asked = [host.run, what, number, broadcast.digest(), dict(said)]
    if account is not None and (answer := store.answer_to(asked)):
        return answer
    if account is not None:
        account.charge_pool(what)
    trainer = host.trainer(client, server_round, account=account)
    if account is not None:
        account.count_examples(len(trainer.examples), trainer.release_counts)
    personal = store.load_before(PERSONAL, server_round + 1)
    working = algorithm.receive(broadcast, personal, Context(client, server_round, said))
    if what in (FRAME, MOMENTS):
        rows, bound = of_inputs(host, what, working, trainer), LONGEST
    else:
        rows, bound = algorithm.pool(what, working, trainer)
    n, size = len(rows), int(body["size"])
    if rows.shape != (n, size):
        raise ClientError(f"pool: {what}: got rows of {tuple(rows.shape)}, takes [n, {size}]")
    rows = rows.detach().cpu().float()
    if account is None:
        mean = rows.double().sum(0) / max(1, n)
        mean = mean.nan_to_num(0, 0, 0) if n else mean
        report = {"examples": n if host.channel.counts else 1, "loss": None}
        return _part(mean), report
    mean = trainer.release(what, rows / bound) * bound / max(1, account.examples(n))
    upload = _part(mean)
    paid: dict[str, Any] = {"examples": account.weight, "loss": None, **host.spending(client)}
    store.keep_answer(asked, upload, paid)
    return upload, paid


def of_inputs(host: ClientHost, what: str, working: Parts, trainer: Trainer) -> torch.Tensor:
    """Rows of the moments of what the first trained layer reads, or of the frame for them."""
    x, y = trainer.examples.x, trainer.examples.y.cpu()
    z = (x if host.model.after_stem else host.model.stem(x)).cpu()
    if what == FRAME:
        return moments.frame_rows(z)
    return moments.rows(z, y, host.data.task.outputs, frame_in(working, z.shape[1]))


def frame_in(working: Parts, features: int) -> moments.Frame:
    """The frame that all clients know; the fixed one where they know none."""
    if FRAME not in working:
        return moments.Frame.fixed(features)
    return moments.Frame(working[FRAME]["mean"], working[FRAME]["spread"], False)


def _part(mean: torch.Tensor) -> Parts:
    return Parts({POOLED: Part.of({POOLED: mean.float()})})
