"""What the columns of a csv file are: numbers, dates, categories, or nothing to learn from."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedpers.data.cells import is_missing, plain_number
from fedpers.errors import ConfigError, DataError, line_of

MOST_CLASSES = 20  # a number with more values is predicted, not classified
EACH = 5  # rows that a class, or a value of a category, has at least, on average
MOST_VALUES = 1000  # a text with more values is no category
NUMBERS = 0.8  # of a column's cells: from there up other words stand for nothing
MOST_WORDS = 10
FEWEST = 10  # rows of which anything can be learned
SAMPLED = 50  # lines by which the separator is told
SEPARATORS = {",": ",", ";": ";", "\t": "tab", "|": "|"}
FORMS = (
    "ISO8601",
    *(f"{day}{time}" for day in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y",
      "%d.%m.%y", "%d %b %Y", "%b %d, %Y", "%d %B %Y")
      for time in ("", " %H:%M", " %H:%M:%S")),
)  # fmt: skip
NUMBERING = re.compile(r"(.*[ _.-])?(id|index|idx|nr|no|number|rowid|uuid|key)", re.IGNORECASE)
QUOTED = re.compile(r'"[^"]*"')
COMMAS = re.compile(r"[+-]?\d+,\d+")
POINTS = re.compile(r"[+-]?\d+\.\d+")


@dataclass
class Found:
    """What a file holds.

    Attributes:
        separator, encoding, decimal: as in ``data``.
        rows: how many.
        features: the columns that say something, and
        categories: the values of those that are text, and
        dates: how those are written that are dates.
        words: what stands for nothing, beside the usual.
        left_out: the other columns, and why.
        missing: whether anything is missing in the features.
        classes: names of the classes in order; None for a number to predict.
        numbered: the classes are 0..C-1.
        scale: mean and spread of a number to predict, to two digits of the spread.
        clients: how many.
    """

    separator: str = ","
    encoding: str = "utf-8"
    decimal: str = "."
    rows: int = 0
    features: list[str] = field(default_factory=list)
    categories: dict[str, list[str]] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: bool = False
    classes: list[str] | None = None
    numbered: bool = False
    scale: tuple[float, float] | None = None
    clients: int = 0


def look(path: Path, label: str, client: str | None, task: str | None = None) -> Found:
    """What the csv file at ``path`` holds.

    Args:
        task: ``classification`` or ``regression``, where that is not to be told by the column.

    Raises:
        ConfigError: no such file, or no such column.
        DataError: it cannot be read or learned from.
    """
    import pandas as pd

    if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise ConfigError("--from", str(path), "a csv file that is there, or a folder of images")
    found = Found(encoding=_encoding(path))
    sign = _separator(path, found.encoding)
    found.separator = SEPARATORS[sign]
    try:
        form: Any = {"sep": sign, "encoding": found.encoding, "index_col": False}
        table = pd.read_csv(path, dtype=str, keep_default_na=False, **form)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({line_of(error)})") from None
    for option, name in (("--label", label), ("--client", client)):
        if name is not None and name not in table.columns:
            known = ", ".join(map(str, table.columns[:20]))
            raise ConfigError(option, name, f"a column of {path}: {known}")
    if label == client:
        raise ConfigError("--client", client, "another column than --label")
    found.rows = len(table)
    if found.rows < FEWEST:
        raise DataError(f"{path}: got {found.rows} rows, takes at least {FEWEST}; add some")
    for option, name in (("--label", label), ("--client", client)):
        if name is not None and (rows := [k for k, c in enumerate(table[name]) if is_missing(c)]):
            takes = "a value in each row; fill or drop those rows"
            raise DataError(f"{path}: {option} {name}: nothing in {len(rows)} rows, takes {takes}")
    found.clients = table[client].nunique() if client else 0
    if found.clients == 1:
        raise DataError(f"{path}: --client {client}: got one client, takes at least two")
    found.decimal = _decimal(cell for name in table.columns for cell in table[name])
    _label(found, table[label].tolist(), f"{path}: --label {label}", task)
    for name in table.columns:
        if name not in (label, client):
            _feature(found, str(name), table[name].tolist())
    if not found.features:
        told = "; ".join(f"{name}: {why}" for name, why in list(found.left_out.items())[:5])
        raise DataError(f"{path}: no column to learn from ({told or 'there is no other'})")
    return found


def _encoding(path: Path) -> str:
    for encoding in ("utf-8-sig", "utf-16"):
        text = path.read_bytes()
        marked = text.startswith((b"\xff\xfe", b"\xfe\xff"))
        if encoding == "utf-16" and not marked:
            continue
        try:
            text.decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _separator(path: Path, encoding: str) -> str:
    """The sign that is as often in each line as in the header, quotes aside, and most often."""
    with path.open(encoding=encoding, newline="") as file:
        lines = [QUOTED.sub("", line) for line, _ in zip(file, range(SAMPLED), strict=False)]
    head = lines[0] if lines else ""

    def fits(sign: str) -> tuple[int, int]:
        count = head.count(sign)
        return sum(line.count(sign) == count for line in lines if count), count

    return max(SEPARATORS, key=fits)


def _decimal(cells: Any) -> str:
    """A comma, where there are cells with one before decimals, and none with a point."""
    commas = points = 0
    for cell in cells:
        if COMMAS.fullmatch(cell):
            commas += len(cell.partition(",")[2]) != 3  # else it may stand between thousands
        elif POINTS.fullmatch(cell):
            points += len(cell.partition(".")[2]) != 3
    return "," if commas > points else "."


def _numbers(cells: Sequence[str], decimal: str) -> np.ndarray[Any, Any] | None:
    """float64 [n] with NaN for what is missing; None where a cell is text, or all are missing."""
    values = []
    for cell in cells:
        try:
            values.append(np.nan if is_missing(cell) else float(plain_number(cell, decimal)))
        except ValueError:
            return None
    numbers = np.array(values)
    return None if np.isnan(numbers).all() or np.isinf(numbers).any() else numbers


def _label(found: Found, cells: list[str], where: str, task: str | None) -> None:
    numbers, values = _numbers(cells, found.decimal), sorted(set(cells))
    if len(values) == 1:
        raise DataError(f"{where}: got the one value {values[0]!r}, takes at least two classes")
    if task == "regression" and numbers is None:
        raise DataError(f"{where}: got text, takes numbers; leave --task out")
    if numbers is not None and task != "classification":
        whole = bool((numbers == np.round(numbers)).all())
        known = len(np.unique(numbers))
        few = known <= MOST_CLASSES and (known < EACH or known * EACH <= len(cells))
        if task == "regression" or not (whole and few):
            spread = float(numbers.std())
            digit = 10.0 ** np.floor(np.log10(spread))
            mean, sd = (round(value / digit, 1) * digit for value in (numbers.mean(), spread))
            found.scale = float(f"{mean:.12g}"), float(f"{sd:.2g}")
            return
    if numbers is not None and bool((numbers == np.round(numbers)).all()):
        classes = sorted({int(number) for number in numbers})
        found.classes = [str(number) for number in classes]
        found.numbered = classes == list(range(len(classes)))
        return
    if len(values) > max(MOST_CLASSES, len(cells) // EACH):
        takes = "a column of classes or numbers"
        raise DataError(f"{where}: got {len(values)} different texts, takes {takes}; name another")
    found.classes = values


def _feature(found: Found, name: str, cells: list[str]) -> None:
    values = {cell for cell in cells if not is_missing(cell)}
    empty = any(is_missing(cell) for cell in cells)
    if not values:
        found.left_out[name] = "there is nothing in it"
    elif len(values) == 1 and not empty:
        found.left_out[name] = "it is the same in all rows"
    elif (words := _words(values, cells, found.decimal)) is not None:
        given = ["" if cell in words else cell for cell in cells]
        numbers = _numbers(given, found.decimal)
        assert numbers is not None
        if why := _no_feature(name, numbers, len(values)):
            found.left_out[name] = why
            return
        found.features.append(name)
        found.words = sorted({*found.words, *words})
        found.missing = found.missing or bool(np.isnan(numbers).any())
    elif form := _form(values):
        found.features.append(name)
        found.dates[name] = form
        found.missing = found.missing or empty
    elif len(values) <= MOST_VALUES and len(values) * EACH <= max(len(cells), 30 * EACH):
        found.features.append(name)
        found.categories[name] = sorted(values)
    else:
        found.left_out[name] = f"text of {len(values)} different values"


def _words(values: set[str], cells: Sequence[str], decimal: str) -> set[str] | None:
    """What stands for nothing in a column of numbers, beside the usual; None if it is none."""
    texts = {value for value in values if _numbers([value], decimal) is None}
    counts = Counter(cells)
    numbers = sum(counts[value] for value in values - texts)
    if numbers == 0 or numbers < NUMBERS * sum(counts[value] for value in values):
        return None
    return texts if len(texts) <= MOST_WORDS else None


def _no_feature(name: str, numbers: np.ndarray[Any, Any], values: int) -> str:
    """Why a column of numbers says nothing; "" if it may."""
    known = numbers[~np.isnan(numbers)]
    if len(np.unique(known)) == 1 and len(known) == len(numbers):
        return "it is the same in all rows"
    if values < len(numbers):
        return ""
    whole = bool((known == np.round(known)).all())
    if len(set(np.diff(numbers).tolist())) == 1 or (whole and NUMBERING.fullmatch(name)):
        return "it numbers the rows"
    return ""


def _form(values: set[str]) -> str:
    """How all of these texts are written, if they are dates; else ""."""
    import pandas as pd

    given = pd.Series(sorted(values), dtype=object)
    if not given.str.contains(r"\d", regex=True).all():
        return ""
    for form in FORMS:
        if not pd.to_datetime(given, format=form, errors="coerce", utc=True).isna().any():
            return form
    return ""
