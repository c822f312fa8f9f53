"""DP-SGD against a loop by hand; its noise; what removing one example can change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clients.admission import check_private
from clients.base import find_algorithm
from clients.training import private_steps as module
from clients.training.private_steps import noise_in_update, private_steps
from clients.training.trainer import Trainer
from fedpers.config import Config, load_config
from fedpers.context import Context
from fedpers.data import ClientData, Examples, FederatedData, load_data
from fedpers.errors import ClientError
from fedpers.models import PersonalModel, build_model
from fedpers.parts import Parts
from fedpers.phases import Phase, Prox
from fedpers.privacy import Gaussian, Release
from fedpers.privacy.noise import known, secret

LR, C = 0.5, 0.3
SETTINGS = ("data.clients=5", "data.partition.name=iid", "privacy.enabled=true")


def config_of(*overrides: str) -> Config:
    return load_config(None, [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def digits() -> FederatedData:
    return load_data(config_of())


@pytest.fixture(scope="module")
def examples(digits: FederatedData) -> Examples:
    return digits.client("0").train.take(torch.arange(12))


def randomise(model: PersonalModel) -> None:
    """Away from the zeros that adapters and head start at, where gradients vanish."""
    generator = torch.Generator().manual_seed(1)
    for slot in model.slots:
        for parameter in model.trainable([slot]):
            fan = parameter[0].numel() if parameter.ndim > 1 else 10
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += noise / fan**0.5


@pytest.fixture(params=["mlp", "cnn", "vit-tiny"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["LoRA", "whole body"])
def model(request: pytest.FixtureRequest, digits: FederatedData, name: str) -> PersonalModel:
    settings = ["model.lora=null"] if request.param == "whole body" else ["model.lora.share=both"]
    made = build_model(config_of(f"model.name={name}", *settings), digits)
    randomise(made)
    return made


def trained(model: PersonalModel) -> list[nn.Parameter]:
    parameters = model.trainable(list(model.slots))
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def loss_of(model: PersonalModel, examples: Examples) -> Callable[[Tensor], Tensor]:
    def losses(batch: Tensor) -> Tensor:
        logits = model(examples.x[batch]).logits
        return F.cross_entropy(logits, examples.y[batch], reduction="none")

    return losses


def run(
    model: PersonalModel,
    examples: Examples,
    *,
    sigma: float = 0.0,
    rate: float = 1.0,
    steps: int = 1,
    seed: int = 0,
    clip: float = C,
    after_noise: Callable[[], None] = lambda: None,
) -> float:
    parameters = trained(model)
    return private_steps(
        model,
        parameters,
        torch.optim.SGD(parameters, lr=LR),
        loss_of(model, examples),
        examples=len(examples),
        expected=rate * len(examples),
        release=Release(Gaussian(sigma, rate), steps),
        max_grad_norm=clip,
        after_noise=after_noise,
        source=known(seed)(),
    )


def by_hand(model: PersonalModel, examples: Examples, rate: float, steps: int, seed: int) -> float:
    """One example after another; the mean loss."""
    parameters, losses = trained(model), loss_of(model, examples)
    source, seen = known(seed)(), []
    for _ in range(steps):
        picked = torch.arange(len(examples))
        if rate < 1:
            picked = (source.uniform(len(examples)) <= rate).nonzero().view(-1)
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for k in picked:
            loss = losses(k[None]).sum()
            gradients = torch.autograd.grad(loss, parameters)
            norm = torch.cat([g.reshape(-1) for g in gradients]).norm()
            for place, gradient in zip(total, gradients, strict=True):
                place += gradient * min(1.0, C / float(norm + 1e-6))
            seen.append(float(loss.detach()))
        with torch.no_grad():
            for parameter, summed in zip(parameters, total, strict=True):
                parameter -= LR * summed / (rate * len(examples))
    return sum(seen) / len(seen)


def values(model: PersonalModel) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in trained(model)])


def restore(model: PersonalModel, vector: Tensor) -> None:
    nn.utils.vector_to_parameters(vector.clone(), trained(model))


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 2), (0.4, 3)])
@pytest.mark.parametrize("chunked", [False, True], ids=["at once", "in chunks"])
def test_without_noise_it_is_the_loop_by_hand(
    model: PersonalModel,
    examples: Examples,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    steps: int,
    chunked: bool,
) -> None:
    start = values(model)
    if chunked:  # five examples at once
        monkeypatch.setattr(module, "CHUNK_SCALARS", 5 * len(start) + 1)
    loss = run(model, examples, rate=rate, steps=steps, seed=3)
    found = values(model)
    restore(model, start)
    expected_loss = by_hand(model, examples, rate, steps, seed=3)
    assert (found - start).abs().max() > 1e-3
    torch.testing.assert_close(found, values(model), atol=1e-6, rtol=0)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


@pytest.fixture
def mlp(digits: FederatedData) -> PersonalModel:
    made = build_model(config_of("model.name=mlp", "model.lora=null"), digits)
    randomise(made)
    return made


@pytest.mark.parametrize("rate", [1.0, 1e-9], ids=["all examples", "an empty sample"])
def test_the_noise_has_the_declared_spread(
    mlp: PersonalModel, examples: Examples, rate: float
) -> None:
    sigma, steps, start = 2.0, 4, values(mlp)
    if rate == 1:
        run(mlp, examples, sigma=0.0, rate=rate)
        without = values(mlp)
        restore(mlp, start)
        steps = 1  # where the gradients are the same with and without noise
    else:
        without = start
    run(mlp, examples, sigma=sigma, rate=rate, steps=steps)
    noise = (values(mlp) - without) * rate * len(examples) / (LR * C * sigma * steps**0.5)
    sizes = [parameter.numel() for parameter in trained(mlp)]
    checked = 0
    for piece in torch.split(noise, sizes):
        if len(piece) >= 500:  # standard deviations of the estimates: 1 / sqrt(n), 1 / sqrt(2 n)
            assert abs(float(piece.mean())) < 5 / len(piece) ** 0.5
            assert abs(float(piece.std()) - 1) < 5 / (2 * len(piece)) ** 0.5
            checked += 1
    assert checked >= 2


def test_noise_in_an_update_by_hand() -> None:
    # One step's noise is sigma C / expected = 2 * 3 / 12 = .5, and moves a scalar by lr = .1 of it.
    weight, release = [nn.Parameter(torch.zeros(2))], Release(Gaussian(2.0, 0.5), 3)
    plain = torch.optim.SGD(weight, lr=0.1)
    assert noise_in_update(plain, release, 3.0, 12.0) == pytest.approx(0.05 * 3**0.5)
    # With momentum .5 the first step's noise moves it by 1 + .5 + .25 of that, the next's by 1.5.
    heavy = torch.optim.SGD(weight, lr=0.1, momentum=0.5)
    expected = 0.05 * (1.75**2 + 1.5**2 + 1) ** 0.5
    assert noise_in_update(heavy, release, 3.0, 12.0) == pytest.approx(expected)
    for adam in (torch.optim.Adam(weight), torch.optim.AdamW(weight)):
        assert noise_in_update(adam, release, 3.0, 12.0) is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_noise_in_an_update_is_what_steps_on_noise_alone_make(momentum: float) -> None:
    weight, release = nn.Parameter(torch.zeros(40_000)), Release(Gaussian(1.3, 0.25), 6)
    optimizer = torch.optim.SGD([weight], lr=0.2, momentum=momentum)
    generator = torch.Generator().manual_seed(0)
    for _ in range(release.steps):
        noise = torch.randn(weight.shape, generator=generator)
        weight.grad = 1.3 * 0.7 * noise / (0.25 * 60)
        optimizer.step()
    declared = noise_in_update(optimizer, release, 0.7, 0.25 * 60)
    assert float(weight.detach().std()) == pytest.approx(declared, rel=0.02)


def test_chunks_get_one_noise_together(
    mlp: PersonalModel, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = values(mlp)
    run(mlp, examples, sigma=1.0)
    at_once = values(mlp)
    restore(mlp, start)
    monkeypatch.setattr(module, "CHUNK_SCALARS", 5 * len(start))
    run(mlp, examples, sigma=1.0)
    torch.testing.assert_close(values(mlp), at_once, atol=1e-6, rtol=0)


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_backward_hooks", "_forward_pre_hooks", "_backward_pre_hooks")
    return sum(len(getattr(layer, kind)) for layer in model.modules() for kind in kinds)


def left_clean(model: PersonalModel) -> bool:
    attributes = any(getattr(p, "grad_sample", None) is not None for p in model.parameters())
    modes = any(layer.training for layer in model.modules())
    return not (attributes or modes or hooks_of(model))


def test_the_model_is_left_as_it_was(model: PersonalModel, examples: Examples) -> None:
    names, forward = list(model.state_dict()), hooks_of(model)
    assert forward == 0
    for _ in range(2):  # preparing twice is possible only after cleaning up
        run(model, examples, sigma=1.0)
        assert left_clean(model) and list(model.state_dict()) == names


def test_the_model_is_left_as_it_was_after_an_error(mlp: PersonalModel, examples: Examples) -> None:
    parameters = trained(mlp)

    def fails(batch: Tensor) -> Tensor:
        mlp(examples.x[batch])
        raise RuntimeError("odd values")

    with pytest.raises(RuntimeError, match="odd values"):
        private_steps(
            mlp,
            parameters,
            torch.optim.SGD(parameters, lr=LR),
            fails,
            examples=len(examples),
            expected=len(examples),
            release=Release(Gaussian(1.0, 1.0), 1),
            max_grad_norm=C,
            after_noise=lambda: None,
            source=secret(),
        )
    assert left_clean(mlp)


def test_a_frozen_tensor_is_noticed(mlp: PersonalModel, examples: Examples) -> None:
    parameters = trained(mlp)
    parameters[0].requires_grad_(False)
    with pytest.raises(ClientError, match="a trained tensor is frozen"):
        private_steps(
            mlp,
            parameters,
            torch.optim.SGD(parameters, lr=LR),
            loss_of(mlp, examples),
            examples=len(examples),
            expected=len(examples),
            release=Release(Gaussian(1.0, 1.0), 1),
            max_grad_norm=C,
            after_noise=lambda: None,
            source=secret(),
        )
    assert left_clean(mlp)


def test_the_penalty_comes_after_the_clipping(toys: Any, tmp_path: Path) -> None:
    # x = (1, 2), y = 0, both heads zero: dW = [[-.5, -1], [.5, 1]], db = (-.5, .5), whose norm is
    # sqrt(3); clipped to 1 they are divided by it. The penalty's gradient is
    # 2 (W - anchor) = -2 everywhere, of norm 2 sqrt(6), and is not clipped. lr = 0.1.
    settings = ["privacy.enabled=true", "privacy.max_grad_norm=1", "privacy.lr=0.1"]
    bound = toys.bind("fedavg", *settings, x=[[1.0, 2.0]], y=[0])
    own = bound.trainer.examples
    none = own.take(torch.arange(0))
    bound.trainer.account = toys.quiet(
        bound.config, bound.algorithm, ClientData(own, none, none), tmp_path
    )
    received = toys.parts(torch.eye(2), torch.zeros(2, 2))
    working = bound.algorithm.receive(received, Parts(), Context("a", 1)) | {
        "anchor": toys.head(torch.ones(2, 2), [1.0, 1.0])
    }
    phase = Phase(
        name="held",
        model={"body": "body", "head": "head"},
        trains=("head",),
        released=True,
        prox=Prox(2.0, {"head": "anchor"}),
    )
    head = bound.trainer.run(phase, working)["head"]
    root = 3**0.5
    step = torch.tensor([[-0.5, -1.0], [0.5, 1.0]]) / root - 2
    torch.testing.assert_close(head["head.weight"], -0.1 * step)
    bias = torch.tensor([-0.5, 0.5]) / root - 2
    torch.testing.assert_close(head["head.bias"], -0.1 * bias)


METHODS = ("fedavg", "fedper", "ditto", "perada", "fedcp", "pfedsim")


@pytest.mark.parametrize("backbone", ["mlp", "vit-tiny"])
@pytest.mark.parametrize("method", METHODS)
def test_one_example_changes_a_released_sum_by_at_most_the_clipping_norm(
    toys: Any, digits: FederatedData, examples: Examples, tmp_path: Path, method: str, backbone: str
) -> None:
    # At a large learning rate, so that the weights' own rounding does not matter.
    lr, settings = 1000.0, ["model.lora.share=both", f"privacy.max_grad_norm={C}"]
    settings += [f"model.name={backbone}", f"strategy.name={method}", "privacy.lr=1000"]
    settings += ["privacy.deterministic_for_tests=true"]
    config = config_of(*settings)
    found, params = find_algorithm(method, config, ["gate_width"])
    model = build_model(config, digits)
    algorithm = found(config, model, params)
    randomise(model)
    algorithm.initial = Parts({slot: model.read(slot) for slot in algorithm.slots})
    check_private(method, algorithm)

    def released_sum(own: Examples) -> Tensor:
        none = own.take(torch.arange(0))
        account = toys.quiet(config, algorithm, ClientData(own, none, none), tmp_path)
        trainer = Trainer(
            config, model, algorithm, own, server_round=1, client="a", account=account
        )
        broadcast = algorithm.initial.only(algorithm.sends)
        start = algorithm.receive(broadcast, Parts(), Context("a", 1))
        working = algorithm.train(start, trainer)
        moved = []
        for phase in algorithm.phases():
            for part in (phase.model[slot] for slot in phase.trains if phase.released):
                moved.append(working[part].vector - start[part].vector)
        sent = algorithm.upload(working)
        for slot, part in sent.items():  # what leaves is a part of it, or a share
            change = part.vector - broadcast[slot].vector
            scale = 2 if method == "fedcp" and slot == "head" else 1
            assert any(
                len(change) == len(m) and torch.allclose(scale * change, m, rtol=1e-3, atol=1e-3)
                for m in moved
            )
        return len(own) * torch.cat(moved) / lr

    changes = []
    for k in range(0, len(examples), 3):
        # The last one is removed, so that what is random in a forward pass stays with the others.
        order = torch.tensor([*(j for j in range(len(examples)) if j != k), k])
        with_it = released_sum(examples.take(order))
        changes.append(float((with_it - released_sum(examples.take(order[:-1]))).norm()))
    assert max(changes) <= C * (1 + 1e-5)
    assert max(changes) > 0.9 * C  # clipping took hold, so that the bound is met and not idle
