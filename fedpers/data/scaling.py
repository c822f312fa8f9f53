"""Features of a table on a scale that suits models, and what stands where one is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from fedpers.config import Columns, Config
from fedpers.errors import ConfigError, DataError

FENCES = 3.0  # beyond these quartile distances a value is an outlier (Tukey's outer fence)
FARTHEST = 10.0  # spreads from the mean: beyond is an outlier that would decide a small model
MOST_COLUMNS = 1_000_000
HOW = ("none", "public", "declared", "sums")


@dataclass(frozen=True)
class Scaling:
    """(x - mean) / spread for each column, within -most..most, after missing ones were filled; then
    a column of ones and zeros, which were missing, for each of ``marked``.

    Attributes:
        how: as ``data.scale``, but for ``auto``.
        rows: of how many examples mean and spread are; 0 where they were declared.
        mean, spread, fill: [d]; empty where nothing is done.
        marked: columns with an indicator of what is missing.
        most: how far from the mean a value may be, in spreads.
        centred: the mean is each client's own, see ``of_client``; else it is the same for all.
    """

    how: str = "none"
    rows: int = 0
    mean: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    fill: tuple[float, ...] = ()
    marked: tuple[int, ...] = ()
    most: float = FARTHEST
    centred: bool = False

    def __post_init__(self) -> None:  # a device has it from its server
        numbers, width = (*self.mean, *self.spread, *self.fill), len(self.mean)
        if (
            self.how not in HOW
            or not (len(self.spread) == len(self.fill) == width <= MOST_COLUMNS)
            or not all(math.isfinite(value) for value in (*numbers, self.most))
            or not all(value > 0 for value in (*self.spread, self.most))
            or list(self.marked) != sorted({*self.marked} & {*range(width)})
        ):
            raise DataError("scaling: got numbers that no data have; ask whoever runs the server")

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """What ``dataclasses.asdict`` made of one.

        Raises:
            DataError: it is none.
        """
        try:
            columns = ("mean", "spread", "fill")
            numbers = {name: tuple(float(value) for value in given[name]) for name in columns}
            marked = tuple(int(column) for column in given["marked"])
            how, rows, most = str(given["how"]), int(given["rows"]), float(given["most"])
            centred = bool(given.get("centred", False))
        except (KeyError, TypeError, ValueError):
            raise DataError("scaling: cannot be read; ask whoever runs the server") from None
        return cls(how, rows, **numbers, marked=marked, most=most, centred=centred)

    def of_client(self, train: Tensor) -> Scaling:
        """This one where it is the same for all; else with the mean of a client's own training
        rows [n, d]; of what it has nothing of, with that of all."""
        if not self.centred or not self.mean:
            return self
        x = train.double()
        count, fill = torch.isfinite(x).sum(0), torch.tensor(self.fill).double()
        mean, spread = (torch.tensor(v).double() for v in (self.mean, self.spread))
        near = self.most * spread  # of what a client has by rule: an outlier is no offset
        middle = x.nanmedian(0).values.nan_to_num(0) if len(x) else mean
        around = torch.where(torch.isfinite(x), x, middle)
        around = torch.clamp(around, middle - near, middle + near)
        own = (around.sum(0) - middle * (len(x) - count)) / count.clamp_min(1)
        centre = torch.where(count > 0, own, mean)
        filled = centre + (fill - mean)
        return replace(self, mean=tuple(centre.tolist()), fill=tuple(filled.tolist()))

    def apply(self, x: Tensor) -> Tensor:
        """Features [n, d] as a model reads them, float32 [n, d + marked]; ``x`` where nothing is
        done.

        Raises:
            DataError: another number of columns.
        """
        if not self.mean:
            return x
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            got = ", ".join(str(size) for size in x.shape[1:])
            raise DataError(f"features: got [n, {got}], takes [n, {len(self.mean)}]")
        missing = torch.isnan(x)
        mean, spread, fill = (torch.tensor(v).double() for v in (self.mean, self.spread, self.fill))
        # In double precision: of 10^6 and a spread of 1 float32 would keep two digits.
        filled = torch.where(missing, fill, x.double())
        if self.how != "none":
            filled = ((filled - mean) / spread).clamp(-self.most, self.most)
        return torch.cat([filled, missing[:, list(self.marked)].double()], 1).float()

    @property
    def about(self) -> str:
        """What is done, in words; "" for nothing."""
        said = {
            "none": "",
            "public": f"standardised by {self.rows:,} public rows",
            "declared": "brought from their declared ranges to -1..1",
            "sums": f"standardised by sums over the clients’ {self.rows:,} training rows",
        }[self.how]
        marked = f"{len(self.marked)} columns say what was missing" if self.marked else ""
        centred = "around each client’s own mean" if self.centred else ""
        told = "; ".join(part for part in (said, centred, marked) if part)
        return f"features: {told}" if told else ""


def scaling_of(
    config: Config,
    kind: str,
    names: Sequence[str],
    scaled: Sequence[int],
    public: Tensor,
    train: Sequence[Tensor],
) -> tuple[Scaling, str]:
    """How features are scaled and filled as ``data.scale`` and ``data.missing`` say, and a remark
    for the user, or "".

    Args:
        kind: of the examples.
        names: of the columns.
        scaled: those that are on a scale that suits models already: they need no declared range.
        public: inputs that everybody may see.
        train: the inputs that each client trains on; read for sums over them alone.

    Raises:
        ConfigError: the settings ask for what there is not, or what is not protected.
    """
    data = config.data
    how, remark = _how(config, kind, names, len(public), len(scaled) == len(names))
    if kind != "tabular" or (how == "none" and data.missing == "error"):
        return Scaling(), remark
    if how == "declared":
        return _declared(data.columns, names, scaled, data.missing), remark
    seen = train if how == "sums" else [public]
    if how == "none" and len(public) == 0:
        takes = "error where nothing says what a column is like: no public rows, no ranges"
        raise ConfigError("data.missing", data.missing, takes, "set data.scale=sums or declared")
    if how == "sums" and data.missing == "median":
        takes = "mean or indicator with data.scale=sums, for a median is no sum"
        raise ConfigError("data.missing", "median", takes)
    return _fitted(seen, how, data.missing, data.centre), remark


def check_scale(config: Config) -> None:
    """What can be seen to be wrong before anything is read.

    Raises:
        ConfigError: sums that nothing would protect; ranges and categories that are none.
    """
    data, columns = config.data, config.data.columns
    hidden = config.confidential or config.channel != Config().channel
    if data.scale == "sums" and (hidden or data.partition.name == "devices"):
        takes = "public or declared where clients' sums would have to be hidden, or are on devices"
        cure = (
            "declare data.columns.ranges: model.whiten=sums then finds the spreads by hidden sums; "
            "or set public rows aside (data.public_fraction)"
        )
        raise ConfigError("data.scale", "sums", takes, cure)
    if data.centre and (config.privacy.by_example or data.scale in ("none", "declared")):
        takes, cure = f"false with data.scale={data.scale}", "set data.scale to public or sums"
        if config.privacy.by_example:  # a row more or less would move all others
            takes, cure = "false with privacy.unit=example", "leave it out"
        raise ConfigError("data.centre", True, takes, cure)
    for name, ends in columns.ranges.items():
        if len(ends) != 2 or not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
            takes = "[lowest, highest], two finite numbers"
            raise ConfigError(f"data.columns.ranges.{name}", ends, takes)
        if name not in columns.features and columns.features:
            takes = f"one of data.columns.features: {', '.join(columns.features)}"
            raise ConfigError("data.columns.ranges", name, takes)
    for name in columns.dates:
        if name not in columns.features or name in columns.categories:
            takes = f"one of data.columns.features, of no categories: {', '.join(columns.features)}"
            raise ConfigError("data.columns.dates", name, takes)
    for name, values in columns.categories.items():
        if name not in columns.features:
            takes = f"one of data.columns.features: {', '.join(columns.features)}"
            raise ConfigError("data.columns.categories", name, takes)
        if len(set(values)) != len(values) or not values:
            takes = "a list of different values"
            raise ConfigError(f"data.columns.categories.{name}", values, takes)


def _how(
    config: Config, kind: str, names: Sequence[str], public: int, ready: bool
) -> tuple[str, str]:
    """The way that is taken, and a remark."""
    data = config.data
    if kind != "tabular":
        if data.scale not in ("none", "auto"):
            raise ConfigError("data.scale", data.scale, f"auto or none for {kind} data")
        return "none", ""
    if data.scale == "public" and public < 2:
        takes = f"none, declared or sums where there are {public} public rows"
        raise ConfigError("data.scale", "public", takes, "or raise data.public_fraction")
    if data.scale != "auto" or ready:
        return ("none" if data.scale == "auto" else data.scale), ""
    if public >= 2:
        return "public", ""
    if names and set(names) <= {*data.columns.ranges}:
        return "declared", ""
    cures = "data.scale=sums" if not config.confidential else "data.columns.ranges"
    return "none", f"features: taken as they are, for there are no public rows; set {cures}"


def _declared(
    columns: Columns, names: Sequence[str], scaled: Sequence[int], missing: str
) -> Scaling:
    ends = {name: tuple(columns.ranges.get(name, ())) for name in names}
    free = [name for k, name in enumerate(names) if k not in scaled]
    if without := [name for name in free if not ends[name]]:
        takes = f"a range for each feature; there is none for {without[0]}"
        cure = "add [lowest, highest], as far as everybody may know it"
        raise ConfigError("data.columns.ranges", sorted(columns.ranges) or None, takes, cure)
    pairs = [ends[name] if name in free else (-1.0, 1.0) for name in names]
    middle = tuple((low + high) / 2 for low, high in pairs)
    half = tuple((high - low) / 2 for low, high in pairs)
    marked = tuple(k for k, name in enumerate(names) if name in free)
    marked = marked if missing == "indicator" else ()
    return Scaling("declared", 0, middle, half, middle, marked, most=1.0)


def _fitted(owned: Sequence[Tensor], how: str, missing: str, centred: bool) -> Scaling:
    """By count, sum and sum of squares of each column of all ``owned`` [n, d] together, each
    owner's outliers brought nearer first.

    Args:
        centred: the squares are around each owner's own mean.
    """
    near = [_nearer(x.double()) for x in owned]
    x = torch.cat(near)
    known, count = torch.isfinite(x), torch.isfinite(x).sum(0).clamp_min(1)
    mean = x.nan_to_num(0).sum(0) / count
    around = [_mean(own, mean) for own in near] if centred else [mean] * len(near)
    off = torch.cat([own - middle for own, middle in zip(near, around, strict=True)])
    spread = (off.nan_to_num(0).square() * known).sum(0).div(count).sqrt()
    # A column that does not vary says nothing, and float32 varies by 1e-7.
    spread = torch.where(spread > 1e-7 * mean.abs(), spread, 1.0)
    middle = x.nanmedian(0).values.nan_to_num(0) if missing == "median" else mean
    lacks = torch.isnan(torch.cat(list(owned))).any(0).nonzero().flatten().tolist()
    centre, scale, fill = (tuple(v.tolist()) for v in (mean, spread, middle))
    marked = tuple(lacks) if missing == "indicator" else ()
    return Scaling(how, len(x), centre, scale, fill, marked, centred=centred)


def _mean(x: Tensor, instead: Tensor) -> Tensor:
    """Of each column; ``instead`` where there is nothing in it."""
    count = torch.isfinite(x).sum(0)
    return torch.where(count > 0, x.nan_to_num(0).sum(0) / count.clamp_min(1), instead)


def _nearer(x: Tensor) -> Tensor:
    """A column's values within ``FENCES`` times the distance of its quartiles from them; NaN for
    what is not finite. As they are where quartiles are the same: columns that are mostly 0."""
    x = torch.where(torch.isfinite(x), x, torch.nan)
    if len(x) < 4:
        return x
    low, high = x.nanquantile(torch.tensor([0.25, 0.75]).double(), dim=0)
    room = FENCES * (high - low)
    room = torch.where(room > 0, room, torch.inf)
    return torch.minimum(torch.maximum(x, low - room), high + room)
