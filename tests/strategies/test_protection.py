"""Norm bounds and robust combinations in the server's round, and where they are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fedpers.channels.build import check_channel
from fedpers.cohorts import check_cohort
from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError, RunError
from fedpers.parts import Parts
from strategies.base import Mixing, Needs, PersonalizedStrategy

HOSTS = [["1", "2"], ["3", "9"]]


def values(parts: Parts) -> list[float]:
    """The one value that each part holds throughout."""
    found = [part.vector.unique().tolist() for part in parts.values()]
    assert all(len(one) == 1 for one in found)
    return [one[0] for one in found]


class OwnMixing(PersonalizedStrategy):
    """Has weights of its own."""

    weights = "own"

    def mixing(self, server_round: int, reports: Any) -> Mixing:
        return Mixing.equal(len(reports))


# -- norm bounds ---------------------------------------------------------------------------------


def test_an_update_that_is_too_long_is_left_out_by_name(serve: Any) -> None:
    # FedPer shares the body, 2 x 2, which starts as the identity. Client k answers k throughout:
    # k - 1 twice and k twice: 1.414, 3.162 and 5.099 long for 1, 2 and 3, and 17.03 for 9.
    server = serve("fedper", "strategy.max_update_norm=5.1", hosts=HOSTS)
    assert server.train()["answered"] == 3
    reason = "update: norm 17.03, takes <= 5.1"
    assert server.run.round.answers.failures == {"9": reason}
    assert values(server.strategy.parts) == [pytest.approx(14 / 6)]  # (1 + 4 + 9) / 6
    # In the next round they start there: 2 * |9 - 14/6| = 13.33.
    server.train(server_round=2)
    assert server.run.round.answers.failures["9"].startswith("update: norm 13.33,")


def test_rounding_costs_nobody_the_round(serve: Any) -> None:
    server = serve("fedper", "strategy.max_update_norm=5.096", hosts=HOSTS)
    assert server.train()["answered"] == 3  # 5.099 is within 1.001 times that
    server = serve("fedper", "strategy.max_update_norm=5.09", hosts=HOSTS)
    assert server.train()["answered"] == 2


@pytest.mark.parametrize("name", ["fedavg", "pfedsim"])
def test_honest_clients_stay_within_the_bound(run: Any, name: str) -> None:
    free = run(name, "rounds=3")
    bound = run(name, "rounds=3", "strategy.max_update_norm=0.05")
    assert bound.failures() == {} and [line["answered"] for line in bound.rounds] == [6, 6, 6]
    assert bound.rounds[2]["loss"] > free.rounds[2]["loss"]  # it learns less at a time


def test_without_a_bound_any_length_goes(serve: Any) -> None:
    assert serve("fedper", hosts=HOSTS).train()["answered"] == 4


def test_an_update_is_held_against_what_its_client_was_sent(serve: Any) -> None:
    # In pFedSim's second stage clients start from rows of their own.
    server = serve("pfedsim", "rounds=4", "strategy.max_update_norm=100", hosts=HOSTS)
    strategy = server.strategy
    server.train()
    server.train(server_round=2)
    rows = dict(strategy.rows)
    assert set(rows) == {"1", "2", "3", "9"}
    server.train(server_round=3)
    sent = server.run.round.sent
    assert all(sent[client] is row for client, row in rows.items())
    strategy.config.strategy.max_update_norm = 1e-3
    accept = strategy.channel.accept
    assert accept("9", sent["9"], rows["9"]) is None
    assert accept("1", sent["1"], rows["9"]).startswith("update: norm ")


# -- robust combinations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        (["strategy.combine=mean"], (1 + 4 + 9 + 81) / 15),  # by examples, 1, 2, 3 and 9
        (["strategy.combine=median"], 2.5),
        (["strategy.combine=trimmed", "strategy.trim=0.25"], 2.5),  # 1 and 9 are left out
        (["strategy.combine=trimmed", "strategy.trim=0.2"], 3.75),  # floor(0.8) = 0: nobody is
        (["strategy.combine=krum", "strategy.trim=0.2"], 3.75),
    ],
)
def test_how_updates_are_combined(serve: Any, settings: list[str], value: float) -> None:
    server = serve("fedavg", *settings, hosts=HOSTS)
    server.train()
    assert values(server.strategy.parts) == [pytest.approx(value)] * 2


def test_krum_leaves_a_liar_out(serve: Any) -> None:
    # f = floor(0.25 * 5) = 1 of 1, 2, 3, 4, 90.
    server = serve("fedavg", "strategy.combine=krum", "strategy.trim=0.25", hosts=[["1", "2"]])
    with pytest.raises(RunError, match=r"krum takes 3 updates .* got 2; lower strategy\.trim"):
        server.train()
    settings = ["strategy.combine=krum", "strategy.trim=0.25"]
    server = serve("fedavg", *settings, hosts=[["1", "2", "90"], ["3", "4"]])
    server.train()
    assert values(server.strategy.parts) == [2.5, 2.5]


def test_clients_that_are_left_out_are_not_counted(serve: Any) -> None:
    acts = {"9": "nan"}
    server = serve("fedavg", "strategy.combine=median", hosts=HOSTS, acts=acts)
    server.train()
    assert values(server.strategy.parts) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("pfedsim", [], "whose server reads every client's head; or set strategy.combine=mean"),
        ("perada", [], "every client's logits, set strategy.params.distill=false; or set"),
        (
            "fedavg",
            ["privacy.enabled=true", "privacy.unit=client"],
            "clipped updates only; set strategy.combine=mean or privacy.unit=example",
        ),
    ],
)
def test_where_a_robust_combination_is_refused(
    bind: Any, name: str, settings: list[str], line: str
) -> None:
    bind(name, *settings)
    with pytest.raises(ConfigError) as error:
        bind(name, "strategy.combine=median", *settings)
    text = str(error.value)
    assert text.startswith("strategy.combine: got 'median', takes mean ") and line in text
    assert "\n" not in text


def test_with_encryption_it_is_refused() -> None:
    config = load_config(None, ["encryption.enabled=true", "strategy.combine=krum"])
    line = r"strategy\.combine: got 'krum', takes mean with encryption: .* cannot sort them; set "
    with pytest.raises(ConfigError, match=line):
        check_channel(config, Needs(), "examples")
    config.strategy.combine = "mean"
    check_channel(config, Needs(rows=True, compares="head"), "own")


@pytest.mark.parametrize(
    ("settings", "clients", "least"),
    [
        (["strategy.combine=trimmed"], 4, "0.25"),
        (["strategy.combine=krum", "strategy.trim=0.09"], 11, "0.0909"),
        (["strategy.combine=trimmed", "strategy.trim=0"], 100, "0.01"),
        (["strategy.combine=trimmed", "strategy.fraction=0.02"], 100, "0.5"),
        (["strategy.combine=trimmed", "strategy.min_clients=4"], 0, "0.25"),  # devices
    ],
)
def test_a_rule_against_nobody_is_refused(settings: list[str], clients: int, least: str) -> None:
    config = load_config(None, settings)
    with pytest.raises(ConfigError) as error:
        check_cohort(config, clients)
    line = rf"^strategy\.trim: got [0-9.]+, takes {least} or more, as it leaves out nobody of \d+"
    assert re.match(line, str(error.value)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "clients"),
    [
        (["strategy.combine=trimmed"], 5),
        (["strategy.combine=krum", "strategy.trim=0.29"], 100),  # 0.29 * 100 is 28.99...96
        (["strategy.combine=trimmed", "strategy.fraction=0.02", "strategy.min_clients=5"], 100),
        (["strategy.combine=trimmed", "strategy.min_clients=5"], 0),
        (["strategy.combine=median", "strategy.trim=0"], 2),
        (["strategy.trim=0"], 2),
    ],
)
def test_a_rule_against_somebody_is_not(settings: list[str], clients: int) -> None:
    check_cohort(load_config(None, settings), clients)


def test_a_round_that_leaves_out_nobody_is_named(serve: Any, log: Any) -> None:
    acts = {"9": "fail"}
    settings = ["strategy.combine=trimmed", "strategy.trim=0.25"]
    serve("fedavg", *settings, hosts=HOSTS).train()
    assert "leaves out nobody" not in log.text
    serve("fedavg", *settings, hosts=HOSTS, acts=acts).train()
    assert "strategy.trim leaves out nobody of 3 updates" in log.text


def test_more_clients_than_a_simulation_has_are_refused() -> None:
    config = load_config(None, ["strategy.min_clients=7"])
    takes = "takes an integer <= 6, the clients of this simulation; they would be waited for"
    with pytest.raises(ConfigError, match=rf"^strategy\.min_clients: got 7, {takes}"):
        check_cohort(config, 6)
    check_cohort(config, 7)
    check_cohort(config, 0)  # devices, which may come


@pytest.mark.parametrize("setting", ["strategy.min_clients=7", "strategy.combine=trimmed"])
def test_it_is_refused_before_a_run_starts(run: Any, setting: str) -> None:
    few = ["strategy.trim=0.1"]
    with pytest.raises(ConfigError, match=r"^strategy\.(min_clients: got 7|trim: got 0\.1), takes"):
        run("fedavg", *few, setting)


def test_with_weights_of_its_own_it_is_refused() -> None:
    config = load_config(None, ["strategy.combine=trimmed"])
    with pytest.raises(ConfigError, match="for a method with a mixing of its own; set"):
        OwnMixing.check(config, load_data(config))


def test_without_distillation_perada_may(bind: Any) -> None:
    bind("perada", "strategy.combine=median", "strategy.params.distill=false")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("strategy.trim=0.5", r"strategy\.trim: got 0\.5, takes a number >= 0 and < 0\.5"),
        (
            "strategy.max_update_norm=0",
            r"strategy\.max_update_norm: got 0\.0, takes a number or null > 0",
        ),
        ("strategy.combine=mode", r"strategy\.combine: got 'mode', takes one of mean, median"),
    ],
)
def test_settings_out_of_range(setting: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_config(None, [setting])
