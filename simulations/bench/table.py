"""What this costs beside the usual way, measured side by side: ``fedpers bench``.

Most rows time both ways by turns in one process and compare the medians, in seconds that the
process computed: a machine that does other things slows both. Rows of whole rounds run in processes
of their own and are timed by the clock on the wall, so they need a machine that does nothing else.
Both ways do the same work on the same numbers; what frozen layers make of the examples is at hand
for both, but for rows that say ``whole``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clients.base import LocalAlgorithm, find_algorithm
from clients.training.account import Account
from clients.training.groups import group_size, train_group
from clients.training.layers import Fold
from clients.training.private_steps import private_steps
from clients.training.trainer import Trainer
from clients.training.view import fill
from fedpers.config import Config, Lora, load_config
from fedpers.context import Context
from fedpers.data import Examples
from fedpers.errors import ConfigError
from fedpers.memory import keep_memory
from fedpers.models import PersonalModel
from fedpers.models.backbones import BACKBONES
from fedpers.models.lora import add_lora
from fedpers.parts import Part, Parts, combine
from fedpers.privacy import Gaussian, Release
from fedpers.privacy.noise import secret
from simulations.bench.devices import devices
from simulations.bench.flower import task_flower, tiny_flower
from simulations.bench.processes import cnn_round
from simulations.bench.rounds import Tasks
from simulations.bench.row import Row, by_turns, folder_of_data

CLIENTS, BATCH, SHAPE, CLASSES = 32, 32, (1, 8, 8), 10
AS_PEFT, CACHED = ", through all layers in each step", ", above what frozen layers made once"


def bench(names: Sequence[str], repeats: int, show: Callable[[str], None]) -> list[Row]:
    """Measure the rows called ``names``, if none all but those of ``WHOLE_RUNS``; each line is
    shown when it is known.

    Raises:
        ConfigError: no row has that name.
    """
    for name in names:
        if name not in ROWS:
            raise ConfigError("bench.rows", name, f"one of {', '.join(ROWS)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    show(f"{'row':<21}{'usual way':>12}{'ours':>12}{'ratio':>8}{'target':>8}  load")
    found = []
    try:
        for name in names or [name for name in ROWS if name not in WHOLE_RUNS]:
            row = ROWS[name](name, repeats)
            found.append(row)
            verdict = "" if row.ratio >= row.target else "  missed"
            verdict += "  ours is slower" if row.ratio < 1 else ""
            figures = f"{1e3 * row.usual_seconds:>9.3f} ms{1e3 * row.our_seconds:>9.3f} ms"
            goal = f"{row.ratio:>8.2f}{row.target:>8.1f}  {os.getloadavg()[0]:.1f}"
            show(f"{name:<21}{figures}{goal}{verdict}")
            show(f"{'':<21}{row.usual} / {row.ours}")
    finally:
        torch.set_num_threads(threads)
    return found


def save(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as JSON, with what the machine did meanwhile."""
    content = {
        "torch": torch.__version__,
        "threads": 1,
        "load": os.getloadavg(),
        "rows": [{**row._asdict(), "ratio": row.ratio} for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class Party:
    """Clients with a model that train as in FedAvg.

    Args:
        model: theirs; what its frozen layers make of the examples is computed before.
        each: examples a client.
        shape: of one example.
    """

    def __init__(
        self,
        model: PersonalModel,
        clients: int,
        each: int,
        *overrides: str,
        shape: Sequence[int] = SHAPE,
    ) -> None:
        settings = ["strategy.name=fedavg", f"training.batch_size={BATCH}", *overrides]
        self.config: Config = load_config(None, settings)
        found, params = find_algorithm("fedavg", self.config, [])
        self.model, self.algorithm = model, found(self.config, model, params)
        assert isinstance(self.algorithm, LocalAlgorithm)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(clients * each, *shape, generator=generator)
        y = torch.randint(0, CLASSES, (clients * each,), generator=generator)
        self.whole, self.examples = (
            [Examples(*pair) for pair in zip(given, torch.split(y, each), strict=True)]
            for given in (torch.split(x, each), torch.split(model.stem(x), each))
        )
        self.broadcast = Parts(
            {
                slot: part.like(
                    part.vector + 0.05 * torch.randn(part.layout.size, generator=generator)
                )
                for slot, part in self.algorithm.initial.items()
            }
        )
        self.fold = Fold(model)

    def trainers(self, accounts: Sequence[Account | None]) -> list[Trainer]:
        """One for each client."""
        return [
            Trainer(
                self.config,
                self.model,
                self.algorithm,
                examples,
                server_round=1,
                client=str(k),
                account=account,
            )
            for k, (examples, account) in enumerate(zip(self.examples, accounts, strict=True))
        ]

    def group(self) -> int:
        """The size of groups that ``training.fold: auto`` takes."""
        trainers = self.trainers([None] * len(self.examples))
        workings = [self.broadcast] * len(trainers)
        return group_size("auto", self.fold, self.algorithm, trainers, workings)

    def folded(self, size: int, accounts: Sequence[Account | None] | None = None) -> list[Parts]:
        """Our way: receive, train in groups, upload."""
        trainers, uploads = self.trainers(accounts or [None] * len(self.examples)), []
        for start in range(0, len(trainers), size):
            group = trainers[start : start + size]
            workings = [
                self.algorithm.receive(self.broadcast, Parts(), Context(own.client, 1))
                for own in group
            ]
            fold = self.fold if size > 1 else None
            for result in train_group(self.algorithm, fold, group, workings):
                if isinstance(result, Exception):
                    raise result
                uploads.append(self.algorithm.upload(result))
        return uploads

    def loop(self, whole: bool = False) -> Tensor:
        """The usual way: the model is filled, trained by SGD and read, one client after another;
        the mean of what came out.

        Args:
            whole: through all layers, or from what the frozen ones made of the examples.
        """
        training = self.config.training
        self.model.after_stem = not whole
        parameters = trainable(self.model)
        start = [parameter.detach().clone() for parameter in self._filled(parameters)]
        optimizer = torch.optim.SGD(parameters, lr=training.lr)
        total = [torch.zeros_like(value) for value in start]
        for examples in self.whole if whole else self.examples:
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
            for batch in torch.split(torch.randperm(len(examples)), training.batch_size):
                loss = F.cross_entropy(self.model(examples.x[batch]).logits, examples.y[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                for summed, parameter in zip(total, parameters, strict=True):
                    summed.add_(parameter)
        self.model.after_stem = True
        return torch.cat([summed.flatten() for summed in total]) / len(self.examples)

    def opacus_loop(self, release: Release, whole: bool = False) -> None:
        """The usual way under DP: Opacus' hooks, one client after another; ``whole`` as above."""
        parameters = trainable(self.model)
        self.model.after_stem = not whole
        for examples in self.whole if whole else self.examples:
            self._filled(parameters)
            optimizer = torch.optim.SGD(parameters, lr=self.config.training.lr)

            def losses(batch: Tensor, own: Examples = examples) -> Tensor:
                logits = self.model(own.x[batch]).logits
                return F.cross_entropy(logits, own.y[batch], reduction="none")

            private_steps(
                self.model,
                parameters,
                optimizer,
                losses,
                examples=len(examples),
                expected=release.mechanism.rate * len(examples),
                release=release,
                max_grad_norm=1.0,
                after_noise=lambda: None,
                source=secret(),
            )
        self.model.after_stem = True

    def _filled(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        fill(self.model, {slot: slot for slot in self.model.slots}, self.broadcast)
        return parameters


class Free(Account):
    """An account that costs nothing, for what is thrown away."""

    def __init__(self, release: Release) -> None:
        self.phase, self.sources, self.once = release, secret, {}

    def take_phase(self) -> Release:
        """As often as it is asked for."""
        return self.phase


def trainable(model: PersonalModel) -> list[nn.Parameter]:
    """Every slot's parameters, to be trained."""
    parameters = model.trainable(list(model.slots))
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def lora_model(name: str) -> PersonalModel:
    """A frozen backbone with LoRA's default, and a head; what is frozen is computed before."""
    torch.manual_seed(0)
    trunk = BACKBONES.get(name)(SHAPE)
    trunk.requires_grad_(False)
    add_lora(trunk, Lora(), 0)
    model = PersonalModel(trunk, nn.Linear(trunk.feature_dim, CLASSES))
    model.after_stem = True
    return model


def lora(name: str, repeats: int) -> Row:
    """Clients with LoRA, at once against one by one."""
    backbone, whole = _parsed(name.removeprefix("lora-"))
    party = Party(lora_model(backbone), CLIENTS, 2 * BATCH)
    size = party.group()
    times = by_turns(lambda: party.loop(whole), lambda: party.folded(size), repeats)
    usual = f"{CLIENTS} clients, LoRA by PEFT on {backbone}, two batches of {BATCH}, one by one"
    target = {"mlp": 3.0, "vit-tiny": 1.5}[backbone]
    return Row(
        name, usual + AS_PEFT * whole, f"in groups of {size}" + CACHED * whole, *times, target
    )


def lora_privately(name: str, repeats: int) -> Row:
    """The same under DP-SGD, against Opacus' hooks."""
    backbone, whole = _parsed(name.removeprefix("dp-"))
    release = Release(Gaussian(1.0, 0.5), 2)
    private = ("privacy.enabled=true", "privacy.lr=0.05", "privacy.sampling_rate=0.5")
    party = Party(lora_model(backbone), CLIENTS, 2 * BATCH, *private, "privacy.steps=2")
    size, accounts = max(8, party.group()), [Free(release)] * CLIENTS
    times = by_turns(
        lambda: party.opacus_loop(release, whole), lambda: party.folded(size, accounts), repeats
    )
    usual = f"{CLIENTS} clients, LoRA on {backbone}, two private steps of {BATCH}, Opacus' hooks"
    return Row(name, usual + AS_PEFT * whole, f"in groups of {size}" + CACHED * whole, *times, 2.0)


def _parsed(name: str) -> tuple[str, bool]:
    """A backbone's name, and whether the usual way goes through all of its layers."""
    return name.removesuffix("-whole"), name.endswith("-whole")


def head_only(name: str, repeats: int) -> Row:
    """A head over a frozen vit-tiny, with features computed once or in every step."""
    torch.manual_seed(0)
    trunk = BACKBONES.get("vit-tiny")(SHAPE)
    trunk.requires_grad_(False)
    model = PersonalModel(trunk, nn.Linear(trunk.feature_dim, CLASSES))
    x, y = torch.randn(BATCH, *SHAPE), torch.randint(0, CLASSES, (BATCH,))
    features = model.stem(x)
    optimizer = torch.optim.SGD(trainable(model), lr=0.01)

    def steps(given: Tensor, cached: bool) -> None:
        model.after_stem = cached
        for _ in range(20):
            loss = F.cross_entropy(model(given).logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    times = by_turns(lambda: steps(x, False), lambda: steps(features, True), repeats)
    usual = f"20 steps of a head on frozen vit-tiny, batch {BATCH}"
    return Row(name, usual, "with cached features", *times, 15.0)


def tiny(name: str, repeats: int) -> Row:
    """A round of very small clients: the whole of training in the process, and the mean."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
    clients = 1000
    party = Party(PersonalModel(trunk, nn.Linear(32, CLASSES)), clients, 10)
    weights, size = torch.full((1, clients), 1 / clients), party.group()

    def ours() -> None:
        combine(weights, party.folded(size))

    times = by_turns(party.loop, ours, repeats)
    usual = f"{clients} clients of an MLP 64-32-10 with 10 examples, a plain loop of torch"
    return Row(name, usual, f"in groups of {size}, parts and seeds included", *times, 1.0)


def mixing(name: str, repeats: int) -> Row:
    """A row of W for each client: one product against stacking and adding for each."""
    trunk = BACKBONES.get("cnn")((1, 28, 28))
    tensors = dict(PersonalModel(trunk, nn.Linear(512, CLASSES)).named_parameters())
    clients = 20
    updates = [Parts({"body": Part.of(tensors)}) for _ in range(clients)]
    weights = torch.rand(clients, clients).softmax(1)

    def usual() -> None:
        for row in weights:
            for tensor in tensors:
                stacked = torch.stack([update["body"][tensor] for update in updates], dim=-1)
                (stacked * row).sum(-1)

    times = by_turns(usual, lambda: combine(weights, updates), repeats)
    size = updates[0]["body"].layout.size
    what = f"pFedSim's mixing, {clients} clients x {size:,}: stacked and summed for each"
    return Row(name, what, "one product Y = W X", *times, 20.0)


def task(name: str, repeats: int) -> Row:
    """What asking a client costs: a message for each, or one for each of two nodes."""
    clients = 1000
    with folder_of_data() as folder:
        tasks = Tasks(folder, clients)
        times = by_turns(lambda: tasks.ask(clients), lambda: tasks.ask(2), max(1, repeats // 3))
    usual = f"{clients} clients with nothing to train, a message each"
    ours = "a message for each of 2 nodes (within one process, without Flower's transport)"
    return Row(name, usual, ours, *times, 10.0)


ROWS: dict[str, Callable[[str, int], Row]] = {
    "lora-mlp": lora,
    "lora-vit-tiny": lora,
    "lora-vit-tiny-whole": lora,
    "dp-mlp": lora_privately,
    "dp-vit-tiny": lora_privately,
    "dp-vit-tiny-whole": lora_privately,
    "head": head_only,
    "tiny": tiny,
    "mixing": mixing,
    "fedavg-cnn": cnn_round,
    "fedcp-cnn": cnn_round,
    "fedavg-cnn-bfloat16": cnn_round,
    "task": task,
    "task-flower": task_flower,
    "tiny-flower": tiny_flower,
    "devices": devices,
}
WHOLE_RUNS = ("task-flower", "tiny-flower", "devices")  # minutes each, if asked for by name
