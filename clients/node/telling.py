"""What a client tells of itself beside its updates: to a poll, and to a method's own messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clients.node.host import PERSONAL, ClientHost
from clients.training.account import POLL
from clients.training.reporting import told
from fedpers.context import NOTHING, Context, Said
from fedpers.errors import ClientError
from fedpers.parts import Parts


def poll(
    host: ClientHost,
    client: str,
    server_round: int,
    broadcast: Parts,
    said: Said = NOTHING,
) -> dict[str, float]:
    """What a client tells before a round, by name: the method's ``polls``; nothing of it is kept.

    A private client pays for each poll. Asked again the same in a round it says the same, and pays
    no more.

    Args:
        said: see ``Context``.

    Returns:
        A number for each of ``polls``; none of a client without examples, where nobody minds that
        it has none.

    Raises:
        BudgetSpent: it would exceed the client's budget.
        ClientError: other numbers than declared, or one that is not finite.
    """
    store, account, algorithm = host.store(client), host.account(client), host.algorithm
    context = Context(client, server_round, said)
    asked = [host.run, server_round, broadcast.digest(), dict(context.said)]
    known = {} if account is None else store.load_json(POLL)
    if known.get("to") == asked:
        return dict(known["told"])
    if account is not None:
        account.charge_poll()
    trainer = host.trainer(client, server_round, account=account)
    if account is not None:
        account.count_examples(len(trainer.examples), trainer.release_counts)
    working = algorithm.receive(broadcast, store.load_before(PERSONAL, server_round), context)
    found = told(POLL, algorithm.polls, algorithm.poll, working, trainer)
    if account is not None:
        store.save_json(POLL, {"to": asked, "told": found})
    return found


def ask(
    host: ClientHost,
    kind: str,
    client: str,
    server_round: int,
    broadcast: Parts,
    body: Mapping[str, Any],
) -> Mapping[str, Any]:
    """A client's answer to a message of the method's own; nothing of it is kept.

    Args:
        kind: one of the method's ``messages``.
        server_round: the last that was trained.
        broadcast: the parts that came with the message; none where none came.
        body: what this client is asked.

    Raises:
        ClientError: the method has no such message, or the run is private, in which no noise would
            cover the answer.
    """
    algorithm = host.algorithm
    if host.config.privacy.enabled or kind not in algorithm.messages:
        takes = ", ".join(algorithm.messages) or "none"
        takes = "none with privacy" if host.config.privacy.enabled else takes
        raise ClientError(f"message: got {kind!r} of the method, takes {takes}")
    working = host.store(client).load_before(PERSONAL, server_round + 1)
    if broadcast:
        working = algorithm.receive(broadcast, working, Context(client, server_round))
    return algorithm.answer(kind, working, body, host.trainer(client, server_round))
