"""Who hosts whom: the clients behind each Flower node."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedpers.channels.wire import Answers
from fedpers.config import Config
from fedpers.errors import FedpersError, RunError
from fedpers.failures import meaning
from strategies.claims import Claims, Registered, claims_of
from strategies.exchange import collect, push, receive
from strategies.replies import shown

log = logging.getLogger("fedpers")

KIND = "query.roster"
JOIN = 30.0  # seconds that others wait for a new node to say whom it hosts
AGAIN = 120.0  # seconds after which a node that has not said so is asked again
LOOK = 0.1  # seconds between two looks
TELL = 5.0  # seconds of waiting after which it is said for whom


class Roster:
    """The clients known, by the node that hosts them.

    Asks every new node. A node that went away takes its clients with it; they come back with it,
    or under a new node.

    Args:
        strangers: nodes are devices: how many there are, and whether the run can go on, none of
            them says.
        claims: whom each node may speak for.
    """

    def __init__(self, *, strangers: bool = False, claims: Claims | None = None) -> None:
        self.strangers, self.claims = strangers, claims or Claims(devices=strangers)
        self._nodes: dict[int, Registered] = {}  # those that are there
        self.base: RecordDict | None = None  # the enquiry, with what devices need of the model
        self.hosts: dict[int, list[str]] = {}
        self.held_out: set[str] = set()
        self.scored: str | None = None
        self.refusal: str | None = None
        self.said: dict[int, Mapping[str, Any]] = {}  # by node, of its half of the channel
        self.admits: Callable[[Mapping[str, Any]], str | None] = lambda said: None
        self._met: set[str] = set()
        self._refused: set[int] = set()
        self._claimed_twice: set[int] = set()
        self._open: dict[str, Message] = {}  # enquiries without an answer, by message
        self._first: dict[int, float] = {}  # when a node was first asked, while it is there
        self._last: dict[int, float] = {}
        self._given_base: set[int] = set()
        self._named: set[int] = set()  # in the log, as silent
        self._told = ""  # of the waiting

    @classmethod
    def of(cls, config: Config) -> Roster:
        """The roster of a run under these settings.

        Raises:
            ConfigError: see ``claims_of``.
        """
        strangers = config.data.partition.name == "devices"
        return cls(strangers=strangers, claims=claims_of(config))

    @property
    def clients(self) -> list[str]:
        """The clients that may take part, of the nodes that are there, in a stable order."""
        return [client for client in self._all() if client not in self.held_out]

    @property
    def newcomers(self) -> list[str]:
        """The clients that are held out of the training."""
        return [client for client in self._all() if client in self.held_out]

    @property
    def absent(self) -> list[str]:
        """The clients that could take part before, and whose node left."""
        gone = self._met - set(self._all()) - self.held_out
        return sorted(gone, key=natural_order)

    def by_node(self, clients: Iterable[str]) -> dict[int, list[str]]:
        """The nodes that host any of ``clients``, each with those of them it hosts."""
        wanted = set(clients)
        found = {n: [c for c in hosted if c in wanted] for n, hosted in self.hosts.items()}
        return {node: hosted for node, hosted in found.items() if hosted}

    def wait(self, grid: Grid, content: RecordDict, *, least: int, timeout: float) -> None:
        """Wait until the nodes expected are there: in a simulation all of them, else enough nodes
        for ``least`` clients, and any other that is there and answers soon.

        Raises:
            FedpersError: a node refuses the run as configured; its line is passed on.
            RunError: too few after ``timeout`` seconds.
        """
        began, expected = time.monotonic(), 1
        deadline = began + timeout
        while True:
            expected = max(expected, self.refresh(grid, content, timeout))
            hopeless = time.monotonic() >= min(deadline, began + JOIN) and not self.hosts
            if self.refusal is not None and (hopeless or not self.strangers):
                raise FedpersError(self.refusal)
            if len(self.hosts) >= expected and self._enough(least, timeout):
                return
            if time.monotonic() >= deadline:
                raise RunError(
                    f"nodes: got {len(self.hosts)} with {len(self.clients)} clients within "
                    f"{timeout:g} s, takes {expected} with at least {least} clients"
                )
            self._tell(began, least)
            time.sleep(min(LOOK, timeout))

    def gather(self, grid: Grid, content: RecordDict, *, least: int, timeout: float) -> None:
        """Before a further round: wait for clients that are away while fewer than ``least`` are
        there, at most ``timeout`` seconds, and a little for a new node."""
        began = time.monotonic()
        self.refresh(grid, content, timeout)
        while not self._enough(least, timeout) and time.monotonic() < began + timeout:
            self._tell(began, least)
            time.sleep(min(LOOK, timeout))
            self.refresh(grid, content, timeout)

    def _tell(self, began: float, least: int) -> None:
        """Say for whom a run waits, when it has waited for a while, and whenever that changes."""
        there = len(self.clients)
        if there >= least or time.monotonic() - began < TELL:
            return
        away = f"; away: {', '.join(self.absent)}" if self.absent else ""
        line = f"waiting for clients: {there} are there, strategy.min_clients takes {least}{away}"
        if line != self._told:
            self._told = line
            log.info(line)

    def _enough(self, least: int, timeout: float) -> bool:
        wait, now = min(timeout, JOIN), time.monotonic()
        asked = {message.metadata.dst_node_id for message in self._open.values()}
        joining = any(now - self._first[node] < wait for node in asked)
        return len(self.clients) >= least and not joining

    def refresh(self, grid: Grid, content: RecordDict, timeout: float) -> int:
        """Ask nodes not yet known for their clients, take up the answers that have come, forget
        nodes that left. Waits for nobody.

        A node that cannot run the method is not asked again while it is there, nor is one that
        claims another node's client, until some node leaves; ``refusal`` is the first's line. Once
        the run has begun it costs nobody else.

        Returns:
            How many nodes the answering nodes say there are (1 where they do not know).
        """
        self._nodes = {node.node_id: node for node in grid.get_nodes()}
        self._forget((set(self.hosts) | set(self._first)) - set(self._nodes))
        self._ask(grid, self._due(set(self._nodes), timeout), content)
        expected, lacking = 1, list[int]()
        while True:
            answers = self._answers(grid)
            for name, reason in answers.failures.items():
                log.warning("node %s does not say whom it hosts: %s", name, reason)
            lacking.clear()
            for node, body in answers.bodies.items():
                if "needs" in body and node not in self._given_base and self.base is not None:
                    lacking.append(node)
                    continue
                try:
                    expected = max(expected, self._take(node, body))
                except Exception as error:  # whatever a stranger's words lead to
                    reason = shown(repr(error))
                    log.error("node %s refused: its answer cannot be read (%s)", node, reason)
                    self._refused.add(node)
            if not lacking:
                break
            assert self.base is not None
            self._given_base |= set(lacking)
            for node in lacking:  # it has answered; now it has something to store
                self._first.pop(node, None)
            self._ask(grid, lacking, self.base)
        self._name_silent(timeout)
        return expected

    def _forget(self, gone: set[int]) -> None:
        for node in sorted(gone):
            if node in self.hosts:
                log.warning("node %s left with clients %s", node, ", ".join(self.hosts.pop(node)))
                self._claimed_twice.clear()  # the client that they claim may be free now
            for known in (self._first, self._last):
                known.pop(node, None)
            # Who comes back may have been mended.
            for nodes in (self._given_base, self._named, self._refused, self._claimed_twice):
                nodes.discard(node)
        lost = [k for k, message in self._open.items() if message.metadata.dst_node_id in gone]
        for message_id in lost:
            self._open.pop(message_id)

    def _due(self, present: set[int], timeout: float) -> list[int]:
        """The nodes to ask: new ones, and those that have long been silent."""
        unknown = present - set(self.hosts) - self._refused - self._claimed_twice
        ago, never = time.monotonic() - min(timeout, AGAIN), float("-inf")
        return sorted(node for node in unknown if self._last.get(node, never) <= ago)

    def _ask(self, grid: Grid, nodes: Sequence[int], content: RecordDict) -> None:
        messages = [Message(content, dst_node_id=n, message_type=KIND) for n in nodes]
        self._open |= push(grid, messages)
        now = time.monotonic()
        self._first = dict.fromkeys(nodes, now) | self._first
        self._last |= dict.fromkeys(nodes, now)

    def _answers(self, grid: Grid) -> Answers:
        """The answers that are there by now; a node's only one, if it was asked twice."""
        replies = receive(grid, self._open, 0)
        came = {reply.metadata.src_node_id: reply for reply in replies}
        for node in came:
            self._last.pop(node, None)
        for message_id, message in list(self._open.items()):
            if message.metadata.dst_node_id in came:
                self._open.pop(message_id)
        answers = collect(came.values(), {node: [str(node)] for node in came})
        for node, reply in came.items():
            if str(node) in answers.failures and not reply.has_error():
                reason = answers.failures.pop(str(node))
                log.error("node %s refused: its answer cannot be read (%s)", node, reason)
                self._refused.add(node)
        return answers

    def _name_silent(self, timeout: float) -> None:
        wait, now = min(timeout, JOIN), time.monotonic()
        asked = {message.metadata.dst_node_id for message in self._open.values()}
        for node in sorted(asked - self._named):
            if now - self._first[node] >= wait:
                self._named.add(node)
                reason = f"no answer within {wait:g} s"
                log.warning("node %s does not say whom it hosts: %s", node, reason)

    def _take(self, node: int, body: Mapping[str, Any]) -> int:
        """Note what a node says; how many nodes it says there are."""
        if "needs" in body:
            log.error("node %s lacks %s, and did not take it", node, body["needs"])
            self._refused.add(node)
            return 1
        if "refused" in body:
            reason = meaning(body["refused"])
            self.refusal = self.refusal or reason
            log.error("node %s cannot run this: %s", node, reason)
            self._refused.add(node)
            return 1
        claimed = list(dict.fromkeys(body["clients"]))
        if (why := self.claims.refused(self._nodes[node], claimed)) is not None:
            log.error("node %s refused: %s", node, why)
            self._refused.add(node)
            return 1
        twice = sorted(set(claimed) & set(self._all()), key=natural_order)
        if twice:
            # Taking it would let one device overwrite another's place in the run.
            log.error("node %s refused: client %s is hosted by another node", node, twice[0])
            self._claimed_twice.add(node)
            return 1
        said = body.get("channel")
        if isinstance(said, Mapping):
            if (why := self.admits(said)) is not None:
                log.error("node %s refused: %s", node, why)
                self._refused.add(node)
                return 1
            self.said[node] = said
        held_out = set(body.get("held_out", ())) & set(claimed)
        self.scored, nodes = body["scored"], body["nodes"]
        self.hosts[node] = claimed
        self._met |= set(claimed)
        self.held_out |= held_out
        return 1 if self.strangers else int(nodes)

    def _all(self) -> list[str]:
        return sorted((c for hosted in self.hosts.values() for c in hosted), key=natural_order)


def natural_order(client: str) -> tuple[int, int, str]:
    """Sorts "2" before "10", and numbers before names."""
    return (0, int(client), client) if client.isdecimal() else (1, 0, client)
