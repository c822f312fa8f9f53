"""From arrays to checked tensors: inputs, classes, and the names of clients and groups."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpers.data.examples import Examples, Table
from fedpers.errors import DataError

# What numpy and zipfile raise for a file that is broken, no archive, or of Python objects.
UNREADABLE = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
KINDS = {2: "tabular", 3: "signal", 4: "image"}


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a ``.npz`` file, never unpickled.

    Raises:
        DataError: the file cannot be read, is no ``.npz`` file, or holds Python objects.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with file:
            return {name: file[name] for name in file.files}
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        takes = "a .npz file of plain arrays (numpy.savez)"
        raise DataError(f"{path}: cannot be read ({reason}); takes {takes}") from None


def read_npz(
    path: Path, client: str = "client", group: str = "group", classes: int | None = None
) -> Table:
    """A table from the arrays ``x`` and ``y``, and ``client`` and ``group`` where there are any.

    Raises:
        DataError: an array is missing, has the wrong length, or cannot be used.
    """
    arrays = read_arrays(path)
    if missing := {"x", "y"} - arrays.keys():
        got = ", ".join(arrays) or "no arrays"
        raise DataError(f"{path}: got {got}, takes arrays x and y; add {sorted(missing)[0]}")
    n = len(arrays["y"]) if arrays["y"].ndim else 0
    for name in ("y", "x", client, group):
        if name in arrays and (arrays[name].ndim == 0 or len(arrays[name]) != n):
            shape = arrays[name].shape
            raise DataError(f"{path}: {name}: got shape {shape}, takes one row for each of {n} y")
    y = to_labels(arrays["y"], f"{path}: y", classes)
    kind, x = to_inputs(arrays["x"], f"{path}: x")
    names = {
        key: to_names(arrays[array], f"{path}: {array}") if array in arrays else None
        for key, array in (("client", client), ("group", group))
    }
    return Table(kind, Examples(x, y), names["client"], names["group"], classes)


def to_inputs(x: NDArray[Any], where: str) -> tuple[str, torch.Tensor]:
    """The kind of task and the inputs as float32.

    uint8 is scaled from 0..255 to -1..1; floats stay as they are. [n, H, W] of uint8 are grey
    images and become [n, 1, H, W]; [n, C, T] of floats are signals.

    Raises:
        DataError: another type or shape, or no examples.
    """
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise DataError(f"{where}: got {x.dtype}, takes uint8 or floats; convert it")
    if x.ndim not in KINDS or x.size == 0:
        shapes = "[n, H, W], [n, C, H, W], [n, C, T] or [n, d] with n > 0"
        raise DataError(f"{where}: got shape {x.shape}, takes {shapes}; reshape it")
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise DataError(f"{where}: got shape {x.shape}, takes [n, C, H, W]; put channels second")
    if x.dtype == np.uint8:
        # In place: an image set of some 100 MB is gone over twice, not copied.
        inputs = torch.from_numpy(x).to(torch.float32).div_(127.5).sub_(1)
        if x.ndim == 3:
            return "image", inputs.unsqueeze(1)
        return KINDS[x.ndim], inputs
    with np.errstate(over="ignore"):
        inputs = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    return KINDS[x.ndim], inputs


def check_finite(x: torch.Tensor, where: str) -> None:
    """Refuse inputs [n, ...] with NaN or infinity.

    Raises:
        DataError: naming the first such row.
    """
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        row = int(torch.nonzero(~finite)[0])
        raise DataError(
            f"{where}: got NaN, infinity or a number beyond float32 in row {row} (from 0), "
            "takes finite numbers; drop or fill it"
        )


def bounded(x: torch.Tensor, most: float) -> torch.Tensor:
    """Inputs within -most..most, changed in place; NaN becomes 0. Token ids are left alone."""
    if not x.is_floating_point():
        return x
    return x.nan_to_num_(0.0, most, -most).clamp_(-most, most)


def to_labels(
    values: Sequence[Any] | NDArray[Any], where: str, among: int | None = None
) -> torch.Tensor:
    """Classes [n] int64: integers (or booleans) as they are, text by its place when sorted.

    Args:
        among: how many classes there are; not all need be there, and they are integers.

    Raises:
        DataError: not one class an example, missing, negative, with gaps, or all the same.
    """
    labels = _column(values, where)
    if labels.ndim != 1 or len(labels) == 0 or labels.dtype.kind not in "biuU":
        got = f"{labels.dtype} of shape {labels.shape}"
        raise DataError(f"{where}: got {got}, takes one class an example, an integer or text")
    if among is not None:
        integers = labels.dtype.kind in "biu"
        wrong = labels[(labels < 0) | (labels >= among)] if integers else labels
        if len(wrong):
            got = f"{labels.dtype} such as {wrong[0]}"
            raise DataError(f"{where}: got {got}, takes integers in 0..{among - 1}")
        return torch.from_numpy(labels.astype(np.int64))
    classes, numbers = np.unique(labels, return_inverse=True)
    if labels.dtype.kind in "biu" and not np.array_equal(classes, np.arange(len(classes))):
        got = ", ".join(str(c) for c in classes[:8]) + (", ..." if len(classes) > 8 else "")
        takes = "0, 1, ..., C-1 without gaps"
        raise DataError(f"{where}: got classes {got}, takes {takes}; number them from 0")
    if len(classes) < 2:
        raise DataError(f"{where}: got the one class {classes[0]}, takes at least two classes")
    return torch.from_numpy(numbers.astype(np.int64))


def to_names(values: Sequence[Any] | NDArray[Any], where: str) -> NDArray[np.str_]:
    """Names of clients or groups as text [n], from integers or text.

    Raises:
        DataError: not one name an example, or neither integers nor text.
    """
    names = _column(values, where)
    if names.ndim != 1 or names.dtype.kind not in "iuU":
        got = f"{names.dtype} of shape {names.shape}"
        raise DataError(f"{where}: got {got}, takes one name an example, an integer or text")
    return names.astype(np.str_)


def _column(values: Sequence[Any] | NDArray[Any], where: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:  # lists of several lengths
        raise DataError(f"{where}: got lists, takes one value an example") from None
