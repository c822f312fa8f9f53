"""Data: sources, the public split, who owns which examples, and each client's splits.

``load_data`` is the one door.
"""

from fedpers.data.device import device_data
from fedpers.data.examples import ClientData, Examples, Schema, Signature, Table
from fedpers.data.federated import FederatedData, load_data
from fedpers.data.sources import SOURCES, load_table
from fedpers.data.splits import Split

__all__ = [
    "SOURCES",
    "ClientData",
    "Examples",
    "FederatedData",
    "Schema",
    "Signature",
    "Split",
    "Table",
    "device_data",
    "load_data",
    "load_table",
]
