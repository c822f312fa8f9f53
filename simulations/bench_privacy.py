"""What DP-SGD costs: time per step with and without it, on vit-tiny with LoRA, batch 64.

    python -m simulations.bench_privacy

A phase of one client is trained plainly, privately with Opacus' hooks (``training.fold=off``) and
privately without hooks (``training.fold=1``), by turns; compared are medians of processor time,
which a busy machine distorts less than the clock's. Setting up and cleaning up is counted: it
weighs the more, the fewer steps a phase has.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from clients.trainer import Trainer
from fedpers.memory import keep_memory
from fedpers.parts import Parts
from fedpers.privacy import Release
from simulations.bench import Free, Party, lora_model
from simulations.bench_row import medians

BATCH, STEPS, REPEATS = 64, (10, 1), 60


def main() -> None:
    """Print the times and their ratios, for whole models and above the cached frozen layers."""
    torch.set_num_threads(1)
    keep_memory()
    for cached in (False, True):
        for steps in STEPS:
            plain, hooks, none = (1e3 * seconds / steps for seconds in measured(cached, steps))
            name = "cached frozen layers" if cached else "whole model"
            print(
                f"{name}, {steps} at a time: plain {plain:.2f} ms; "
                f"with hooks {hooks:.2f} ms, {hooks / plain:.2f} times; "
                f"without {none:.2f} ms, {none / plain:.2f} times"
            )
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def measured(cached: bool, steps: int) -> list[float]:
    """Seconds of a plain phase, of a private one with hooks, and of one without."""
    private = ("privacy.enabled=true", "privacy.sampling_rate=1.0", "privacy.lr=0.05")
    party = Party(
        lora_model("vit-tiny"),
        1,
        BATCH,
        *(f"training.batch_size={BATCH}", f"training.epochs={steps}"),
        *(*private, f"privacy.steps={steps}"),
    )
    if not cached:
        party.model.after_stem, party.examples = False, party.whole
    (phase,) = party.algorithm.phases()
    release = Release(1.0, 1.0, steps)

    def trainer(account: Free | None) -> Trainer:
        (made,) = party.trainers([account])
        return made

    working = party.algorithm.receive(party.broadcast, Parts())
    runs: tuple[Callable[[], Parts], ...] = (
        lambda: trainer(None).run(phase, working),
        lambda: trainer(Free(release)).run(phase, working),
        lambda: party.fold.run(phase, [trainer(Free(release))], [working])[0],
    )
    return medians(runs, REPEATS)


if __name__ == "__main__":
    main()
