"""The privacy audit: attacks on the clients' real code, by what a server sees.

Three experiments, in this process: a lower bound on epsilon from inserted canaries, membership
inference, and the reconstruction of an example from an update. None of them proves a build sound;
each can show that it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clients.base import algorithms
from fedpers.config import Config
from fedpers.data import load_data
from fedpers.errors import ConfigError
from fedpers.evaluation.run_folder import replace_file
from fedpers.privacy.audit.inversion import psnr
from simulations.attacks.inversion import invert, save_pictures
from simulations.attacks.membership import membership
from simulations.attacks.one_run import lower_bound
from strategies.base import find_strategy


def audit(
    config: Config, folder: Path, *, canaries: int | None = None, shadows: int = 4
) -> dict[str, Any]:
    """Run the three experiments and write ``audit.json`` and ``inversion.png``.

    Membership and inversion are tried with privacy off, and on if the settings have it on.

    Args:
        config: the run's settings, with absolute paths.
        folder: made if it is not there.

    Returns:
        What is written: epsilon (None without privacy, or where nothing is sent), membership and
        inversion by "off" and "on" (inversion None for text, or where nothing is sent).

    Raises:
        ConfigError: the settings protect clients, whose noise is not in what one client sends.
    """
    if config.privacy.by_client:
        takes = "example: what is inserted to be found are examples of one client"
        raise ConfigError("privacy.unit", "client", takes, "or set privacy.enabled=false")
    folder.mkdir(parents=True, exist_ok=True)
    builds = {"off": replace(config, privacy=replace(config.privacy, enabled=False))}
    if config.privacy.enabled:
        builds["on"] = config
    sends = algorithms.get(find_strategy(config).client_side()).sends
    found: dict[str, Any] = {
        "epsilon": lower_bound(config, canaries=canaries) if sends and "on" in builds else None,
        "membership": {name: membership(build, shadows=shadows) for name, build in builds.items()},
        "inversion": None,
    }
    kind = load_data(config).signature.kind
    if sends and kind != "text":
        rows: dict[str, Tensor] = {}
        for name, build in builds.items():
            rows["original"], rows[f"privacy {name}"] = invert(build)
        width = float(rows["original"].max() - rows["original"].min())
        found["inversion"] = {
            name: [
                psnr(o, x, width)
                for o, x in zip(rows["original"], rows[f"privacy {name}"], strict=True)
            ]
            for name in builds
        }
        if kind == "image":
            save_pictures(rows, folder / "inversion.png")
    replace_file(folder / "audit.json", json.dumps(found, indent=2) + "\n")
    return found


def results_folder(config: Path, overrides: Sequence[str], out: Path | None) -> Path:
    """Where an audit of ``config``, a YAML file or a run's folder, puts its results.

    In the run's folder, whose report shows them, unless ``overrides`` make it another run's audit.
    """
    if out is None:
        name = config.resolve().name if config.is_dir() else config.stem
        out = config if config.is_dir() and not overrides else Path("runs") / f"audit-{name}"
    return out.resolve()


def refuted(found: Mapping[str, Any]) -> bool:
    """Whether an audit's result shows that the claimed epsilon does not hold."""
    epsilon = found["epsilon"]
    if epsilon is None:
        return False
    return bool(max(epsilon["at_least"], epsilon["at_least_any"]) > epsilon["claimed"])


def audit_lines(found: Mapping[str, Any]) -> list[str]:
    """An audit's result in a few lines of text."""
    lines, epsilon = [], found["epsilon"]
    if epsilon:
        verdict = "BROKEN" if refuted(found) else "not refuted"
        guessed = f"{epsilon['correct']} of {epsilon['guesses']} guesses"
        lines.append(
            f"epsilon: claimed {epsilon['claimed']:.3g}, at least {epsilon['at_least']:.3g}, "
            f"or {epsilon['at_least_any']:.3g} whatever the mechanism is "
            f"({epsilon['canaries']} canaries; {guessed}): {verdict}"
        )
    for build, models in found["membership"].items():
        for model in ("global", "upload", "personal"):
            for attack, figures in models.get(model, {}).items():
                lines.append(
                    f"membership, privacy {build:3}  {model:8} {attack:4}  AUC "
                    f"{figures['auc']:.3f}  TPR at 1 % FPR {100 * figures['tpr_at_1_fpr']:.1f} %, "
                    f"at 0.1 % {100 * figures['tpr_at_0.1_fpr']:.1f} %"
                )
    for build, values in (found["inversion"] or {}).items():
        lines.append(f"inversion, privacy {build:3}  PSNR {np.mean(values):.1f} dB")
    return lines
