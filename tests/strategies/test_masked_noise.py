"""Privacy by client in masked sums: whole runs in which no server is trusted with the noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism
from meddling import MeddlingGrid, Said

from clients.methods.fedavg import FedAvg
from fedpers.channels.client_noise import ClientNoise
from fedpers.channels.masked.channel import Masked
from fedpers.channels.masked.noise import shares_of
from fedpers.channels.masked.quantise import WEIGHT
from fedpers.config import Config, load_config
from fedpers.errors import ConfigError
from fedpers.parts import Parts
from fedpers.privacy import Ledger
from fedpers.records import in_the_clear
from simulations.backends import checks
from simulations.backends.serial import run_serial

PRIVATE = ["privacy.enabled=true", "privacy.unit=client", "privacy.max_grad_norm=0.5"]
ON = ["encryption.enabled=true", "encryption.scheme=masked", *PRIVATE]
SIZE = 1802  # values of an update


class Moved:
    """What became of the global model in each round that was mixed.

    Attributes:
        changes: of all its values, [SIZE], a round each.
        layouts: names of the fields of the vectors.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.changes: list[torch.Tensor] = []
        self.layouts: list[list[str]] = []
        mix = Masked.mix

        def noted(channel: Masked, turn: Any, *rest: Any) -> Any:
            self.layouts.append([f.name for f in channel._terms.layout.fields])  # type: ignore[union-attr]
            mixed = mix(channel, turn, *rest)
            if not mixed.unused:
                (row,) = mixed.rows
                before, after = flat(in_the_clear(turn.sent)), flat(in_the_clear(row))
                self.changes.append(after - before)
            return mixed

        patch.setattr(Masked, "mix", noted)


def flat(parts: Parts) -> torch.Tensor:
    return torch.cat([part.vector.double() for part in parts.values()])


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Moved:
    return Moved(monkeypatch)


def spread(report: dict[str, Any], answered: int, honest: int) -> float:
    """Of the noise in the mean of the changes of those who answered."""
    privacy = report["privacy"]
    whole = privacy["noise_multiplier"] * privacy["max_grad_norm"]
    return float(whole * (answered / honest) ** 0.5 / answered)


def recomputed(config: Config, folder: Path, cohort: int, delta: float) -> float:
    """The epsilon of a run, by Google's account of what its clients have drawn: discrete Gaussians
    in integers, as many rounds as the ledger has."""
    (release,) = Ledger(folder / "state" / "ledgers" / "population.json").releases
    shares = shares_of(config, release.mechanism.sigma, cohort, SIZE)
    deviation = (shares.honest * shares.variance) ** 0.5
    one = from_discrete_gaussian_mechanism(deviation, sensitivity=int(shares.bound**0.5))
    return float(one.self_compose(release.steps).get_epsilon_for_delta(delta))


def test_a_run_has_the_noise_that_it_is_charged_for(
    run: Any, moved: Moved, digits: list[str]
) -> None:
    settings = ["privacy.epsilon=4", "rounds=3"]
    found = run("fedavg", *ON, *settings)
    privacy = found.report["privacy"]
    assert found.failures() == {} and [line["answered"] for line in found.rounds] == [6, 6, 6]
    assert list(privacy["per_client"]) == ["population"] and 0.99 * 4 < privacy["epsilon_max"] <= 4
    config = load_config(None, [*digits, *ON, *settings])
    independent = recomputed(config, found.folder, 6, privacy["delta"])
    assert privacy["epsilon_max"] == pytest.approx(independent, rel=0.01)
    # Six shares, of which 3 are as much as sigma C. 1,802 values give the spread to 2 %; clipped
    # changes themselves add less than C / sqrt(1802) to it.
    for change in moved.changes:
        assert len(change) == SIZE
        assert float(change.std()) == pytest.approx(spread(found.report, 6, 3), rel=0.07)
    notes = privacy["notes"]
    assert "clients add the noise: it is whole if 50 % of those asked are honest" in notes
    assert "the noise was up to 1.41 times as large, as more answered" in notes
    assert not any("trusted" in note for note in notes)
    # No loss and no count is in the vector, nor beside it.
    assert moved.layouts == [["part body", "part head", WEIGHT]] * 3
    assert all(line["loss"] is None for line in found.rounds if "loss" in line)


def test_without_noise_to_speak_of_it_is_the_mean_of_clipped_changes(
    run: Any, moved: Moved
) -> None:
    """At an epsilon that buys none, and as the trusted server has it."""
    settings = ["privacy.epsilon=1e6", "rounds=2"]
    found = run("fedavg", *ON, *settings)
    trusted = run("fedavg", *PRIVATE, *settings)
    accuracy = [one.report["accuracy"]["personal"]["mean"] for one in (found, trusted)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=1 / 120)
    assert all(0.01 < float(change.norm()) <= 0.51 for change in moved.changes)


@pytest.mark.parametrize("name", ["fedper", "ditto", "fedcp", "fedala"])
def test_other_methods(run: Any, name: str) -> None:
    found = run(name, *ON, "privacy.epsilon=8")
    assert found.failures() == {} and found.report["encryption"]["scheme"] == "masked"
    assert 0.99 * 8 < found.report["privacy"]["epsilon_max"] <= 8


def test_clients_in_folds_add_their_own_shares(run: Any, moved: Moved) -> None:
    found = run("fedavg", *ON, "privacy.epsilon=4", "training.fold=4", "rounds=1")
    (change,) = moved.changes
    assert float(change.std()) == pytest.approx(spread(found.report, 6, 3), rel=0.07)


def test_a_client_whose_training_fails_adds_its_share_all_the_same(
    run: Any, moved: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: FedAvg, *_: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(FedAvg, "train", fails)
    found = run("fedavg", *ON, "privacy.epsilon=4", "rounds=1")
    (change,) = moved.changes
    assert float(change.std()) == pytest.approx(spread(found.report, 6, 3), rel=0.07)


# -- who is lost -----------------------------------------------------------------------------------

Meddle = Callable[[Said], Any]


@pytest.fixture
def meddled(digits: list[str], tmp_path: Path) -> Callable[..., Any]:
    """``meddled(meddle, "rounds=3")``: a run with a node for each client, some of them lost."""

    def start(meddle: Meddle, *overrides: str, **how: Any) -> tuple[list[Any], dict[str, Any]]:
        def make(*arguments: Any, **options: Any) -> MeddlingGrid:
            grid = MeddlingGrid(*arguments, **options)
            grid.meddle, grid.transcript = meddle, []
            return grid

        settings = [*digits, *ON, "strategy.name=fedavg", "simulation.nodes=6", *overrides]
        config, folder = load_config(None, settings), tmp_path / "run"
        run_serial(config, folder, make_grid=make, show=lambda line: None, **how)
        lines = (folder / "rounds.jsonl").read_text().splitlines()
        report = json.loads((folder / "report.json").read_text())
        return [json.loads(line) for line in lines], report

    return start


def test_the_noise_is_whole_with_the_least_number_and_below_nothing_is_mixed(
    meddled: Any, moved: Moved
) -> None:
    """Of 6 clients 5 have to be honest, though a quorum would be 4."""
    gone = {1: "", 2: "45", 3: "5"}

    def meddle(said: Said) -> Any:
        lost = said.kind == "train" and said.clients[0] in gone[said.body["round"]]
        return None if lost else said.answer

    settings = ["encryption.masks.corrupt=0", "encryption.honest=0.8", "strategy.min_clients=4"]
    lines, report = meddled(meddle, *settings, "privacy.epsilon=4", "rounds=3")
    assert [line["answered"] for line in lines] == [6, 4, 5]
    assert report["privacy"]["epsilon_max"] > 0.99 * 4  # all three are charged
    assert len(moved.changes) == 2
    for change, answered in zip(moved.changes, (6, 5), strict=True):
        assert float(change.std()) == pytest.approx(spread(report, answered, 5), rel=0.07)


@pytest.mark.parametrize("missing", ["5", "45"])
def test_a_server_that_does_not_count_shares_gets_no_signature_from_too_few(
    meddled: Any, moved: Moved, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(ClientNoise, "least_answers", lambda self, cohort: 0)

    def meddle(said: Said) -> Any:
        early = said.body.get("round") == 1 and said.kind == "train"
        return None if early and said.clients[0] in missing else said.answer

    settings = ["encryption.masks.corrupt=0", "encryption.honest=0.8", "strategy.min_clients=4"]
    meddled(meddle, *settings, "privacy.epsilon=4", "rounds=2")
    assert len(moved.changes) == (2 if missing == "5" else 1)


def test_losses_at_any_moment_cost_a_round_or_nothing(meddled: Any, moved: Moved) -> None:
    rng, moments = Random(4), ("train", "sign", "reveal")
    lost = {(r, str(rng.randrange(6))): rng.choice(moments) for r in range(1, 7)}

    def meddle(said: Said) -> Any:
        here = lost.get((said.body.get("round", len(moved.layouts)), said.clients[0]))
        return None if here == said.kind else said.answer

    settings = ["encryption.masks.corrupt=0.1", "privacy.epsilon=8", "rounds=6"]
    lines, report = meddled(meddle, *settings)
    assert len(lines) == 6 and 4 <= len(moved.changes) <= 6
    widest = spread(report, 5, 3)
    assert all(float(change.std()) < 1.1 * widest for change in moved.changes)
    assert report["privacy"]["epsilon_max"] <= 8


def test_a_resumed_run_has_the_noise_that_it_began_with(meddled: Any, moved: Moved) -> None:
    class Killed(Exception):
        pass

    def killed(said: Said) -> Any:
        if said.body.get("round") == 3:
            raise Killed
        return said.answer

    settings = ["privacy.epsilon=4", "rounds=4"]
    with pytest.raises(Killed):
        meddled(killed, *settings)
    lines, report = meddled(lambda said: said.answer, *settings, resume=True)
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    # The round that was charged when the server died is charged again.
    assert report["privacy"]["epsilon_max"] <= 4
    for change in moved.changes:
        assert float(change.std()) == pytest.approx(spread(report, 6, 3), rel=0.07)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["encryption.honest=0.7"],
            r"^encryption\.honest: got 0\.7, takes a share that leaves room for encryption\.masks",
        ),
        (["strategy.combine=median"], r"^strategy\.combine: got 'median', takes mean"),
        (["privacy.steps=3"], r"^privacy\.steps: got 3, takes nothing with privacy\.unit=client"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_run(
    digits: list[str], overrides: list[str], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        checks.check(load_config(None, [*digits, *ON, "strategy.name=fedavg", *overrides]))


def test_a_coarse_step_is_refused_before_anything_is_charged(run: Any, tmp_path: Path) -> None:
    state = f"state={tmp_path / 'kept'}"
    line = r"^encryption\.masks\.bits: got 8, takes 9 or more for 1802 values, so that rounding"
    with pytest.raises(ConfigError, match=line):
        run("fedavg", *ON, state, "encryption.masks.bits=8")
    assert not list((tmp_path / "kept").rglob("population.json"))
    assert run("fedavg", *ON, state, "encryption.masks.bits=9").failures() == {}


def test_a_mechanism_whose_account_of_integers_nobody_knows_is_refused(
    run: Any, plugin: Callable[[str, str], str]
) -> None:
    name = plugin(
        "own",
        "from fedpers.privacy import Gaussian\n\n\nclass Other(Gaussian):\n    divisible = True\n",
    )
    line = r"^privacy\.mechanism: got .*, takes gaussian in masked sums, whose account"
    with pytest.raises(ConfigError, match=line):
        run("fedavg", *ON, f"privacy.mechanism={name}:Other")
