"""The rounds of a run, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord

from fedpers.errors import ConfigError, FedpersError, RunError
from fedpers.parts import Parts
from strategies.server_app import config_of

SIZE = 4 * (4 + 6)  # bytes of the toy model's body and head in float32


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    wanted = ["rounds=3", "evaluation.local_baseline=false", "evaluation.adapters=false"]
    return [*wanted, f"output={tmp_path / 'runs'}", "round_timeout=0.2", "evaluation.every=1"]


def read(server: Any, name: str) -> list[dict[str, Any]]:
    text = (Path(server.run.post.run_folder) / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def report_of(server: Any) -> dict[str, Any]:
    report = (Path(server.run.post.run_folder) / "report.json").read_text()
    return dict(json.loads(report))


def test_a_run_leaves_its_rounds_clients_and_report(serve: Any, settings: list[str]) -> None:
    server = serve("fedavg", *settings, hosts=[["1", "2"], ["3"]], acts={"2": "nan"})
    seen: list[tuple[int, list[str]]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        seen.append((server_round, list(arrays)))
        assert arrays["body"].numpy().shape == (1, 4)
        return MetricRecord({"own": 0.5}) if server_round == 2 else None

    result = server.run.start(server.grid, num_rounds=2, evaluate_fn=evaluate)
    assert seen == [(1, ["body", "head"]), (2, ["body", "head"])]
    assert {k: dict(m) for k, m in result.train_metrics_clientapp.items()} == {
        k: {"answered": 2, "loss": 0.5} for k in (1, 2)
    }
    # Personal 1, 2 and 3 of ten right, global 4.
    scores = dict(result.evaluate_metrics_clientapp[2])
    assert scores["personal"] == pytest.approx(0.2) and scores["global"] == pytest.approx(0.4)
    assert dict(result.evaluate_metrics_serverapp[2]) == {"own": 0.5}
    assert 1 not in result.evaluate_metrics_serverapp
    # The mean of 1 and 3 with 1 and 3 examples: 2.5.
    assert result.arrays["head"].numpy().tolist() == [[2.5] * 6]

    rounds, clients = read(server, "rounds"), read(server, "clients")
    assert [line["round"] for line in rounds] == [1, 2]
    for line in rounds:
        assert line["answered"] == 2
        assert line["failed"] == {"2": "update: part 'body' is not finite"}
        # Two nodes received one copy each; three clients sent one each.
        assert line["uplink_bytes"] == 3 * SIZE
        assert 2 * SIZE <= line["downlink_bytes"] < 2 * SIZE + 1000  # Flower adds a header
        assert line["loss"] == 0.5 and line["personal"] == pytest.approx(0.2)
        assert set(line["seconds"]) == {"train", "combine", "evaluate"}
    assert [(c["round"], c["client"], "error" in c) for c in clients] == [
        (k, client, error)
        for k in (1, 2)
        for client, error in (("2", True), ("1", False), ("2", False), ("3", False))
    ]
    report = report_of(server)
    assert report["rounds"] == 2 and report["selected_round"] == 2
    assert report["accuracy"]["personal"]["mean"] == pytest.approx(0.2)
    assert report["communication"]["uplink_bytes_per_client_round"] == 6 * SIZE // 4


def test_clients_that_cannot_be_scored_are_named_in_the_files(
    serve: Any, settings: list[str]
) -> None:
    server = serve("fedavg", *settings, hosts=[["1"], ["3"]], acts={"3": "unscored"})
    server.run.start(server.grid, num_rounds=1)
    assert read(server, "rounds")[0]["failed"] == {"3": "ValueError: odd"}
    assert [c["client"] for c in read(server, "clients") if "error" in c] == ["3"]


def test_nodes_come_and_go_between_rounds(serve: Any, settings: list[str]) -> None:
    server = serve("fedavg", *settings, hosts=[["1"], ["2"], ["3"]])
    server.run.roster.hosts.clear()
    server.grid.gone = {1}

    def move(server_round: int, arrays: ArrayRecord) -> None:
        server.grid.gone = {0} if server_round == 1 else set()

    server.run.start(server.grid, evaluate_fn=move)
    rounds, absent = read(server, "rounds"), "its node is not there"
    assert [line["answered"] for line in rounds] == [2, 2, 3]
    assert [line["failed"] for line in rounds] == [{"2": absent}, {"1": absent}, {}]
    scored = {(c["round"], c["client"]) for c in read(server, "clients") if "error" not in c}
    assert scored == {(1, "1"), (1, "3"), (2, "2"), (2, "3"), (3, "1"), (3, "2"), (3, "3")}


def test_a_node_that_falls_silent_costs_its_clients_that_round(
    serve: Any, settings: list[str]
) -> None:
    server = serve("fedavg", *settings, hosts=[["1"], ["2"]])
    server.grid.silent = set()

    def hush(server_round: int, arrays: ArrayRecord) -> None:
        server.grid.silent = {1} if server_round == 1 else set()

    server.run.start(server.grid, evaluate_fn=hush)
    rounds = read(server, "rounds")
    assert [line["answered"] for line in rounds] == [2, 1, 2]
    assert rounds[1]["failed"] == {"2": "no answer within 0.2 s"}


def test_the_run_ends_with_an_error_when_nobody_is_left(serve: Any, settings: list[str]) -> None:
    server = serve("fedavg", *settings, hosts=[["1"], ["2"]])

    def leave(server_round: int, arrays: ArrayRecord) -> None:
        server.grid.gone = {0, 1}

    line = "round 4: no client is left; client 1: its node is not there"
    with pytest.raises(RunError, match=line):
        server.run.start(server.grid, num_rounds=9, evaluate_fn=leave)
    rounds = read(server, "rounds")
    assert [(line["round"], line["answered"]) for line in rounds] == [(1, 2), (2, 0), (3, 0)]
    assert [line.get("skipped", 0) for line in rounds] == [0, 1, 1]


def test_a_run_that_mixed_nothing_in_the_end_has_failed(serve: Any, settings: list[str]) -> None:
    server = serve("fedavg", *settings, hosts=[["1"], ["2"]])

    def fall_ill(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 2:
            server.grid.acts.update({"1": "fail", "2": "nan"})

    line = "round 3: no client is left; client 1: ValueError: broken"
    with pytest.raises(RunError, match=f"^{line}: nothing was mixed in the last round; what there"):
        server.run.start(server.grid, evaluate_fn=fall_ill)
    assert [line.get("skipped", 0) for line in read(server, "rounds")] == [0, 0, 1]
    report = report_of(server)
    assert report["failed"] == f"{line}: nothing was mixed in the last round"
    assert report["selected_round"] == 3 and report["accuracy"]["personal"]["mean"] > 0
    page = (Path(server.run.post.run_folder) / "report.html").read_text()
    assert f"<p class='warn'>This run failed: {line}" in page


@pytest.mark.parametrize("first", [1, 3])
def test_a_run_after_which_nobody_was_evaluated_has_failed(
    serve: Any, settings: list[str], first: int
) -> None:
    server = serve("fedavg", *settings, hosts=[["1"], ["2", "3"]])
    ill = {"1": "unscored", "2": "forgotten", "3": "unscored"}
    if first == 1:
        server.grid.acts.update(ill)

    def fall_ill(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == first - 1:
            server.grid.acts.update(ill)

    line = r"^round 3: no client was evaluated; client 1: ValueError: odd; what there is .*/runs/"
    with pytest.raises(RunError, match=line):
        server.run.start(server.grid, evaluate_fn=fall_ill)
    assert [line["answered"] for line in read(server, "rounds")] == [3, 3, 3]
    report = report_of(server)
    assert report["failed"].startswith("round 3: no client was evaluated")
    assert report["selected_round"] == (None if first == 1 else 2)


def test_a_run_of_which_somebody_is_evaluated_has_not(serve: Any, settings: list[str]) -> None:
    acts = {"1": "unscored", "2": "fail"}
    server = serve("fedavg", *settings, hosts=[["1"], ["2", "3"]], acts=acts)
    server.run.start(server.grid)
    assert report_of(server)["failed"] is None


def test_a_round_waits_for_clients_that_are_away(serve: Any, settings: list[str]) -> None:
    server = serve("fedavg", *settings, "strategy.min_clients=2", hosts=[["1"], ["2"]])
    server.strategy.config.round_timeout = 30

    class Returning(type(server.grid)):  # type: ignore[misc]
        """A node that left is back when it has been looked for a few times."""

        looks = 0

        def get_node_ids(self) -> list[int]:
            self.looks += bool(self.gone)
            self.gone = set() if self.looks > 3 else self.gone
            return list(super().get_node_ids())

    server.grid.__class__ = Returning

    def leave(server_round: int, arrays: ArrayRecord) -> None:
        server.grid.gone = {1} if server_round == 1 else set()

    server.run.start(server.grid, evaluate_fn=leave)
    rounds = read(server, "rounds")
    assert [line["answered"] for line in rounds] == [2, 2, 2] and server.grid.looks == 4
    assert not any(line["failed"] for line in rounds)


def test_too_few_clients_never_begin(serve: Any, settings: list[str]) -> None:
    server = serve("fedavg", *settings, "strategy.min_clients=3", hosts=[["1"], ["2"]])
    with pytest.raises(RunError, match=r"got 2 with 2 clients within 0\.1 s"):
        server.run.start(server.grid, timeout=0.1)
    server = serve("fedavg", *settings, hosts=[["1"], ["2"]], acts={0: "refuse"})
    with pytest.raises(FedpersError, match="takes a file"):
        server.run.start(server.grid)


def test_newcomers_take_no_part_until_the_end(serve: Any, settings: list[str]) -> None:
    hosts = [["1", "2"], ["7"]]
    server = serve("fedavg", *settings, hosts=hosts, acts={"2": "held out", "7": "held out"})
    server.run.start(server.grid, num_rounds=1)
    asked = {kind: body["clients"] for _, kind, body, _ in server.grid.seen if "clients" in body}
    assert asked["train"] == ["1"] and asked["evaluate"] == ["1"]
    report = report_of(server)
    found = {steps: summary["mean"] for steps, summary in report["cold_start"].items()}
    assert found == {steps: pytest.approx(0.45) for steps in ("0", "1", "5", "20")}
    # A node whose newcomers make no sense costs those alone.
    server = serve(
        "fedavg",
        *settings,
        hosts=hosts,
        acts={"2": "held out", "7": "held out", 1: "bad newcomers"},
    )
    server.run.start(server.grid, num_rounds=1)
    report = report_of(server)
    assert report["cold_start"]["5"]["mean"] == pytest.approx(0.2)


# -- the settings of the ServerApp ----------------------------------------------------------------


def test_settings_come_from_a_file_overrides_and_short_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.yaml").write_text("rounds: 7\nseed: 3\nstrategy: {name: fedper}\n")
    monkeypatch.chdir(tmp_path)
    config = config_of(
        {
            "config": "x.yaml",
            "overrides": "training.lr=0.5 rounds=8",
            "clients": "11",
            "strategy": "ditto",
            "seed": "",
        }
    )
    assert (config.rounds, config.seed, config.training.lr) == (8, 3, 0.5)
    assert (config.data.clients, config.strategy.name) == (11, "ditto")
    short = {"rounds": "9", "epsilon": "2.5", "seed": "4"}
    config = config_of(short)
    assert (config.rounds, config.privacy.epsilon, config.seed) == (9, 2.5, 4)
    assert config_of({}).strategy.name == config_of({"strategy": ""}).strategy.name


def test_a_file_may_lie_in_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_of({"config": "configs/digits.yaml"}).data.name == "digits"
    with pytest.raises(ConfigError, match=r"config: got 'no\.yaml', takes a YAML file, relative"):
        config_of({"config": "no.yaml"})
    with pytest.raises(ConfigError, match="override: got 'rounds', takes key=value"):
        config_of({"overrides": "rounds"})
    with pytest.raises(ConfigError, match="rounds: got 'x', takes an integer"):
        config_of({"rounds": "x"})


def test_the_global_parts_travel_without_loss(serve: Any, settings: list[str]) -> None:
    server = serve("fedavg", *settings)
    result = server.run.start(server.grid, num_rounds=1)
    for name, part in server.strategy.parts.items():
        assert torch.equal(torch.from_numpy(result.arrays[name].numpy()[0].copy()), part.vector)


@pytest.mark.parametrize(("select", "kept"), [("last", 3.0), ("validation", 1.0)])
def test_the_global_model_that_the_report_takes_is_saved(
    serve: Any, settings: list[str], select: str, kept: float
) -> None:
    server = serve("fedavg", *settings, f"evaluation.select={select}", hosts=[["1"]])
    strategy, rounds = server.strategy, iter((1, 2, 3))

    def numbered(server_round: int) -> None:
        """All global parts are the round's number."""
        value = float(next(rounds))
        parts = {n: p.like(torch.full_like(p.vector, value)) for n, p in strategy.parts.items()}
        strategy.parts = Parts(parts)

    strategy.refine = numbered
    server.run.start(server.grid)
    # Every evaluation scores the same, so validation takes the first.
    saved = Parts.load(Path(server.run.post.run_folder) / "global.safetensors")
    assert saved.layouts == strategy.parts.layouts
    assert {float(part.vector.unique()) for part in saved.values()} == {kept}
    report = report_of(server)
    assert report["selected_round"] == kept


def test_a_method_that_shares_nothing_saves_no_global_model(
    serve: Any, settings: list[str]
) -> None:
    server = serve("local", *settings, hosts=[["1"]])
    server.run.start(server.grid)
    assert not (Path(server.run.post.run_folder) / "global.safetensors").exists()
