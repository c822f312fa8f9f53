"""Who hosts whom: the clients behind each Flower node."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpers.errors import FedpersError, RunError
from strategies.exchange import Answers, collect, send_and_receive

log = logging.getLogger("fedpers")


class Roster:
    """The clients known, by the node that hosts them.

    Asks every new node once. A node that went away takes its clients with it; they come back
    with it, or under a new node.
    """

    def __init__(self) -> None:
        self.base: RecordDict | None = None  # the enquiry, with what devices need of the model
        self.hosts: dict[int, list[str]] = {}
        self.held_out: set[str] = set()
        self.scored: str | None = None
        self.refusal: str | None = None
        self.keys: dict[int, Mapping[str, Any]] = {}
        self.key_id: str | None = None
        self._refused: set[int] = set()

    @property
    def clients(self) -> list[str]:
        """The clients that may take part, of the nodes that are there, in a stable order."""
        return [client for client in self._all() if client not in self.held_out]

    @property
    def newcomers(self) -> list[str]:
        """The clients that are held out of the training."""
        return [client for client in self._all() if client in self.held_out]

    def by_node(self, clients: Iterable[str]) -> dict[int, list[str]]:
        """The nodes that host any of ``clients``, each with those of them it hosts."""
        wanted = set(clients)
        found = {n: [c for c in hosted if c in wanted] for n, hosted in self.hosts.items()}
        return {node: hosted for node, hosted in found.items() if hosted}

    def wait(self, grid: Grid, content: RecordDict, *, least: int, timeout: float) -> None:
        """Wait until the nodes expected are there: in a simulation all of them, else enough nodes
        for ``least`` clients.

        Raises:
            FedpersError: a node refuses the run as configured; its line is passed on.
            RunError: too few after ``timeout`` seconds.
        """
        deadline, expected = time.monotonic() + timeout, 1
        while True:
            expected = max(expected, self.refresh(grid, content, timeout))
            if self.refusal is not None:
                raise FedpersError(self.refusal)
            if len(self.hosts) >= expected and len(self.clients) >= least:
                return
            if time.monotonic() >= deadline:
                raise RunError(
                    f"nodes: got {len(self.hosts)} with {len(self.clients)} clients within "
                    f"{timeout:g} s, takes {expected} with at least {least} clients"
                )
            time.sleep(0.05)

    def refresh(self, grid: Grid, content: RecordDict, timeout: float) -> int:
        """Ask nodes not yet known for their clients, forget nodes that left.

        A node that cannot run the method, or claims another node's client, is not asked again;
        ``refusal`` is the first's line. Once the run has begun it costs nobody else.

        Returns:
            How many nodes the answering nodes say there are (1 where they do not know).
        """
        present = set(grid.get_node_ids())
        for node in set(self.hosts) - present:
            log.warning("node %s left with clients %s", node, ", ".join(self.hosts.pop(node)))
        new = sorted(present - set(self.hosts) - self._refused)
        answers = self._ask(grid, new, content, timeout)
        lacking = [node for node, body in answers.bodies.items() if "needs" in body]
        if lacking and self.base is not None:
            again = self._ask(grid, lacking, self.base, timeout)
            answers.bodies |= again.bodies
            answers.failures |= again.failures
        for name, reason in answers.failures.items():
            log.warning("node %s does not say whom it hosts: %s", name, reason)
        expected = 1
        for node, body in answers.bodies.items():
            if "needs" in body:
                log.error("node %s lacks %s, and did not take it", node, body["needs"])
                continue
            if "refused" in body:
                self.refusal = self.refusal or str(body["refused"])
                log.error("node %s cannot run this: %s", node, body["refused"])
                self._refused.add(node)
                continue
            claimed = list(dict.fromkeys(str(client) for client in body["clients"]))
            twice = sorted(set(claimed) & set(self._all()), key=natural_order)
            if twice:
                # Taking it would let one device overwrite another's place in the run.
                log.error("node %s refused: client %s is hosted by another node", node, twice[0])
                self._refused.add(node)
                continue
            key = body.get("key")
            if isinstance(key, Mapping):
                if self.key_id is not None and key.get("id") != self.key_id:
                    log.error("node %s refused: key %s, not %s", node, key.get("id"), self.key_id)
                    self._refused.add(node)
                    continue
                self.keys[node] = key
            self.hosts[node] = claimed
            self.held_out |= {str(client) for client in body.get("held_out", ())} & set(claimed)
            self.scored = str(body["scored"])
            expected = max(expected, int(body["nodes"]))
        return expected

    def _ask(
        self, grid: Grid, nodes: Sequence[int], content: RecordDict, timeout: float
    ) -> Answers:
        messages = [Message(content, dst_node_id=n, message_type="query.roster") for n in nodes]
        return collect(send_and_receive(grid, messages, timeout), {n: [str(n)] for n in nodes})

    def _all(self) -> list[str]:
        return sorted((c for hosted in self.hosts.values() for c in hosted), key=natural_order)


def natural_order(client: str) -> tuple[int, int, str]:
    """Sorts "2" before "10", and numbers before names."""
    return (0, int(client), client) if client.isdecimal() else (1, 0, client)
