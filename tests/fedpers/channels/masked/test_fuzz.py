"""Messages that somebody has changed, at the doors of both sides: refused in a line each, or of no
effect on the sum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from maskers import Cohort, added, answered

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.messages import Dropped, Shares, Upload, summed, unsummed
from fedpers.channels.masked.server import MaskedServer
from fedpers.errors import ClientError, ConfigError

POLICY = Policy(minimum=3, corrupt=0.25, dropouts=0.3)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path, 8, POLICY)


def changed(data: bytes, rng: Random) -> bytes:
    """Cut, lengthened, with a bit turned, with bytes overwritten, or anything else."""
    found, at = bytearray(data), rng.randrange(len(data) or 1)
    match rng.randrange(5):
        case 0:
            return bytes(found[:at])
        case 1:
            return bytes(found) + rng.randbytes(rng.randrange(1, 9))
        case 2 if found:
            found[at] ^= 1 << rng.randrange(8)
        case 3:
            found[at : at + 4] = rng.randbytes(4)
        case _:
            return rng.randbytes(rng.randrange(60))
    return bytes(found)


def tried(run: Callable[..., Any], *arguments: Any) -> bool:
    """Whether it is refused, in one line."""
    try:
        run(*arguments)
    except (ClientError, ConfigError, Dropped) as error:
        assert str(error) and "\n" not in str(error)
        return True
    return False


def test_two_thousand_messages_that_were_damaged_are_refused_by_the_server(cohort: Cohort) -> None:
    rng, refused = Random(0), 0
    for attempt in range(3):
        terms = cohort.terms(attempt)
        words = cohort.words(terms, attempt)
        server = MaskedServer(terms, cohort.registry, POLICY)
        for name in terms.cohort:
            data = cohort.clients[name].mask(terms, words[name])
            for _ in range(42):
                with pytest.raises(Refused):
                    server.receive(name, changed(data, rng))
                refused += 1
            server.receive(name, data)
        server.close()
        for name in terms.cohort:
            signature = cohort.clients[name].sign(terms, server.survivors)
            with pytest.raises(Refused):
                server.receive_signature(name, changed(signature, rng))
            refused += 1
            server.receive_signature(name, signature)
        for name, data in answered(cohort.revealing(terms, server, terms.cohort)).items():
            for _ in range(42):
                with pytest.raises(Refused):
                    server.receive_shares(name, changed(data, rng))
                refused += 1
            server.receive_shares(name, data)
        assert (server.unmask() == added(words, terms.cohort)).all()
    assert refused >= 2000


def test_who_sends_nonsense_under_a_right_checksum_costs_itself_or_the_round(
    cohort: Cohort,
) -> None:
    """What it masks nobody can check, all else can be: the sum is exact or there is none."""
    rng, exact = Random(1), 0
    for attempt in range(60):
        terms = cohort.terms(attempt)
        words = cohort.words(terms, attempt)
        server = MaskedServer(terms, cohort.registry, POLICY)
        uploads = {name: cohort.clients[name].mask(terms, words[name]) for name in terms.cohort}
        for name, data in uploads.items():
            one = Upload.from_bytes(data)
            for _ in range(8):
                bare = unsummed(data, "upload")
                at = bare.rindex(one.vector)
                sent = summed(changed(bare[: at - 4], rng) + bare[at - 4 :])
                if rng.random() < 0.5:
                    tried(server.receive, name, sent)
            tried(server.receive, name, data)
        if tried(server.close):
            continue
        for name in server.survivors:  # whose own commitment was changed does not sign
            tried(cohort.signed, terms, server, [name])
        try:
            plans = cohort.revealing(terms, server, terms.cohort)
        except Dropped:
            continue
        for name, data in answered(plans).items():
            if rng.random() < 0.3:
                data = summed(changed(unsummed(data, "shares"), rng))
            tried(server.receive_shares, name, data)
        try:
            total = server.unmask()
        except Dropped:
            continue
        assert (total == added(words, server.survivors)).all()
        exact += 1
    assert exact >= 5


def test_two_thousand_messages_of_a_server_are_refused_by_a_client_or_change_nothing(
    cohort: Cohort,
) -> None:
    """Whatever it is shown for survivors, signatures and boxes, its shares are those of the one set
    that it signed, so of no client both the own seed and one with a survivor."""
    rng, refused = Random(2), 0
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[:7])
    server.close()
    one = cohort.clients["client-0006"]  # which opens boxes, as those before it derive
    cohort.signed(terms, server, server.survivors)
    for _ in range(1000):
        shown = dict(server.survivors)
        name = rng.choice(list(shown))
        match rng.randrange(4):
            case 0:
                shown[name] = changed(shown[name], rng)
            case 1:
                del shown[name]
            case 2:
                shown[changed(name.encode(), rng).decode(errors="replace")] = rng.randbytes(32)
            case 3:
                shown = dict(sorted(shown.items(), key=lambda _: rng.random()))
        if shown != dict(server.survivors) or list(shown) != list(server.survivors):
            refused += tried(one.sign, terms, shown)
    assert refused > 900
    good = server.boxes()[one.me]
    right = one.reveal(terms, server.survivors, server.signatures, good)
    whole = Shares.from_bytes(right)
    for _ in range(1000):
        boxes, signatures = dict(good), dict(server.signatures)
        owner = rng.choice(list(boxes))
        boxes[owner] = changed(boxes[owner], rng)
        if rng.random() < 0.5:
            name = rng.choice(list(signatures))
            signatures[name] = changed(signatures[name], rng)
        try:
            found = Shares.from_bytes(one.reveal(terms, server.survivors, signatures, boxes))
        except Refused:
            refused += 1
            continue
        assert all(row == whole.owners[name] for name, row in found.owners.items())
    assert refused > 950
    cohort.revealed(terms, server, server.survivors)
    assert np.array_equal(server.unmask(), added(words, server.survivors))
