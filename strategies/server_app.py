"""The ServerApp: settings in, rounds, a run's folder out."""

from __future__ import annotations

import logging
import sys
from contextlib import closing
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpers.cohorts import check_cohort
from fedpers.config import Config, load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError, FedpersError
from fedpers.models import build_model
from strategies.base import find_strategy
from strategies.files import RunFiles
from strategies.run import Run

SHORT_KEYS = {
    "strategy": "strategy.name",
    "rounds": "rounds",
    "clients": "data.clients",
    "epsilon": "privacy.epsilon",
    "seed": "seed",
}

app = ServerApp()
log = logging.getLogger("fedpers")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run-config names."""
    log_to_stdout()
    try:
        given = {k: str(v) for k, v in context.run_config.items()}
        config, resume = config_of(given), given.get("resume", "")
        torch.set_num_threads(config.simulation.cpus_per_node)
        log.info("reading the data, making the model")
        data = load_data(config)
        check_cohort(config, len(data.clients))
        strategy = find_strategy(config)(config, build_model(config, data), data)
        named = resume or given.get("run-dir", "")
        files = RunFiles(config, Path(named) if named else None, resume=bool(resume))
        with closing(files.folder):
            log.info("run folder: %s", files.folder.path)
            log.info("the nodes load their data and the model")
            Run(strategy).rounds(grid, files)
    except FedpersError as error:
        # One line for the launcher and for a person; the raise marks the run as failed.
        log.error("error: %s", error)
        raise


def config_of(run_config: dict[str, str]) -> Config:
    """The settings that Flower's run-config names.

    With ``resume``, the folder of a run, and no ``config`` they are that run's, but for ``rounds``.

    Args:
        run_config: ``config`` (a YAML file, relative to the folder the process runs in or to the
            app's bundle), ``overrides`` (key=value, separated by spaces) and short keys; an empty
            string means not set.

    Raises:
        ConfigError: no such file, or a wrong setting.
    """
    if run_config.get("resume") and not run_config.get("config"):
        more = f"rounds={run_config['rounds']}" if run_config.get("rounds") else None
        return load_config(Path(run_config["resume"]) / "config.yaml", [more] if more else [])
    overrides = run_config.get("overrides", "").split()
    for short, key in SHORT_KEYS.items():
        if run_config.get(short):
            overrides.append(f"{key}={run_config[short]}")
    return load_config(_find(run_config.get("config", "")), overrides)


def _find(name: str) -> Path | None:
    if not name:
        return None
    bundle = Path(__file__).resolve().parent.parent
    for path in (Path(name), bundle / name):
        if path.is_file():
            return path
    raise ConfigError("config", name, f"a YAML file, relative to {Path.cwd()} or to {bundle}")


def log_to_stdout() -> None:
    """Send this package's log to standard output, as plain lines, once."""
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
