"""Messages between the server and the nodes: one a node, answers sorted by client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Error, Message
from flwr.serverapp import Grid

from fedpers.errors import ClientError, RunError
from fedpers.evaluation import ClientResult
from fedpers.evaluation.counts import MOST
from fedpers.records import Row, unpack

FIRST_WAIT, LONGEST_WAIT = 0.002, 0.2  # seconds between two looks for answers
NO_ANSWER = 1000  # an error code of ours, beyond Flower's


def send_and_receive(grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
    """Push messages and wait for the answers: one reply a message, from the node it went to.

    A message not answered within ``timeout`` seconds is given an error reply that says so.
    """
    pending = push(grid, messages)
    replies = receive(grid, pending, timeout)
    silent = Error(code=NO_ANSWER, reason=f"no answer within {timeout:g} s")
    return replies + [Message(silent, reply_to=message) for message in pending.values()]


def push(grid: Grid, messages: Sequence[Message]) -> dict[str, Message]:
    """Push messages; by their ids, as ``receive`` takes them."""
    grid.push_messages(messages)
    return {message.metadata.message_id: message for message in messages}


def receive(grid: Grid, pending: dict[str, Message], timeout: float) -> list[Message]:
    """Wait for answers to ``pending``, out of which the messages answered are taken.

    Looks often at first and less often later: an answer in a simulation takes milliseconds, one
    from a device seconds. What answers no message in ``pending`` is dropped: a reply that came
    twice, or to an earlier message.
    """
    replies: list[Message] = []
    deadline, wait = time.monotonic() + timeout, FIRST_WAIT
    while pending:
        came = list(grid.pull_messages(list(pending)))
        for reply in came:
            message = pending.pop(reply.metadata.reply_to_message_id, None)
            if message is None:
                continue
            # The SuperLink answers for a dead node under its own id: put the node's in its place.
            replies.append(Message(reply.error, reply_to=message) if reply.has_error() else reply)
        if not pending or time.monotonic() >= deadline:
            break
        wait = FIRST_WAIT if came else min(1.3 * wait, LONGEST_WAIT)
        time.sleep(wait)
    return replies


@dataclass
class Answers:
    """What the nodes answered to one batch of messages.

    Attributes:
        rows: the parts that came, by client.
        bodies: the JSON body of each node that answered.
        failures: for each client without a result, the reason.
        seconds: the longest work time of any node.
        nbytes: bytes of the parts received.
        encrypt, decrypt: the longest time that any node encrypted and decrypted.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    bodies: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    nbytes: int = 0
    encrypt: float = 0.0
    decrypt: float = 0.0

    def add(self, other: Answers) -> None:
        """Add the bytes and times of a second batch of messages of the same round."""
        self.nbytes += other.nbytes
        self.seconds += other.seconds
        self.encrypt += other.encrypt
        self.decrypt += other.decrypt


def collect(replies: Iterable[Message], asked: Mapping[int, Sequence[str]]) -> Answers:
    """Sort the nodes' replies by client.

    A client, or a node with all its clients, that failed is named in ``failures``; the others'
    results count.

    Args:
        replies: one for each node asked.
        asked: by node, the clients it was asked about.

    Raises:
        RunError: the simulation itself broke down, so that every later message would fail too.
    """
    answers = Answers()
    for reply in replies:
        node = reply.metadata.src_node_id
        clients = asked.get(node, ())
        try:
            rows, body = read_reply(reply)
            failed = {str(c): str(why) for c, why in dict(body.get("failures", {})).items()}
            done = [client for client in clients if client not in failed]
            seconds = float(body.get("seconds", 0.0))
            encrypt, decrypt = (float(body.get(name, 0.0)) for name in ("encrypt", "decrypt"))
            if rows and len(rows) != len(done):
                raise ClientError(f"node sent {len(rows)} results for {len(done)} clients")
        except (ClientError, AttributeError, TypeError, ValueError) as error:
            answers.failures.update(dict.fromkeys(clients, str(error)))
            continue
        answers.bodies[node] = body
        answers.failures.update({client: failed[client] for client in clients if client in failed})
        answers.rows.update(zip(done, rows, strict=False))  # no rows: none were asked for
        answers.seconds = max(answers.seconds, seconds)
        answers.encrypt = max(answers.encrypt, encrypt)
        answers.decrypt = max(answers.decrypt, decrypt)
        answers.nbytes += sum(row.nbytes for row in rows)
    return answers


def reports_of(
    answers: Answers, asked: Mapping[int, Sequence[str]]
) -> dict[str, Mapping[str, Any]]:
    """What each node says of its own clients' training, as far as that can be read."""
    reports = {}
    for node, body in answers.bodies.items():
        given = body.get("reports")
        if not isinstance(given, Mapping):
            continue
        for client in asked[node]:
            report = given.get(client)
            if isinstance(report, Mapping) and readable(report):
                reports[client] = report
    return reports


def results_of(
    answers: Answers, asked: Mapping[int, Sequence[str]]
) -> tuple[dict[str, ClientResult], dict[str, str]]:
    """The clients' evaluations, and why some are missing. A node that holds results back, as they
    are releases, is missing nothing."""
    found: dict[str, ClientResult] = {}
    missing: dict[str, str] = {}
    for node, body in answers.bodies.items():
        reason = "the node sent no result for it"
        try:
            results = [ClientResult.from_json(result) for result in body["results"]]
        except (KeyError, TypeError, ValueError) as error:
            results, reason = [], f"evaluation: cannot be read ({error})"
        given = {result.client: result for result in results}
        if body.get("held_back"):
            continue
        for client in asked[node]:  # a node speaks for its own clients only
            if client in given:
                found[client] = given[client]
            else:
                missing[client] = reason
    return found, missing


def unusable(
    answers: Answers,
    asked: Mapping[int, Sequence[str]],
    reports: Mapping[str, Mapping[str, Any]],
    refused: Callable[[str, Row], str | None] | None,
) -> dict[str, str]:
    """Why clients' updates cannot be used, of those that have not failed already.

    Args:
        refused: says of a client's update why it cannot be mixed with others.
    """
    reasons = {}
    for client in (c for clients in asked.values() for c in clients):
        update = answers.rows.get(client)
        if client in answers.failures:
            continue
        if client not in reports or (update is None and refused is not None):
            reasons[client] = "the node sent no update for it, or no report that can be read"
        elif refused and update is not None and (reason := refused(client, update)) is not None:
            reasons[client] = reason
    return reasons


def readable(report: Mapping[str, Any]) -> bool:
    """Whether a client's report of its training says what it has to, in numbers."""
    examples, loss = report.get("examples"), report.get("loss")
    counted = type(examples) is int and 0 <= examples <= MOST
    return counted and (loss is None or isinstance(loss, int | float))


def spending_of(client: str, report: Any) -> dict[str, Mapping[str, float]]:
    """What a client says that it has spent of its budget, if it says so in numbers."""
    names = ("epsilon", "delta", "sigma")
    if isinstance(report, Mapping) and all(isinstance(report.get(n), float) for n in names):
        return {client: {name: report[name] for name in names}}
    return {}


def read_reply(reply: Message) -> tuple[list[Row], dict[str, Any]]:
    """Rows and body of a reply.

    Raises:
        ClientError: the node failed, did not answer, or sent what cannot be read.
        RunError: the simulation itself broke down.
    """
    if not reply.has_error():
        return unpack(reply.content)
    if reply.error.code == NO_ANSWER:
        raise ClientError(str(reply.error.reason))
    reason = [line.strip() for line in str(reply.error.reason).splitlines() if line.strip()]
    text = f"node failed (code {reply.error.code}): {reason[-1] if reason else 'no reason given'}"
    if reply.error.code == 0 and "ActorDied" in str(reply.error.reason):
        # Flower puts a dead Ray actor back into its pool, where it fails all it is given.
        raise RunError(f"simulation: a worker process died; {text}")
    raise ClientError(text)
