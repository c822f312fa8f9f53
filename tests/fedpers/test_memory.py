"""What a process keeps of the memory that a batch took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Steps of a CNN at a batch of 32; the pages that the last ones had to ask the system for.
COUNT = """
import resource, sys
import torch
from fedpers.memory import keep_memory
from fedpers.models.backbones import Cnn

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_memory()
model, x = Cnn((1, 28, 28)), torch.zeros(32, 1, 28, 28)
for step in range(12):
    if step == 6:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(x).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str) -> int:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", COUNT, way], cwd=root, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own setting")
def test_a_batch_takes_over_the_memory_of_the_one_before() -> None:
    assert faults("keep") * 4 < faults("give back")


LIMITED = """
import torch
from fedpers.memory import limit_memory
limit_memory(2**30)
for much in (lambda: bytearray(2**31), lambda: torch.zeros(2**29)):
    try:
        much()
    except (MemoryError, RuntimeError) as error:
        print(type(error).__name__)
print(float(torch.ones(2**20).sum()))
"""


def test_beyond_its_memory_an_allocation_fails_and_the_process_goes_on() -> None:
    said = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert said.stdout.split() == ["MemoryError", "RuntimeError", "1048576.0"], said.stderr
