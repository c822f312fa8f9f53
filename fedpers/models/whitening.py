"""Whitening of what the first trained layer reads: by public rows, or by sums over the clients.

One step of preconditioning, the same for all methods: where columns go together, as statistics of
one signal do, gradient descent needs hundreds of epochs for what it then finds in ten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedpers import moments
from fedpers.errors import ConfigError
from fedpers.models.personal import PersonalModel
from fedpers.parts import Part

if TYPE_CHECKING:
    from fedpers.data import FederatedData, Signature

RIDGE = 0.03  # of the mean variance: what hardly varies is not blown up without bound
NOISED = 0.3  # likewise where noise is in what hardly varies
MOST = 1024  # features, of which d^2 / 2 numbers are sent once
LEAST_ROWS = 10
WHITENING = "whitening"


def prepare_whitening(
    model: PersonalModel, how: str, data: FederatedData, *, public: bool = True
) -> None:
    """Whiten a model that is built by public rows; see that ``sums`` can.

    Args:
        how: ``model.whiten``.
        public: whether the public rows are there: on a device they are not, and what was made of
            them comes with the model's tensors.

    Raises:
        ConfigError: the first trained layer reads no vectors, or too long ones; too few rows.
    """
    if how == "none":
        return
    features = width_read(model, data.signature)
    if how == "sums":
        return
    if not public:
        model.whiten(torch.zeros(features), torch.eye(features))
        return
    rows = data.public
    if len(rows) < LEAST_ROWS:
        takes = f"none or sums where there are {len(rows)} public rows"
        raise ConfigError("model.whiten", "public", takes, "or raise data.public_fraction")
    z = torch.cat([model.stem(piece) for piece in torch.split(rows.x, 256)])
    frame, classes = moments.Frame.of(moments.frame_rows(z).mean(0)), model.task.outputs
    whiten(model, whitening_of(moments.rows(z, rows.y, classes, frame).mean(0), classes, frame))


def width_read(model: PersonalModel, signature: Signature) -> int:
    """How many features the first trained layer reads.

    Raises:
        ConfigError: it reads no vectors, or too long ones.
    """
    text = signature.kind == "text"
    made_up = torch.zeros(2, *signature.shape, dtype=torch.int64 if text else torch.float32)
    read = model.stem(made_up.to(model.device))
    if read.ndim != 2 or not read.is_floating_point() or read.shape[1] > MOST:
        shape = ", ".join(map(str, read.shape[1:]))
        takes = f"none where the first trained layer reads [{shape}], not up to {MOST} features"
        raise ConfigError("model.whiten", "public or sums", takes)
    return int(read.shape[1])


def whitening_of(vector: Tensor, classes: int, frame: moments.Frame) -> Part:
    """The centre [d] and the whitener [d, d] that pooled moments give, see ``fedpers.moments``."""
    found = moments.read(vector, classes, frame)
    centre = (found.share[:, None] * found.mean).sum(0)
    whitener = moments.whitener(found.within, NOISED if frame.apart else RIDGE)
    return Part.of({"centre": centre.float(), "whitener": whitener.float()})


def whiten(model: PersonalModel, whitening: Part) -> None:
    """Have a model whiten so."""
    model.whiten(whitening["centre"], whitening["whitener"])
