"""What DP-SGD costs: time per step with and without it, in batches of 64, on vit-tiny with LoRA and
on the whole CNN.

    python -m simulations.bench.privacy

A phase of one client is trained plainly, privately with Opacus' hooks (``training.fold=off``) and
privately without hooks (``training.fold=1``; not for convolutions), by turns; compared are medians
of processor time, which a busy machine distorts less than the clock's. Setting up and cleaning up
is counted: it weighs the more, the fewer steps a phase has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import nn

from clients.training.folding import foldable, train_folded
from clients.training.trainer import Trainer
from fedpers.context import Context
from fedpers.memory import keep_memory
from fedpers.models import PersonalModel
from fedpers.models.backbones import BACKBONES
from fedpers.parts import Parts
from fedpers.privacy import Gaussian, Release
from simulations.bench.row import medians
from simulations.bench.table import CLASSES, Free, Party, lora_model

BATCH, STEPS, REPEATS, CNN_REPEATS = 64, (10, 1), 60, 15
IMAGE = (1, 28, 28)
PRIVATE = ("privacy.enabled=true", "privacy.sampling_rate=1.0", "privacy.lr=0.05")


def main() -> None:
    """Print the times and their ratios, for whole models and above the cached frozen layers."""
    torch.set_num_threads(1)
    keep_memory()
    for cached in (False, True):
        for steps in STEPS:
            name = "cached frozen layers" if cached else "whole model"
            show(f"vit-tiny, LoRA, {name}", steps, measured(lora_party(cached, steps), REPEATS))
    for steps in STEPS:
        show("cnn, all of 582,026 values", steps, measured(cnn_party(steps), CNN_REPEATS))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def show(name: str, steps: int, seconds: Sequence[float]) -> None:
    """One line: a plain phase, one with hooks, and where there is one a phase without."""
    plain, *private = (1e3 * each / steps for each in seconds)
    found = "".join(
        f"; {how} hooks {each:.2f} ms, {each / plain:.2f} times"
        for how, each in zip(("with", "without"), private, strict=False)
    )
    print(f"{name}, {steps} at a time: plain {plain:.2f} ms{found}")


def lora_party(cached: bool, steps: int) -> Party:
    """A client with LoRA on vit-tiny, from what the frozen layers make of its examples or not."""
    party = Party(lora_model("vit-tiny"), 1, BATCH, *settings(steps))
    if not cached:
        party.model.after_stem, party.examples = False, party.whole
    return party


def cnn_party(steps: int) -> Party:
    """A client that trains the whole CNN on images of 28 x 28."""
    torch.manual_seed(0)
    trunk = BACKBONES.get("cnn")(IMAGE)
    model = PersonalModel(trunk, nn.Linear(trunk.feature_dim, CLASSES))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Party(model, 1, BATCH, *settings(steps), shape=IMAGE)


def settings(steps: int) -> list[str]:
    """Of phases of so many steps on all examples, plain or private."""
    plain = [f"training.batch_size={BATCH}", f"training.epochs={steps}"]
    return [*plain, *PRIVATE, f"privacy.steps={steps}"]


def measured(party: Party, repeats: int) -> list[float]:
    """Seconds of a plain phase, of a private one with hooks, and where it can be of one without."""
    (phase,) = party.algorithm.phases()
    release = Release(Gaussian(1.0, 1.0), party.config.privacy.steps)

    def trainer(account: Free | None) -> Trainer:
        (made,) = party.trainers([account])
        return made

    working = party.algorithm.receive(party.broadcast, Parts(), Context("", 1))
    runs: list[Callable[[], Parts]] = [
        lambda: trainer(None).run(phase, working),
        lambda: trainer(Free(release)).run(phase, working),
    ]
    if foldable(party.model, party.algorithm, phase) is None:
        runs.append(lambda: train_folded(party.fold, phase, [trainer(Free(release))], [working])[0])
    return medians(runs, repeats)


if __name__ == "__main__":
    main()
