"""Private clients that train at once, against the same clients one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from party import PRIVACY, Party, assert_same
from spherical import Spherical
from torch import Tensor, nn

from clients.base import find_algorithm
from clients.training import folded_privately
from fedpers.context import Context
from fedpers.errors import ClientError
from fedpers.models import PersonalModel
from fedpers.parts import Parts
from fedpers.phases import Prox
from fedpers.privacy import Gaussian, Release
from fedpers.privacy.noise import known


@pytest.mark.parametrize(
    ("name", "share"), [("mlp", "both"), ("vit-tiny", "both"), ("vit-tiny", "ffa"), ("small", "")]
)
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_private_groups_draw_clip_and_account_as_each_client_alone(
    name: str, share: str, rate: float, tmp_path: Path
) -> None:
    sizes = (9, 0, 3, 14, 5)
    settings = [*PRIVACY, "privacy.lr=0.2", f"privacy.sampling_rate={rate}"]
    party = Party(name, *settings, "privacy.max_grad_norm=0.5", sizes=sizes, share=share)
    shared = party.algorithm.phases()[1]
    phase = replace(shared, prox=Prox(0.3, {"body": "personal.body"}))
    one, accounts = party.alone(phase, party.accounts(tmp_path)), party.accounts(tmp_path)
    together = party.together(phase, accounts)
    assert_same(one, together)
    assert all(("body" in t.noise) == (n > 0) for t, n in zip(together[1], sizes, strict=True))
    with pytest.raises(ClientError, match="one more; declare it"):  # one phase was charged for
        party.together(phase, accounts)


def test_a_group_and_each_client_alone_ask_the_same_mechanism(tmp_path: Path) -> None:
    party, kinds = Party("small", *PRIVACY, sizes=(9, 2, 14)), (Spherical, Gaussian)
    phase, found = party.algorithm.phases()[1], []
    for kind in kinds:
        release = Release(kind(2.0, 0.5), 2)
        one = party.alone(phase, party.accounts(tmp_path, release))
        assert_same(one, party.together(phase, party.accounts(tmp_path, release)))
        found.append(one[0][0]["body"].vector)
    assert not torch.allclose(*found, atol=1e-3)


def test_a_private_group_in_pieces_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    party = Party("small", *PRIVACY, sizes=(9, 2, 14))
    phase = party.algorithm.phases()[1]
    one = party.alone(phase, party.accounts(tmp_path))
    monkeypatch.setattr(folded_privately, "ROWS", 7)  # two examples of each at a time
    assert_same(one, party.together(phase, party.accounts(tmp_path)))


@pytest.mark.parametrize("name", ["mlp", "vit-tiny", "small"])
def test_clipping_is_that_of_a_loop_over_examples(name: str, tmp_path: Path) -> None:
    lr, norm = 1.0, 0.4
    settings = [*PRIVACY, f"privacy.lr={lr}", f"privacy.max_grad_norm={norm}"]
    party = Party(name, *settings, sizes=(5, 8))
    phase = party.algorithm.phases()[1]
    release = Release(Gaussian(0.0, 1.0), 1)
    found, _ = party.together(phase, party.accounts(tmp_path, release))
    clipped = 0
    for k, examples in enumerate(party.examples):
        for slot in phase.trains:
            party.model.write(slot, party.workings[k][slot])
        parameters = party.model.trainable(phase.trains)
        for parameter in parameters:
            parameter.requires_grad_(True)
        total = torch.zeros(sum(parameter.numel() for parameter in parameters))
        for x, y in zip(examples.x, examples.y, strict=True):
            loss = F.cross_entropy(party.model(x[None]).logits, y[None])
            pieces = torch.autograd.grad(loss, parameters)
            gradient = torch.cat([piece.flatten() for piece in pieces])
            clipped += float(gradient.norm()) > norm
            total += gradient * min(1.0, norm / float(gradient.norm() + 1e-6))
        start = torch.cat([party.workings[k][slot].vector for slot in phase.trains])
        after = torch.cat([found[k][slot].vector for slot in phase.trains])
        expected = start - lr * total / len(examples)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)
    assert clipped > 0  # the bound took hold


def test_an_empty_sample_is_a_step_of_noise_alone(tmp_path: Path) -> None:
    party = Party("small", *PRIVACY, "privacy.lr=0.001", "training.lr=9", sizes=(3, 4))
    phase = replace(party.algorithm.phases()[1], name="empty")
    release = Release(Gaussian(2.0, 1e-4), 1)
    found, trainers = party.together(phase, party.accounts(tmp_path, release))
    for k, trainer in enumerate(trainers):
        n = len(trainer.examples)
        source = known(party.config.seed)(2, str(k), "empty")
        assert not len(source.sample(n, 1e-4))
        start, after = (
            torch.cat([parts[slot].vector for slot in phase.trains])
            for parts in (party.workings[k], found[k])
        )
        noise = source.noised(torch.zeros_like(start), 2.0)
        torch.testing.assert_close(after, start - 0.001 * noise / (1e-4 * n), rtol=1e-6, atol=1e-6)
        assert trainer.losses == {"empty": 0.0}


def test_a_layer_that_is_called_twice_is_refused_under_privacy(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(torch.tanh(self.layer(x))))

    party = Party("small", *PRIVACY, sizes=(3, 4))
    party.model = PersonalModel(Twice(), nn.Linear(6, 3))
    found, params = find_algorithm("ditto", party.config, [])
    party.algorithm = found(party.config, party.model, params)
    initial = party.algorithm.initial
    party.workings = [party.algorithm.receive(initial, Parts(), Context("a", 1)) for _ in range(2)]
    personal, shared = party.algorithm.phases()
    assert_same(party.alone(personal), party.together(personal))  # plainly it may
    with pytest.raises(ClientError, match="called twice"):
        party.together(shared, party.accounts(tmp_path))
