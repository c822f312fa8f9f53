"""What a node computes with: its clients' data, and the model."""

from __future__ import annotations

from clients.node.device import Device
from clients.node.failures import withheld
from fedpers.config import Config
from fedpers.data import FederatedData, Schema, device_data, load_data
from fedpers.failures import DATA
from fedpers.models import PersonalModel, build_model


def data_and_model(
    config: Config, device: Device | None, base: str | None, schema: Schema | None
) -> tuple[FederatedData, PersonalModel]:
    """A simulation's, or a device's own.

    Args:
        base, schema: see ``clients.node.resident.host_of``.

    Raises:
        ConfigError, DataError: as in loading data and building models; of a device's own data one
            that keeps its text to itself.
    """
    if device is None:
        with withheld(DATA):
            data = load_data(config)
        return data, build_model(config, data)
    device.claim()
    with withheld(DATA):
        data = device_data(config, device.client, device.data, schema)
    return data, build_model(config, data, device.base(base) if base else None)
