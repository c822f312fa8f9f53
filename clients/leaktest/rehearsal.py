"""A method tried on made-up clients before a private run: the leak test, with the real host.

Each world runs in a process of its own, forked from one in which none ran, so that whatever code
may remember in a module or a class is as new in each.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pkgutil
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clients.leaktest.asking import drive
from clients.leaktest.settings import packages_of, rehearsed
from clients.node.host import ClientHost
from fedpers.cache import cache_folder
from fedpers.config import Config
from fedpers.data import FederatedData, Signature
from fedpers.errors import line_of
from fedpers.failures import LOG as NOTES
from fedpers.models import PersonalModel, build_model
from fedpers.privacy.hidden import OURS, Untouched, moved, state_of, watch
from fedpers.privacy.leaktest import HIDDEN, Finding, Transcript, unpaid
from fedpers.privacy.listener import listening
from fedpers.privacy.neighbours import EDITS, TRAIN, VAL, Made, another, made_up

CLIENTS = 4  # of them one is a newcomer
MANY = 80  # training examples of each client in one group of worlds
WALK = 24  # rounds that are walked through one by one
LONG = ("another one", "a far outlier", "a far negative outlier", "an input that is there")
# What is imported late as it takes seconds; once, and before code from outside is looked at.
SLOW = ("torch._dynamo", "peft")
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
    few = [clients[0], *clients[-2:]]
    for made, numbers in (
        (made_up(signature, targets, few, train=MANY, seed=9), rounds[:1]),
        (made_up(signature, targets, few, seed=8), walk(last)),
    ):
        group = [World("", made, numbers, False)]
        for place, edit in enumerate(LONG[:2]):
            replaced = made.with_one_replaced(EDITS[edit], place)
            group.append(World(f"replaced by {edit}", replaced, numbers, False))
        yield group
    edits, reach = [*EDITS], 2 * CLIENTS - 1  # classes that one group of worlds shows
    firsts = dict.fromkeys((0, reach, 2 * reach, max(0, len(made.targets) - reach)))
    for k, (first, scale) in enumerate(zip(firsts, (1e3, 1e-3, 1.0, 30.0), strict=False)):
        made = made_up(signature, targets, clients, first=first, scale=scale, seed=1 + k)
        group = [World("", made, rounds[:1], False)]
        for place in range(3):
            edit = edits[(3 * k + place) % len(edits)]
            replaced = made.with_one_replaced(EDITS[edit], (k + place) % (TRAIN - 1))
            group.append(World(f"replaced by {edit}", replaced, rounds[:1], False))
        yield group


def walk(last: int) -> list[int]:
    """All rounds up to the last; of many the first ones, the last ones and some in between."""
    half = WALK // 2
    if last <= WALK:
        return list(range(1, last + 1))
    between = [half + k * (last - WALK) // half for k in range(1, half + 1)]
    return [*range(1, half + 1), *between[:-2], last - 1, last]


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
        super().__init__(config, algorithm, server_params, stores, sources=listening(transcript))

    def _load(self, config: Config, *given: Any) -> tuple[FederatedData, PersonalModel]:
        return self._given

    def _admit(self, name: str) -> None:
        self.algorithm.freeze()  # the run's own host has asked the plan


def libraries(of_transformers: bool = False) -> Untouched:
    """The libraries as they are, all of them imported: what code from outside is the first to
    import could not be told from what it put there.

    Args:
        of_transformers: a model is built of it, the first of which adds to what a module can.
    """
    own = (importlib.import_module(package) for package in OURS)
    below = (m for p in own for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}."))
    for module in (*SLOW, *(found.name for found in below)):
        importlib.import_module(module)
    if of_transformers:
        from transformers import BertConfig, BertModel

        BertModel(BertConfig(num_hidden_layers=0, vocab_size=2))
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
        accounts = {c: set(vars(found)) for c in host.hosted if (found := host.account(c))}
        done = watch(str(folder), str(cache_folder()))
        states: list[dict[str, str]] = [{}]
        for _ in drive(host, world.rounds, transcript, full=world.full):
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
        failed = [said for said in transcript.said if said.words.get("failures")]
        if failed and not self.packages:
            raise RuntimeError(last_failure(stores))  # our own code has no reason to
        if host.algorithm.sends and not any(said.parts for said in transcript.said):
            what = f"no client could train: {last_failure(stores)}"
            transcript.find("on made-up data", what, "mend it, or it cannot be tested")

    def _state(self, host: ClientHost) -> dict[str, str]:
        slots = [tensor for tensors in host.model.slots.values() for tensor in tensors.values()]
        return state_of(host.algorithm, host.model, slots, self.packages)


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
                found = {"error": f"{type(error).__name__}: {line_of(error)}"}
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
