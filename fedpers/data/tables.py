"""Tables whose columns the user names: csv, parquet, and data sets of Hugging Face."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedpers.config import Columns, Config
from fedpers.data.arrays import to_inputs, to_names, to_targets
from fedpers.data.cells import one_hot, to_days, to_numbers
from fedpers.data.examples import Examples, Table
from fedpers.data.images import images_of
from fedpers.data.tokens import continuations, targets_of, tokenize
from fedpers.errors import ConfigError, DataError, line_of
from fedpers.tasks.base import task_named

Cells = Iterable[Any]
Read = Callable[[Sequence[str]], dict[str, Cells]]


def check_columns(columns: Columns) -> None:
    """Check that ``columns`` say what the input is.

    Raises:
        ConfigError: not exactly one of features, text and image is set.
    """
    inputs = {"features": columns.features, "text": columns.text, "image": columns.image}
    got = [name for name, value in inputs.items() if value]
    if len(got) != 1:
        takes = "exactly one of features, text and image"
        raise ConfigError("data.columns", " and ".join(got) or None, takes, "name the input's")


def csv_table(path: Path, config: Config, columns: Columns | None = None) -> Table:
    """A table from a csv file with a header line; an ``image`` column holds paths.

    Args:
        columns: where they are not those of the settings.

    Raises:
        ConfigError: a column is not there.
        DataError: the file cannot be read, or a cell cannot be used.
    """
    columns = columns or config.data.columns
    known, read = _csv(path, columns, config)
    return _table(known, read, columns, config, path)


def csv_inputs(path: Path, config: Config, columns: Columns) -> tuple[str, torch.Tensor]:
    """The kind of input and the inputs in a csv file, which needs no labels.

    Raises:
        ConfigError: a column is not there.
        DataError: the file cannot be read, or a cell cannot be used.
    """
    known, read = _csv(path, columns, config)
    asked = _input_columns(columns, task_named(config.task)[0].predicts_text)
    kind, x, _, _ = _inputs(read(_known(known, asked, path)), columns, config, path)
    return kind, x


def _csv(path: Path, columns: Columns, config: Config) -> tuple[list[str], Read]:
    """The names of a csv file's columns, and how to read some of them."""
    import pandas as pd

    # Names stay text ("07" is not "7"), and the word "null" in a text is a word.
    texts = [*columns.text, columns.image, columns.client, columns.group]
    as_text: Any = {name: str for name in (*texts, *columns.categories, *columns.dates) if name}
    separator = {"tab": "\t"}.get(config.data.separator, config.data.separator)
    form: Any = {"sep": separator, "encoding": config.data.encoding, "keep_default_na": False}
    if config.data.decimal == ",":
        as_text |= dict.fromkeys(columns.features, str)  # pandas would read 1.5 as 15
        form |= {"decimal": ",", "thousands": "."}

    def frame(names: Sequence[str]) -> Any:
        # All columns, as a row with too many cells is seen only so; none of them is an index.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            try:
                return pd.read_csv(path, index_col=False, dtype=as_text, **form)[list(names)]
            except pd.errors.ParserWarning:
                raise ValueError("rows have more cells than the header") from None

    def read(names: Sequence[str]) -> dict[str, Cells]:
        found = _reading(path, lambda: frame(names))
        return {name: found[name].tolist() for name in names}

    known = _reading(path, lambda: list(pd.read_csv(path, nrows=0, **form).columns))
    if len(known) == 1:
        for sign, shown in ((";", "';'"), ("\t", "tab"), ("|", "'|'"), (",", "','")):
            if sign != separator and sign in known[0]:
                got = f"data.separator: got {config.data.separator!r}, and one column"
                cure = f"set data.separator={shown}"
                raise DataError(f"{got} {known[0][:60]!r} in {path}; {cure}")
    return known, read


def jsonl_table(path: Path, config: Config) -> Table:
    """A table from a file with a JSON object a line.

    Raises:
        ConfigError: a column is not there.
        DataError: the file cannot be read, or a cell cannot be used.
    """

    def lines() -> list[dict[str, Any]]:
        with path.open(encoding=config.data.encoding) as file:
            rows = [json.loads(line) for line in file if line.strip()]
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError("takes a JSON object a line")
        return rows

    rows = _reading(path, lines)

    def read(names: Sequence[str]) -> dict[str, Cells]:
        return {name: [row.get(name) for row in rows] for name in names}

    known = list(dict.fromkeys(name for row in rows for name in row))
    return _table(known, read, config.data.columns, config, path)


def parquet_table(path: Path, config: Config) -> Table:
    """A table from a parquet file; an ``image`` column holds encoded images or paths.

    Raises:
        ConfigError: a column is not there.
        DataError: the file cannot be read, or a cell cannot be used.
    """
    import pyarrow.parquet as pq

    def read(names: Sequence[str]) -> dict[str, Cells]:
        table = pq.read_table(path, columns=list(names))
        return {name: table[name].to_pylist() for name in names}

    known = _reading(path, lambda: list(pq.read_schema(path).names))

    def one_line(names: Sequence[str]) -> dict[str, Cells]:
        return _reading(path, lambda: read(names))  # type: ignore[no-any-return]

    return _table(known, one_line, config.data.columns, config, path)


def dataset_table(
    dataset: Any, config: Config, where: Path | str, columns: Columns | None = None
) -> Table:
    """A table from a ``datasets.Dataset``, or from all splits of a ``DatasetDict`` together.

    Args:
        columns: where they are not those of the settings.

    Raises:
        ConfigError: a column is not there.
        DataError: the splits do not fit together, or a cell cannot be used.
    """
    import datasets

    columns = columns or config.data.columns
    if isinstance(dataset, dict):
        splits = list(dataset.values())
        dataset = _reading(where, lambda: datasets.concatenate_datasets(splits))
    dataset = dataset.with_format(None)

    def read(names: Sequence[str]) -> dict[str, Cells]:
        # Images are decoded one by one while they are gone through, all else at once.
        return {n: dataset[n] if n == columns.image else dataset[n][:] for n in names}

    label = dataset.features.get(columns.label)
    names = list(label.names) if isinstance(label, datasets.ClassLabel) else None
    return _table(dataset.column_names, read, columns, config, where, names)


def _table(
    known: Sequence[str],
    read: Read,
    columns: Columns,
    config: Config,
    where: Path | str,
    names: list[str] | None = None,
) -> Table:
    """Read the columns asked for and turn them into tensors and names."""
    of_text = task_named(config.task)[0].predicts_text
    asked = {
        **_input_columns(columns, of_text),
        "label": [] if of_text else [columns.label],
        "client": [columns.client] if columns.client else [],
        "group": [columns.group] if columns.group else [],
    }
    cells = read(_known(known, asked, where))

    def column(name: str) -> tuple[list[Any], str]:
        here, values = f"{where}: {name}", list(cells[name])
        _check_complete(values, here)
        return values, here

    client = to_names(*column(columns.client)) if columns.client else None
    group = to_names(*column(columns.group)) if columns.group else None
    kind, x, called, scaled = _inputs(cells, columns, config, where)
    values, here = (targets_of(x).numpy(), str(where)) if of_text else column(columns.label)
    learned, y = to_targets(values, here, columns, config.task, names)
    return Table(kind, Examples(x, y), client, group, learned, called, scaled)


def _input_columns(columns: Columns, of_text: bool) -> dict[str, list[str]]:
    check_columns(columns)
    if of_text and not columns.text:
        raise ConfigError("data.columns.text", None, "the column of texts, which are learned")
    image = [columns.image] if columns.image else []
    context = [columns.context] if columns.context else []
    inputs = {"features": columns.features, "text": columns.text, "image": image}
    return {**inputs, "context": context}


def _known(
    known: Sequence[str], asked: Mapping[str, Sequence[str]], where: Path | str
) -> list[str]:
    """The columns asked for, once each.

    Raises:
        ConfigError: one is not there.
    """
    for key, names in asked.items():
        for name in names:
            if name not in known:
                shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
                raise ConfigError(f"data.columns.{key}", name, f"a column of {where}: {shown}")
    return list(dict.fromkeys(name for names in asked.values() for name in names))


def _inputs(
    cells: Mapping[str, Cells], columns: Columns, config: Config, where: Path | str
) -> tuple[str, torch.Tensor, tuple[str, ...], tuple[int, ...]]:
    """The kind of input, the inputs [n, ...], and of features what the columns are called and which
    are ones and zeros."""
    if columns.text:
        return *_texts(cells, columns, config, where), (), ()
    if columns.image:
        size = config.data.image_size
        return *images_of(cells[columns.image], where, Path(where).parent, size), (), ()
    named: dict[str, np.ndarray[Any, Any]] = {}
    encoded: list[int] = []
    # Under privacy an error would tell of a cell: what is no number is missing.
    told, words = not config.privacy.enabled, set(config.data.missing_words)
    for name in columns.features:
        if name in columns.categories:
            known = columns.categories[name]
            found = one_hot(cells[name], known, f"{where}: {name}", told=told)
            encoded += range(len(named), len(named) + len(known))
            named |= {f"{name}={value}": found[:, k] for k, value in enumerate(known)}
        elif form := columns.dates.get(name):
            named[name] = to_days(cells[name], form, f"{where}: {name}", told=told, words=words)
        else:
            decimal, here = config.data.decimal, f"{where}: {name}"
            named[name] = to_numbers(cells[name], here, told=told, decimal=decimal, words=words)
    kind, x = to_inputs(np.stack(list(named.values()), axis=1), f"{where}: features")
    return kind, x, tuple(named), tuple(encoded)


def _check_complete(values: list[Any], where: str) -> None:
    missing = next((i for i, v in enumerate(values) if v is None or v == "" or v != v), None)
    if missing is not None:
        raise DataError(f"{where}: got nothing in row {missing} (from 0); drop or fill that row")


def _texts(
    cells: Mapping[str, Cells], columns: Columns, config: Config, where: Path | str
) -> tuple[str, torch.Tensor]:
    """The text columns joined by " | ", in order, as tokens; behind the context, where the text
    itself is what is learned."""
    name, most = config.model.name, config.data.max_tokens
    rows = zip(*(cells[column] for column in columns.text), strict=True)
    texts = [" | ".join("" if t is None else str(t) for t in row) for row in rows]
    if not task_named(config.task)[0].predicts_text:
        return "text", tokenize(name, texts, most)
    given = cells[columns.context] if columns.context else [""] * len(texts)
    contexts = ["" if t is None or not str(t) else f"{t}{columns.join}" for t in given]
    here = f"{where}: {', '.join(columns.text)}"
    return "language", continuations(name, contexts, texts, most, here)


def _reading(where: Path | str, read: Callable[[], Any]) -> Any:
    """``read()``, with what goes wrong as one line."""
    try:
        return read()
    except (UnicodeError, LookupError) as error:
        cure = "set data.encoding, to latin-1 or utf-16 say"
        raise DataError(f"{where}: cannot be read as text ({line_of(error)}); {cure}") from None
    except (OSError, ValueError) as error:  # what pandas and pyarrow raise derives from these
        raise DataError(f"{where}: cannot be read ({line_of(error)}); check the format") from None
