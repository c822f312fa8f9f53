"""Odd values in a private client's data: it answers as ever, and they count for nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clients.node.host import PERSONAL, ClientHost
from clients.training.clipping import clip_factors, without
from clients.training.folded_privately import per_sample
from clients.training.private_steps import private_steps
from fedpers.config import Config, load_config
from fedpers.data import load_data
from fedpers.data.arrays import bounded
from fedpers.errors import ClientError, ConfigError, DataError
from fedpers.models import PersonalModel, build_model
from fedpers.parts import Parts
from fedpers.privacy import Gaussian, Release
from fedpers.privacy.noise import Source, known

PRIVATE = ("privacy.enabled=true", "privacy.deterministic_for_tests=true", "privacy.steps=2")
LONG = ("privacy.max_grad_norm=1e6",)
CLIENTS = ["0", "1", "2", "3"]  # the last without examples
Small = Callable[..., Config]


# -- the arithmetic ------------------------------------------------------------------------------


def test_factors_by_hand() -> None:
    norms = torch.tensor([0.0, 1.0, 4.0, 1e19, math.inf, math.nan])  # clipped to 2
    expected = torch.tensor([1.0, 1.0, 0.5, 2e-19, 0.0, 0.0])
    torch.testing.assert_close(clip_factors(norms, 2.0), expected, rtol=1e-5, atol=0)


def test_what_is_left_out_is_zero_whatever_it_was() -> None:
    values = torch.tensor([[1.0, 2.0], [math.nan, 3.0], [math.inf, 0.0]])
    found = without(torch.tensor([False, True, True]), values)
    assert found.tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
    assert without(torch.zeros(3, dtype=torch.bool), values) is values
    deep = without(torch.tensor([[True, False]]), torch.full((1, 2, 3, 4), math.nan))
    assert bool((deep[0, 0] == 0).all()) and bool(deep[0, 1].isnan().all())


def test_a_norm_is_not_lost_between_the_smallest_and_the_largest_numbers() -> None:
    # Weights that a server chooses make inputs of 1e-25 and gradients of 1e19, whose outer product
    # is as long as 1e-6 * 12; in float32 both squares are lost, and nothing would be clipped.
    x, g = torch.full((1, 1, 1, 9), 1e-25), torch.full((1, 1, 1, 16), 1e19)
    _, norm = per_sample(x, g)
    assert float(norm) == pytest.approx(12e-6, rel=1e-5)


def test_inputs_are_bounded() -> None:
    x = torch.tensor([1.0, -2.5, 3e38, math.inf, -math.inf, math.nan])
    assert bounded(x, 2.0).tolist() == [1.0, -2.0, 2.0, 2.0, -2.0, 0.0]
    assert x.tolist() == [1.0, -2.0, 2.0, 2.0, -2.0, 0.0]  # in place
    tokens = torch.tensor([7, 2_000_000])
    assert bounded(tokens, 1.0).tolist() == [7, 2_000_000]


@pytest.mark.parametrize("range", ["0", "-1", "2e6", "inf"])
def test_a_range_that_bounds_nothing_is_refused(range: str) -> None:
    with pytest.raises(ConfigError, match=r"^privacy\.input_range: got "):
        load_config(None, [f"privacy.input_range={range}"])


# -- both private paths --------------------------------------------------------------------------


def moved(model: PersonalModel, x: Tensor, y: Tensor, start: list[Tensor]) -> Tensor:
    """What one step without noise on all examples changes, times their number: the clipped sum."""
    parameters = model.trainable(list(model.slots))
    for parameter, first in zip(parameters, start, strict=True):
        parameter.requires_grad_(True)
        parameter.data.copy_(first)
    private_steps(
        model,
        parameters,
        torch.optim.SGD(parameters, lr=1.0),
        lambda batch: F.cross_entropy(model(x[batch]).logits, y[batch], reduction="none"),
        examples=len(y),
        expected=len(y),
        release=Release(Gaussian(0.0, 1.0), 1),
        max_grad_norm=0.3,
        after_noise=lambda: None,
        source=known(0)(),
    )
    after = [parameter.detach() for parameter in parameters]
    steps = [(first - last).flatten() for first, last in zip(start, after, strict=True)]
    return torch.cat(steps) * len(y)


@pytest.mark.parametrize("lora", ["model.lora=null", "model.lora.share=both"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "vit-tiny"])
def test_an_odd_example_counts_for_at_most_the_norm_and_leaves_the_others_alone(
    name: str, lora: str
) -> None:
    config = load_config(None, ["data.clients=5", f"model.name={name}", lora])
    data = load_data(config)
    model, own = build_model(config, data), data.client("0").train.take(torch.arange(6))
    torch.manual_seed(1)
    start = [p.detach() + 0.1 * torch.randn(p.shape) for p in model.trainable(list(model.slots))]
    others = moved(model, own.x[:5], own.y[:5], start)
    for value, pixels in ((3e38, 1), (3e38, 64), (-math.inf, 1), (math.nan, 64)):
        x = own.x.clone()
        x[5].view(-1)[:pixels] = value
        added = moved(model, x, own.y, start) - others
        assert float(added.norm()) < 0.3 * (1 + 1e-4)
        if not math.isfinite(value):
            assert float(added.abs().max()) < 1e-5  # rounding, of sums a hundred times as large


def host_of(config: Config, folder: Path) -> ClientHost:
    return ClientHost(config, config.strategy.name, ["gate_width"], folder / "state")


def sent(host: ClientHost) -> dict[str, Parts]:
    torch.manual_seed(7)
    initial = host.algorithm.initial.only(host.algorithm.sends)
    parts = {n: p.like(p.vector + 0.1 * torch.randn(len(p.vector))) for n, p in initial.items()}
    return dict.fromkeys(CLIENTS, Parts(parts))


@pytest.mark.parametrize("value", [3e38, math.inf, math.nan])
def test_both_paths_agree_on_what_gets_past_the_bounds(
    value: float, small: Small, tmp_path: Path
) -> None:
    found = []
    for fold in ("off", "3"):
        host = host_of(small("ditto", *PRIVATE, f"training.fold={fold}"), tmp_path / fold)
        host.examples.client("1").train.x[2, 3] = value
        found.append(host.train_all(sent(host), 1))
        assert host.groups.known == (1 if fold == "off" else 3)
    for client in CLIENTS:
        (one, told), (other, said) = found[0][client], found[1][client]
        for name, part in one.items():
            assert bool(part.vector.isfinite().all())
            torch.testing.assert_close(other[name].vector, part.vector, rtol=0, atol=1e-5)
        assert told.keys() == said.keys()
        json.dumps([told, said], allow_nan=False)


# -- a whole client ------------------------------------------------------------------------------


def spoil(folder: Path, value: float) -> None:
    """Put the value into two training examples, a test and a validation example of client "1"."""
    arrays = dict(np.load(folder / "x.npz"))
    rows = np.load(folder / "split.npz")
    for k, split in enumerate(("train_1", "train_1", "test_1", "val_1")):
        arrays["x"][rows[split][k % 2], k:] = value
    np.savez(folder / "x.npz", **arrays)


@pytest.mark.parametrize(
    ("unit", "method", "cache"),
    [
        *(("example", "fedavg", "true"), ("example", "ditto", "false")),
        *(("example", "fedcp", "false"), ("client", "fedper", "true")),
    ],
)
def test_a_private_client_with_odd_values_answers_as_ever(
    unit: str, method: str, cache: str, small: Small, tmp_path: Path
) -> None:
    told: list[Any] = []
    for value in (0.0, 3e38, -math.inf, math.nan):
        config = small(method, *PRIVATE, f"privacy.unit={unit}", f"model.cache={cache}")
        spoil(tmp_path, value)
        host = host_of(config, tmp_path / f"{value}")
        for server_round in (1, 2):
            answers = host.train_all(sent(host), server_round)
            assert all(isinstance(answer, tuple) for answer in answers.values()), answers
            assert all(a[0].first_not_finite() is None for a in answers.values())
        assert host.train_baselines(CLIENTS) == {}
        told.append([[*answers["1"][1]], host.data.size("1")])
        result = host.evaluate("1", 2, sent(host)["1"])
        json.dumps(result.to_json(), allow_nan=False)
        host.newcomer("1", 2, sent(host)["1"], 2)
    assert all(one == told[0] for one in told)


def test_without_privacy_odd_values_are_refused_before_the_run(
    small: Small, tmp_path: Path
) -> None:
    config = small("fedavg")
    spoil(tmp_path, math.nan)
    with pytest.raises(DataError, match=r"x\.npz: inputs: got NaN, infinity or a number beyond"):
        load_data(config)


def test_a_part_that_stays_is_left_as_it_was_where_its_training_breaks_down(
    small: Small, tmp_path: Path
) -> None:
    for fold in ("off", "3"):
        settings = (f"training.fold={fold}", "training.lr=1e38", "privacy.lr=0.1")
        host = host_of(small("ditto", *PRIVATE, *settings), tmp_path / fold)
        answers = host.train_all(sent(host), 1)
        for client in CLIENTS:
            assert isinstance(answers[client], tuple)
            json.dumps(host.evaluate(client, 1, sent(host)[client]).to_json(), allow_nan=False)
        for client in ("0", "1"):  # of more than one batch
            kept = host.store(client).load_before(PERSONAL, 2)
            for name in ("body", "head"):
                assert torch.equal(kept[f"personal.{name}"].vector, sent(host)[client][name].vector)


def test_what_noise_made_infinite_is_one_line_and_is_drawn_once(
    small: Small, tmp_path: Path
) -> None:
    # It hangs on the noised sums alone. Drawn again, what is sent would be chosen by what was not.
    for fold in ("off", "3"):
        asked: list[tuple[int | str, ...]] = []

        def sources(*path: int | str, asked: list[tuple[int | str, ...]] = asked) -> Source:
            asked.append(path)
            return known(0)(*path)

        config = small("fedavg", *PRIVATE, f"training.fold={fold}", "privacy.lr=1e38", *LONG)
        stores = tmp_path / fold / "state"
        host = ClientHost(config, "fedavg", [], stores, sources=sources)
        answers = host.train_all(sent(host), 1)
        for client in CLIENTS[:3]:
            assert isinstance(answers[client], ClientError)
            assert str(answers[client]).startswith("upload: part ")
            assert not host.store(client).load_before(PERSONAL, 2)
            assert asked.count((1, client, "local training")) == 1
