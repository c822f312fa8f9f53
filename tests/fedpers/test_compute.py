"""Where a node computes, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from fedpers.compute import CPU, computing_in, cores, device_for, device_name, node_count
from fedpers.config import Simulation


def test_a_node_without_a_gpu_of_its_own_computes_on_the_cpu() -> None:
    assert device_for(0.0) == CPU
    assert device_name(0.0) == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_here_the_cpu_computes_and_other_machines_are_unknown() -> None:
    assert device_for(0.5) == CPU
    assert device_name(0.5) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_node_with_a_gpu_computes_there_in_float32() -> None:
    assert device_for(0.25).type == "cuda"
    assert not torch.backends.cudnn.allow_tf32
    assert device_name(0.25) == torch.cuda.get_device_name()


def test_layers_compute_in_the_precision_asked_for() -> None:
    layer, x = torch.nn.Linear(2, 3), torch.ones(1, 2)
    for precision in ("float32", "bfloat16"):
        with computing_in(precision, CPU):
            assert layer(x).dtype == getattr(torch, precision)
        assert layer(x).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_there_are_as_many_nodes_as_cores_for_them() -> None:
    assert node_count(Simulation(nodes=7)) == 7
    assert node_count(Simulation()) == cores() >= 1
    assert node_count(Simulation(cpus_per_node=cores() + 1)) == 1
