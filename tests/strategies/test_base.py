"""What every strategy does: select, send, mix, leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from one_round import mix

from fedpers.config import load_config
from fedpers.errors import ConfigError, RunError
from fedpers.parts import Part, Parts
from strategies.base import Mixing, PersonalizedStrategy, find_strategy, strategies
from strategies.methods.fedavg import FedAvg

ALL = [["1", "2"], ["3"]]


def fill(strategy: Any, value: float) -> Parts:
    """Parts as the strategy's own, all set to one value."""
    return Parts({n: p.like(torch.full_like(p.vector, value)) for n, p in strategy.parts.items()})


def values(parts: Parts) -> list[float]:
    """The one value that each part holds throughout."""
    found = [part.vector.unique().tolist() for part in parts.values()]
    assert all(len(one) == 1 for one in found)
    return [one[0] for one in found]


# -- who takes part ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "least", "clients", "count"),
    [
        (1.0, 1, 7, 7),
        (0.5, 1, 7, 4),  # rounded up
        (0.01, 1, 7, 1),
        (0.01, 3, 7, 3),
        (0.5, 9, 7, 7),
        (0.07, 1, 100, 7),  # 0.07 * 100 is 7.000000000000001
    ],
)
def test_how_many_take_part(
    bind: Any, fraction: float, least: int, clients: int, count: int
) -> None:
    strategy = bind("fedavg", f"strategy.fraction={fraction}", f"strategy.min_clients={least}")
    assert len(strategy.select(1, [str(k) for k in range(clients)])) == count


def test_who_takes_part_depends_on_seed_and_round(bind: Any) -> None:
    clients = [str(k) for k in range(30)]
    strategy = bind("fedavg", "strategy.fraction=0.3")
    chosen = [strategy.select(k, clients) for k in range(1, 9)]
    assert chosen == [strategy.select(k, clients) for k in range(1, 9)]
    assert all(sorted(some, key=clients.index) == some for some in chosen)
    assert len({tuple(some) for some in chosen}) == 8
    assert bind("fedavg", "strategy.fraction=0.3", "seed=1").select(1, clients) != chosen[0]
    assert len({client for some in chosen for client in some}) > 20
    assert strategy.select(1, []) == []


# -- weights -------------------------------------------------------------------------------------


def test_weights_are_by_examples(bind: Any) -> None:
    reports = {"a": {"examples": 1}, "b": {"examples": 0}, "c": {"examples": 3}}
    mixing = bind("fedavg").mixing(1, reports)
    # 1/4, 0, 3/4
    assert mixing.weights.tolist() == [[0.25, 0.0, 0.75]] and mixing.recipients == (None,)


def test_weights_are_uniform_if_nobody_has_examples(bind: Any) -> None:
    reports = {client: {"examples": 0} for client in "abcd"}
    assert bind("fedavg").mixing(1, reports).weights.tolist() == [[0.25] * 4]


@pytest.mark.parametrize("name", ["perada", "feddpa"])
def test_some_methods_weigh_all_clients_alike(bind: Any, name: str) -> None:
    reports = {"a": {"examples": 1}, "b": {"examples": 9}}
    assert bind(name).mixing(1, reports).weights.tolist() == [[0.5, 0.5]]


BY_EXAMPLES = PersonalizedStrategy.__new__(PersonalizedStrategy)  # bound to no run


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_weights_add_up_to_one(counts: list[int]) -> None:
    reports = {str(k): {"examples": n} for k, n in enumerate(counts)}
    weights = PersonalizedStrategy.mixing(BY_EXAMPLES, 1, reports).weights
    assert weights.shape == (1, len(counts)) and bool((weights >= 0).all())
    assert float(weights.sum()) == pytest.approx(1)


def test_a_row_of_the_mixing_goes_to_its_recipient(bind: Any) -> None:
    strategy = bind("fedavg")
    updates = {"a": fill(strategy, 1.0), "b": fill(strategy, 5.0)}
    # Rows (1/2, 1/2), (1, 0), (1/4, 3/4) of the values 1 and 5: 3, 1, 4.
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])
    mix(strategy, updates, Mixing(weights, (None, "a", "b")))
    assert values(strategy.parts) == [3.0, 3.0]
    assert values(strategy.broadcast(2, "a")) == [1.0, 1.0]
    assert values(strategy.broadcast(2, "b")) == [4.0, 4.0]
    assert strategy.broadcast(2, "c") is strategy.parts
    assert strategy.broadcast_to_evaluate(2, "a") is strategy.rows["a"]
    with pytest.raises(ValueError, match="zip"):  # one recipient too few
        mix(strategy, updates, Mixing(weights, (None, "a")))


# -- messages ------------------------------------------------------------------------------------


class TwoKinds(FedAvg):
    """Client "2" gets a row of its own."""

    def broadcast(self, server_round: int, client: str) -> Parts:
        if client == "2":
            return Parts({n: p.like(p.vector + 7) for n, p in self.parts.items()})
        return self.parts


def test_parts_that_clients_share_are_sent_once_a_node(serve: Any) -> None:
    hosts = [["1", "2", "3", "4"], ["5", "6"], ["7"]]
    server = serve("fedavg", hosts=hosts, kind=TwoKinds)
    server.grid.seen.clear()
    server.train()
    found = {node: (body, rows) for node, kind, body, rows in server.grid.seen if kind == "train"}
    assert {node: len(rows) for node, (_, rows) in found.items()} == {0: 2, 1: 1, 2: 1}
    body, rows = found[0]
    assert body["rows"] == {"1": 0, "2": 1, "3": 0, "4": 0} and body["clients"] == hosts[0]
    assert torch.equal(rows[1]["head"].vector, rows[0]["head"].vector + 7)
    assert found[1][0]["rows"] == {"5": 0, "6": 0}


def test_what_a_message_says_of_the_run(serve: Any) -> None:
    server = serve("fedcp", "strategy.params.gate_width=3", hosts=ALL)
    server.run.post.run_folder = "/runs/x"
    header = server.run.post.header()
    assert header["algorithm"] == "fedcp" and header["run_folder"] == "/runs/x"
    assert header["server_params"] == ["gate_width"]
    server.train(server_round=4)
    _, _, body, _ = server.grid.seen[-1]
    assert body["round"] == 4 and body["settings"] == server.strategy.config.to_json()


# -- one round -----------------------------------------------------------------------------------


def test_a_round_of_fedavg(serve: Any) -> None:
    server = serve("fedavg", hosts=ALL)
    # Updates 1, 2, 3 with 1, 2, 3 examples: (1 + 4 + 9) / 6 = 7/3.
    assert server.train() == {"answered": 3, "loss": 0.5}
    assert values(server.strategy.parts) == [pytest.approx(7 / 3)] * 2
    assert server.run.round.answers.failures == {}


@pytest.mark.parametrize("act", ["nan", "fail", "bad report"])
def test_a_client_that_is_broken_is_left_out_by_name(serve: Any, act: str) -> None:
    server = serve("fedavg", hosts=ALL, acts={"2": act})
    assert server.train()["answered"] == 2
    # (1 * 1 + 3 * 3) / 4
    assert values(server.strategy.parts) == [2.5, 2.5]
    reason = {
        "nan": "update: part 'body' is not finite",
        "fail": "ValueError: broken",
        "bad report": "the node sent no update for it, or no report that can be read",
    }[act]
    assert server.run.round.answers.failures == {"2": reason}


@pytest.mark.parametrize("act", ["shape", "short", "raise", "garbage", "list", "empty"])
def test_a_node_that_is_broken_is_left_out_with_its_clients(serve: Any, act: str) -> None:
    server = serve("fedavg", hosts=ALL, acts={0: act})
    assert server.train()["answered"] == 1
    assert values(server.strategy.parts) == [3.0, 3.0]
    failures = server.run.round.answers.failures
    assert set(failures) == {"1", "2"}
    if act == "shape":
        assert failures["1"].startswith("update: got Parts({'body': Part(3 x torch.float32")
        assert failures["1"].endswith("takes parts ['body', 'head'] as sent")


def test_a_silent_node_is_left_out(serve: Any) -> None:
    server = serve("fedavg", hosts=ALL)
    server.grid.silent = {0}
    assert server.train()["answered"] == 1
    assert server.run.round.answers.failures["1"] == "no answer within 0.05 s"


def test_a_node_speaks_for_its_own_clients_only(serve: Any) -> None:
    server = serve("fedavg", hosts=ALL, acts={1: "speaks for all"})
    server.train()
    # Its own client "3" may claim as many examples as it likes, but not those of 1 and 2.
    weights = torch.tensor([1.0, 2.0, 1e9])
    expected = float((weights * torch.tensor([1.0, 2.0, 3.0])).sum() / weights.sum())
    assert values(server.strategy.parts) == [pytest.approx(expected)] * 2
    server.evaluate(server_round=20)
    rights = {r.client: r.test.correct["personal"] for r in server.run.results}
    assert rights == {"1": 1, "2": 2, "3": 0}


def test_without_examples_anywhere_all_count_alike(serve: Any) -> None:
    server = serve("fedavg", hosts=ALL, acts=dict.fromkeys("123", "no examples"))
    assert server.train() == {"answered": 3}
    assert values(server.strategy.parts) == [pytest.approx(2.0)] * 2


def test_the_third_round_in_a_row_without_a_client_ends_the_run(serve: Any) -> None:
    server = serve("fedavg", hosts=ALL, acts={"1": "nan", "2": "fail", "3": "nan"})
    line = r"round 3: no client is left; client \d: (update: part 'body' is not finite|ValueError)"
    for server_round in (1, 2):
        assert server.train(server_round) == {"answered": 0, "skipped": 1}
    with pytest.raises(RunError, match=line):
        server.train(server_round=3)
    assert values(server.strategy.parts.only(["head"])) == [0.0]  # as before
    server = serve("fedavg", "rounds=1", hosts=ALL)
    server.grid.gone = {0, 1}
    server.run.roster.refresh(server.grid, None, 1)
    line = "^round 1: no client is left; client 1: its node is not there$"
    with pytest.raises(RunError, match=line):  # a run of which no round counts has not completed
        server.train()


def test_with_too_few_answers_nothing_is_mixed(serve: Any, log: Any) -> None:
    server = serve("fedavg", "strategy.min_clients=3", hosts=ALL, acts={"2": "fail"})
    assert server.train(1) == {"answered": 2, "skipped": 1}
    assert values(server.strategy.parts.only(["head"])) == [0.0]
    line = "round 1: 2 of at least 3 clients are left; client 2: ValueError: broken"
    assert f"{line}: nothing is mixed" in log.text
    server.train(2)
    server.grid.acts.clear()
    assert server.train(3)["answered"] == 3 and server.run.skipped == 0
    assert values(server.strategy.parts.only(["head"])) == [pytest.approx(14 / 6)]
    # The count is of rounds in a row.
    server.grid.acts["2"] = "fail"
    server.train(4)
    server.train(5)
    with pytest.raises(RunError, match="round 6: 2 of at least 3 clients are left; client 2"):
        server.train(6)


def test_with_too_few_there_nobody_is_asked(serve: Any) -> None:
    server = serve("fedavg", "strategy.min_clients=3", hosts=ALL)
    server.grid.gone = {1}
    server.run.roster.refresh(server.grid, None, 1)
    before = len(server.grid.seen)
    assert server.train(1) == {"answered": 0, "skipped": 1}
    assert len(server.grid.seen) == before
    absent = dict.fromkeys(server.run.roster.absent, "its node is not there")
    assert absent and server.run.round.answers.failures == absent


def test_the_run_ends_when_too_few_have_budget_left(serve: Any) -> None:
    run = serve("fedavg", "strategy.min_clients=3", hosts=ALL).run
    assert not run.ends_with(1)
    run.budgets.spent = {"2"}
    assert run.ends_with(1)
    # But not because a node is away, which may come back.
    run.roster.hosts.popitem()
    assert not run.ends_with(1)


def test_sums_do_not_hang_on_who_answers_first(serve: Any) -> None:
    hosts = [["3", "11"], ["2"], ["7", "1"]]
    found = []
    for order in (hosts, hosts[::-1]):
        server = serve("pfedsim", hosts=order)
        server.train()
        found.append((list(server.strategy.models), server.strategy.parts["head"].vector))
    assert found[0][0] == found[1][0] == ["1", "2", "3", "7", "11"]
    assert torch.equal(found[0][1], found[1][1])


# -- evaluation ----------------------------------------------------------------------------------


def test_all_clients_are_evaluated_every_so_often_and_at_the_end(serve: Any) -> None:
    settings = ["rounds=5", "evaluation.every=2", "strategy.fraction=0.3"]
    server = serve("fedavg", *settings, hosts=ALL)
    found = {}
    for server_round in range(1, 6):
        server.train(server_round)
        server.grid.seen.clear()
        server.evaluate(server_round)
        found[server_round] = sorted(c for _, _, b, _ in server.grid.seen for c in b["clients"])
    assert found == {1: [], 2: ["1", "2", "3"], 3: [], 4: ["1", "2", "3"], 5: ["1", "2", "3"]}


def test_metrics_are_means_over_clients_and_failures_are_named(serve: Any) -> None:
    server = serve("fedavg", "rounds=1", hosts=[["1", "2", "9"], ["3", "6"]])
    server.train()
    # Personal 1, 2, 9, 3, 6 of ten: mean .42; global 4 of ten.
    metrics = server.evaluate()
    assert metrics["personal"] == pytest.approx(0.42) and metrics["global"] == pytest.approx(0.4)
    assert [r.client for r in server.run.results] == ["1", "2", "3", "6", "9"]
    server.grid.acts = {"2": "unscored", "9": "forgotten", 1: "bad result"}
    metrics = server.evaluate()
    assert metrics["personal"] == pytest.approx(0.1)
    failures = server.run.unscored
    assert failures["2"] == "ValueError: odd"
    assert failures["9"] == "the node sent no result for it"
    assert failures["3"].startswith("evaluation: cannot be read (got {'client': '0'")
    assert set(failures) == {"2", "9", "3", "6"}
    server.grid.acts = dict.fromkeys(["1", "2", "9", "3", "6"], "unscored")
    assert server.evaluate() == {} and server.run.results == []


# -- names and settings --------------------------------------------------------------------------


class Derived(FedAvg):
    """Not registered."""


class Named(FedAvg):
    """Says which client side it wants."""

    algorithm = "some.package:Thing"


def test_a_strategy_has_the_client_side_of_its_name_or_of_its_ancestors() -> None:
    names = strategies.names()
    assert {name: strategies.get(name).client_side() for name in names} == {n: n for n in names}
    assert Derived.client_side() == "fedavg" and Named.client_side() == "some.package:Thing"
    assert PersonalizedStrategy.client_side() == "fedavg"


def test_both_sides_of_every_method_share_the_same_slots(bind: Any) -> None:
    from clients.base import algorithms

    assert strategies.names() == algorithms.names()
    for name in strategies.names():
        assert strategies.get(name).shares == algorithms.get(name).sends


def test_settings_that_cannot_be_are_refused(bind: Any) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.params\.rho: got 2.0, takes a number > 0"):
        bind("pfedsim", "strategy.params.rho=2")
    with pytest.raises(ConfigError, match=r"strategy\.params\.kd_steps: got 0"):
        bind("perada", "strategy.params.kd_steps=0")
    bind("ditto", "strategy.params.mu=1")  # the client side's
    with pytest.raises(ConfigError, match=r"strategy\.name: got 'nope', takes one of apfl, "):
        find_strategy(load_config(None, ["strategy.name=nope"]))
    with pytest.raises(ConfigError, match=r"takes a subclass of strategies\.base\."):
        find_strategy(load_config(None, ["strategy.name=pathlib:Path"]))


def test_parts_start_as_the_model_has_them(bind: Any) -> None:
    for name, slots in {"fedper": ["body"], "local": [], "fedcp": ["body", "head", "gate"]}.items():
        strategy = bind(name)
        assert list(strategy.parts) == slots
        for slot, part in strategy.parts.items():
            assert torch.equal(part.vector, strategy.model.read(slot).vector)
    prior = bind("prior").parts["prior"]
    assert isinstance(prior, Part) and prior.vector.tolist() == [0.5] * 4


def test_reports_may_be_any_mapping(bind: Any) -> None:
    reports: Mapping[str, Mapping[str, Any]] = {"a": {"examples": 2, "loss": None}}
    assert bind("fedavg").mixing(1, reports).weights.tolist() == [[1.0]]
