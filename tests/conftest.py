"""For all tests: one thread (sums do not depend on the machine), no deadlines, no telemetry."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fedpers", deadline=None, max_examples=50)
settings.load_profile("fedpers")
