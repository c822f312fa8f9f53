"""Which clients of a node train at once, and what becomes of one that fails."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from clients.base import LocalAlgorithm
from clients.training.folding import foldable, train_folded
from clients.training.layers import Fold, stacked_layers
from clients.training.trainer import Trainer
from fedpers.models import PersonalModel
from fedpers.parts import Part, Parts
from fedpers.phases import Phase

SIZES = (8, 32)  # of groups that are tried
GPU_SIZES = (*SIZES, 128, 256)
STEPS, REPEATS = 3, 3
SLOW = 0.05  # seconds: a step as long as that has no overhead worth sharing
AGREE = 1e-4

log = logging.getLogger("fedpers")


class Groups:
    """How many clients of a node train at once: found out once and kept for the run.

    Results in groups and one by one differ in the last bits: a run that goes on after a restart
    must not choose anew.

    Args:
        setting: ``training.fold``: auto, off or a number.
        model, algorithm: the node's.
        file: where the choice is kept; all nodes of a machine share it.
    """

    def __init__(
        self, setting: str, model: PersonalModel, algorithm: LocalAlgorithm, file: Path
    ) -> None:
        self.setting, self.algorithm, self.file = setting, algorithm, file
        stackable = setting != "off" and not isinstance(stacked_layers(model), str)
        self.fold = Fold(model) if stackable else None
        privacy = algorithm.config.privacy  # under which a fold is worth it for one client
        self._alone = privacy.by_example
        self._checked = False
        self._size: int | None = None

    @property
    def known(self) -> int:
        """What was found, 1 where nothing was."""
        return self._size or 1

    def size(
        self, clients: int, trial: Callable[[], tuple[Sequence[Trainer], Sequence[Parts]]]
    ) -> int:
        """How many to train at once; 1 for one by one.

        Args:
            clients: how many there are.
            trial: makes trainers and working parts of some of them, to be tried and thrown away.
        """
        if self.fold is None or (clients < 2 and not self._alone):
            return 1
        if self._size is None and self.file.exists():
            self._size = int(self.file.read_text(encoding="ascii"))
        if self._size is None or not self._checked:
            trainers, workings = trial()
            busy = [k for k, trainer in enumerate(trainers) if len(trainer.examples)]
            if not busy:
                return self.known  # nothing to try it on yet
            if not self._checked and not self._check(trainers, workings, busy):
                self.fold = None
                return 1
            if self._size is None and len(busy) > 1:
                found = group_size(self.setting, self.fold, self.algorithm, trainers, workings)
                self._size = _agreed(self.file, found)
                log.debug("clients train in groups of %d", self._size)
        return self.known

    def _check(
        self, trainers: Sequence[Trainer], workings: Sequence[Parts], busy: Sequence[int]
    ) -> bool:
        """Whether the model computes for several clients what it computes for one; how many of them
        a GPU takes is found out on the way."""
        assert self.fold is not None
        reason = disagreement(self.fold, trainers[busy[0]].examples.x[:3])
        if reason is not None:
            log.warning("clients are trained one by one: %s", reason)
            return False
        on_gpu = self.fold.model.device.type == "cuda"
        if on_gpu and len(busy) > 1:
            self.fold.most = fitting(self.fold, self.algorithm, trainers, workings)
        self._checked = len(busy) > 1 or not on_gpu
        return True


def train_group(
    algorithm: LocalAlgorithm,
    fold: Fold | None,
    trainers: Sequence[Trainer],
    workings: Sequence[Parts],
) -> list[Parts | Exception]:
    """Train clients at once where that can be, else one by one.

    Args:
        fold: None for one by one.
        trainers: one a client, of the same model, method, configuration and round.
        workings: the clients' parts at the start of the round.

    Returns:
        For each client its parts after training, or what its training raised.
    """
    if fold is None or not only_phases(algorithm):
        pairs = zip(workings, trainers, strict=True)
        return [_attempt(partial(algorithm.train, working, own)) for working, own in pairs]
    results = [
        _attempt(partial(algorithm.prepare, working, own))
        for working, own in zip(workings, trainers, strict=True)
    ]
    for phase in algorithm.phases():
        well = {k: found for k, found in enumerate(results) if isinstance(found, Parts)}
        busy = [k for k in well if len(trainers[k].examples)]
        parts = [well[k] for k in busy]
        folded = _together(fold, algorithm, phase, [trainers[k] for k in busy], parts)
        together = dict(zip(busy, folded, strict=True))
        for k, working in well.items():
            trained, alone = together.get(k), partial(trainers[k].run, phase, working)
            results[k] = _attempt(alone) if trained is None else trained
    for k, (found, own) in enumerate(zip(results, trainers, strict=True)):
        if isinstance(found, Parts):
            results[k] = _attempt(partial(algorithm.conclude, found, own))
    return results


def group_size(
    setting: str,
    fold: Fold,
    algorithm: LocalAlgorithm,
    trainers: Sequence[Trainer],
    workings: Sequence[Parts],
) -> int:
    """How many clients to train at once; 1 for one by one.

    Args:
        setting: ``training.fold``: auto, off or a number.
        trainers, workings: of this node's clients in a round, with which it is tried; both are
            thrown away.
    """
    busy = [k for k, trainer in enumerate(trainers) if len(trainer.examples)]
    if setting == "off" or len(busy) < 2 or not only_phases(algorithm):
        return 1
    phases = [p for p in algorithm.phases() if foldable(fold.model, algorithm, p) is None]
    if not phases:
        return 1
    if setting != "auto":
        return int(setting)
    return fastest_size(fold, phases[0], [trainers[k] for k in busy], [workings[k] for k in busy])


def only_phases(algorithm: LocalAlgorithm) -> bool:
    """Whether a method's training is its phases, one after another, and nothing else."""
    return type(algorithm).train is LocalAlgorithm.train


def fastest_size(
    fold: Fold, phase: Phase, trainers: Sequence[Trainer], workings: Sequence[Parts]
) -> int:
    """The group size at which a client's steps take the least time, 1 included.

    Measured on plain steps: under DP-SGD one by one has its hooks to pay for, and groups gain more.
    """
    plain, device = replace(phase, steps=STEPS, released=False), fold.model.device

    def seconds(size: int) -> float:
        own, parts = trainers[:size], workings[:size]
        started = _now(device)
        try:
            if size == 1:
                own[0].run(plain, parts[0])
            else:
                train_folded(fold, plain, own, parts)
        except Exception:  # out of memory, or a client that will be found when it is trained
            log.debug("a group of %d cannot be tried", size, exc_info=True)
            return inf
        return (_now(device) - started) / len(own)

    seconds(1)  # warm
    if seconds(1) > SLOW * STEPS:
        return 1
    tried = zip((0, *sizes_on(device)), sizes_on(device), strict=False)
    sizes = [1, *(size for before, size in tried if before < len(trainers) and size <= fold.most)]
    times = [[seconds(size) for size in sizes] for _ in range(1 + REPEATS)][1:]
    medians = [median(found) for found in zip(*times, strict=True)]
    return sizes[medians.index(min(medians))]


def sizes_on(device: torch.device) -> tuple[int, ...]:
    """The group sizes that ``auto`` tries."""
    return GPU_SIZES if device.type == "cuda" else SIZES


def _now(device: torch.device) -> float:
    """Seconds: of this process where it computes on the CPU, which it shares; of the clock, once
    all is done, where it computes on a GPU."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def fitting(
    fold: Fold, algorithm: LocalAlgorithm, trainers: Sequence[Trainer], workings: Sequence[Parts]
) -> int:
    """How many clients a GPU's memory takes at once.

    Measured on plain steps of one client and of two, in each phase. A step of DP-SGD takes more:
    what does not fit after all is halved when it shows.

    Args:
        trainers, workings: of at least two clients with examples, those with the most first; both
            are thrown away.
    """
    busy = [k for k, trainer in enumerate(trainers) if len(trainer.examples)]
    most, share = sys.maxsize, algorithm.config.simulation.gpus_per_node
    for phase in algorithm.phases():
        if foldable(fold.model, algorithm, phase) is not None:
            continue
        plain, peaks = replace(phase, steps=STEPS, released=False), []
        try:
            for count in (1, 2):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                some = busy[:count]
                train_folded(fold, plain, [trainers[k] for k in some], [workings[k] for k in some])
                peaks.append(torch.cuda.max_memory_allocated() - before)
        except torch.OutOfMemoryError:
            return 1
        except Exception:  # whoever it was is found when it is trained
            log.debug("phase %r cannot be measured", phase.name, exc_info=True)
            continue
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        # Others may be about to take what is free: a node that has a share of a GPU keeps to it.
        own = int(min(share, 1.0) * total) - torch.cuda.memory_allocated()
        most = min(most, most_clients(peaks[0], peaks[1], min(free, own)))
    return most


def most_clients(one: int, two: int, free: int) -> int:
    """How many clients at once stay within 80 % of the free memory; at least 1.

    Args:
        one, two: bytes that a group of one client and a group of two take at their peak. Each
            further one is expected to add what the second did.
        free: bytes that are free.
    """
    left, more = 4 * free // 5 - one, two - one
    if more <= 0:
        return sys.maxsize if left >= 0 else 1
    return max(1, 1 + left // more)


def disagreement(fold: Fold, x: Tensor) -> str | None:
    """What the model makes of examples ``x`` [n, ...] for two clients at once and for each alone,
    compared; None if it is the same. It is not where a trunk looks across a batch, or reads a
    layer's tensors without calling the layer.
    """
    model, generator = fold.model, torch.Generator().manual_seed(0)
    clients = [
        {
            slot: Part(layout, torch.randn(layout.size, generator=generator).to(layout.dtype) / 10)
            for slot, layout in fold.layouts.items()
        }
        for _ in range(2)
    ]
    try:
        found = fold.outputs(clients, x)
    except Exception as error:  # whatever a trunk that is not made for it may raise
        return str(error)
    for parts, together in zip(clients, found, strict=True):
        for slot, part in parts.items():
            model.write(slot, part)
        with torch.no_grad():
            alone = model(x).scores
        if not torch.allclose(alone, together.scores, rtol=AGREE, atol=AGREE):
            return (
                f"in a group the model's scores differ by {(alone - together.scores).abs().max()}"
            )
    return None


def _agreed(file: Path, size: int) -> int:
    """The size that ``file`` holds: this one, unless another process was faster."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as new:
            new.write(str(size))
            new.flush()
            os.fsync(new.fileno())
        try:
            os.link(temporary, file)
        except FileExistsError:
            return int(file.read_text(encoding="ascii"))
        return size
    finally:
        os.unlink(temporary)


def _together(
    fold: Fold,
    algorithm: LocalAlgorithm,
    phase: Phase,
    trainers: Sequence[Trainer],
    workings: Sequence[Parts],
) -> list[Parts | None]:
    """The phase in groups as large as memory takes; None for those who are to be trained alone,
    where it cannot be folded or where it fails for one of a group.

    A single client is worth a fold where its steps are private: those need no hooks then.
    """
    found: list[Parts | None] = []
    if foldable(fold.model, algorithm, phase) is not None:
        return [None] * len(trainers)
    while len(found) < len(trainers):
        first, last = len(found), min(len(found) + fold.most, len(trainers))
        private = phase.released and trainers[first].account is not None
        if last - first < 2 and not private:
            found.append(None)
            continue
        try:
            found += train_folded(fold, phase, trainers[first:last], workings[first:last])
        except torch.OutOfMemoryError:
            if last - first == 1:
                found.append(None)
                continue
            # For the rest of the run: what was too much once would be so again.
            fold.most = (last - first) // 2
            log.info("out of memory: at most %d clients train at once from now on", fold.most)
        except Exception:  # whoever it was is found one by one
            log.debug("phase %r failed in a group", phase.name, exc_info=True)
            found += [None] * (last - first)
    return found


def _attempt(train: Callable[[], Parts]) -> Parts | Exception:
    try:
        return train()
    except Exception as error:  # whatever a client's data or a plug-in may raise
        return error
