"""How the process gives memory back, which costs training more than one would think; and how much
it may take."""

from __future__ import annotations

import ctypes
import resource

# From glibc's malloc.h, and what they are set to in bytes.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**26, MMAP_THRESHOLD: 2**25}


def keep_memory() -> bool:
    """Let glibc keep what a batch's activations took, for the next batch.

    By default it gives them back to the system after every batch and asks for them again: at a
    batch of 32 on the CNN that is 800 page faults and an eighth of the step's time. The process
    holds on to at most what it once needed.

    Returns:
        Whether it was done; not where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, size) for name, size in SETTINGS.items())


def limit_memory(most: int) -> None:
    """Let this process, and those it starts, hold at most so many bytes of data each.

    Beyond it an allocation fails, which costs the message that asked for it. Linux counts all
    private memory that can be written (``RLIMIT_DATA``): not libraries, not an accelerator's.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
