"""Feature shift: every client sees its images in its own way."""

from __future__ import annotations

import torch

from fedpers.config import Config
from fedpers.data.examples import Examples, Signature
from fedpers.errors import ConfigError
from fedpers.seeding import numpy_generator


def check_shift(config: Config, signature: Signature) -> None:
    """Refuse a shift of what is no image.

    Raises:
        ConfigError: the data are not images.
    """
    shift = config.data.shift
    if shift != "none" and signature.kind != "image":
        takes = f"none, for {config.data.name} is {signature.kind} data"
        raise ConfigError("data.shift", shift, takes)


def shifted(examples: Examples, config: Config, client: str) -> Examples:
    """A client's examples under its own shift: quarter turns, black for white, or both.

    The number of turns and whether to invert are drawn once per client. Pixels are in -1..1.
    """
    kind = config.data.shift
    if kind == "none":
        return examples
    rng = numpy_generator(config.seed, "data", "shift", client)
    turns, invert = int(rng.integers(4)), bool(rng.integers(2))
    x = examples.x
    if kind in ("rotate", "both"):
        x = torch.rot90(x, turns, dims=(-2, -1))
    if kind in ("invert", "both") and invert:
        x = -x
    return Examples(x.contiguous(), examples.y)
