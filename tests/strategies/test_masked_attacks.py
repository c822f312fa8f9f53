"""Runs with masked sums in front of losses, garbage, and somebody who has all that was said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from masked_view import View
from meddling import MeddlingGrid, Said, data_of

from clients.node.store import ClientStore
from fedpers.channels.identity.home import IDENTITY
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked import channel, masks, node
from fedpers.channels.masked.check import policy_of
from fedpers.channels.masked.client import MaskedClient
from fedpers.channels.masked.envelope import Envelope
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.masks import Words
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.messages import Shares, Upload
from fedpers.channels.masked.node import SERVED
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Session, Terms
from fedpers.channels.masked.vector import from_json
from fedpers.config import Config, load_config
from fedpers.errors import FedpersError
from fedpers.records import Row
from simulations.backends.serial import run_serial

ON = ["encryption.enabled=true", "encryption.scheme=masked", "simulation.nodes=6"]
LOOSE = ["encryption.masks.corrupt=0.1", "strategy.min_clients=4"]  # four of six are a quorum


class Sums:
    """Runs whose sums are looked at.

    Attributes:
        vectors: what clients would have sent without masks, by tag and client.
        found: by tag, the survivors and their sum.
        transcript: all that the server was told.
        log: what was shown.
    """

    def __init__(self, folder: Path, digits: list[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.digits = folder, digits
        self.vectors: dict[tuple[int, str], Words] = {}
        self.found: dict[int, tuple[tuple[str, ...], Words]] = {}
        self.transcript: list[Said] = []
        self.log: list[str] = []
        self.config = load_config(None, digits)
        mask, unmask = MaskedClient.masked, MaskedServer.unmask

        def noted_mask(client: MaskedClient, terms: Terms, own: bytes, words: Words) -> bytes:
            self.vectors[terms.tag, client.me] = words.copy()
            return mask(client, terms, own, words)

        def noted_unmask(server: MaskedServer) -> Words:
            total = unmask(server)
            self.found[server.session.terms.tag] = tuple(server.survivors), total
            return total

        patch.setattr(MaskedClient, "masked", noted_mask)
        patch.setattr(MaskedServer, "unmask", noted_unmask)

    def run(
        self, *overrides: str, meddle: Callable[[Said], list[Row] | None] | None = None, **how: Any
    ) -> list[dict[str, Any]]:
        """A run; the lines of its rounds."""
        self.config = load_config(None, [*self.digits, *ON, "strategy.name=fedavg", *overrides])

        def make(*arguments: Any, **options: Any) -> MeddlingGrid:
            grid = MeddlingGrid(*arguments, **options)
            grid.meddle, grid.transcript = meddle or (lambda said: said.answer), self.transcript
            return grid

        run_serial(self.config, self.folder, show=self.log.append, make_grid=make, **how)
        lines = (self.folder / "rounds.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def check(self) -> None:
        """Every sum is that of its survivors, in integers."""
        for tag, (survivors, total) in self.found.items():
            own = [self.vectors[tag, client] for client in survivors]
            assert len(own) >= 4 and np.array_equal(total, np.sum(own, axis=0, dtype=np.uint64))

    def client(self, name: str, registry: Registry) -> MaskedClient:
        """A client with the secrets that are in its store."""
        stores = self.folder / "state"
        known = registry, policy_of(self.config), Memory(stores / SERVED)
        return MaskedClient(Identity.load(ClientStore(stores, name).folder / IDENTITY), *known)


@pytest.fixture
def sums(digits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sums:
    return Sums(tmp_path / "run", digits, monkeypatch)


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_who_is_lost_at_any_moment_costs_itself_or_the_round(sums: Sums, rounds: int) -> None:
    rng, moments = Random(3), ("train", "sign", "reveal")
    every = range(1, rounds + 1)
    lost = {(r, k): rng.choice(moments) for r in every for k in rng.sample(range(6), 2)}

    def meddle(said: Said) -> list[Row] | None:
        (client,) = said.clients  # a node each
        terms = Terms.from_bytes(
            bytes.fromhex(said.body["channel"]["terms"]), from_json(said.body["channel"]["layout"])
        )
        return None if lost.get((terms.round, int(client))) == said.kind else said.answer

    settings = [f"rounds={rounds}", f"evaluation.every={rounds}"]
    lines = sums.run(*LOOSE, *settings, meddle=meddle)
    assert len(sums.found) == rounds and set(lost.values()) == set(moments)
    sums.check()
    for line in lines:  # who was lost after its upload is in the sum
        late = [k for (r, k), at in lost.items() if r == line["round"] and at == "train"]
        assert line["answered"] == 6 - len(late)


def test_a_round_without_a_quorum_is_one_line_and_the_run_goes_on(sums: Sums) -> None:
    def meddle(said: Said) -> list[Row] | None:
        hits = said.body.get("round") == 1 and said.kind == "train"
        return None if hits and said.clients[0] in ("0", "1", "2") else said.answer

    settings = ["encryption.masks.corrupt=0.1", "strategy.min_clients=3"]
    lines = sums.run(*settings, "rounds=2", meddle=meddle)
    assert lines[1]["answered"] == 6
    assert list(sums.found) == [2]  # a fresh tag, and nothing of the first
    told = [line for line in sums.log if "dropped" in line]
    assert len(told) == 1 and "survivors: got 3, takes 4 or more of the cohort" in told[0]


def test_garbage_costs_its_sender_or_the_round_and_never_a_sum(sums: Sums) -> None:
    rng, changed = Random(5), set()

    def meddle(said: Said) -> list[Row] | None:
        if rng.random() < 0.88 or len(said.answer) != 1:
            return said.answer
        data = bytearray(data_of(said.answer[0]))
        match rng.randrange(4):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data)) :]
            case 2:
                data = bytearray(rng.randbytes(rng.randrange(200)))
            case 3:
                earlier = [one for one in sums.transcript if one.kind == said.kind]
                data = bytearray(data_of(rng.choice(earlier).answer[0])) if earlier else bytearray()
        changed.add(said.kind)
        return [Envelope(bytes(data))]

    sums.run(*LOOSE, "rounds=12", "evaluation.every=12", meddle=meddle)
    assert changed == {"train", "sign", "reveal"} and len(sums.found) >= 8
    sums.check()


def attack(sums: Sums, corrupt: tuple[str, ...]) -> dict[str, Words]:
    """What the server's transcript of the first round gives with the stores of ``corrupt``."""
    said = [one for one in sums.transcript if one.body.get("channel", {}).get("terms")]
    first = said[0].body["channel"]
    layout = from_json(first["layout"])
    terms = Terms.from_bytes(bytes.fromhex(first["terms"]), layout)
    registry = Registry.from_json(first["registry"])
    session = Session(terms, registry, policy_of(sums.config))
    of_round = [one for one in said if one.body["channel"]["terms"] == first["terms"]]
    given = {
        kind: [data_of(row) for one in of_round if one.kind == kind for row in one.answer]
        for kind in ("train", "reveal")
    }
    uploads = {u.client: u for u in map(Upload.from_bytes, given["train"])}
    shares = [Shares.from_bytes(data) for data in given["reveal"]]
    assert len(uploads) == len(shares) == 6
    clients = {name: sums.client(name, registry) for name in corrupt}
    return View(terms, session, clients, uploads, shares).findings(corrupt)


def alike(sums: Sums, found: dict[str, Words]) -> list[float]:
    """For each victim the share of its update's values that the attack has right."""
    first = next(one.body["channel"] for one in sums.transcript if one.kind == "train")
    layout = from_json(first["layout"])
    field = layout.fields[0]
    return [
        float((layout.integers(left, field) == layout.integers(true, field)).mean())
        for victim, left in found.items()
        for true in [sums.vectors[1, victim]]
    ]


def test_the_transcript_and_a_third_of_the_secrets_give_no_update(sums: Sums) -> None:
    sums.run("rounds=1")
    found = attack(sums, ("1", "4"))
    assert len(found) == 4 and max(alike(sums, found)) < 0.01
    # All that is to be had: the sum of the honest, which the mean tells anyway.
    layout = from_json(sums.transcript[0].body["channel"]["layout"])
    total = np.sum([*found.values()], axis=0, dtype=np.uint64)
    true = np.sum([sums.vectors[1, name] for name in found], axis=0, dtype=np.uint64)
    assert layout.packed(total) == layout.packed(true)


def test_with_the_masks_switched_off_the_same_attack_finds_the_update(
    sums: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "add", lambda words, seed, sign: None)
    sums.run("rounds=1")
    assert alike(sums, attack(sums, ("1", "4"))) == [1.0] * 4


def test_no_client_s_loss_or_count_is_told(sums: Sums) -> None:
    (line,) = sums.run("rounds=1")
    told = [one for one in sums.transcript if one.kind == "train"]
    assert len(told) == 6 and all(isinstance(row, Envelope) for one in told for row in one.answer)
    for one in told:
        (report,) = one.told["reports"].values()
        assert report == {"examples": 1, "loss": None}
    assert line["loss"] > 0  # the mean, which is in the sum


def test_a_run_goes_on_with_the_keys_that_it_began_with(sums: Sums) -> None:
    sums.run("rounds=1")
    lines = sums.run("rounds=2", resume=True)
    assert [line["answered"] for line in lines] == [6, 6] and list(sums.found) == [1, 2]
    sums.check()
    home = ClientStore(sums.folder / "state", "3").folder
    (home / IDENTITY).unlink()
    Identity.new("3").save(home / IDENTITY)
    with pytest.raises(FedpersError, match="3: its identity key has changed; if it was enrolled"):
        sums.run("rounds=3", resume=True)


@pytest.mark.parametrize("silent", [None, "2"])
def test_a_random_graph_is_made_of_what_all_of_the_cohort_say(
    sums: Sums, monkeypatch: pytest.MonkeyPatch, silent: str | None
) -> None:
    def sparse(config: Config) -> Policy:
        return Policy(3, 0.1, 0.1, 3, all_pairs=4, security=2, correctness=2)

    for module in (channel, node):
        monkeypatch.setattr(module, "policy_of", sparse)

    def meddle(said: Said) -> list[Row] | None:
        return None if said.kind == "advertise" and said.clients == [silent] else said.answer

    lines = sums.run("rounds=2", *LOOSE[1:], meddle=meddle)
    assert {one.kind for one in sums.transcript} >= {"advertise", "train", "sign", "reveal"}
    assert [line["answered"] for line in lines] == [5 if silent else 6] * 2
    assert all(silent not in there for there, _ in sums.found.values())
    # Who was silent is left out, under a tag of its own.
    assert list(sums.found) == ([2, 4] if silent else [1, 2])
    sums.check()
