"""Whole runs with encryption, beside the same without."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from clients.methods.pfedsim import PFedSim as Client
from fedpers.channels.plain import PlainNode
from fedpers.channels.sealed import bfv_for
from fedpers.channels.sealed.guard import unframe
from fedpers.channels.sealed.keys import CLIENT_FILE, MAGIC, new_keys
from fedpers.channels.sealed.node import SealedNode
from fedpers.channels.sealed.sealed_parts import SealedParts
from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError, FedpersError, RunError
from fedpers.parts import Parts, combine
from simulations.backends.serial import SerialGrid
from strategies.base import strategies
from strategies.methods.pfedsim import PFedSim

UNSEEN = ("ifca", "pfedgraph")  # their servers read what encryption hides, and they are refused
SHARING = [name for name in strategies.names() if name not in ("local", *UNSEEN)]
SLOWER = {"gpfl": ["training.lr=0.01"]}  # at a tenth its valve leaves what ciphertexts hold
QUICK = ("fedavg", "perada", "pfedsim")
ON = ["encryption.enabled=true", "encryption.scheme=bfv"]
ROWS = ["encryption.enabled=true"]  # of which auto takes the one that mixes rows
# Long enough to learn: 3 digits a client, of which a guess gets a third right.
LEARN = ["training.epochs=4", "model.pretrain.task=clusters", "model.pretrain.epochs=3"]
LEARN += ["model.standardise=true"]
# Of the clients' 120 test examples, 20 each, so many may have two logits that nearly tie: the last
# bits decide.
TIES = 2
STEP = 2 * 8.0 / (2 ** bfv_for(6).value_bits - 1)  # the quantisation's, of values within 8


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Parts]:
    """What clients were sent, in the clear, in its order."""
    seen: list[Parts] = []

    def noted(arrive: Any) -> Any:
        def note(self: Any, *message: Any) -> list[Parts]:
            parts: list[Parts] = arrive(self, *message)
            seen.extend(parts)
            return parts

        return note

    for half in (PlainNode, SealedNode):
        monkeypatch.setattr(half, "arrive", noted(half.arrive))
    return seen


def distance(one: Parts, other: Parts) -> float:
    """The largest difference of any two values."""
    assert list(one) == list(other)
    return max(float((one[n].vector - other[n].vector).abs().max()) for n in one)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SHARING]
)
def test_encryption_changes_no_result(run: Any, name: str, received: list[Parts]) -> None:
    settings = [*LEARN, "rounds=2", *SLOWER.get(name, [])]
    plain = run(name, *settings)
    in_the_clear = list(received)
    assert plain.report["accuracy"]["personal"]["mean"] > (0.6 if name in QUICK else 0.3)
    schemes = {"ckks": 1e-5, "bfv": STEP}
    if name in ("pfedsim", "dfedalt"):  # they mix rows
        schemes.pop("bfv")
    for scheme, step in schemes.items():
        received.clear()
        sealed = run(name, *settings, *ON, f"encryption.scheme={scheme}")
        assert sealed.report["encryption"]["scheme"].startswith(scheme)
        assert sealed.failures() == {}
        assert [line["answered"] for line in sealed.rounds] == [6, 6]
        for mode in ("personal", "global"):
            of_both = [one.report["accuracy"][mode] for one in (plain, sealed)]
            if of_both[0] is not None:
                assert of_both[1]["mean"] == pytest.approx(of_both[0]["mean"], abs=TIES / 120)
        # Two nodes are sent the first parts to train, and the first mean to evaluate.
        assert len(received) == len(in_the_clear)
        assert distance(received[0], in_the_clear[0]) == 0
        if name == "perada":  # what was opened is rounded, and then distilled further
            step *= 50  # Adam's steps do not shrink with gradients
        assert 0 < distance(received[2], in_the_clear[2]) <= step
        assert distance(received[3], in_the_clear[3]) <= step


def test_pfedsims_rows_are_those_of_the_rounded_weights(
    run: Any, received: list[Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stage mixes bodies by weights that nodes rounded, as the server may not know
    more of the heads."""
    kept: dict[str, Any] = {}
    refine = PFedSim.refine

    def note(self: PFedSim, server_round: int) -> None:
        refine(self, server_round)
        if server_round == 1:
            kept.update(models=dict(self.models), similarity=self.similarity)

    monkeypatch.setattr(PFedSim, "refine", note)
    settings = [*LEARN, "rounds=2", "strategy.params.rho=0.5"]
    run("pfedsim", *settings)
    models, similarity = list(kept["models"].values()), kept["similarity"]
    weights = torch.tensor([Client.weights_of(row.tolist()) for row in similarity])
    bodies = combine(
        weights / weights.sum(dim=1, keepdim=True), [model.only(["body"]) for model in models]
    )
    received.clear()
    run("pfedsim", *settings, *ROWS)
    rows = [parts for parts in received[4:] if "body" in parts][:6]  # of the second training
    found = [min(distance(row.only(["body"]), body) for row in rows) for body in bodies]
    assert max(found) < 1e-5
    assert distance(bodies[0], bodies[1]) > 1e-3  # each has its own


def test_weights_by_examples_and_a_part_of_the_clients(
    run: Any, digits: list[str], received: list[Parts]
) -> None:
    """Clients with other numbers of examples, of which some are not asked."""
    uneven = ["data.partition.name=dirichlet", "data.partition.alpha=0.5", "data.clients=6"]
    settings = [*LEARN, *uneven, "rounds=2", "strategy.fraction=0.5"]
    run("fedper", *settings)
    in_the_clear = list(received)
    received.clear()
    sealed = run("fedper", *settings, *ON, "encryption.scheme=ckks")
    assert [line["answered"] for line in sealed.rounds] == [3, 3]
    assert 0 < distance(received[2], in_the_clear[2]) < 1e-5


def test_a_run_whose_means_are_of_single_updates_has_failed(run: Any) -> None:
    """Nobody opens them, so that nothing is ever distilled or mixed."""
    line = "^round 2: the mean of a single update is not opened$"
    with pytest.raises(RunError, match=line):
        run("perada", *ON, "strategy.fraction=0.1", "rounds=2")


def test_values_beyond_the_range_are_clipped_and_named(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = run("fedavg", *LEARN, *ON, "encryption.range=0.01", "rounds=1")
    assert found.failures() == {}
    assert "values are beyond encryption.range 0.01 and were clipped to it: raise it" in caplog.text


# -- secrets ---------------------------------------------------------------------------------------


def parts_of(key: Path) -> list[bytes]:
    """Pieces of the secret key as its file holds it, and as text would."""
    secret = unframe(MAGIC, key.read_bytes())[1][0]
    middle = [secret[at : at + 24] for at in range(120, len(secret) - 240, len(secret) // 9)]
    assert len(middle) >= 5
    texts = [base64.b64encode(secret[at : at + 48])[4:-8] for at in (120, 121, 122)]
    return [*middle, *texts, *(piece.hex().encode() for piece in middle)]


def found_in(needles: list[bytes], data: bytes) -> bool:
    return any(needle in data for needle in needles)


@pytest.fixture
def throw_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for throw-away keys."""
    home = tmp_path / "tmp"
    home.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(home))
    return home


@pytest.mark.parametrize(
    "name", [n if n == "perada" else pytest.param(n, marks=pytest.mark.slow) for n in QUICK]
)
def test_the_key_is_nowhere_but_in_its_file(
    run: Any,
    name: str,
    throw_away: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    messages: list[bytes] = []
    needles: list[bytes] = []
    files: list[bytes] = []
    answer = SerialGrid._answer

    def content(message: Message) -> bytes:
        if message.has_error():
            return str(message.error).encode()
        records = message.content
        arrays = [a.data for r in records.array_records.values() for a in r.values()]
        texts = [str(dict(record)).encode() for record in records.config_records.values()]
        return b"\n".join([*arrays, *texts])

    def note(self: SerialGrid, message: Message) -> Message:
        reply = answer(self, message)
        messages.extend([content(message), content(reply)])
        if message.metadata.message_type == "train":
            (key,) = throw_away.glob(f"**/{CLIENT_FILE}")
            assert key.stat().st_mode & 0o077 == 0
            assert key.parent.stat().st_mode & 0o077 == 0
            needles.extend(parts_of(key))
            files.extend(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p != key)
        return reply

    monkeypatch.setattr(SerialGrid, "_answer", note)
    found = run(name, *(ROWS if name == "pfedsim" else ON))
    assert needles and not list(throw_away.glob("**/*.key"))  # gone with the run
    assert [path.name for path in throw_away.glob("**/*")] == [next(throw_away.iterdir()).name]
    files.extend(path.read_bytes() for path in found.folder.rglob("*") if path.is_file())
    assert len(messages) > 10 and len(files) > 10
    assert not any(found_in(needles, data) for data in [*messages, *files])
    assert not found_in(needles, caplog.text.encode())
    assert found_in(needles, needles[0])  # the search would find it


def test_updates_leave_sealed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No 4 values of an upload in a row are in any message; without encryption they are."""
    sealed = SealedNode.sealed
    train: list[bytes] = []
    uploads: list[bytes] = []
    answer = SerialGrid._answer

    def keep(self: SealedNode, kept: Any, update: Parts, *given: Any, **named: Any) -> SealedParts:
        uploads.extend(part.vector[8:12].numpy().tobytes() for part in update.values())
        return sealed(self, kept, update, *given, **named)

    def note(self: SerialGrid, message: Message) -> Message:
        reply = answer(self, message)
        if message.metadata.message_type in ("train", "query.channel") and not reply.has_error():
            records = reply.content.array_records.values()
            train.extend(array.data for record in records for array in record.values())
        return reply

    monkeypatch.setattr(SealedNode, "sealed", keep)
    monkeypatch.setattr(SerialGrid, "_answer", note)
    run("fedavg", *LEARN, *ON, "rounds=1")
    needles = [upload for upload in uploads if any(upload)]
    assert len(needles) == 12 and train
    assert not any(found_in(needles, data) for data in train)
    train.clear()
    run("fedavg", *LEARN, "rounds=1")
    assert any(found_in(needles, data) for data in train)


# -- keys ------------------------------------------------------------------------------------------


def test_a_run_with_keys_of_its_own(run: Any, tmp_path: Path, throw_away: Path) -> None:
    folder = tmp_path / "keys"
    key_id = new_keys(folder, "auto", 6)
    found = run("fedper", *ON, f"encryption.keys={folder}")
    assert found.report["encryption"]["key_id"] == key_id
    assert sorted(path.name for path in folder.iterdir()) == ["client.key", "server.context"]
    assert list(throw_away.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "clients", "rows", "line"),
    [
        ("fedavg", 5, False, r"cohort: got 6, takes 1 to 5 vectors in a sum; make keys for more"),
        ("pfedsim", 6, False, r"encryption\.keys: got 'bfv', takes ckks-rows for this method"),
    ],
)
def test_keys_that_do_not_fit(
    run: Any, tmp_path: Path, name: str, clients: int, rows: bool, line: str
) -> None:
    new_keys(tmp_path / "keys", "auto", clients, rows)
    with pytest.raises(FedpersError, match=line):
        run(name, *ROWS, f"encryption.keys={tmp_path / 'keys'}")


def test_a_server_with_another_key_than_the_nodes(run: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        new_keys(tmp_path / name, "bfv", 6)
    (tmp_path / "one" / "server.context").replace(tmp_path / "two" / "server.context")
    with pytest.raises(FedpersError, match=r"node \d+ has key [0-9a-f]{16}, takes [0-9a-f]{16}"):
        run("fedavg", *ON, f"encryption.keys={tmp_path / 'two'}")


# -- with privacy ----------------------------------------------------------------------------------


def test_privacy_by_client_whose_noise_the_clients_add(run: Any, received: list[Parts]) -> None:
    private = ["privacy.enabled=true", "privacy.unit=client", "privacy.epsilon=50"]
    found = run("fedavg", *ON, *private, "rounds=2", "encryption.honest=0.6", "encryption.range=32")
    privacy = found.report["privacy"]
    assert (privacy["enabled"], privacy["unit"]) == (True, "client")
    assert 0 < privacy["epsilon_max"] <= 50
    assert (
        "clients add the noise: it is whole if 60 % of those asked are honest" in privacy["notes"]
    )
    assert not any("trusted" in note for note in privacy["notes"])
    assert found.report["encryption"]["enabled"] and found.failures() == {}
    # Six shares, of which 4 are as much as sigma C: what evaluation is sent, less what was sent.
    moved = torch.cat([received[2][n].vector - received[0][n].vector for n in received[0]])
    spread = privacy["noise_multiplier"] * privacy["max_grad_norm"] * (6 / 4) ** 0.5 / 6
    # 1,802 values give it to 2 %; the clipped updates themselves add less than C / sqrt(1802).
    assert float(moved.std()) == pytest.approx(spread, rel=0.07)


def test_example_privacy_is_as_it_is_without_encryption(run: Any) -> None:
    private = ["privacy.enabled=true", "privacy.deterministic_for_tests=true", "rounds=1"]
    plain, sealed = run("fedper", *private), run("fedper", *private, *ON, "encryption.scheme=ckks")
    figures = [one.report["privacy"] for one in (plain, sealed)]
    for name in ("epsilon_max", "delta", "noise_multiplier", "per_client"):
        assert figures[0][name] == figures[1][name]
    of_both = [one.report["accuracy"]["personal"]["mean"] for one in (plain, sealed)]
    assert of_both[0] == pytest.approx(of_both[1], abs=0.005)


@pytest.mark.parametrize("name", UNSEEN)
def test_a_method_whose_server_reads_more_is_refused(name: str) -> None:
    config = load_config(None, [f"strategy.name={name}", *ROWS])
    with pytest.raises(ConfigError, match=rf"^strategy\.name: got '{name}', takes") as found:
        strategies.get(name).check(config, load_data(config))
    assert "\n" not in str(found.value)
