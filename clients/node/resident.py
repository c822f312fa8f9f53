"""The host that a node's process keeps from message to message."""

from __future__ import annotations

from functools import lru_cache

from clients.node.device import Device
from clients.node.host import ClientHost
from clients.node.keeper import stores_of
from fedpers.config import config_from_json
from fedpers.data import Schema


@lru_cache(maxsize=1)
def host_of(
    settings: str,
    algorithm: str,
    server_params: tuple[str, ...],
    run_folder: str,
    device: Device | None = None,
    base: str | None = None,
    schema: str | None = None,
) -> ClientHost:
    """This process's host for a run. Model and data load once per process and configuration.

    Args:
        run_folder: the server's; a device keeps its own under its ``state``.
        base: what a device needs of the model besides the settings, by digest.
        schema: of the server's data, as JSON.
    """
    config, stores = config_from_json(settings), stores_of(run_folder, device)
    given = Schema.from_json(schema) if schema else None
    return ClientHost(config, algorithm, server_params, stores, device, base, given)
