"""A first config for a table of one's own: what its columns are, and settings that fit its size."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from fedpers.config import Config, load_config
from fedpers.data import load_data
from fedpers.data.cells import is_missing
from fedpers.errors import ConfigError, DataError
from simulations.experiments.references import references

MOST_CLASSES = 20  # a number with more values is predicted, not classified
MOST_VALUES = 30  # a text with more values is no category
SMALL = 2000  # rows below which a linear model is hard to beat
STEPS = 300  # of gradient descent that a client should take in all
BATCH, ROUNDS, TRAINED = 16, 30, 0.6  # the last: the share of rows that is trained on
TOGETHER, APART = 1.0, 0.1  # Ditto's mu where clients are alike, and where they differ
FEWEST = 10  # rows of which anything can be learned
SEPARATORS = {",": ",", ";": ";", "\t": "tab", "|": "|"}
NAME = "config.yaml"


@dataclass
class Found:
    """What a file holds.

    Attributes:
        separator, encoding: as in ``data``.
        rows: how many.
        features: the columns that say something, and
        categories: the values of those that are text.
        left_out: the others, and why.
        missing: whether anything is missing in the features.
        classes: names of the classes in order; None for a number to predict.
        numbered: the classes are 0..C-1.
        clients: how many.
    """

    separator: str = ","
    encoding: str = "utf-8"
    rows: int = 0
    features: list[str] = field(default_factory=list)
    categories: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: bool = False
    classes: list[str] | None = None
    numbered: bool = False
    clients: int = 0


def look(path: Path, label: str, client: str | None) -> Found:
    """What the csv file at ``path`` holds.

    Raises:
        ConfigError: no such file, or no such column.
        DataError: it cannot be read or learned from.
    """
    import pandas as pd

    if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise ConfigError("--from", str(path), "a csv file that is there")
    found = Found(encoding=_encoding(path))
    with path.open(encoding=found.encoding, newline="") as file:
        head = file.readline()
    sign = max(SEPARATORS, key=head.count)
    found.separator = SEPARATORS[sign]
    try:
        form: Any = {"sep": sign, "encoding": found.encoding, "index_col": False}
        table = pd.read_csv(path, dtype=str, keep_default_na=False, **form)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
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
    _label(found, table[label].tolist(), f"{path}: --label {label}")
    for name in table.columns:
        if name not in (label, client):
            _feature(found, str(name), table[name].tolist())
    if not found.features:
        told = "; ".join(f"{name}: {why}" for name, why in list(found.left_out.items())[:5])
        raise DataError(f"{path}: no column to learn from ({told or 'there is no other'})")
    return found


def write(folder: Path, path: Path, label: str, client: str | None, found: Found) -> Path:
    """Write the config into ``folder``; its path.

    Raises:
        ConfigError: there is one already.
    """
    target = folder / NAME
    if target.exists():
        raise ConfigError("DIR", str(folder), f"a folder without {NAME}", "name another one")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(config_text(path.resolve(), label, client, found), encoding="utf-8")
    if _differ(load_config(target)):
        text = config_text(path.resolve(), label, client, found, mu=APART)
        target.write_text(text, encoding="utf-8")
    return target


def _differ(config: Config) -> bool:
    """Whether clients' own linear models are better on their validation rows than one of all."""
    scores = references(load_data(config), config.seed)
    return bool(scores) and scores["local"] > scores["central"]


def config_text(
    path: Path, label: str, client: str | None, found: Found, mu: float = TOGETHER
) -> str:
    """The config, with comments.

    Args:
        mu: how strongly a personal model is held near the common one.
    """
    clients = found.clients or max(2, min(10, found.rows // 40))
    each = found.rows / clients
    epochs = max(2, min(10, ceil(STEPS / ROUNDS / ceil(TRAINED * each / BATCH))))
    owned = f"{clients} clients of about {each:.0f} rows" if client else f"dealt to {clients}"
    lines = [
        f"# {path.name}: {found.rows} rows, {owned}. Look at it first: fedpers check THIS-FILE",
        f"rounds: {ROUNDS}",
        "data:",
        "  name: csv",
        f"  path: {_yaml(str(path))}",
        f"  separator: {_yaml(found.separator)}",
        f"  encoding: {found.encoding}",
    ]
    if client:
        lines.append("  partition: {name: natural}  # whoever owns a row by nature")
    else:
        lines += [
            "  partition: {name: iid}  # nobody owns a row; see --client",
            f"  clients: {clients}",
        ]
    if found.classes is None:  # the scale of what is predicted is that of public rows
        lines += [
            "  # Some rows are public: by them features and what is predicted are scaled.",
            "  public_fraction: 0.2",
            "  scale: public",
        ]
    else:
        lines += [
            "  # No row is public; features are scaled by sums over clients' training rows. For",
            "  # a private or encrypted run give columns.ranges and set scale: declared.",
            "  public_fraction: 0",
            "  scale: sums",
        ]
    if found.missing:
        lines.append("  missing: indicator  # a column's mean, and a column that says so")
    lines += ["  columns:", f"    label: {_yaml(label)}"]
    if client:
        lines.append(f"    client: {_yaml(client)}")
    lines.append("    features:")
    lines += [f"      - {_yaml(name)}" for name in found.features]
    lines += [f"    # left out, {name}: {why}" for name, why in found.left_out.items()]
    if found.categories:
        lines.append("    categories:  # the values that there may be")
        lines += [f"      {_yaml(name)}: {_yaml(v)}" for name, v in found.categories.items()]
    if found.classes is None:
        lines += ["task: {name: regression}  # numbers; for classes leave this out"]
    elif not found.numbered:
        lines += ["task:", "  name: classification", f"  params: {{names: {_yaml(found.classes)}}}"]
    lines += [
        *_model(found.rows),
        "# A personal model held near the common one; the less, the more clients differ.",
        f"strategy: {{name: ditto, params: {{mu: {mu}}}}}",
        "training:",
        f"  epochs: {epochs}  # so many that a client takes about {STEPS} steps or more in all",
        f"  batch_size: {BATCH}",
        "  lr: 0.05",
        "  lr_decay: cosine",
        "  momentum: 0.9",
        "  weight_decay: 0.001",
        "evaluation: {every: 10}",
        "",
    ]
    return "\n".join(lines)


def _model(rows: int) -> list[str]:
    if rows < SMALL:
        return [
            "# Few rows: a linear model. With many, or where the answer is no sum of columns, try",
            "# name: table, a small network. All of either is trained: no adapters.",
            "model: {name: linear, lora: null}",
        ]
    return [
        "# A small network, all of which is trained: no adapters on a frozen one.",
        "model: {name: table, lora: null}",
    ]


def _yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # which is YAML, whatever is in a name


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


def _numbers(cells: Sequence[str]) -> np.ndarray[Any, Any] | None:
    """float64 [n] with NaN for what is missing; None where a cell is text, or all are missing."""
    values = []
    for cell in cells:
        try:
            values.append(np.nan if is_missing(cell) else float(cell))
        except ValueError:
            return None
    numbers = np.array(values)
    return None if np.isnan(numbers).all() or np.isinf(numbers).any() else numbers


def _label(found: Found, cells: list[str], where: str) -> None:
    numbers, values = _numbers(cells), sorted(set(cells))
    if len(values) == 1:
        raise DataError(f"{where}: got the one value {values[0]!r}, takes at least two classes")
    if numbers is not None:
        whole = bool((numbers == np.round(numbers)).all())
        if not whole or len(values) > MOST_CLASSES:
            return
        if any("." in value for value in values):
            raise DataError(f"{where}: got classes such as {values[0]}, takes integers or text")
        classes = sorted({int(number) for number in numbers})
        found.classes = [str(number) for number in classes]
        found.numbered = classes == list(range(len(classes)))
        return
    if len(values) > max(MOST_CLASSES, len(cells) // 5):
        takes = "a column of classes or numbers"
        raise DataError(f"{where}: got {len(values)} different texts, takes {takes}; name another")
    found.classes = values


def _feature(found: Found, name: str, cells: list[str]) -> None:
    values = {cell for cell in cells if not is_missing(cell)}
    numbers = _numbers(cells)
    if len(values) < 2:
        found.left_out[name] = "it is the same in all rows"
    elif numbers is not None:
        steps = set(np.diff(numbers).tolist())
        if len(values) == len(cells) and len(steps) == 1:
            found.left_out[name] = "it numbers the rows"
            return
        found.features.append(name)
        found.missing = found.missing or bool(np.isnan(numbers).any())
    elif len(values) <= MOST_VALUES:
        found.features.append(name)
        found.categories[name] = sorted(values)
    else:
        found.left_out[name] = f"text of {len(values)} different values"
