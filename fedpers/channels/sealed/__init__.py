"""Encrypted aggregation: vectors that a server adds or mixes without being able to read them."""

from fedpers.channels.sealed.cipher import ClientCipher, SealedVector, ServerCipher, clip
from fedpers.channels.sealed.keys import (
    KeyPair,
    auto,
    client_from,
    generate,
    load_client,
    load_server,
    new_keys,
    parameters_for,
    server_from,
    show,
)
from fedpers.channels.sealed.parameters import Parameters, bfv_for, ckks_for, rows_for

__all__ = [
    "ClientCipher",
    "KeyPair",
    "Parameters",
    "SealedVector",
    "ServerCipher",
    "auto",
    "bfv_for",
    "ckks_for",
    "client_from",
    "clip",
    "generate",
    "load_client",
    "load_server",
    "new_keys",
    "parameters_for",
    "rows_for",
    "server_from",
    "show",
]
