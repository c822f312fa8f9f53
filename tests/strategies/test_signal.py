"""Signal against noise in the mean update: by hand, on noise alone, on a clear signal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.parts import Part, Parts
from strategies.signal import SignalToNoise

SIZE = 800  # scalars: |noise|^2 is d v, give or take v sqrt(2 d), which is 5 % of it
NOTE = (
    "the updates of 'body' cannot be told from noise: raise privacy.epsilon, take fewer "
    "privacy.steps or rounds, train fewer parameters, or have more clients or examples"
)


def body(vector: torch.Tensor) -> Parts:
    return Parts({"body": Part.of({"w": vector})})


def followed(
    rounds: int, noise: float, signal: float, *, seed: int = 0, clients: int = 4
) -> SignalToNoise:
    """A walk: each round ``signal`` in every scalar, and the mean of the clients' noise."""
    generator, found = torch.Generator().manual_seed(seed), SignalToNoise()
    sent, weights = body(torch.zeros(SIZE)), torch.full((clients,), 1 / clients)
    for server_round in range(1, rounds + 1):
        noises = noise * torch.randn(clients, SIZE, generator=generator)
        mixed = body(sent["body"].vector + signal + weights @ noises)
        found.note(server_round, sent, mixed, weights, [{"body": noise}] * clients)
        sent = mixed
    return found


def test_ratios_by_hand() -> None:
    found = SignalToNoise()
    start, one, two = (body(torch.tensor(v)) for v in ([0.0, 0.0], [3.0, 4.0], [3.0, 3.0]))
    weights = torch.tensor([0.25, 0.75])
    noises = [{"body": 4.0}, {"body": 2.0}]
    found.note(1, start, one, weights, noises)
    # Variance of a scalar (1/4)^2 4^2 + (3/4)^2 2^2 = 1 + 2.25; power of two scalars 6.5.
    assert found.ratios() == {"body": pytest.approx(25 / 6.5 - 1)}
    found.note(2, one, two, weights, noises)
    # Moved by (3, 3) in all: 18 against 13.
    assert found.ratios() == {"body": pytest.approx(18 / 13 - 1)}
    # 5 above the noise, which is below 3 * 6.5 * sqrt(4).
    assert found.notes() == [NOTE]


def test_each_part_has_its_own_figure() -> None:
    found, weights = SignalToNoise(), torch.tensor([0.5, 0.5])
    sent = Parts({n: Part.of({"w": torch.zeros(SIZE)}) for n in ("body", "head")})
    mixed = body(torch.ones(SIZE)) | {"head": sent["head"]}
    # Variances .5 (1/4 each of 1): the body moved by 1 a scalar, the head by nothing.
    found.note(1, sent, mixed, weights, [{"body": 1.0, "head": 1.0}] * 2)
    assert found.ratios() == {"body": pytest.approx(1.0), "head": pytest.approx(-1.0)}
    assert [note.split("'")[1] for note in found.notes()] == ["head"]


@pytest.mark.parametrize("noises", [[{"body": 1.0}, {}], [{}, {}], [{"body": 1.0}, {"body": "1"}]])
def test_a_part_of_which_nobody_knows_the_noise_has_no_figure(noises: list[Any]) -> None:
    found = SignalToNoise()
    found.note(1, body(torch.zeros(2)), body(torch.ones(2)), torch.tensor([0.5, 0.5]), noises)
    assert found.ratios() == {} and found.notes() == []


def test_noise_alone_is_called_so() -> None:
    """A z test at 3 standard deviations: of 100 walks one may by chance pass for a signal."""
    walks = [followed(rounds=5, noise=0.7, signal=0.0, seed=seed) for seed in range(100)]
    assert sum(walk.notes() == [NOTE] for walk in walks) >= 98
    ratios = torch.tensor([walk.ratios()["body"] for walk in walks])
    assert abs(float(ratios.mean())) < 0.02  # .05 a walk, .005 over 100
    assert float(ratios.std()) == pytest.approx(0.05, rel=0.3)


def test_a_clear_signal_is_not() -> None:
    # Noise of .5 over 4 clients is .25 in the mean; the signal is .25 a scalar and round. After
    # r rounds the walk's power is r^2 .0625 against r .0625: the ratio is r.
    for rounds in (1, 4, 9):
        found = followed(rounds, noise=0.5, signal=0.25)
        assert found.notes() == []
        assert found.ratios()["body"] == pytest.approx(rounds, rel=0.25)


def test_rounds_add_up_to_a_signal_that_none_of_them_shows() -> None:
    # A tenth of the noise's power a round is 2 standard deviations; nine rounds are 18.
    step = (0.1 * 0.25**2) ** 0.5
    assert followed(1, noise=0.5, signal=step).notes() == [NOTE]
    assert followed(9, noise=0.5, signal=step).notes() == []


@given(st.floats(0.01, 100), st.floats(0.01, 10), st.integers(1, 5))
def test_units_play_no_role(scale: float, noise: float, rounds: int) -> None:
    one = followed(rounds, noise, signal=noise / 3)
    other = followed(rounds, scale * noise, signal=scale * noise / 3)
    assert one.ratios()["body"] == pytest.approx(other.ratios()["body"], rel=1e-3, abs=1e-3)


# -- in runs -------------------------------------------------------------------------------------


def test_a_run_reports_signal_to_noise_and_says_when_there_is_none(run: Any) -> None:
    private = ["privacy.enabled=true", "privacy.epsilon=0.05", "rounds=3"]
    privacy = run("fedper", *private).report["privacy"]
    assert list(privacy["signal_to_noise"]) == ["body"]
    assert abs(privacy["signal_to_noise"]["body"]) < 0.3  # 512 scalars: .06 by chance
    assert NOTE in privacy["notes"]
    clear = ["privacy.enabled=true", "privacy.epsilon=1e5", "rounds=3", "privacy.lr=1"]
    privacy = run("fedavg", *clear).report["privacy"]
    assert set(privacy["signal_to_noise"]) == {"body", "head"}
    assert min(privacy["signal_to_noise"].values()) > 1
    assert not any("cannot be told from noise" in note for note in privacy["notes"])


def test_where_the_noise_is_not_known_nothing_is_said_of_it(run: Any) -> None:
    settings = ["privacy.enabled=true", "training.optimizer=adam", "privacy.epsilon=0.05"]
    privacy = run("fedavg", *settings).report["privacy"]
    assert privacy["signal_to_noise"] == {}
    assert not any("cannot be told" in note for note in privacy["notes"])
