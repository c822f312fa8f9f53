"""How many nodes compute, and where: on the GPU that each was given, or on the CPU."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fedpers.config import Simulation

CPU = torch.device("cpu")


def cores() -> int:
    """The cores that this process may use: a container may have fewer than the machine."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def node_count(simulation: Simulation) -> int:
    """The nodes of a simulation: as set, or as many as there are cores for."""
    return simulation.nodes or max(1, cores() // simulation.cpus_per_node)


def device_for(gpus_per_node: float) -> torch.device:
    """The GPU of a node that is to use one and sees one, else the CPU.

    A Ray actor sees those GPUs alone that it was given: the first one is its own. Float32 is
    float32 there, in convolutions too, which cuDNN would compute in TF32.
    """
    if gpus_per_node <= 0 or not torch.cuda.is_available():
        return CPU
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def device_name(gpus_per_node: float) -> str | None:
    """What nodes with so many GPUs compute on: ``cpu``, a GPU's name, or None where they are to
    use one and this process sees none: they may be on other machines."""
    if gpus_per_node <= 0:
        return CPU.type
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Within, layers compute in ``training.precision``; their own tensors stay float32.

    Args:
        precision: float32 or bfloat16.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
