"""What masked sums cost, beside BFV and CKKS.

    python -m simulations.bench.masks

In a cohort of 32 all pairs mask, in one of 1,000, of which a tenth may be corrupt, the neighbours
on a random graph. Of both three in ten are lost before their upload is in, which is when unmasking
takes longest. BFV and CKKS are
under one key of all clients, and their sum comes down sealed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch

from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked.client import MaskedClient, carry_out
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.quantise import Field, Layout
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Session, Terms
from fedpers.channels.sealed import Parameters, bfv_for, ckks_for
from fedpers.privacy.noise import secret
from simulations.bench.encryption import COHORT, MANY, ours, timed

BITS = 12


@dataclass
class Costs:
    """Bytes a value, up and down; seconds a million values to hide them, to add a client's, and to
    open the sum."""

    name: str
    up: float
    down: float
    hide: float
    add: float
    open: float


POLICIES = {COHORT: Policy(), MANY: Policy(corrupt=0.1)}


def cohort(clients: int, size: int, folder: Path) -> tuple[Terms, dict[str, MaskedClient]]:
    """Terms of a sum of ``size`` values, and the clients that agree to them."""
    identities = [Identity.new(f"{k:04d}") for k in range(clients)]
    registry, policy = Registry([one.public for one in identities]), POLICIES[clients]
    memory = Memory(folder / "served.json", durable=False)
    memory.enrol([one.client for one in identities])
    made = {one.client: MaskedClient(one, registry, policy, memory) for one in identities}
    layout = Layout([Field("values", size, (-1, 1), BITS)], clients)
    terms = Terms("bench", 1, 1, tuple(made), layout)
    if Session(terms, registry, policy).sparse:
        given = carry_out([client.advertising(terms) for client in made.values()])
        said = tuple(one for one in given.values() if isinstance(one, bytes))
        terms = replace(terms, contributions=said)
    return terms, made


def row(clients: int, size: int, folder: Path) -> Costs:
    """A whole round of ``clients``, three in ten of whom are lost before their upload is in."""
    terms, made = cohort(clients, size, folder)
    there = sorted(list(made)[: clients - 3 * clients // 10])
    one = made[there[0]]
    server = MaskedServer(terms, one.registry, one.policy)
    exact, drawn = np.zeros(size), np.random.default_rng(0)
    hiding, adding, helping = list[float](), list[float](), list[float]()
    for name in there:
        values = drawn.uniform(-1, 1, size)
        exact += values

        def hide(name: str = name, values: npt.NDArray[np.float64] = values) -> bytes:
            words = terms.layout.quantised({"values": values}, 1.0, secret())
            return made[name].mask(terms, words)

        data, took = timed(hide)
        hiding.append(took)
        _, took = timed(partial(server.receive, name, data))
        adding.append(took)
    shown = server.close()
    signing = carry_out([made[name].signing(terms, shown) for name in there])
    for name, signature in signing.items():
        assert isinstance(signature, bytes)
        server.receive_signature(name, signature)
    given = {}
    for name, boxes in server.boxes().items():
        said = terms, shown, server.signatures, boxes
        given[name], took = timed(partial(made[name].reveal, *said))
        helping.append(took)
    for name, shares in given.items():
        server.receive_shares(name, shares)
    words, took = timed(server.unmask)
    error = np.abs(terms.layout.sums(words, len(there))["values"] - exact).max() / len(there)
    beside, k = len(data) - terms.layout.nbytes, server.session.graph.k
    print(
        f"{clients} clients, {k} neighbours each: beside the vector {beside:,} bytes up and "
        f"{len(shares):,} of shares, {1e3 * median(helping):.0f} ms to help; largest error of the "
        f"mean {error:.1e}"
    )
    up = terms.layout.nbytes / size
    seconds = (1e6 * taken / size for taken in (median(hiding), median(adding), took))
    return Costs(f"masked, {clients}", up, 4.0, *seconds)


def sealed(name: str, parameters: Parameters, size: int) -> Costs:
    """The same of an encrypted sum of ``COHORT``, of which nobody is lost."""
    method, vector = ours(parameters), torch.rand(size) * 2 - 1
    data, hiding = timed(partial(method.seal, vector))
    _, hiding = timed(partial(method.seal, vector))  # the first warms
    total, adding = timed(partial(method.add, [data] * 4))
    _, opening = timed(partial(method.open, total))
    seconds = (1e6 * taken / size for taken in (hiding, adding / 4, opening))
    return Costs(name, len(data) / size, len(total) / size, *seconds)


def main() -> None:
    """Print bytes and seconds."""
    torch.set_num_threads(1)
    rows = [sealed("bfv", bfv_for(COHORT), 1 << 18), sealed("ckks", ckks_for(COHORT), 1 << 18)]
    for clients, size in ((COHORT, 1 << 18), (MANY, 1 << 14)):
        with TemporaryDirectory() as folder:
            rows.append(row(clients, size, Path(folder)))
    print(f"{BITS} bits a value; unmasked with three in ten lost")
    print("               bytes a value      seconds a million values")
    print("                 up    down    hide  add, a client    open")
    for one in rows:
        print(
            f"{one.name:14} {one.up:5.2f}  {one.down:6.2f} {one.hide:7.3f}  {one.add:13.4f} "
            f"{one.open:7.2f}"
        )


if __name__ == "__main__":
    main()
