"""The model that a client was scored with, kept and saved for others to load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.node.store import ClientStore
from clients.training.view import fill
from fedpers.config import Config
from fedpers.models import PersonalModel, save_adapter

EVALUATED = "evaluated"


def evaluated_in(server_round: int, config: Config) -> str:
    """The name under which a client keeps what was scored in a round."""
    # Only a report chosen by validation can ask for an earlier round's model.
    by_validation = config.evaluation.select == "validation"
    return f"{EVALUATED}-{server_round}" if by_validation else EVALUATED


def export(
    model: PersonalModel,
    store: ClientStore,
    config: Config,
    client: str,
    server_round: int,
    folder: Path,
    manifest: Mapping[str, Any],
) -> None:
    """Save the personal model scored in a round as a PEFT folder on this machine.

    Args:
        model: the resident model, which is overwritten.
        store: the client's.
    """
    kept = store.load(evaluated_in(server_round, config))
    fill(model, {slot: slot for slot in model.slots}, kept)
    target = folder / ClientStore(folder, client).folder.name
    save_adapter(model, target, config, {"client": client, **manifest})
