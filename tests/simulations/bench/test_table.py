"""The measurements: that both ways of a row compute the same, and what is written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from fedpers.context import Context
from fedpers.errors import ConfigError, RunError
from fedpers.models import PersonalModel
from fedpers.parts import Parts
from simulations.bench import gpu as bench_gpu
from simulations.bench import processes as bench_processes
from simulations.bench.flower import median_round
from simulations.bench.processes import ALLOCATORS, SETTINGS, round_of
from simulations.bench.rounds import (
    CnnLoop,
    FedCPModel,
    HostRounds,
    Share,
    Tasks,
    TinyLoop,
    cnn_config,
    task_config,
    tiny_config,
)
from simulations.bench.row import Row
from simulations.bench.table import Party, bench, lora_model, save

ROOT = Path(__file__).parents[3]


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
    config = cnn_config("fedavg", tmp_path, (13, 9))  # one batch each: its order does not matter
    with restored_threads():
        host, loop = HostRounds(config, tmp_path, 0, 1), CnnLoop(config, tmp_path, 0, 1)
        broadcast = loop.broadcast
        start = torch.cat([part.vector for part in broadcast.values()])
        ours, usual = host.round(), loop.round()
    assert list(ours) == list(usual) == ["0000", "0001"]
    for client, upload in ours.items():
        flat = torch.cat([part.vector for part in upload.values()])
        assert flat.numel() == 582_026
        values = torch.cat([v.flatten() for v in usual[client]])
        torch.testing.assert_close(values, flat, rtol=0, atol=1e-6)
        assert float((flat - start).norm()) > 1e-3  # something was trained


def test_fedcp_as_published_predicts_what_ours_does(tmp_path: Path) -> None:
    config = cnn_config("fedcp", tmp_path, (13, 9))
    with restored_threads():
        rounds, loop = HostRounds(config, tmp_path, 0, 1), CnnLoop(config, tmp_path, 0, 1)
    model, host = loop.models[0], rounds.host
    assert isinstance(model, FedCPModel)
    model.take(loop.broadcast)
    model.frozen_head.bias.data.zero_()  # ours has one bias
    model.eval()
    x = host.data.client("0000").train.x
    working = host.algorithm.receive(loop.broadcast, Parts(), Context("a", 1))
    ours = host.algorithm.predict("personal", working, x, host.trainer("0000", 1), "test")
    assert ours is not None
    torch.testing.assert_close(model(x).detach(), ours, rtol=0, atol=1e-5)
    assert [len(upload) for upload in loop.round().values()] == [12, 12]


def test_tiny_clients_train_to_the_same_mean_in_the_loop_as_in_a_node(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, 40, 1)  # 40 is a whole group of 32 and a part of one
    with restored_threads():
        usual = TinyLoop(config, tmp_path, 0, 1).round()
        rounds = HostRounds(config, tmp_path, 0, 1)
        uploads = rounds.round()
    assert rounds.host.groups.known == 32 and len(uploads) == 40
    vectors = [torch.cat([part.vector for part in u.values()]) for u in uploads.values()]
    ours = torch.stack(vectors).mean(0)
    start = torch.cat([part.vector for part in next(iter(rounds.broadcasts.values())).values()])
    flat = torch.cat([value.flatten() for value in usual])
    torch.testing.assert_close(flat, ours, rtol=0, atol=1e-6)
    assert float((ours - start).norm()) > 1e-4  # something was trained


def test_every_client_is_in_one_hand(tmp_path: Path) -> None:
    config = cnn_config("fedavg", tmp_path, (13, 9, 21, 6))
    hands = [Share(config, share, 2) for share in (0, 1)]
    assert [hand.clients for hand in hands] == [["0002", "0003"], ["0000", "0001"]]
    assert [len(examples) for examples in hands[0].examples] == [20, 5]


def test_children_do_rounds_when_told_and_end_with_their_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    others = set(psutil.Process().children())
    config = tiny_config(tmp_path, 6, 1)
    with round_of("host", config, tmp_path / "ours", 2) as one_round:
        children = sorted(set(psutil.Process().children()) - others, key=lambda one: one.pid)
        assert len(children) == 2
        for child in children:
            assert not [name for name in child.environ() if name.startswith(ALLOCATORS)]
        one_round()
        one_round()
        # One that has gone is an error, not a wait.
        children[0].kill()
        with pytest.raises(RunError, match="said 'nothing' in place of 'done'"):
            one_round()
    assert not [child for child in children if child.is_running()]


def test_a_child_whose_parent_is_gone_ends(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, 2, 1)
    (tmp_path / SETTINGS).write_text(config.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-m", bench_processes.__name__, "tiny-loop", str(tmp_path), "0", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    output, _ = process.communicate(
        "go\ngo\n", timeout=60
    )  # closes the pipe, as a parent's end does
    assert (process.returncode, output) == (0, "ready\ndone\ndone\n")


@pytest.mark.slow
def test_the_rounds_of_a_flower_run_are_timed(tmp_path: Path) -> None:
    for nodes in (2, 5):
        config = task_config(tmp_path, 4, rounds=2)
        folder = tmp_path / f"run-{nodes}"
        seconds = median_round(config, folder, nodes, first=2)
        _, second = map(json.loads, (folder / "rounds.jsonl").read_text().splitlines())
        assert seconds == second["seconds"]["train"] + second["seconds"]["combine"] > 0
        assert second["answered"] == 5


@contextmanager
def restored_threads() -> Iterator[None]:
    """A side of a row sets how many threads its process uses."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def test_every_client_answers_with_what_it_received_however_it_is_asked(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, 5)
    for nodes in (2, 5):
        uploads = tasks.ask(nodes)
        assert [upload.digest() for upload in uploads] == [tasks.broadcast.digest()] * 5


def test_the_measurement_for_gpus_runs_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--size", "small", "--clients", "4", "--batch", "2", "--fold", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu", *chosen])
    bench_gpu.main()
    printed = capsys.readouterr().out
    assert "one by one" in printed and "in groups of 2" in printed
    assert torch.cuda.is_available() or printed.startswith("CPU: no GPU is in sight")
