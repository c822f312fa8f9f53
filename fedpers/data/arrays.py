"""From arrays to checked tensors: inputs, targets, and the names of clients and groups."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpers.config import Columns, TaskSettings
from fedpers.data.examples import Examples, Table
from fedpers.errors import DataError, line_of
from fedpers.tasks.base import Task, task_named
from fedpers.tasks.columns import column_of

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
        reason = line_of(error)
        takes = "a .npz file of plain arrays (numpy.savez)"
        raise DataError(f"{path}: cannot be read ({reason}); takes {takes}") from None


def read_npz(path: Path, columns: Columns | None = None, task: TaskSettings | None = None) -> Table:
    """A table from the arrays ``x`` and ``y``, and ``client`` and ``group`` where there are any.

    ``names`` [C], text, says what the classes 0..C-1 are called.

    Args:
        columns: other names of ``client`` and ``group``.
        task: what is learned.

    Raises:
        DataError: an array is missing, has the wrong length, or cannot be used.
    """
    arrays, columns = read_arrays(path), columns or Columns()
    if missing := {"x", "y"} - arrays.keys():
        got = ", ".join(arrays) or "no arrays"
        raise DataError(f"{path}: got {got}, takes arrays x and y; add {sorted(missing)[0]}")
    client, group = columns.client or "client", columns.group or "group"
    n = len(arrays["y"]) if arrays["y"].ndim else 0
    for name in ("y", "x", client, group):
        if name in arrays and (arrays[name].ndim == 0 or len(arrays[name]) != n):
            shape = arrays[name].shape
            raise DataError(f"{path}: {name}: got shape {shape}, takes one row for each of {n} y")
    given = to_names(arrays["names"], f"{path}: names").tolist() if "names" in arrays else None
    learned, y = to_targets(arrays["y"], f"{path}: y", columns, task, given)
    kind, x = to_inputs(arrays["x"], f"{path}: x")
    names = {
        key: to_names(arrays[array], f"{path}: {array}") if array in arrays else None
        for key, array in (("client", client), ("group", group))
    }
    return Table(kind, Examples(x, y), names["client"], names["group"], learned)


def to_targets(
    values: Sequence[Any] | NDArray[Any],
    where: str,
    columns: Columns,
    settings: TaskSettings | None = None,
    names: list[str] | None = None,
) -> tuple[Task, torch.Tensor]:
    """The task that a column makes, and its targets [n].

    Args:
        settings: what is learned.
        names: what the source calls the classes; the settings' names come first.

    Raises:
        DataError: values that are no targets of the task.
    """
    task, params = task_named(settings or TaskSettings())
    if names and not getattr(params, "names", names):
        params = replace(params, names=names)
    return task.encode(values, where, columns, params)


def to_inputs(x: NDArray[Any], where: str) -> tuple[str, torch.Tensor]:
    """The kind of input and the inputs as float32.

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
            "takes finite numbers; drop or fill it, or set data.missing"
        )


def bounded(x: torch.Tensor, most: float) -> torch.Tensor:
    """Inputs within -most..most, changed in place; NaN becomes 0. Token ids are left alone."""
    if not x.is_floating_point():
        return x
    return x.nan_to_num_(0.0, most, -most).clamp_(-most, most)


def to_names(values: Sequence[Any] | NDArray[Any], where: str) -> NDArray[np.str_]:
    """Names of clients or groups as text [n], from integers or text.

    Raises:
        DataError: not one name an example, or neither integers nor text.
    """
    names = column_of(values, where)
    if names.ndim != 1 or names.dtype.kind not in "iuU":
        got = f"{names.dtype} of shape {names.shape}"
        raise DataError(f"{where}: got {got}, takes one name an example, an integer or text")
    return names.astype(np.str_)
