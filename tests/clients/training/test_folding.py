"""Clients that train at once, against the same clients one by one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clients.base import LocalAlgorithm, find_algorithm
from clients.node.store import ClientStore
from clients.training import folded_privately, groups
from clients.training.account import Account
from clients.training.folding import Fold, foldable
from clients.training.groups import disagreement, group_size, most_clients, train_group
from clients.training.trainer import Trainer
from fedpers.config import Lora, load_config
from fedpers.context import Context
from fedpers.data import ClientData, Examples
from fedpers.errors import ClientError
from fedpers.models import Outputs, PersonalModel
from fedpers.models.backbones import BACKBONES
from fedpers.models.lora import add_lora
from fedpers.parts import Parts
from fedpers.phases import Phase, Prox
from fedpers.privacy import Release
from fedpers.privacy.noise import known
from fedpers.tasks import cross_entropy

SIZES = (7, 0, 3, 13, 4, 1)
SHAPES = {"mlp": (6,), "vit-tiny": (1, 4, 4), "conv1d": (2, 8), "small": (6,)}
TRAINING = ("training.batch_size=4", "training.epochs=2", "training.lr=0.1")
PRIVACY = ("privacy.enabled=true", "privacy.deterministic_for_tests=true", "privacy.steps=3")


class Party:
    """Clients of one node: a small model, a method, examples and the parts that each starts from.

    Args:
        name: mlp, vit-tiny or conv1d with LoRA; small is an MLP that is trained whole.
        share: LoRA's.
        method: its name.
    """

    def __init__(
        self,
        name: str,
        *overrides: str,
        sizes: Sequence[int] = SIZES,
        share: str = "both",
        method: str = "ditto",
    ) -> None:
        self.config = load_config(None, [f"strategy.name={method}", *TRAINING, *overrides])
        torch.manual_seed(5)
        self.model = model_of(name, share)
        found, params = find_algorithm(method, self.config, ["gate_width"])
        self.algorithm: LocalAlgorithm = found(self.config, self.model, params)
        self.examples = [
            Examples(torch.randn(n, *SHAPES[name]), torch.randint(0, 3, (n,))) for n in sizes
        ]
        first = {s: p.like(p.vector + shake(p.vector)) for s, p in self.algorithm.initial.items()}
        self.workings = []
        for _ in sizes:
            own = {f"personal.{s}": p.like(p.vector + shake(p.vector)) for s, p in first.items()}
            self.workings.append(self.algorithm.receive(Parts(first), Parts(own), Context("a", 1)))

    def trainers(self, accounts: Sequence[Account | None] | None = None) -> list[Trainer]:
        """Fresh ones, for clients "0", "1", ..."""
        return [
            Trainer(
                self.config,
                self.model,
                self.algorithm,
                examples,
                server_round=2,
                client=str(k),
                account=accounts[k] if accounts else None,
            )
            for k, examples in enumerate(self.examples)
        ]

    def accounts(self, folder: Path, release: Release | None = None) -> list[Account | None]:
        """Charged accounts, none for clients without examples."""
        made: list[Account | None] = []
        for k, examples in enumerate(self.examples):
            if not len(examples):
                made.append(None)
                continue
            none = examples.take(torch.arange(0))
            store, data = ClientStore(folder / "stores", str(k)), ClientData(examples, none, none)
            draws = known(self.config.seed)
            account = Account(
                self.config, self.algorithm.releases(), str(k), data, folder, store, draws
            )
            # Each client has noise of its own, as it has where it has spent before.
            own = account.phase._replace(sigma=account.phase.sigma * (1 + k / 10))
            account.phase = release or own
            account.charge()
            made.append(account)
        return made

    def alone(
        self, phase: Phase, accounts: Sequence[Account | None] | None = None
    ) -> tuple[list[Parts], list[Trainer]]:
        """Each client one by one, and the trainers with what they noted."""
        trainers = self.trainers(accounts)
        found = [t.run(phase, w) for t, w in zip(trainers, self.workings, strict=True)]
        return found, trainers

    def together(
        self, phase: Phase, accounts: Sequence[Account | None] | None = None
    ) -> tuple[list[Parts], list[Trainer]]:
        """All of them at once."""
        trainers = self.trainers(accounts)
        return Fold(self.model).run(phase, trainers, self.workings), trainers


def model_of(name: str, share: str) -> PersonalModel:
    if name == "small":
        trunk: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU())
        return PersonalModel(trunk, nn.Linear(5, 3))
    backbone = BACKBONES.get(name)(SHAPES[name])
    backbone.requires_grad_(False)
    add_lora(backbone, Lora(rank=2, share=share), backbone.lora_target, 3)
    head = nn.Linear(backbone.feature_dim, 3)
    return PersonalModel(backbone, head, private_b=share == "a-only")


def shake(vector: Tensor) -> Tensor:
    """Away from the zeros that adapters start at, where gradients vanish."""
    return 0.1 * torch.randn(vector.shape)


def assert_same(
    one: tuple[Sequence[Parts], Sequence[Trainer]], other: tuple[Sequence[Parts], Sequence[Trainer]]
) -> None:
    for parts, expected in zip(other[0], one[0], strict=True):
        assert list(parts) == list(expected)
        for name, part in expected.items():
            assert parts[name].layout == part.layout
            torch.testing.assert_close(parts[name].vector, part.vector, rtol=0, atol=1e-5)
    for trainer, reference in zip(other[1], one[1], strict=True):
        assert trainer.losses == pytest.approx(reference.losses, abs=1e-5)
        assert trainer.noise == pytest.approx(reference.noise, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        *(("mlp", "ffa"), ("mlp", "both"), ("vit-tiny", "ffa"), ("vit-tiny", "both")),
        *(("conv1d", "ffa"), ("conv1d", "both"), ("small", "")),
    ],
)
def test_a_group_gives_what_each_client_gives_alone(name: str, share: str) -> None:
    # Sizes from none at all over less than a batch to several, so that some end before others.
    party = Party(name, "training.momentum=0.9", "training.weight_decay=0.01", share=share)
    for phase in party.algorithm.phases():  # with a penalty, and without
        assert foldable(party.model, party.algorithm, phase) is None
        one = party.alone(phase)
        assert_same(one, party.together(phase))
        trained = [phase.model[slot] for slot in phase.trains]
        for k, parts in enumerate(one[0]):  # something was trained where there was something
            for part in trained:
                same = torch.equal(parts[part].vector, party.workings[k][part].vector)
                assert same == (SIZES[k] == 0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimisers_blends_references_and_limits(optimizer: str) -> None:
    def loss(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        assert reference is not None
        apart = (outputs.features - reference.features).square().mean(1)
        return cross_entropy(outputs, labels, reference) + apart

    party = Party("mlp", f"training.optimizer={optimizer}", "training.weight_decay=0.1")
    received = {"body": "received.body", "head": "received.head"}
    phase = Phase(
        name="own",
        model={"body": "personal.body", "head": "personal.head"},
        trains=("body", "head"),
        released=False,
        loss=loss,
        reference=received,
        blend=(received, 0.3),
        prox=Prox(0.5, {"head": "received.head"}),
        batch_size=3,
        epochs=3,
        steps=5,
    )
    assert_same(party.alone(phase), party.together(phase))


def test_slots_that_a_phase_does_not_train_are_each_clients_own() -> None:
    party = Party("small", method="fedrep", sizes=(5, 2, 6))
    for phase in party.algorithm.phases():  # the head, then the body under the personal heads
        assert len(phase.trains) == 1
        assert_same(party.alone(phase), party.together(phase))


PARTY = Party("small", "training.momentum=0.5", sizes=(9, 1, 4, 0, 6, 2, 17, 5))
PHASE = PARTY.algorithm.phases()[0]
ALONE, NOTED = PARTY.alone(PHASE)


@settings(max_examples=settings().max_examples * 4 // 5)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True))
def test_a_result_does_not_depend_on_who_else_is_in_the_group(members: list[int]) -> None:
    trainers = [PARTY.trainers()[k] for k in members]
    found = Fold(PARTY.model).run(PHASE, trainers, [PARTY.workings[k] for k in members])
    assert_same(
        ([ALONE[k] for k in members], [NOTED[k] for k in members]),
        (found, trainers),
    )


def test_the_model_is_left_as_it_was() -> None:
    party = Party("mlp")
    x = party.examples[0].x
    before = [parameter.detach().clone() for parameter in party.model.parameters()]
    logits = party.model(x).logits
    party.together(party.algorithm.phases()[0])
    for parameter, old in zip(party.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    assert torch.equal(party.model(x).logits, logits)


def test_what_cannot_be_trained_at_once_says_why() -> None:
    def reason(name: str, *overrides: str, method: str = "ditto", **fields: Any) -> str:
        party = Party(name, *overrides, method=method, sizes=(2, 2))
        phase = replace(party.algorithm.phases()[-1], **fields)
        return str(foldable(party.model, party.algorithm, phase))

    assert "forward pass of its own" in reason("mlp", method="fedcp")
    assert "across a batch" in reason("mlp", batch_loss=lambda *_: torch.zeros(()))
    assert "does not say what fills the slot 'head'" in reason("mlp", model={"body": "body"})
    assert "Linear layers alone" in reason("conv1d", *PRIVACY)
    assert reason("conv1d", *PRIVACY, released=False) == "None"
    whole = PersonalModel(BACKBONES.get("vit-tiny")((1, 4, 4)), nn.Linear(64, 3))
    party = Party("mlp", method="fedavg")
    phase = party.algorithm.phases()[0]
    assert "no Linear or Conv layer" in str(foldable(whole, party.algorithm, phase))


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
    release = Release(0.0, 1.0, 1)
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
    release = Release(2.0, 1e-4, 1)
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


def test_a_client_that_fails_costs_itself() -> None:
    party = Party("mlp", sizes=(5, 4, 6))
    party.examples[1].x[2] = float("nan")
    trainers = party.trainers()
    results = train_group(party.algorithm, Fold(party.model), trainers, party.workings)
    assert isinstance(results[1], ClientError)
    for k, trainer in enumerate(party.trainers()):
        if k != 1:
            expected = party.algorithm.train(party.workings[k], trainer)
            parts = results[k]
            assert isinstance(parts, Parts)
            assert_same(([expected], [trainer]), ([parts], [trainers[k]]))


@pytest.mark.parametrize(
    "method", ["fedavg", "ditto", "fedrep", "feddpa", "apfl", "pfedsim", "fedala"]
)
def test_whole_methods_at_once_and_one_by_one(method: str) -> None:
    share = "a-only" if method == "fedavg" else "ffa"
    party = Party("mlp", method=method, share=share, sizes=(5, 0, 9))
    one, other = party.trainers(), party.trainers()
    alone = [party.algorithm.train(w, t) for w, t in zip(party.workings, one, strict=True)]
    together = train_group(party.algorithm, Fold(party.model), other, party.workings)
    found = [parts for parts in together if isinstance(parts, Parts)]
    assert_same((alone, one), (found, other))


def test_the_size_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(party: Party, setting: str) -> int:
        return group_size(
            setting, Fold(party.model), party.algorithm, party.trainers(), party.workings
        )

    party = Party("small")
    assert size(party, "off") == 1
    assert size(party, "5") == 5
    assert size(party, "auto") in (1, *groups.SIZES)
    assert size(Party("small", sizes=(4, 0)), "5") == 1  # nobody to train with
    assert size(Party("small", method="pfedsim"), "5") == 5
    assert size(Party("small", method="apfl"), "5") == 1  # its phases hang on the client
    monkeypatch.setattr(groups, "SLOW", 0.0)
    assert size(party, "auto") == 1


class Uncalled(nn.Module):
    """A trunk that reads a layer's weight and never calls the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight.T


class Across(nn.Module):
    """A trunk that looks across the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y - y.mean(0)


@pytest.mark.parametrize(("trunk", "why"), [(Uncalled, "does not call"), (Across, "differ")])
def test_a_trunk_that_does_not_fold_is_found_out(trunk: type[nn.Module], why: str) -> None:
    fold = Fold(PersonalModel(trunk(), nn.Linear(5, 3)))
    assert why in str(disagreement(fold, torch.randn(4, 6)))
    assert disagreement(Fold(model_of("mlp", "both")), torch.randn(4, 6)) is None


@pytest.mark.parametrize(("rows", "fits"), [(44, 11), (43, 5), (16, 2), (7, 1)])
def test_a_group_that_memory_does_not_take_is_halved_for_good(rows: int, fits: int) -> None:
    party = Party("mlp", sizes=(6,) * 11)
    tried: list[int] = []

    def loss(outputs: Outputs, labels: Tensor, reference: Outputs | None) -> Tensor:
        if len(tried) == 0 or tried[-1] != len(labels):
            tried.append(len(labels))
        if len(labels) > rows:
            raise torch.OutOfMemoryError
        return cross_entropy(outputs, labels, reference)

    phase = replace(party.algorithm.phases()[0], loss=loss, epochs=1)  # a batch of 4, one of 2
    expected, _ = party.alone(phase)
    algorithm, fold = one_phase(party, phase), Fold(party.model)
    for _ in range(2):
        tried.clear()
        found = train_group(algorithm, fold, party.trainers(), party.workings)
        assert_same((expected, []), ([p for p in found if isinstance(p, Parts)], []))
        assert fold.most == (sys.maxsize if fits == 11 else fits)
    # The second time nothing was too much: no more at once than what went well.
    assert max(tried) == 4 * fits


def one_phase(party: Party, phase: Phase) -> LocalAlgorithm:
    class OnePhase(type(party.algorithm)):  # type: ignore[misc]
        def phases(self) -> Sequence[Phase]:
            return [phase]

    return OnePhase(party.config, party.model, party.algorithm.params)


@pytest.mark.parametrize(
    ("one", "two", "free", "most"),
    [
        (100, 150, 1000, 15),  # 800 - 100 = 700 are left for 14 more at 50 each
        (100, 150, 999, 14),  # 799 - 100 = 699 are not enough for the 14th
        (100, 150, 125, 1),  # one alone fills the 80 %
        (100, 150, 50, 1),  # never none
        (100, 100, 200, sys.maxsize),  # a second one costs nothing that can be seen
        (100, 90, 100, 1),
    ],
)
def test_so_many_clients_fit_into_free_memory(one: int, two: int, free: int, most: int) -> None:
    assert most_clients(one, two, free) == most


def test_a_client_that_breaks_the_trial_does_not_stop_the_others() -> None:
    party = Party("mlp", sizes=(6,) * 3)
    party.examples[1].x[0] = float("nan")
    trainers = party.trainers()
    size = group_size("auto", Fold(party.model), party.algorithm, trainers, party.workings)
    assert size == 1


@pytest.mark.parametrize("name", ["mlp", "vit-tiny", "conv1d", "small"])
def test_a_group_in_bfloat16_stays_near_one_in_float32(name: str) -> None:
    rounded, exact = Party(name, "training.precision=bfloat16"), Party(name)
    phase, same = rounded.algorithm.phases()[0], exact.algorithm.phases()[0]
    (alone, _), (together, _) = rounded.alone(phase), rounded.together(phase)
    expected, _ = exact.together(same)
    for k, n in enumerate(SIZES):
        for part in [phase.model[slot] for slot in phase.trains] if n else []:
            wanted, start = expected[k][part].vector, rounded.workings[k][part].vector
            for found in (alone[k][part].vector, together[k][part].vector):
                assert found.dtype == torch.float32
                apart = (found - wanted).norm() / (wanted - start).norm()
                assert 0 < apart < 0.15  # of the way that was trained
