"""What a server asks beside training: polls, messages of a method's own, words to one client."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from fedpers.errors import FedpersError

PLUGIN = '''
import torch

from clients.base import LocalAlgorithm
from fedpers.stats import Stat
from strategies.base import PersonalizedStrategy

NUMBERS = (Stat("loss", 0.0, 10.0),)


class Client(LocalAlgorithm):
    polls = NUMBERS
    reports = (Stat("told", 0.0, 1000.0),)
    messages = ("parity",)

    def receive(self, broadcast, personal, context):
        self.said = dict(context.said)
        return super().receive(broadcast, personal, context)

    def poll(self, working, trainer):
        return {"loss": float(int(trainer.client))}

    def report(self, working, trainer):
        return {"told": float(self.said.get("number", 0))}

    def answer(self, kind, working, body, trainer):
        if trainer.client == "3":
            raise ValueError("odd")
        return {"sum": body["number"] + int(trainer.client), "received": sorted(working)}


class Worst(PersonalizedStrategy):
    """Asks the two clients of the largest loss, tells each its number, and asks for sums."""

    algorithm = f"{__name__}:Client"
    reports, polls = Client.reports, Client.polls
    seen = []

    def poll(self, server_round, clients):
        return clients[1:]

    def select(self, server_round, clients):
        by_loss = sorted(self.polled, key=lambda c: -self.polled[c]["loss"])
        return by_loss[:2]

    def says(self, server_round, client):
        return {"number": 100 + int(client)}

    def refine(self, server_round):
        asked = {client: {"number": 10} for client in ("1", "2", "3")}
        parts = {"1": self.parts}
        answers = self.ask("parity", server_round, asked, parts)
        told = {c: r["method"]["told"] for c, r in self.reported.items()}
        type(self).seen.append((dict(self.polled), told, answers))


class Loose(Worst):
    """The server takes other numbers than the clients tell."""

    reports = (Stat("told", 0.0, 104.5),)
'''


def test_a_server_asks_before_and_after(run: Any, plugin: Any) -> None:
    name = plugin("asking", PLUGIN)
    found = run(f"{name}:Worst", "rounds=2", "simulation.nodes=2")
    first, second = importlib.import_module(name).Worst.seen
    polled, told, answers = first
    assert polled == {str(k): {"loss": float(k)} for k in range(1, 6)}
    assert told == {"4": 104.0, "5": 105.0}  # the two of the largest loss, each by its own number
    assert {c: a["sum"] for c, a in answers.items()} == {"1": 11, "2": 12}  # 3 failed alone
    assert [name for name in answers["1"]["received"] if "." not in name] == ["body", "head"]
    assert second[1] == told
    assert [line["answered"] for line in found.rounds] == [2, 2] and found.failures() == {}


def test_numbers_beyond_what_is_declared_cost_their_client(run: Any, plugin: Any) -> None:
    found = run(f"{plugin('asking', PLUGIN)}:Loose", "rounds=2")
    assert set(found.failures()) == {"5"}


@pytest.mark.parametrize("unit", ["example", "client"])
def test_with_privacy_messages_of_ones_own_are_refused(run: Any, plugin: Any, unit: str) -> None:
    settings = ["privacy.enabled=true", f"privacy.unit={unit}"]
    with pytest.raises(FedpersError, match="without messages of its own, as no noise covers"):
        run(f"{plugin('asking', PLUGIN)}:Worst", *settings)
