"""Servers that want more than a device's owner allows, against the executor that a node asks.

Whatever can be signed is signed by an operator whom the owner trusts: the policy stands alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from owner import allowing, permitted

from clients.node.device import Device
from clients.node.executor import Executor
from clients.node.resident import host_of
from clients.policy.enforcement import LONGEST
from clients.policy.policy import read_policy
from clients.policy.wishes import refused_shares
from fedpers.channels.build import least_noise
from fedpers.config import Config
from fedpers.data import Schema, Signature, device_data
from fedpers.failures import POLICY
from fedpers.models import build_model
from fedpers.parts import Part, Parts
from fedpers.privacy import Ledger
from fedpers.records import pack, unpack
from fedpers.tasks import Classification

SCHEMA = Schema(Signature("tabular", (6,)), Classification.numbered(3).settings())
PRIVATE = [
    *("privacy.enabled=true", "privacy.lr=0.5", "privacy.epsilon=4", "privacy.delta=1e-3"),
    *("strategy.min_clients=3", "evaluation.diagnostics=false", "data.partition.name=devices"),
]
SPENT = "ledgers/clinic%2F7.json"


@dataclass
class Server:
    """A server that can send anything, and a device."""

    device: Device
    config: Config
    small: Callable[..., Config]

    def __post_init__(self) -> None:
        self.run = permitted(self.config, "fedavg")["text"]
        self.run = json.loads(self.run)["run"]

    def allow(self, **rules: Any) -> None:
        assert self.device.policy is not None
        allowing(self.device.policy, self.config, "fedavg", **rules)

    def asks(self, *overrides: str) -> Config:
        return self.small("fedavg", *PRIVATE, *overrides)

    def start(self) -> Parts:
        model = build_model(self.config, device_data(self.config, "clinic/7", self.device.data))
        return Parts({slot: model.read(slot) for slot in ("body", "head")})

    def send(
        self,
        kind: str = "train",
        config: Config | None = None,
        parts: Parts | None = None,
        **body: Any,
    ) -> Message:
        """A message, with all that an honest one has where ``body`` does not say otherwise."""
        config = config or self.config
        clients = [self.device.client]
        head = {
            "settings": config.to_json(),
            "algorithm": "fedavg",
            "server_params": [],
            "run_folder": "/server/runs/a",
            "base": None,
            "schema": SCHEMA.to_json(),
            "permit": permitted(config, "fedavg", run=self.run),
            **{"round": 1, "clients": clients, "rows": dict.fromkeys(clients, 0)},
        }
        content = pack([self.start() if parts is None else parts], {**head, **body})
        known = Metadata(1, "m", 1, 2, "", "", time.time(), 3600.0, kind)
        return Executor(self.device).answer(make_message(known, content))

    @property
    def log(self) -> list[str]:
        path = self.device.state / "policy.log"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def ledger(self) -> bytes:
        path = self.device.state / SPENT
        return path.read_bytes() if path.exists() else b""

    def refused(self, why: str, *args: Any, **body: Any) -> None:
        """The message gets one word, the log one line more, and nothing is charged or made."""
        lines, ledger = len(self.log), self.ledger
        before = {path for path in self.device.state.rglob("*") if path.is_file()}
        reply = self.send(*args, **body)
        if reply.has_error():
            assert reply.error.reason == POLICY
        else:
            assert unpack(reply.content) == ([], {"refused": POLICY})
        assert len(self.log) == lines + 1 and why in self.log[-1], self.log[-1]
        assert self.log[-1].isprintable() and len(self.log[-1]) < LONGEST + 40
        assert self.ledger == ledger
        made = {path.name for path in self.device.state.rglob("*") if path.is_file()}
        assert made - {path.name for path in before} <= {
            *("policy.log", "policy.json", ".policy.json.lock")
        }

    def obeyed(self, *args: Any, **body: Any) -> dict[str, Any]:
        reply = self.send(*args, **body)
        assert not reply.has_error(), self.log
        told = unpack(reply.content)[1]
        assert "refused" not in told and not told.get("failures"), (told, self.log)
        return told


@pytest.fixture
def server(small: Callable[..., Config], tmp_path: Path) -> Iterator[Server]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 6)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(40) % 3)
    folders = tmp_path / "own.npz", tmp_path / "state"
    device = Device("clinic/7", *folders, policy=tmp_path / "policy.yaml")
    made = Server(device, small("fedavg", *PRIVATE), small)
    made.allow()
    yield made


def test_an_honest_run_is_obeyed_and_charged(server: Server) -> None:
    assert server.obeyed("query.roster")["clients"] == ["clinic/7"]
    told = server.obeyed()
    assert told["reports"]["clinic/7"]["loss"] is None
    ledger = Ledger(server.device.state / SPENT)
    assert 0 < ledger.epsilon(1e-3) <= 4 and sum(r.steps for r in ledger.releases) == 1
    assert len(server.log) == 1 and "taken up: run 'a'" in server.log[0]
    loaded, hosts = set(sys.modules), host_of.cache_info().misses
    server.obeyed(round=2)  # nothing is imported again, and no model made
    assert set(sys.modules) == loaded and host_of.cache_info().misses == hosts
    assert sum(r.steps for r in Ledger(server.device.state / SPENT).releases) == 2


WISHES = {
    "privacy off": ("privacy.enabled=false", "privacy.enabled: got false, takes true"),
    "epsilon times 50": ("privacy.epsilon=200", "privacy.epsilon: got 200, takes at most 4"),
    "another unit": ("privacy.unit=client", "privacy.unit: got 'client', takes 'example'"),
    "another delta": ("privacy.delta=0.01", "privacy.delta: got 0.01, takes at most 0.001"),
    "no delta": ("privacy.delta=null", "privacy.delta: got null"),
    "test noise": (
        "privacy.deterministic_for_tests=true",
        "privacy.deterministic_for_tests: got true, takes false",
    ),
    "a cohort of one": ("strategy.min_clients=1", "strategy.min_clients: got 1, takes at least 3"),
    "diagnostics on": ("evaluation.diagnostics=true", "evaluation.diagnostics: got true"),
    "10,000 rounds": ("rounds=10000", "rounds: got 10000, takes at most 2"),
    "10^6 steps": ("privacy.steps=1000000", "privacy.steps: got 1e+06, takes at most"),
    "another mechanism": ("privacy.mechanism=os:abort", "privacy.mechanism: got 'os:abort'"),
    "another model": ("model.name=os:abort", "model.name: got 'os:abort', takes mlp"),
    "another task": ("task.name=os:abort", "task.name: got 'os:abort', takes classification"),
    "another channel": ("channel=os:abort", "channel: got 'os:abort', takes plain"),
    "a huge adapter": ("model.lora.rank=100000000", "model.lora.rank: got 1e+08, takes at most"),
}


@pytest.mark.parametrize("wish", WISHES)
def test_what_the_policy_refuses_no_signature_allows(server: Server, wish: str) -> None:
    override, why = WISHES[wish]
    for kind in ("query.roster", "train", "evaluate", "query.channel"):
        server.refused(why, kind, server.asks(override), parts=Parts())


def test_a_plug_in_is_not_even_imported(
    server: Server, plugin: Callable[[str, str], str], tmp_path: Path
) -> None:
    mark = tmp_path / "imported"
    name = plugin("hostile", f"open({str(mark)!r}, 'w')\nclass It: pass\n")
    path = f"{name}:It"
    task = Schema(SCHEMA.signature, replace(SCHEMA.task, name=path))
    signed = permitted(server.config, path, run=server.run)
    server.refused("strategy.name: got", algorithm=path, permit=signed)
    server.refused("task.name: got", schema=task.to_json())
    server.refused("model.name: got", "train", server.asks(f"model.name={path}"))
    server.refused("privacy.mechanism: got", "train", server.asks(f"privacy.mechanism={path}"))
    server.refused("channel: got", "train", server.asks(f"channel={path}"))
    assert not mark.exists()


def test_updates_that_may_only_pass_hidden_do(server: Server) -> None:
    hidden = server.asks("encryption.enabled=true")
    server.allow(channels=("sealed",))
    server.refused("channel: got 'plain', takes sealed")
    left_out = json.loads(hidden.to_json())
    del left_out["encryption"]
    server.refused("channel: got 'plain', takes sealed", settings=json.dumps(left_out))
    server.refused("permit: got other settings", settings=hidden.to_json())


def test_the_noise_that_clients_add_is_enough(server: Server) -> None:
    """Where whole clients are protected, the server says how large their shares of noise are."""
    config = server.asks("privacy.unit=client", "encryption.enabled=true", "data.clients=9")
    server.config = config
    server.allow()
    least = least_noise(config)
    for noise, why in (
        (None, "channel.noise: got none"),
        ({}, "channel.noise: got none"),
        ({"sigma": least}, "channel.noise: got none"),
        ({"sigma": 1e-9, "honest": 2}, "channel.noise: got 1e-09 of the clipping norm"),
        ({"sigma": 0.99 * least, "honest": 2}, "of the clipping norm, takes at least"),
        ({"sigma": float("nan"), "honest": 2}, "channel.noise: got nan"),
        ({"sigma": least, "honest": 10**6}, "got shares of 1000000 clients, takes 1 to 3"),
        ({"sigma": least, "honest": 0}, "channel.noise: got shares of 0 clients"),
        ({"sigma": least, "honest": -4}, "channel.noise: got shares of -4 clients"),
        ({"sigma": "x", "honest": 2}, "it cannot be read"),
    ):
        server.refused(why, channel={"noise": noise}, parts=Parts())
    policy = read_policy(server.device.policy)
    enough = {"noise": {"sigma": least, "honest": 3}}
    assert list(refused_shares(policy, config, enough)) == []
    server.allow(least_noise=2 * least)
    policy = read_policy(server.device.policy)
    assert "takes at least" in next(refused_shares(policy, config, enough))


def test_nothing_is_looked_up_in_the_devices_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARD_SECRET", "Jane-Doe")
    for where in ("channel", "output", "state"):
        settings = json.loads(server.config.to_json())
        settings[where] = "${oc.env:WARD_SECRET}"
        for kind in ("query.roster", "train"):
            server.refused("takes literal values", kind, settings=json.dumps(settings))
    assert "Jane" not in (server.device.state / "policy.log").read_text()


# -- who asks ------------------------------------------------------------------------------------


def test_who_is_no_operator_of_the_owners_is_refused(server: Server) -> None:
    foreign = permitted(server.config, "fedavg", key=Ed25519PrivateKey.generate())
    server.refused("operators: got", permit=foreign)
    ours = permitted(server.config, "fedavg", run=server.run)
    for forged in (
        {**foreign, "operator": ours["operator"]},
        {**ours, "signature": foreign["signature"]},
        {**ours, "signature": ""},
        {**ours, "text": ours["text"].replace('"epsilon": 4.0', '"epsilon": 3.0')},
    ):
        server.refused("its signature is not that of its operator", permit=forged)
    for none in (None, {}, [], "x", {**ours, "more": "x"}, {**ours, "text": 7}):
        server.refused("cannot be read", permit=none)


def test_settings_other_than_those_signed_are_refused(server: Server) -> None:
    less = permitted(server.asks("privacy.epsilon=2"), "fedavg", run=server.run)
    server.refused("permit: got other settings than it was signed for", permit=less)
    server.refused("permit: got other settings", "train", server_params=["mu"])
    # What is the server's own is not signed.
    server.obeyed(
        "query.roster",
        server.asks("output=/elsewhere"),
        permit=permitted(server.config, "fedavg", run=server.run),
    )


def test_a_permit_that_expired(server: Server) -> None:
    old = permitted(server.config, "fedavg", run=server.run, expires=time.time() - 1)
    server.refused("permit: it expired at", permit=old)


def test_a_replayed_run(server: Server) -> None:
    server.obeyed("query.roster")
    server.obeyed(round=1)
    server.refused("permit: it is that of the run 'a', got 'b'", run_folder="/server/runs/b")
    server.obeyed(round=1)  # the last round again, as after a restart
    server.obeyed(round=2)
    # And the one before, as where a checkpoint was damaged: but two rounds' budget is spent.
    assert unpack(server.send(round=1).content)[1]["failures"] == {"clinic/7": "spent"}
    server.refused("rounds: got 5 trainings in 2 rounds", round=1)  # but not for ever
    for number in (0, -1, 3, 10**9, "2", None, 2.0, True):
        server.refused("round: got", round=number)
    server.allow(runs=5)
    server.refused("permit: the run 'a' had another", permit=permitted(server.config, "fedavg"))


def test_as_many_runs_as_the_owner_allows(server: Server) -> None:
    server.obeyed("query.roster")
    another = permitted(server.config, "fedavg")
    server.refused("runs: got 2, takes at most 1", run_folder="/server/runs/b", permit=another)


def test_the_run_names_no_folder_outside_of_the_devices(server: Server) -> None:
    for name in ("..", "/server/runs/..", "", "/", ".", "a\nb", "x" * 300, ".hidden", "a/\u202eb"):
        server.refused("run_folder: got", run_folder=name)


# -- what is asked, how often and how large ------------------------------------------------------


def test_messages_that_the_owner_does_not_allow(server: Server) -> None:
    server.allow(messages=("roster", "train", "evaluate"))
    server.obeyed("query.roster")
    for kind, name in (
        ("evaluate.newcomers", "newcomers"),
        ("train.baseline", "baseline"),
        ("query.export", "export"),
        ("query.poll", "poll"),
        ("query.method", "method"),
        ("query.channel", "channel"),
    ):
        server.refused(f"messages: got {name}, takes roster, train, evaluate", kind)


def test_newcomers_and_evaluation_train_nobody_beyond_the_policy(server: Server) -> None:
    server.obeyed("query.roster")
    for batches in ([10**6], [-1], ["1"], [True], [None]):
        server.refused("batches: got", "evaluate.newcomers", batches=batches)
    ledger = server.ledger
    server.obeyed("evaluate.newcomers", batches=[0, 5])
    told = server.obeyed("evaluate")
    assert told["results"] == [] and told["held_back"] is True and server.ledger == ledger


def test_rounds_a_day(server: Server) -> None:
    server.allow(rounds_a_day=1)
    server.obeyed(round=1)
    server.refused("rounds_a_day: got 2, takes at most 1", round=2)


def test_a_model_and_a_message_that_are_too_large(server: Server) -> None:
    large = Parts({"body": Part.of({"w": torch.zeros(300)})})
    server.allow(scalars=200)
    server.refused("scalars: got 300, takes at most 200", parts=large)
    server.allow(bytes=5000)
    server.refused("bytes: got", parts=Parts(), said={"clinic/7": "x" * 5000})


def test_what_cannot_be_read_is_a_line_as_any_other(server: Server) -> None:
    for settings in ("", "[]", "7", "{", "[" * 10**5, '{"nosuch": 1}', "\x1b[2J"):
        server.refused("refused: ", settings=settings)
    server.refused("refused: ", algorithm={"\x1b[31m": "\n" * 10})
    server.refused("refused: ", schema="[" * 10**5)
    for name in ("settings", "algorithm", "schema", "run_folder", "server_params"):
        server.refused("refused: ", **{name: 7})


# -- the policy itself ---------------------------------------------------------------------------


def test_no_policy_no_run(server: Server) -> None:
    assert server.device.policy is not None
    server.device.policy.unlink()
    server.refused("takes a file that can be read")
    os.mkfifo(server.device.policy)
    server.refused("policy: got")
    server.device = replace(server.device, policy=Path(""))
    server.refused("policy")


def test_the_owner_may_narrow_it_while_a_run_is_on(server: Server) -> None:
    server.obeyed(round=1)
    server.allow(epsilon=1.0)
    server.refused("privacy.epsilon: got 4, takes at most 1", round=2)


def test_a_log_that_cannot_be_written_stops_all(server: Server) -> None:
    server.device.state.mkdir()
    (server.device.state / "policy.log").symlink_to("/dev/null")
    for kind in ("query.roster", "train"):
        reply = server.send(kind)
        told = reply.error.reason if reply.has_error() else unpack(reply.content)[1]["refused"]
        assert told == POLICY
    assert not server.ledger
