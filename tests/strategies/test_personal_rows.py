"""What a server makes for one client, or for some, is no global model; what all receive is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fedpers.parts import Part, Parts
from fedpers.records import same
from simulations.experiments.predict import FinishedRun

# Other people's methods: rows of the mixing, parts that a network makes for each client, two
# clusters, and parts that are made anew for everybody but are the same.
PLUGIN = '''
import torch

from clients.base import LocalAlgorithm
from strategies.base import Mixing, Needs
from strategies.methods.fedavg import FedAvg


class OwnHead(LocalAlgorithm):
    keeps = ("head",)


class Rows(FedAvg):
    algorithm = "fedavg"

    @classmethod
    def needs(cls, params):
        return Needs(rows=True)

    def mixing(self, server_round, reports):
        weights = torch.eye(len(reports)) / 2 + 1 / (2 * len(reports))
        return Mixing(weights, tuple(reports))


class RowsAndMean(Rows):
    def mixing(self, server_round, reports):
        rows = super().mixing(server_round, reports)
        mean = torch.full((1, len(reports)), 1 / len(reports))
        return Mixing(torch.cat([rows.weights, mean]), (*rows.recipients, None))


class RowOfOne(Rows):
    """A single client has a row of its own."""

    def mixing(self, server_round, reports):
        mean = torch.full((2, len(reports)), 1 / len(reports))
        mean[1] = torch.eye(len(reports))[0]
        return Mixing(mean, (None, next(iter(reports))))


class Hyper(FedAvg):
    algorithm = "fedavg"

    def broadcast(self, server_round, client):
        return type(self.parts)(
            {n: p.like(p.vector * (1 + int(client) / 100)) for n, p in self.parts.items()}
        )


class HyperHeads(Hyper):
    """The client keeps a head of its own."""

    algorithm = f"{__name__}:OwnHead"


class Clusters(FedAvg):
    algorithm = "fedavg"

    def broadcast(self, server_round, client):
        if int(client) % 2:
            return self.parts
        return type(self.parts)({n: p.like(-p.vector) for n, p in self.parts.items()})


class Copies(FedAvg):
    algorithm = "fedavg"

    def broadcast(self, server_round, client):
        return type(self.parts)({n: p.like(p.vector * 0.5) for n, p in self.parts.items()})
'''
SAVED = ["evaluation.adapters=true", "evaluation.local_baseline=true", "rounds=2"]


@pytest.mark.parametrize(
    "name", ["Rows", "RowsAndMean", "RowOfOne", "Hyper", "HyperHeads", "Clusters"]
)
def test_what_is_made_for_a_client_is_personal(run: Any, plugin: Any, name: str) -> None:
    found = run(f"{plugin('rows', PLUGIN)}:{name}", *SAVED)
    report = found.report
    assert report["accuracy"]["personal"]["mean"] > 0.1 and report["accuracy"]["local"] is not None
    for none in (report["accuracy"]["global"], report["accuracy"]["gated"]):
        assert none is None
    assert report["gain_over_global"] is None and report["harmed_share"] is None
    assert report["out_of_client"]["global"] is None
    assert report["out_of_client"]["personal"] is not None
    assert all("global" not in line for line in found.rounds)
    assert not (found.folder / "global.safetensors").exists()
    manifests = [json.loads(p.read_text()) for p in found.folder.glob("adapters/*/manifest.json")]
    assert [manifest["gate"] for manifest in manifests] == [None] * 6
    finished = FinishedRun(found.folder)
    x = finished.data.client("0").test.x[:3]
    predicted = finished.predict("0", x)
    assert list(predicted.scores) == ["personal"] and predicted.gate is None


@pytest.mark.parametrize("name", ["{}:Copies", "pfedsim"])
def test_what_all_receive_is_global(run: Any, plugin: Any, name: str) -> None:
    found = run(name.format(plugin("rows", PLUGIN)), *SAVED, "evaluation.outside=0")
    assert found.report["accuracy"]["global"] is not None
    assert (found.folder / "global.safetensors").exists()
    (manifest, *_) = found.folder.glob("adapters/*/manifest.json")
    assert json.loads(manifest.read_text())["gate"] in ("personal", "global")


def test_a_file_of_an_earlier_evaluation_does_not_stay(run: Any, plugin: Any) -> None:
    """In the first round all receive the same, then each its own."""
    late = PLUGIN + (
        "\n\nclass Late(Hyper):\n"
        "    def broadcast(self, server_round, client):\n"
        "        one = server_round < 3\n"
        "        return self.parts if one else super().broadcast(server_round, client)\n"
    )
    found = run(f"{plugin('rows', late)}:Late", "rounds=2")
    assert "global" in found.rounds[0] and "global" not in found.rounds[1]
    assert found.report["accuracy"]["global"] is None
    assert not (found.folder / "global.safetensors").exists()


def test_rows_are_the_same_by_their_values() -> None:
    def parts(*values: float) -> Parts:
        return Parts({"body": Part.of({"w": torch.tensor(values)})})

    one = parts(1.0, 2.0)
    assert same(one, one) and same(one, parts(1.0, 2.0))
    assert not same(one, parts(1.0, 3.0)) and not same(one, parts(1.0)) and not same(one, Parts())
    half = Parts({"body": Part.of({"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)})})
    assert not same(one, half) and not same(one, None)
