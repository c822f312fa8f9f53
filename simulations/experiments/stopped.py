"""What there is of a run that was stopped: its figures so far, and its clients' models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clients.node.exporting import evaluated_in, export
from clients.node.keeper import stores_of
from clients.node.store import ClientStore
from fedpers.config import Config, load_config
from fedpers.data import load_data
from fedpers.errors import ConfigError
from fedpers.evaluation import ClientResult, build_report
from fedpers.evaluation.run_files import number, read_lines
from fedpers.models import PersonalModel
from fedpers.tasks.base import Tally, task_named
from simulations.experiments.runs import SETTINGS

MODELS = "adapters"


def report_so_far(folder: Path) -> dict[str, Any]:
    """The report of a run that has none, from its lines; ``stopped`` says after which round.

    Raises:
        ConfigError: it has not had a round.
        FedpersError: its data are not there any more.
    """
    if not (folder / SETTINGS).is_file():
        raise ConfigError("RUN", str(folder), "the folder of a run")
    config = load_config(folder / SETTINGS)
    rounds = {line["round"]: line for line in read_lines(folder / "rounds.jsonl")}
    if not rounds:
        cure = "start it anew"
        raise ConfigError("RUN", str(folder), "the folder of a run that has had a round", cure)
    data, last = load_data(config), max(rounds)
    privacy: dict[str, Any] | None = None
    if config.privacy.enabled:
        spent = number(rounds[last], "epsilon")
        privacy = {"enabled": True, "unit": config.privacy.unit, "epsilon_max": spent}
        privacy |= {"delta": config.privacy.delta}
    report = build_report(
        run_id=folder.resolve().name,
        config=config,
        evaluations=evaluations(folder, task_named(config.task)[0].tally_type),
        communication={},
        seconds={},
        names=data.task.names,
        unit=data.task.unit,
        inputs=data.scaling,
        privacy=privacy,
    )
    return {**report, "stopped": f"after round {last} of {config.rounds}"}


def evaluations(folder: Path, tally: type[Tally]) -> dict[int, list[ClientResult]]:
    """The clients' results by round; lines that cannot be read are left out."""
    found: dict[int, dict[str, ClientResult]] = {}
    for line in read_lines(folder / "clients.jsonl"):
        if "error" not in line and type(line.get("round")) is int:
            try:
                result = ClientResult.from_json(line, tally)
            except ValueError:
                continue
            found.setdefault(line["round"], {})[result.client] = result
    return {number: list(results.values()) for number, results in sorted(found.items())}


def save_models(folder: Path, config: Config, model: PersonalModel) -> None:
    """Save each client's model of the last evaluation, as the end of the run would have done; none
    where there was no evaluation.

    Args:
        model: the resident model, which is overwritten.
    """
    scored = evaluations(folder, task_named(config.task)[0].tally_type)
    if not scored:
        return
    last, stores = max(scored), stores_of(str(folder), None)
    for result in scored[last]:
        store = ClientStore(stores, result.client)
        if store.load(evaluated_in(last, config)):
            told = {"run_id": folder.name, "round": last, "stopped": True}
            export(model, store, config, result.client, last, folder / MODELS, told)
