"""Ciphertexts that spoil a sum, with digests as they should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedpers.channels.sealed import guard
from fedpers.channels.sealed.bfv import BfvClient
from fedpers.channels.sealed.cipher import SealedVector
from fedpers.channels.sealed.lattice import Channel
from fedpers.channels.sealed.sealed_parts import SealedParts


def with_chunks(sealed: SealedParts, chunks: list[bytes]) -> SealedParts:
    """A first vector of other ciphertexts, with digests as they should be."""
    made = SealedVector(**{**vars(sealed.sealed[0]), "chunks": tuple(chunks)})
    return SealedParts(sealed.layouts, sealed.groups, (made.to_bytes(), *sealed.blobs[1:]))


def garbage(cipher: Any, sealed: SealedParts) -> SealedParts:
    """Coefficients by chance, each below the modulus."""
    rng, (prime,) = np.random.default_rng(3), cipher.lattice.primes(1)
    chunks = []
    for chunk in sealed.sealed[0].chunks:
        words = rng.integers(0, prime, (1, 1, cipher.parameters.degree), dtype=np.uint64)
        chunks.append(guard.pack(words, (prime,)) + chunk[-guard.SEED_BYTES :])
    return with_chunks(sealed, chunks)


def sealed_anew(cipher: Any, sealed: SealedParts, values: torch.Tensor) -> SealedParts:
    """An encryption of whatever values, past all checks of the honest client."""
    with Channel() as channel:
        if isinstance(cipher, BfvClient):
            plain = cipher.lattice.plaintext(channel, values.to(torch.int64).numpy().astype("u8"))
        else:
            pairs = values.double().numpy().view(np.complex128).tolist()
            plain = cipher._encoded(pairs, 1, 2.0**cipher.parameters.value_bits)
        return with_chunks(sealed, [cipher._encrypt(channel, plain, "vector")])


def far_outside(cipher: Any, sealed: SealedParts) -> SealedParts:
    """Far larger than the sum of all may be."""
    if isinstance(cipher, BfvClient):
        field = cipher.parameters.field_bits
        large = (1 << (field - 1)) + (1 << (2 * field - 1))
        return sealed_anew(cipher, sealed, torch.full((cipher.parameters.degree,), large))
    return sealed_anew(cipher, sealed, torch.full((cipher.parameters.chunk,), 7.0))


def endless(cipher: Any, sealed: SealedParts) -> SealedParts:
    """Behind the end of honest vectors."""
    size = cipher.parameters.degree if isinstance(cipher, BfvClient) else cipher.parameters.chunk
    values = torch.zeros(size)
    values[-1] = 1
    return sealed_anew(cipher, sealed, values)
