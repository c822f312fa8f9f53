"""What encrypted sums cost, beside CKKS with NVFlare's default parameters.

    python -m simulations.bench.encryption

NVFlare's parameters are CKKS with N = 8192, primes [60, 40, 40] and scale 2^40, under the public
key, as TenSEAL serialises it. The three are timed by turns, so that a busy machine slows all,
and compared by medians. Each message goes the whole way: from float32 to bytes, from bytes
through the sum to bytes, from bytes to float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from fedpers.channels.sealed import (
    Parameters,
    SealedVector,
    bfv_for,
    ckks_for,
    client_from,
    generate,
    rows_for,
    server_from,
)
from fedpers.privacy.noise import secret

T = TypeVar("T")

SIZE, CLIENTS, COHORT, REPEATS, MANY = 1 << 18, 4, 32, 7, 1000


@dataclass
class Method:
    """How a vector is sealed, messages are added, and a sum is opened."""

    seal: Callable[[Tensor], bytes]
    add: Callable[[list[bytes]], bytes]
    open: Callable[[bytes], Tensor]


def main() -> None:
    """Print bytes, seconds a million parameters, and errors."""
    torch.set_num_threads(1)
    methods = {
        "bfv": ours(bfv_for(COHORT)),
        "ckks": ours(ckks_for(COHORT)),
        "nvflare": nvflare(),
    }
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(CLIENTS, SIZE, generator=generator) * 2 - 1
    seconds: dict[str, list[list[float]]] = {name: [[], [], []] for name in methods}
    sent, received, errors = {}, {}, {}
    for repeat in range(REPEATS + 1):
        for name, method in methods.items():
            messages, encrypting = timed(partial(seal_all, method, vectors))
            total, adding = timed(partial(method.add, messages))
            opened, decrypting = timed(partial(method.open, total))
            sent[name], received[name] = len(messages[0]) / SIZE, len(total) / SIZE
            errors[name] = float((opened - vectors.sum(0)).abs().max())
            if repeat:  # the first warms
                times = (encrypting / CLIENTS, adding / CLIENTS, decrypting)
                for found, value in zip(seconds[name], times, strict=True):
                    found.append(value * 1e6 / SIZE)
    print(f"{CLIENTS} vectors of {SIZE:,} in [-1, 1], room for {COHORT}; medians of {REPEATS}")
    print("         bytes a value      seconds a million values       largest")
    print("           up    down     encrypt  add, a client  decrypt    error")
    for name in methods:
        encrypting, adding, decrypting = map(median, seconds[name])
        print(
            f"{name:8} {sent[name]:5.2f}  {received[name]:6.2f}   {encrypting:9.3f}"
            f"  {adding:13.4f}  {decrypting:7.3f}  {errors[name]:.1e}"
        )
    for name in ("bfv", "ckks"):
        ratios = [
            median(a / b for a, b in zip(other, own, strict=True))
            for other, own in zip(seconds["nvflare"], seconds[name], strict=True)
        ]
        print(
            f"nvflare / {name}: up {sent['nvflare'] / sent[name]:.1f}, "
            f"down {received['nvflare'] / received[name]:.1f}, encrypt {ratios[0]:.1f}, "
            f"add {ratios[1]:.1f}, decrypt {ratios[2]:.1f}"
        )
    many()
    products()


def seal_all(method: Method, vectors: Tensor) -> list[bytes]:
    """A message a row."""
    return [method.seal(vector) for vector in vectors]


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What ``run`` returns, and its seconds."""
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def ours(parameters: Parameters) -> Method:
    """A parameter set of this project."""
    pair = generate(parameters)
    client, server = client_from(pair.client), server_from(pair.server)
    source = secret()
    return Method(
        lambda vector: client.seal(vector, range=1.0, source=source).to_bytes(),
        lambda messages: server.add(SealedVector.from_bytes(m) for m in messages).to_bytes(),
        lambda message: client.open(SealedVector.from_bytes(message)),
    )


def nvflare() -> Method:
    """CKKS by TenSEAL with NVFlare's default parameters."""
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, -1, [60, 40, 40])
    context.global_scale = 2**40
    keys = context.serialize(save_galois_keys=False, save_relin_keys=False)
    public = tenseal.Context.load(keys)
    slots = 4096

    def seal(vector: Tensor) -> bytes:
        # TenSEAL prints a warning for each vector beyond the slots: cut here instead.
        pieces = [tenseal.ckks_vector(context, p.tolist()) for p in torch.split(vector, slots)]
        return b"".join(join(piece.serialize()) for piece in pieces)

    def join(data: bytes) -> bytes:
        return len(data).to_bytes(4, "little") + data

    def pieces_of(message: bytes) -> list[bytes]:
        found, at = [], 0
        while at < len(message):
            size = int.from_bytes(message[at : at + 4], "little")
            found.append(message[at + 4 : at + 4 + size])
            at += 4 + size
        return found

    def add(messages: list[bytes]) -> bytes:
        totals = [tenseal.ckks_vector_from(public, p) for p in pieces_of(messages[0])]
        for message in messages[1:]:
            for total, piece in zip(totals, pieces_of(message), strict=True):
                total += tenseal.ckks_vector_from(public, piece)
        return b"".join(join(total.serialize()) for total in totals)

    def open_(message: bytes) -> Tensor:
        vectors = [tenseal.ckks_vector_from(context, p).decrypt() for p in pieces_of(message)]
        return torch.tensor([value for vector in vectors for value in vector])

    return Method(seal, add, open_)


def many() -> None:
    """The errors of one sum over many clients."""
    from fedpers.channels.sealed.bfv import BfvClient

    size = 4096
    vectors = torch.rand(MANY, size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    exact = vectors.double().sum(0)
    for parameters in (ckks_for(MANY), bfv_for(MANY)):
        pair = generate(parameters)
        client, server = client_from(pair.client), server_from(pair.server)
        source, integers = secret(), torch.zeros(size, dtype=torch.int64)
        sealed = []
        for vector in vectors:
            sealed.append(client.seal(vector, range=1.0, source=source))
            if isinstance(client, BfvClient):
                integers += client.open_integers(sealed[-1])
        total = server.add(sealed)
        error = float((client.open(total).double() - exact).abs().max())
        line = f"{MANY} clients, {parameters.scheme}: largest error of the sum {error:.1e}"
        line += f", of the mean {error / MANY:.1e}"
        if isinstance(client, BfvClient):
            same = bool((client.open_integers(total) == integers).all())
            line += f"; integer sums {'exact' if same else 'WRONG'}"
        print(line)


def tags() -> None:
    """What signing and checking cost beside sealing and opening: the tags that add up."""
    size = 1 << 19
    for parameters in (bfv_for(COHORT), ckks_for(COHORT)):
        pair = generate(parameters)
        client, server = client_from(pair.client), server_from(pair.server)
        sealed = client.seal(torch.zeros(size), range=1.0, source=secret())
        tag, making = timed(lambda: client.tag(sealed, b"said"))  # noqa: B023
        total = server.add([sealed])
        fits, checking = timed(lambda: client.fit(total, [(b"said", tag, 1)]))  # noqa: B023
        print(
            f"{parameters.scheme}: {1e6 * making / size:.2f} s a million values to tag, "
            f"{1e6 * checking / size:.2f} to check{'' if fits else ', WRONG'}"
        )


def products() -> None:
    """Rows and inner products under the three-prime set."""
    pair = generate(rows_for(COHORT))
    client, server = client_from(pair.client), server_from(pair.server)
    generator = torch.Generator().manual_seed(4)
    heads = torch.randn(8, 650, generator=generator)
    sealed = [client.seal_unit(head) for head in heads]
    found, seconds = timed(lambda: torch.stack([client.open_unit(one) for one in sealed]))
    unit = heads.double() / heads.double().norm(dim=1, keepdim=True)
    error = (found @ found.T - unit @ unit.T).abs().max()
    print(
        f"heads of 650: {1e3 * seconds / len(found):.1f} ms each to open, "
        f"{sealed[0].nbytes / 1e3:.0f} kB a head, error of a product {float(error):.1e}"
    )
    vectors = torch.rand(8, 1 << 16, generator=generator) * 2 - 1
    rows = torch.softmax(torch.randn(4, 8, generator=generator), 1)
    source = secret()
    given = [client.seal(v, range=1.0, source=source) for v in vectors]
    mixed, seconds = timed(lambda: server.mix(rows, given))
    opened = torch.stack([client.open(row) for row in mixed])
    error = (opened - rows @ vectors).abs().max()
    print(
        f"4 rows of 8 vectors: {seconds / 8 / vectors.shape[1] * 1e6:.3f} s a client and million "
        f"values, {given[0].nbytes / vectors.shape[1]:.1f} bytes up, "
        f"{mixed[0].nbytes / vectors.shape[1]:.1f} down, error {float(error):.1e}"
    )


if __name__ == "__main__":
    main()
