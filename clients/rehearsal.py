"""A method tried on made-up clients before a private run: the leak test, with the real host.

Each world runs in a process of its own, forked from one in which none ran, so that whatever code
may remember in a module or a class is as new in each.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clients.answers import answer
from clients.host import ClientHost
from clients.verdict import packages_of, rehearsed
from fedpers.config import Config
from fedpers.data import FederatedData, Signature
from fedpers.failures import LOG as NOTES
from fedpers.models import PersonalModel, build_model
from fedpers.models.cache import cache_folder
from fedpers.parts import Part, Parts, combine
from fedpers.privacy.hidden import Untouched, moved, state_of, watch
from fedpers.privacy.leaktest import HIDDEN, Finding, Said, Transcript, unpaid
from fedpers.privacy.neighbours import EDITS, TRAIN, VAL, Made, another, made_up

CLIENTS = 4  # of them one is a newcomer
LONG = ("another one", "a far outlier", "a far negative outlier", "an input that is there")
# What is imported late as it takes seconds; once, and before code from outside is looked at.
SLOW = ("torch._dynamo", "clients.noised_optimizer", "peft")
UNPATCHED = "leave the libraries as they are"
ROOM = 2**31  # bytes of memory that must be free to keep transcripts there
LOG = logging.getLogger("fedpers")


class World(NamedTuple):
    """One run on made-up data.

    Attributes:
        edit: what became of one example, in words; empty for the first of a group.
        made: the data.
        rounds: their numbers.
        full: with evaluations, newcomers and derived parts in between.
        folded: whether clients train in groups.
    """

    edit: str
    made: Made
    rounds: Sequence[int]
    full: bool
    folded: bool = False


def worlds(
    config: Config, signature: Signature, targets: Tensor, clients: Sequence[str]
) -> Iterator[list[World]]:
    """Groups of worlds, each the first of its group and those that it is compared with."""
    last = config.rounds
    rounds = sorted({1, min(2, last), min(3, last), (last + 1) // 2, last})
    made = made_up(signature, targets, clients)
    untrained = made.with_one_replaced(another, 0, newcomer=True)
    untrained = untrained.with_one_replaced(another, TRAIN).with_one_replaced(another, TRAIN + VAL)
    group = [World("", made, rounds, True)]
    for place, edit in enumerate(LONG):
        group.append(
            World(f"replaced by {edit}", made.with_one_replaced(EDITS[edit], place), rounds, True)
        )
    group.append(World("replaced that is not trained on", untrained, rounds, True))
    if config.privacy.protects_counts:
        group.append(World("removed", made.with_one_removed(), rounds, True))
    if config.training.fold != "off":
        group.append(World("", made, rounds, True, folded=True))
    yield group
    edits, reach = [*EDITS], 2 * CLIENTS - 1  # classes that one group of worlds shows
    firsts = dict.fromkeys((0, reach, 2 * reach, max(0, len(made.targets) - reach)))
    for k, (first, scale) in enumerate(zip(firsts, (1e3, 1e-3, 1.0, 30.0), strict=False)):
        made = made_up(signature, targets, clients, first=first, scale=scale, seed=1 + k)
        group = [World("", made, rounds[:1], False)]
        for place in range(3):
            edit = edits[(3 * k + place) % len(edits)]
            changed = made.with_one_replaced(EDITS[edit], (k + place) % (TRAIN - 1))
            group.append(World(f"replaced by {edit}", changed, rounds[:1], False))
        yield group


class Rehearsed(ClientHost):
    """A host on made-up data.

    Args:
        given: the data, and a model that no method has extended.
        transcript: that listens.
    """

    def __init__(
        self,
        config: Config,
        algorithm: str,
        server_params: Sequence[str],
        stores: Path,
        given: tuple[FederatedData, PersonalModel],
        transcript: Transcript,
    ) -> None:
        self._given = given
        super().__init__(config, algorithm, server_params, stores, sources=transcript.sources)

    def _load(self, config: Config, *given: Any) -> tuple[FederatedData, PersonalModel]:
        return self._given

    def _admit(self, name: str) -> None:
        self.algorithm.freeze()  # the run's own host has asked the plan


def libraries() -> Untouched:
    """The libraries as they are, all of them imported."""
    for module in SLOW:
        importlib.import_module(module)
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        kind([torch.zeros(1)])  # the first of a kind wraps its class's step
    return Untouched()


@dataclass
class Rehearsal:
    """A method, and what it is tried with.

    Attributes:
        config: the run's settings.
        algorithm, server_params: see ``ClientHost``.
        signature: what the model reads.
        targets: made up by the task, [TARGETS, ...].
        clients: ids of clients of the run; others are made up.
        untouched: of ``libraries``, before code from outside was imported.
        brief: without the many labels, places and sizes that one round is tried with: for our own
            code, which the project's tests try with all of them.
        packages: those that code from outside is in.
        model: before any method extended it.
    """

    config: Config
    algorithm: str
    server_params: Sequence[str]
    signature: Signature
    targets: Tensor
    clients: Sequence[str]
    untouched: Untouched
    brief: bool = False
    packages: list[str] = field(init=False)
    model: PersonalModel = field(init=False)

    def refusal(self) -> Finding | None:
        """What leaves unpaid; None if nothing was found."""
        torch.set_num_threads(1)
        names = [*self.clients[: CLIENTS - 1], *(f"client-{k}" for k in range(CLIENTS))][:CLIENTS]
        self.packages = packages_of(self.config, self.algorithm)
        some = made_up(self.signature, self.targets, names)
        own = rehearsed(self.config)
        self.model = build_model(own, some.federated(own))
        if (name := self.untouched.changed()) is not None:
            return Finding("when it is imported", f"{name} is another", UNPATCHED)
        groups = worlds(self.config, self.signature, self.targets, names)
        for first, *others in islice(groups, 1 if self.brief else None):
            with scratch() as folder:
                if (found := self.run(first, None, folder)) is not None:
                    return found
                before = Transcript.load(folder)
                for world in others:
                    if (found := self.run(world, before, None)) is not None:
                        return found
        return None

    def run(self, world: World, before: Transcript | None, into: Path | None) -> Finding | None:
        """Run a world in a process of its own; the first thing that is found in it.

        Args:
            before: the world to compare with.
            into: a folder to write the transcript to.
        """

        def work() -> list[str] | None:
            transcript = Transcript(before, world.made.changed, folded=world.folded)
            random.seed(0)  # a child's is seeded anew
            LOG.handlers, LOG.propagate = [logging.NullHandler()], False
            with scratch() as folder:
                self._play(world, transcript, folder)
            if into is not None:
                transcript.save(into)
            if not transcript.findings:
                return None
            where, what, cure = transcript.findings[0]
            when = f"with one example {world.edit}, " if world.edit else ""
            return [where, f"{when}{what}", cure]

        found = apart(work)
        return None if found is None else Finding(*found)

    def _play(self, world: World, transcript: Transcript, folder: Path) -> None:
        own = rehearsed(self.config, folded=world.folded)
        given = world.made.federated(own), self.model
        stores = folder / "run" / "state"
        host = Rehearsed(own, self.algorithm, self.server_params, stores, given, transcript)
        accounts = {c: set(vars(found)) for c in host.hosted if (found := host._account(c))}
        done = watch(str(folder), str(cache_folder()))
        states: list[dict[str, str]] = [{}]
        for _ in drive(host, world, transcript):
            if world.full:
                states.append(self._state(host))
            if transcript.before is None:
                charged = {c: host._accounts[c].budget.ledger.releases for c in accounts}
                unpaid(transcript, charged, own.privacy.max_grad_norm)
        transcript.finish(states[-1])
        if done:
            transcript.find("while it trains", done[0], HIDDEN)
        if new := [n for c in accounts for n in set(vars(host._accounts[c])) - accounts[c]]:
            transcript.find("while it trains", f"Account.{new[0]} is new", HIDDEN)
        if world.full and (name := self.untouched.changed()) is not None:
            transcript.find("while it trains", f"{name} is another", UNPATCHED)
        if len(states) > 4 and (name := moved(states[-2], states[-1])) is not None:
            transcript.find("from round to round", f"{name} goes on changing", HIDDEN)
        if host.algorithm.sends and not any(said.parts for said in transcript.said):
            what = f"no client could train: {last_failure(stores)}"
            transcript.find("on made-up data", what, "mend it, or it cannot be tested")

    def _state(self, host: ClientHost) -> dict[str, str]:
        slots = [tensor for tensors in host.model.slots.values() for tensor in tensors.values()]
        return state_of(host.algorithm, host.model, slots, self.packages)


def drive(host: ClientHost, world: World, transcript: Transcript) -> Iterator[None]:
    """Ask a host what a server asks, and note what it answers; pauses after each round."""
    clients = host.data.clients
    first = opening(host.algorithm.initial.only(host.algorithm.sends))
    sent = dict.fromkeys(clients, first)
    newcomer = host.data.held_out[0]
    for k, server_round in enumerate(world.rounds):
        asked = clients[:-1] if k == 1 else clients  # in the second round one sits out
        uploads = train(host, server_round, asked, sent, transcript)
        if k == 0 and world.full and uploads:  # the message comes twice
            train(host, server_round, [*uploads], sent, transcript)
        sent = mixed(sent, uploads)
        if world.full:
            evaluate(host, server_round, sent, transcript)
            for batches in (0, 2):
                with suppress(Exception):
                    host.newcomer(newcomer, server_round, sent[clients[0]], batches)
        yield


def train(
    host: ClientHost,
    server_round: int,
    clients: Sequence[str],
    sent: Mapping[str, Parts],
    transcript: Transcript,
) -> dict[str, Parts]:
    """One round's message; what the clients upload, with what is derived of it."""
    body = message(server_round, clients)
    try:
        rows, answered = answer("train", host, [sent[client] for client in clients], body)
    except Exception:
        rows, answered = [], {"reports": {}, "failures": {"": "no answer"}}
    uploads = dict(zip([*answered["reports"]], rows, strict=True))
    transcript.say(Said("train", server_round, "", Parts(), answered))
    for client in clients:
        upload = uploads.get(client, Parts())
        transcript.say(Said("train", server_round, client, upload, {}))
        if upload and host.algorithm.derives:
            made = upload
            with suppress(Exception):
                made = host.with_derived(upload, host.algorithm.derives)
            transcript.say(Said("derived", server_round, client, made, {}))
    return uploads


def evaluate(
    host: ClientHost, server_round: int, sent: Mapping[str, Parts], transcript: Transcript
) -> None:
    """One evaluation of all clients that train."""
    clients = [*sent]
    body = message(server_round, clients)
    _, answered = answer("evaluate", host, [sent[client] for client in clients], body)
    transcript.say(Said("evaluate", server_round, "", Parts(), answered))


def message(server_round: int, clients: Sequence[str]) -> dict[str, Any]:
    """The body of a message that has a row for each client."""
    rows = {client: k for k, client in enumerate(clients)}
    return {"clients": list(clients), "rows": rows, "round": server_round}


def opening(initial: Parts) -> Parts:
    """Parts as a server would send them after some rounds: from the zeros that adapters and heads
    start at, nothing of the layers below would be seen."""
    moved: dict[str, Part] = {}
    for name, part in initial.items():
        drawn = torch.randn(part.layout.size, generator=torch.Generator().manual_seed(len(moved)))
        zero = part.vector == 0
        moved[name] = part.like(torch.where(zero, 0.1 * drawn, part.vector * (0.1 * drawn).exp()))
    return Parts(moved)


def mixed(sent: Mapping[str, Parts], uploads: Mapping[str, Parts]) -> dict[str, Parts]:
    """What is sent next: the mean of what came, for every other client half of it and half its own;
    what was sent before where nothing came that can be used."""
    layouts = next(iter(sent.values())).layouts
    usable = {
        client: upload
        for client, upload in uploads.items()
        if upload.layouts == layouts and upload.first_not_finite() is None
    }
    if not usable:
        return dict(sent)
    (mean,) = combine(torch.full((1, len(usable)), 1 / len(usable)), [*usable.values()])
    half = torch.tensor([[0.5, 0.5]])
    return {
        client: combine(half, [mean, usable[client]])[0] if k % 2 and client in usable else mean
        for k, client in enumerate(sent)
    }


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a while, in memory where there is room for that: a ledger is flushed to it."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        yield Path(folder)


def last_failure(stores: Path) -> str:
    """What the node noted last of a failure."""
    path = stores / NOTES
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    found = [line for line in lines if line and not line.startswith(" ")]
    return found[-1] if found else "no answer"


def apart(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, JSON-able, in a process of its own.

    Raises:
        RuntimeError: it raised, or the process died.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            try:
                found = {"found": work()}
            except BaseException as error:
                found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
            with os.fdopen(write, "w") as file:
                json.dump(found, file)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    found = json.loads(text) if text else {"error": "its process died"}
    if "error" in found:
        raise RuntimeError(found["error"])
    return found["found"]
