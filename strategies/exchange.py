"""Messages between the server and the nodes, and their answers sorted by client."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fedpers.channels.wire import Answers
from fedpers.errors import ClientError, RunError
from fedpers.evaluation import ClientResult
from fedpers.failures import meaning
from fedpers.progress import Progress
from fedpers.records import BEYOND, Row, unpack
from fedpers.stats import Stat
from fedpers.stats import readable as as_declared
from fedpers.tasks.base import Tally
from strategies.replies import bounded, shown

log = logging.getLogger("fedpers")

# Seconds between two looks for answers: a twentieth of the time that was waited, but within these.
SHARE, FIRST_WAIT, LONGEST_WAIT = 0.05, 0.002, 0.2
NO_ANSWER = 1000  # an error code of ours, beyond Flower's
AT_ONCE = 64  # messages whose answers are looked for at a time; more as long as few are there
NOTHING = "the node sent no update for it, or no report that can be read"


def send_and_receive(
    grid: Grid, messages: Sequence[Message], timeout: float, what: str = "the nodes"
) -> Iterator[Message]:
    """Push messages and yield the answers as they come: one reply a message, from the node it went
    to. A node is given its next message when its last one is answered and has been taken up.

    A message not answered within ``timeout`` seconds of waiting is given an error reply that says
    so, at the end.

    Args:
        what: is waited for, in words, for who watches the log.
    """
    later: dict[int, deque[Message]] = defaultdict(deque)
    for message in messages:
        later[message.metadata.dst_node_id].append(message)
    pending = push(grid, [queue.popleft() for queue in later.values()])
    progress = Progress(what, len(messages), "answers")
    for reply in receive(grid, pending, timeout, progress):
        queue = later[reply.metadata.src_node_id]
        yield reply
        del reply  # it may be large, and the node is at work on the next one
        if queue:
            pending |= push(grid, [queue.popleft()])
    silent = Error(code=NO_ANSWER, reason=f"no answer within {timeout:g} s")
    for message in [*pending.values(), *(message for queue in later.values() for message in queue)]:
        yield Message(silent, reply_to=message)


def push(grid: Grid, messages: Sequence[Message]) -> dict[str, Message]:
    """Push messages; by their ids, as ``receive`` takes them.

    One at a time: a node may let go of a message before all of it is there, and then its own is
    lost, and no other.
    """
    for message in messages:
        try:
            grid.push_messages([message])
        except ObjectPushError:
            node = message.metadata.dst_node_id
            log.warning("node %s let go of a message before it was there", node)
    return {message.metadata.message_id: message for message in messages}


def receive(
    grid: Grid, pending: dict[str, Message], timeout: float, progress: Progress | None = None
) -> Iterator[Message]:
    """Yield answers to ``pending``, out of which the messages answered are taken, and to what is
    added to it meanwhile.

    Looks often at first and less often later: an answer in a simulation takes milliseconds, one
    from a device seconds. What answers no message in ``pending`` is dropped: a reply that came
    twice, or to an earlier message, or from a node that was not asked. A reply's group is that of
    the message that it answers, whatever the node says.
    """
    since, window, answered = time.monotonic(), AT_ONCE, 0
    deadline = since + timeout
    while pending:
        ids, some = deque(pending), False
        while ids:
            looked = [ids.popleft() for _ in range(min(window, len(ids)))]
            came = deque(grid.pull_messages(looked))
            # So that few answers of many nodes are found by one look, and many come in pieces.
            few = 2 * len(came) < AT_ONCE
            window = min(2 * window, max(AT_ONCE, len(pending))) if few else AT_ONCE
            while came:
                reply = came.popleft()
                message = pending.get(reply.metadata.reply_to_message_id)
                if message is None:
                    continue
                if reply.has_error():
                    # The SuperLink answers for a dead node under its own id: put the node's there.
                    reply = Message(reply.error, reply_to=message)
                elif reply.metadata.src_node_id != message.metadata.dst_node_id:
                    continue
                pending.pop(message.metadata.message_id)
                reply.metadata.group_id = message.metadata.group_id
                some, taken, answered = True, time.monotonic(), answered + 1
                yield reply
                del reply
                deadline += time.monotonic() - taken  # not the nodes' time
        if progress is not None:
            progress.at(answered)
        now = time.monotonic()
        if not pending or now >= deadline:
            break
        if some:
            since = now
        else:
            time.sleep(min(max(FIRST_WAIT, SHARE * (now - since)), LONGEST_WAIT))


def node_of(reply: Message) -> int:
    """The node that answers."""
    return reply.metadata.src_node_id


def group_of(reply: Message) -> str:
    """The group of the message that is answered, see ``receive``."""
    return reply.metadata.group_id


def collect(
    replies: Iterable[Message],
    asked: Mapping[Any, Sequence[str]],
    key: Callable[[Message], int | str] = node_of,
) -> Answers:
    """Sort the nodes' replies by client.

    A client, or a node with all its clients, that failed is named in ``failures``; the others'
    results count.

    Args:
        replies: one for each message sent.
        asked: the clients that each message was about, by node; or by what ``key`` says.
        key: of a reply, which of ``asked`` it is about.

    Raises:
        RunError: the simulation itself broke down, so that every later message would fail too.
    """
    answers = Answers()
    for came in read_each(replies, asked, key):
        answers.merge(came)
    answers.complete = time.perf_counter()
    return answers


def read_each(
    replies: Iterable[Message],
    asked: Mapping[Any, Sequence[str]],
    key: Callable[[Message], int | str] = node_of,
) -> Iterator[Answers]:
    """``collect`` for each reply as it comes, which is not kept."""
    return map(partial(_read, asked=asked, key=key), replies)


def _read(
    reply: Message,
    asked: Mapping[Any, Sequence[str]],
    key: Callable[[Message], int | str],
) -> Answers:
    if key(reply) not in asked:
        return Answers()
    clients = asked[key(reply)]
    try:
        rows, body = read_reply(reply, clients)
        failed = {client: meaning(why) for client, why in body.get("failures", {}).items()}
        done = [client for client in clients if client not in failed]
        if rows and len(rows) != len(done):
            raise ClientError(f"node sent {len(rows)} results for {len(done)} clients")
    except RunError:
        raise
    except Exception as error:  # whatever a stranger's bytes lead to, it is that node's failure
        log.debug("a reply that cannot be read", exc_info=error)
        return Answers(failures=dict.fromkeys(clients, shown(str(error))))
    return Answers(
        rows=dict(zip(done, rows, strict=False)),  # no rows: none were asked for
        bodies={key(reply): body},
        failures={client: failed[client] for client in clients if client in failed},
        nbytes=sum(row.nbytes for row in rows),
        encrypt=body.get("encrypt", 0.0),
        decrypt=body.get("decrypt", 0.0),
    )


def reports_of(
    answers: Answers, asked: Mapping[Any, Sequence[str]], stats: Sequence[Stat] = ()
) -> dict[str, Mapping[str, Any]]:
    """What each node says of the training of the clients asked about, as far as it can be read.

    Args:
        stats: what a client reports for the method, in ``method``; one without examples need not.
    """
    reports = {}
    for key, body in answers.bodies.items():
        given = body.get("reports", {})
        for client in asked[key]:
            report = given.get(client)
            if report is not None and of_method(report, stats):
                reports[client] = report
    return reports


def told_of(
    answers: Answers, asked: Mapping[Any, Sequence[str]], stats: Sequence[Stat]
) -> dict[str, Mapping[str, float]]:
    """What clients said to a poll, as far as it is what was declared."""
    found = {}
    for key, body in answers.bodies.items():
        given = body.get("told")
        for client in asked[key]:
            told = given.get(client) if isinstance(given, Mapping) else None
            if told and as_declared(told, stats):
                found[client] = told
    return found


def results_of(
    answers: Answers, asked: Mapping[Any, Sequence[str]], tally: type[Tally]
) -> tuple[dict[str, ClientResult], dict[str, str]]:
    """The clients' evaluations, and why some are missing. A node that holds results back, as they
    are releases, is missing nothing.

    Args:
        tally: of the run's task.
    """
    found: dict[str, ClientResult] = {}
    missing: dict[str, str] = {}
    for key, body in answers.bodies.items():
        reason, given = "the node sent no result for it", dict[str, ClientResult]()
        results = body.get("results", [])
        for result in results if isinstance(results, list) else [results]:
            try:
                one = ClientResult.from_json(result, tally)
                given[one.client] = one
            except (KeyError, TypeError, ValueError, AttributeError, *BEYOND) as error:
                reason = shown(f"evaluation: cannot be read ({error})")
        if body.get("held_back"):
            continue
        for client in asked[key]:  # a node speaks for the clients asked about only
            if client in given:
                found[client] = given[client]
            else:
                missing[client] = reason
    return found, missing


def unusable(
    answers: Answers,
    asked: Mapping[Any, Sequence[str]],
    reports: Mapping[str, Mapping[str, Any]],
    sent: Mapping[str, Row],
    accept: Callable[[str, Row, Row], str | None] | None,
) -> dict[str, str]:
    """Why clients' updates cannot be used, of the nodes that answered and of the clients that have
    not failed already.

    Args:
        sent: what each client received.
        accept: says of a client, what it received and its update why that cannot be mixed with
            others; None where no update is there yet.
    """
    reasons = {}
    for client in (c for key in answers.bodies for c in asked[key]):
        update = answers.rows.get(client)
        if client in answers.failures:
            continue
        if client not in reports or (update is None and accept is not None):
            reasons[client] = NOTHING
            continue
        reason = None
        if accept is not None and update is not None:
            try:
                reason = accept(client, sent[client], update)
            except Exception as error:  # whatever a library makes of a stranger's bytes
                reason = f"its update cannot be read ({type(error).__name__})"
        if reason is not None:
            reasons[client] = reason
    return reasons


def of_method(report: Mapping[str, Any], stats: Sequence[Stat]) -> bool:
    """Whether a report has the method's own numbers, within their bounds, and no others."""
    told = report.get("method", {})
    return as_declared(told, stats) or (told == {} and not report["examples"])


def spending_of(client: str, report: Any) -> dict[str, Mapping[str, float]]:
    """What a client says that it has spent of its budget, if it says so in numbers."""
    names = ("epsilon", "delta", "sigma", "mu")
    if isinstance(report, Mapping) and all(isinstance(report.get(n), float) for n in names):
        return {client: {name: report[name] for name in names}}
    return {}


def read_reply(reply: Message, clients: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    """Rows and body of a reply, bounded.

    Args:
        clients: whom it is about.

    Raises:
        ClientError: the node failed, did not answer, or sent what cannot be read.
        RunError: the simulation itself broke down.
    """
    if not reply.has_error():
        rows, body = unpack(reply.content, most=max(1, len(clients)))
        return rows, bounded(body, clients)
    if reply.error.code == NO_ANSWER:
        raise ClientError(str(reply.error.reason))
    reason = [line.strip() for line in str(reply.error.reason).splitlines() if line.strip()]
    why = meaning(shown(reason[-1])) if reason else "no reason given"
    text = f"node failed (code {reply.error.code}): {why}"
    if reply.error.code == 0 and "ActorDied" in str(reply.error.reason):
        # Flower puts a dead Ray actor back into its pool, where it fails all it is given.
        raise RunError(f"simulation: a worker process died; {text}")
    raise ClientError(text)
