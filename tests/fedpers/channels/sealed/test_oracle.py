"""A server that wants decryptions of its choice: clients open sums of what they signed, and nothing
else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openers import SCHEMES, UNIT, Clients, with_vector

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.sealed import guard
from fedpers.channels.sealed.lattice import Channel
from fedpers.channels.sealed.parameters import WEIGHT_BITS
from fedpers.channels.sealed.sealed_parts import Group, SealedParts, with_groups
from fedpers.channels.sealed.sums import mixtures
from fedpers.channels.sealed.tags import Tags
from fedpers.errors import ClientError

Row = SealedParts


@pytest.fixture(params=SCHEMES)
def four(request: pytest.FixtureRequest, tmp_path: Path) -> Clients:
    return Clients(request.param, tmp_path)


def honest(clients: Clients, server_round: int = 1) -> Row:
    return clients.total([clients.update(name, server_round) for name in clients.names])


def test_a_mean_is_opened_by_those_who_are_in_it(four: Clients) -> None:
    row = honest(four)
    agreed = four.agreed(row)
    for name in ("1", "4"):
        opened = four.open(row, name, agreed=agreed)
        for part in opened.values():
            assert float((part.vector - 2.5).abs().max()) < 2e-4
    assert float((four.arrive(row, ["1", "2"])["body"].vector - 2.5).abs().max()) < 2e-4


# -- the known attack --------------------------------------------------------------------------


def chosen(clients: Clients) -> bytes:
    """The ciphertext (0, q / 4), which decrypts to a quarter of the modulus times the secret key,
    each coefficient of which is -1, 0 or 1."""
    (prime,) = primes = clients.cipher.lattice.primes(1)
    words = np.zeros((2, 1, clients.server.parameters.degree), np.uint64)
    words[1, 0, 0] = prime // 4
    return guard.pack(words, primes)


def test_one_answer_would_be_the_whole_key(tmp_path: Path) -> None:
    """The control: what the library makes of it without an inspection."""
    clients = Clients("bfv", tmp_path, 1)
    one = with_vector(honest(clients), chunks=(chosen(clients),)).sealed[0]
    with Channel() as channel:
        plain = clients.cipher._decrypt(channel, one, 0)
        found = clients.cipher.lattice.coefficients(channel, plain)
    values, counts = np.unique(found, return_counts=True)
    quarter = 1 << (clients.server.parameters.plain_bits - 2)
    assert values.tolist() == [0, quarter, 3 * quarter] and counts.min() > 1000


@pytest.mark.parametrize("kind", ["sum", "mix", "vector", "head"])
def test_a_chosen_ciphertext_is_refused_whatever_its_form(four: Clients, kind: str) -> None:
    """With the words of an honest sum, with those of its terms alone, and with none."""
    row, fresh = honest(four), four.update("1")
    agreed = four.agreed(row)
    data = chosen(four)
    if kind in ("vector", "head"):  # as long as a fresh one
        levels = 2 if kind == "head" else 1
        length = len(fresh.sealed[0].chunks[0]) * levels
        data = data[:length].ljust(length, b"\0")
    terms = 1 if kind in ("vector", "head") else 4
    forged = with_vector(row, kind=kind, chunks=(data,), terms=terms, weight=float(terms))
    rows = [forged, replace(forged, terms=fresh.terms), replace(forged, terms=())]
    for one in rows:
        for ask in (
            lambda: four.open(one, "1", agreed=agreed),  # noqa: B023
            lambda: four.arrive(one, ["1"]),  # noqa: B023
            lambda: four.well(one),  # noqa: B023
            lambda: four.ask("similarity", [one, one], ["1", "2"], opener="1"),  # noqa: B023
        ):
            with pytest.raises(ClientError):
                ask()


# -- sums that are not what they say -----------------------------------------------------------


def edited(row: Row, edit: Callable[[guard.Words], None], clients: Clients) -> Row:
    (prime,) = primes = clients.cipher.lattice.primes(1)
    degree = clients.server.parameters.degree
    words = guard.unpack(row.sealed[0].chunks[0], primes, degree, 2).copy()
    edit(words)
    return with_vector(row, chunks=(guard.pack(words % np.uint64(prime), primes),))


def one_more(words: guard.Words) -> None:
    words[1, 0, 17] += 1


def doubled(words: guard.Words) -> None:
    words *= 2


@pytest.mark.parametrize("edit", [one_more, doubled])
def test_a_malleated_sum_is_refused(four: Clients, edit: Any) -> None:
    row = edited(honest(four), edit, four)
    with pytest.raises(Refused, match="not the sum of its terms"):
        four.open(row, "1")
    with pytest.raises(Refused, match="not the sum of its terms"):
        four.arrive(row, ["1"])


def test_a_term_twice_or_negated_is_refused(four: Clients) -> None:
    one, two = four.update("1"), four.update("2")
    twice = four.total([one, two])
    terms = (*twice.terms[0], twice.terms[0][0])
    added = four.server.add([*one.sealed, *one.sealed, *two.sealed])
    for row in (
        replace(twice, blobs=(added.to_bytes(),), terms=(terms,), divisor=3.0),
        replace(twice, terms=((twice.terms[0][0]._replace(times=2), twice.terms[0][1]),)),
    ):
        with pytest.raises(Refused, match=r"twice|other weights"):
            four.arrive(row, ["1"])
    # 1 + 2 - 2 as a sum of both.
    alone = with_vector(four.total([one]), terms=2, weight=2.0)
    with pytest.raises(Refused, match="not the sum of its terms"):
        four.arrive(replace(alone, terms=twice.terms, divisor=2.0), ["1"])
    negative = tuple(term._replace(times=-1) for term in twice.terms[0][1:])
    with pytest.raises(Refused, match="times in a sum"):
        four.arrive(replace(twice, terms=((twice.terms[0][0], *negative),)), ["1"])


def test_terms_of_another_round_run_client_or_part_are_refused(
    four: Clients, tmp_path: Path
) -> None:
    now = [four.update(name) for name in "12"]
    later = four.total([now[0], four.update("2", 2)])
    with pytest.raises(Refused, match="2: got an update of round 2, takes round"):
        four.open(later, "1")
    with pytest.raises(Refused, match="2: got an update of round 2, takes rounds up to 1"):
        four.arrive(later, ["1"])
    four.node.run = "another"
    with pytest.raises(Refused, match="1: got an update that it has not signed, of this run"):
        four.arrive(four.total(now), ["1"])
    four.node.run = "run"
    row = four.total(now)
    (one, two), *_ = row.terms
    renamed = one._replace(statement=replace(one.statement, client="3"))
    with pytest.raises(Refused, match="3: got an update that it has not signed"):
        four.arrive(replace(row, terms=((renamed, two),)), ["1"])
    stranger = one._replace(statement=replace(one.statement, client="mallory"))
    with pytest.raises(Refused, match="mallory: got an unknown client"):
        four.arrive(replace(row, terms=((stranger, two),)), ["1"])


def test_what_a_sum_says_of_itself_follows_from_its_terms(four: Clients) -> None:
    """Else whether it opens would tell of its values: is one beyond the range that was said?"""
    row = honest(four)
    for forged in (
        replace(row, divisor=0.01),
        with_vector(row, range=1e-3),
        with_vector(row, terms=3, weight=3.0),
    ):
        with pytest.raises(ClientError, match=r"other weights|got range"):
            four.ask("check", [forged], ["1"])
    weighted = [four.update("1"), four.update("2", weight=0.5), four.update("3", weight=0.5)]
    total = four.total(weighted)
    assert total.divisor == 2
    with pytest.raises(Refused, match="other weights"):
        four.open(replace(total, divisor=3.0), "1")
    mean = four.open(total, "1", agreed=four.agreed(total))["body"].vector
    assert float((mean - 1.75).abs().max()) < 2e-4


# -- how many, and how often -------------------------------------------------------------------


def test_a_single_update_is_opened_for_nobody_but_its_client(tmp_path: Path) -> None:
    clients = Clients("bfv", tmp_path, least=3)
    alone, two = clients.total([clients.update("1")]), [clients.update(name) for name in "12"]
    for row in (alone, clients.update("1"), clients.total(two)):
        with pytest.raises(Refused, match=r"takes 3 or more"):
            clients.open(row, "1", agreed={"1": ""})
        with pytest.raises(Refused, match=r"takes 3 or more"):
            clients.arrive(row, ["1", "4"])
        with pytest.raises(Refused, match=r"takes 3 or more"):
            clients.ask("check", [row], ["1"])
        assert clients.arrive(row, ["1"])["body"].vector.isfinite().all()


def test_a_sum_in_which_the_others_weigh_next_to_nothing_is_a_single_update(
    tmp_path: Path,
) -> None:
    clients = Clients("bfv", tmp_path, least=2)
    row = clients.total([clients.update("1"), *(clients.update(n, weight=1e-6) for n in "234")])
    with pytest.raises(Refused, match="4 terms, 1 of them of weight, takes 2 or more"):
        clients.open(row, "1")


def test_a_sum_is_opened_once(four: Clients) -> None:
    row = honest(four)
    agreed = four.agreed(row)
    four.open(row, "1", agreed=agreed)
    with pytest.raises(Refused, match="round 1: got a sum that was opened already"):
        four.open(row, "1", agreed=agreed)


def test_a_second_sum_of_a_round_is_not_opened(four: Clients) -> None:
    """Two that differ by one client give its update away."""
    updates = [four.update(name) for name in four.names]
    four.open(four.total(updates), "1")
    fewer = four.total(updates[:3])
    with pytest.raises(Refused, match="round 1: got a second sum to open, takes one"):
        four.agreed(fewer)
    with pytest.raises(Refused, match="0 agreed to have it opened, takes 2"):
        four.open(fewer, "2", agreed={"1": "", "2": "00", "9": "ff"})
    again = honest(four)  # the same clients, sealed anew
    with pytest.raises(Refused, match="got a second sum"):
        four.agreed(again)
    assert four.open(honest(four, 2), "1", 2)  # another round
    with pytest.raises(Refused, match="round: got 1, takes 2 or later"):
        four.agreed(four.total(updates))


def test_two_thirds_have_to_agree(four: Clients) -> None:
    row = honest(four)
    agreed = dict(four.agreed(row))
    some = {name: agreed[name] for name in "12"}
    with pytest.raises(Refused, match="2 agreed to have it opened, takes 3"):
        four.open(row, "1", agreed=some)
    with pytest.raises(Refused, match="2 agreed"):
        four.open(row, "1", agreed={**some, "3": agreed["4"]})
    assert four.open(row, "1", agreed={**some, "3": agreed["3"]})


def test_who_is_in_no_sum_opens_none(four: Clients) -> None:
    row = four.total([four.update(name) for name in "123"])
    with pytest.raises(Refused, match="got a sum without 4, takes one with it"):
        four.open(row, "4")


def test_a_method_without_use_for_a_mean_has_none_opened(tmp_path: Path) -> None:
    clients = Clients("bfv", tmp_path)
    row = honest(clients)
    assert clients.node.opener.method is not None
    clients.node.opener.method = clients.node.opener.method._replace(opens=())
    for ask in (lambda: clients.open(row, "1"), lambda: clients.open(row, "1", agreed={"1": ""})):
        with pytest.raises(Refused, match="which nobody has a use for"):
            ask()


# -- mixtures and unit vectors -----------------------------------------------------------------


def test_a_row_is_opened_by_whose_update_is_in_it(tmp_path: Path) -> None:
    clients = Clients("ckks-rows", tmp_path, least=3)
    updates = [clients.update(name) for name in clients.names]
    weights = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    first, mean = mixtures(clients.server, weights, updates, ["body", "logits"])
    assert isinstance(first, Row) and isinstance(mean, Row)
    for row, receivers, value in ((first, ["1", "2"], 1.1), (mean, ["4"], 2.5)):
        opened = clients.arrive(row, receivers)["body"].vector
        assert float((opened - value).abs().max()) < 1e-4
    with pytest.raises(Refused, match="2 terms, 2 of them of weight, takes 3"):
        clients.arrive(first, ["1", "3"])
    heavier = tuple(term._replace(times=term.times + 1) for term in first.terms[0])
    moved = tuple(t._replace(times=n) for t, n in zip(first.terms[0], (9, 2**21 - 9), strict=True))
    for terms in (heavier, moved):
        with pytest.raises(Refused, match=r"not the sum of its terms|other weights"):
            clients.arrive(replace(first, terms=(terms,)), ["1"])
    small = with_vector(first, weight=0.5)
    with pytest.raises(Refused, match="other weights"):
        clients.arrive(small, ["1"])
    assert sum(term.times for term in first.terms[0]) == 2**WEIGHT_BITS


def test_unit_vectors_are_compared_as_they_were_signed(tmp_path: Path) -> None:
    clients = Clients("ckks-rows", tmp_path)
    units = [clients.update(name, group=UNIT) for name in clients.names]
    _, told = clients.ask("similarity", units, clients.names, opener="1")
    assert told["rows"] == {name: [1.0] * 4 for name in clients.names}
    swapped = [units[1], units[0], *units[2:]]
    forged = [with_vector(units[0], chunks=units[1].sealed[0].chunks), *units[1:]]
    other = [clients.update("1"), *units[1:]]
    for rows, opener in ((swapped, "1"), (forged, "1"), (other, "1"), (units, "9")):
        with pytest.raises(ClientError):
            clients.ask("similarity", rows, clients.names, opener=opener)
    with pytest.raises(Refused, match="takes 2 or more"):
        clients.ask("similarity", units[:1], ["1"], opener="1")
    clients.ask("similarity", units, clients.names, opener="1")
    with pytest.raises(Refused, match="got a third comparison"):
        clients.ask("similarity", units, clients.names, opener="1")


def test_an_own_part_beside_a_mixture_is_opened_by_its_client_alone(tmp_path: Path) -> None:
    clients = Clients("ckks-rows", tmp_path, least=3)
    bodies = [clients.update(name, group=Group(("body",))) for name in clients.names]
    (mean,) = mixtures(clients.server, torch.full((1, 4), 0.25), bodies, ["body"])
    assert isinstance(mean, Row)
    own = with_groups(mean, clients.update("1", group=Group(("head",))))
    assert float(clients.arrive(own, ["1"])["head"].vector.mean()) == pytest.approx(1, abs=1e-4)
    with pytest.raises(Refused, match="1 terms, 1 of them of weight, takes 3"):
        clients.arrive(own, ["2"])


# -- tags --------------------------------------------------------------------------------------


def test_tags_by_hand() -> None:
    """<r, c> + b modulo q, and q = 97."""
    tags = Tags(b"key", 97)
    one = np.arange(8, dtype=np.uint64).reshape(2, 1, 4)
    drawn = tags._drawn(0, 8)
    by_hand = [sum(int(a) * k for k, a in enumerate(lane)) for lane in drawn]
    pads = tags._pad(b"said")
    got = tags.of([one], b"said")
    expected = [(a + b) % 97 for a, b in zip(by_hand, pads, strict=True)]
    assert [int.from_bytes(got[8 * k : 8 * k + 8], "big") for k in range(2)] == expected
    other = tags.of([2 * one % 97], b"other")
    terms = [(b"said", got, 3), (b"other", other, 1)]
    assert tags.fit([5 * one % 97], terms)
    assert not tags.fit([4 * one % 97], terms)
    assert not tags.fit([5 * one % 97], [(b"said", got, 3), (b"others", other, 1)])
    assert not Tags(b"another", 97).fit([5 * one % 97], terms)
