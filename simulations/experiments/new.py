"""A first config for a table of one's own: what its columns are, and settings that fit its size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError
from simulations.experiments.columns import Found
from simulations.experiments.fitting import best_mu, learning_rate

SMALL = 2000  # rows below which a linear model is hard to beat
STEPS = 300  # of gradient descent that a client should take in all
BATCH, ROUNDS, TRAINED = 16, 30, 0.6  # the last: the share of rows that is trained on
MUCH = 0.9  # of the loss: from there down features are centred at each client
NAME = "config.yaml"


@dataclass(frozen=True)
class Fit:
    """Settings that were found on the rows.

    Attributes:
        mu: how strongly a personal model is held near the common one.
        lr: of gradient descent.
        centre: whether each client's own mean is taken off its features.
    """

    mu: float = 1.0
    lr: float = 0.05
    centre: bool = False


def write(folder: Path, path: Path, label: str, client: str | None, found: Found) -> Path:
    """Write the config into ``folder``; its path.

    Raises:
        ConfigError: there is one already.
    """
    target = folder / NAME
    if target.exists():
        raise ConfigError("DIR", str(folder), f"a folder without {NAME}", "name another one")
    folder.mkdir(parents=True, exist_ok=True)

    def put(fit: Fit) -> None:
        text = config_text(path.resolve(), label, client, found, fit)
        target.write_text(text, encoding="utf-8")

    losses = {}
    for centre in (False, True) if client else (False,):
        put(Fit(centre=centre))
        data = load_data(load_config(target))
        mu, loss = best_mu(data)
        losses[Fit(mu, learning_rate(data, BATCH), centre)] = loss
    plain, *centred = losses
    better = [fit for fit in centred if losses[fit] < MUCH * losses[plain]]
    put(better[0] if better else plain)
    return target


def config_text(path: Path, label: str, client: str | None, found: Found, fit: Fit) -> str:
    """The config, with comments."""
    clients = found.clients or max(2, min(10, found.rows // 40))
    each = found.rows / clients
    epochs = max(2, min(10, ceil(STEPS / ROUNDS / ceil(TRAINED * each / BATCH))))
    owned = f"{clients} clients of about {each:.0f} rows" if client else f"dealt to {clients}"
    lines = [
        f"# {path.name}: {found.rows} rows, {owned}. Look at it first: fedpers check THIS-FILE",
        f"rounds: {ROUNDS}",
        "data:",
        "  name: csv",
        f"  path: {yaml_text(str(path))}",
        f"  separator: {yaml_text(found.separator)}",
        f"  encoding: {found.encoding}",
    ]
    if found.decimal != ".":
        lines.append(f"  decimal: {yaml_text(found.decimal)}")
    if client:
        lines.append("  partition: {name: natural}  # whoever owns a row by nature")
    else:
        lines += [
            "  partition: {name: iid}  # nobody owns a row; see --client",
            f"  clients: {clients}",
        ]
    lines += [
        "  # No row is public; features are scaled by sums over clients' training rows. For a",
        "  # private or encrypted run give columns.ranges and set scale: declared.",
        "  public_fraction: 0",
        "  scale: sums",
    ]
    if fit.centre:
        lines.append("  centre: true  # each client's own mean is taken off its features")
    if found.missing:
        lines.append("  missing: indicator  # a column's mean, and a column that says so")
    if found.words:
        lines.append(f"  missing_words: {yaml_text(found.words)}  # in numbers: nothing")
    lines += ["  columns:", f"    label: {yaml_text(label)}"]
    if client:
        lines.append(f"    client: {yaml_text(client)}")
    lines.append("    features:")
    lines += [f"      - {yaml_text(name)}" for name in found.features]
    lines += [f"    # left out, {name}: {why}" for name, why in found.left_out.items()]
    if found.categories:
        lines.append("    categories:  # the values that there may be")
        lines += [
            f"      {yaml_text(name)}: {yaml_text(v)}" for name, v in found.categories.items()
        ]
    if found.dates:
        lines.append("    dates:  # how they are written; they become days")
        lines += [
            f"      {yaml_text(name)}: {yaml_text(form)}" for name, form in found.dates.items()
        ]
    if found.scale is not None:
        mean, sd = found.scale
        lines += [
            "# Numbers; for classes leave this out. Their scale: roughly, and of nobody alone.",
            f"task: {{name: regression, params: {{mean: {mean:g}, sd: {sd:g}}}}}",
        ]
    elif not found.numbered:
        lines += [
            "task:",
            "  name: classification",
            f"  params: {{names: {yaml_text(found.classes)}}}",
        ]
    lines += [
        *_model(found.rows),
        "# A personal model held near the common one; mu by the loss on validation rows.",
        f"strategy: {{name: ditto, params: {{mu: {fit.mu:g}}}}}",
        "training:",
        f"  epochs: {epochs}  # so many that a client takes about {STEPS} steps or more in all",
        f"  batch_size: {BATCH}",
        f"  lr: {fit.lr:g}  # what these features bear",
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


def yaml_text(value: Any) -> str:
    """A value on one line."""
    return json.dumps(value, ensure_ascii=False)  # which is YAML, whatever is in a name
