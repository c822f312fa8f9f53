"""The measurements: that both ways of a row compute the same, and what is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fedpers.errors import ConfigError
from fedpers.models import PersonalModel
from fedpers.parts import Parts
from simulations.bench import Party, Row, bench, lora_model, save
from simulations.bench_rounds import CnnRound, FedCPModel, Tasks


@pytest.mark.parametrize("backbone", ["mlp", "vit-tiny"])
def test_the_loop_and_the_groups_train_to_the_same_mean(backbone: str) -> None:
    # With one batch a client the order of its examples does not matter.
    party = Party(lora_model(backbone), 5, 12)
    assert_same_means(party)


def test_the_tiny_clients_train_to_the_same_mean() -> None:
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
    assert_same_means(Party(PersonalModel(trunk, nn.Linear(32, 10)), 7, 10))


def assert_same_means(party: Party) -> None:
    uploads = party.folded(4)
    ours = torch.stack([torch.cat([part.vector for part in u.values()]) for u in uploads]).mean(0)
    start = torch.cat([part.vector for part in party.broadcast.values()])
    torch.testing.assert_close(party.loop(), ours, rtol=0, atol=1e-5)
    assert float((ours - start).norm()) > 1e-2  # something was trained


def test_a_row_is_measured_shown_and_saved(tmp_path: Path) -> None:
    lines: list[str] = []
    (row,) = bench(["head"], 1, lines.append)
    assert row.usual_seconds > row.our_seconds > 0
    assert f"{row.ratio:.2f}" in lines[1]
    save([row], tmp_path / "bench.json")
    (saved,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert saved["ratio"] == row.ratio == row.usual_seconds / row.our_seconds


def test_a_row_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"bench\.rows: got 'x', takes one of lora-mlp"):
        bench(["x"], 1, print)


def test_the_ratio_says_how_many_times_as_long_the_usual_way_takes() -> None:
    assert Row("a", "b", "c", 3.0, 2.0, 1.0).ratio == 1.5


def test_a_round_of_the_cnn_trains_to_the_same_in_both_ways(tmp_path: Path) -> None:
    both = CnnRound("fedavg", tmp_path, (13, 9))  # one batch each: its order does not matter
    start = torch.cat([part.vector for part in both.broadcast.values()])
    for upload, values in zip(both.ours(), both.loop(), strict=True):
        ours = torch.cat([part.vector for part in upload.values()])
        assert ours.numel() == 582_026
        torch.testing.assert_close(
            torch.cat([v.flatten() for v in values]), ours, rtol=0, atol=1e-6
        )
        assert float((ours - start).norm()) > 1e-3  # something was trained


def test_fedcp_as_published_predicts_what_ours_does(tmp_path: Path) -> None:
    both = CnnRound("fedcp", tmp_path, (13, 9))
    model, host = both.models[0], both.host
    assert isinstance(model, FedCPModel)
    model.take(both.broadcast)
    model.frozen_head.bias.data.zero_()  # ours has one bias
    model.eval()
    x = both.examples()[0].x
    working = host.algorithm.receive(both.broadcast, Parts())
    ours = host.algorithm.predict("personal", working, x, host._trainer(both.clients[0], 1))
    assert ours is not None
    torch.testing.assert_close(model(x).detach(), ours, rtol=0, atol=1e-5)
    assert [len(upload) for upload in both.loop()] == [12, 12]


def test_every_client_answers_with_what_it_received_however_it_is_asked(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, 5)
    for nodes in (2, 5):
        uploads = tasks.ask(nodes)
        assert [upload.digest() for upload in uploads] == [tasks.broadcast.digest()] * 5
