"""What masked sums cost, beside ``simulations.bench.encryption``.

    python -m simulations.bench.masks

In a cohort of 32, where all pairs mask, three in ten are lost before their upload is in, and the
sum is unmasked; of a cohort of 1,000 over a random graph a few clients mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.client import MaskedClient
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.quantise import Field, Layout
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Session, Terms
from fedpers.privacy.noise import secret

T = TypeVar("T")

BITS = 12


def cohort(clients: int, size: int, folder: Path) -> tuple[Terms, dict[str, MaskedClient]]:
    """Terms of a sum of ``size`` values, and the clients that agree to them."""
    identities = [Identity.new(f"{k:04d}") for k in range(clients)]
    registry, policy = Registry([one.public for one in identities]), Policy()
    made = {
        one.client: MaskedClient(one, registry, policy, Memory.create(folder / one.client))
        for one in identities
    }
    layout = Layout([Field("values", size, (-1, 1), BITS)], clients)
    terms = Terms("bench", 1, 1, tuple(made), layout)
    if Session(terms, registry, policy).sparse:
        given = tuple(client.advertise(terms) for client in made.values())
        terms = replace(terms, contributions=given)
    return terms, made


def upload(
    terms: Terms, made: Mapping[str, MaskedClient], there: Sequence[str]
) -> tuple[MaskedServer, npt.NDArray[np.float64]]:
    """Have some upload, and print what that costs; the server, and the exact sum."""
    one, size = made[there[0]], terms.layout.fields[0].length
    server = MaskedServer(terms, one.registry, one.policy)
    exact, drawn = np.zeros(size), np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"quantise": [], "mask": [], "add, a client": []}
    for name in there:
        values = drawn.uniform(-1, 1, size)
        exact += values
        quantise = partial(terms.layout.quantised, {"values": values}, 1.0, secret())
        words, took = timed(quantise)
        seconds["quantise"].append(took)
        data, took = timed(partial(made[name].mask, terms, words))
        seconds["mask"].append(took)
        _, took = timed(partial(server.receive, data))
        seconds["add, a client"].append(took)
    told = ", ".join(f"{n} {1e6 * median(s) / size:.3f}" for n, s in seconds.items())
    print(
        f"{len(made)} clients, {server.session.graph.k} neighbours: "
        f"{terms.layout.nbytes / size:.3f} bytes a value up and {len(data) - terms.layout.nbytes} "
        f"beside; seconds a million values: {told}"
    )
    return server, exact


def unmask(server: MaskedServer, terms: Terms, made: Mapping[str, MaskedClient]) -> float:
    """Sign, give shares and unmask, and print what that costs; the first value's sum."""
    there, helping = server.close(), list[float]()
    for name in there:
        signature, took = timed(partial(made[name].sign, terms, there))
        server.receive_signature(name, signature)
        helping.append(took)
    for k, (name, asked) in enumerate(server.requests().items()):
        said = terms, asked.survivors, asked.signatures, asked.boxes
        answer, took = timed(partial(made[name].reveal, *said))
        server.receive_shares(answer)
        helping[k] += took
    words, took = timed(server.unmask)
    size = terms.layout.fields[0].length
    print(
        f"  {len(made) - len(there)} lost: {1e6 * took / size:.2f} s a million values to unmask, "
        f"{1e3 * median(helping):.0f} ms of a client, {len(answer)} bytes of shares"
    )
    return float(terms.layout.sums(words, len(there))["values"][0])


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What ``run`` returns, and its seconds."""
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def main() -> None:
    """Print bytes and seconds."""
    for clients, size, some in ((32, 1 << 18, 22), (1000, 1 << 20, 3)):
        with TemporaryDirectory() as folder:
            terms, made = cohort(clients, size, Path(folder))
            there = list(made)[:some]
            server, exact = upload(terms, made, there)
            if some > clients // 2:
                total = unmask(server, terms, made)
                print(f"  error of the mean {abs(total - exact[0]) / some:.1e}")


if __name__ == "__main__":
    main()
