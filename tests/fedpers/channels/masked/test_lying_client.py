"""Clients that send what they should not: refused, passed over, or the round is dropped."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from maskers import Cohort, added, identity

from fedpers.channels.identity.encoding import Refused, decode, encode
from fedpers.channels.masked import shamir
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.messages import Dropped, Shares, Upload
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Terms

POLICY = Policy(minimum=3, corrupt=0.25, dropouts=0.3)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path, 8, POLICY)


def numbered(name: str) -> int:
    return int(name[-4:])


def signed_upload(upload: Upload) -> bytes:
    """The upload under its client's signature."""
    signature = identity(numbered(upload.client)).sign(upload.signed)
    return replace(upload, signature=signature).to_bytes()


def signed_shares(shares: Shares) -> bytes:
    signature = identity(numbered(shares.client)).sign(shares.signed)
    return replace(shares, signature=signature).to_bytes()


def answers(cohort: Cohort, terms: Terms, server: MaskedServer) -> dict[str, Shares]:
    """What each signer would give."""
    server.close()
    cohort.signed(terms, server, server.survivors)
    found = {}
    for name, asked in server.requests().items():
        client = cohort.clients[name]
        data = client.reveal(terms, asked.survivors, asked.signatures, asked.boxes)
        found[name] = Shares.from_bytes(data)
    return found


def spoilt(shares: Shares) -> Shares:
    """The same with one bit of each row changed."""
    rows = {owner: row[:-1] + bytes([row[-1] ^ 1]) for owner, row in shares.owners.items()}
    return replace(shares, owners=rows)


def test_a_helper_s_garbage_is_passed_over_and_the_helper_suspected(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[:7])
    for name, shares in answers(cohort, terms, server).items():
        server.receive_shares(signed_shares(spoilt(shares) if name[-1] == "2" else shares))
    assert (server.unmask() == added(words, terms.cohort[:7])).all()
    assert server.suspects == {"client-0002"}


def test_more_garbage_than_spare_shares_drops_the_round(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort)
    for place, (name, shares) in enumerate(answers(cohort, terms, server).items()):
        server.receive_shares(signed_shares(spoilt(shares) if place % 2 else shares))
        assert name == terms.cohort[place]
    with pytest.raises(Dropped, match="no shares of client-0000's seeds give what it bound to"):
        server.unmask()


def test_an_owner_that_boxes_garbage_drops_the_round_and_is_suspected(cohort: Cohort) -> None:
    """It opens, and is no share of the seed that the owner committed to."""
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[1:])
    liar = cohort.clients["client-0000"]
    upload = Upload.from_bytes(liar.mask(terms, words["client-0000"]))
    garbage = [
        liar._box(server.session, helper, shamir.elements(os.urandom(16 * 8)))
        for helper in server.session.boxed("client-0000")
    ]
    server.receive(signed_upload(replace(upload, boxes=b"".join(garbage))))
    for shares in answers(cohort, terms, server).values():
        server.receive_shares(signed_shares(shares))
    with pytest.raises(Dropped, match="client-0000"):
        server.unmask()
    assert server.suspects == {"client-0000"}


@pytest.mark.parametrize("short", [False, True])
def test_an_owner_whose_boxes_hold_no_row_drops_the_round(cohort: Cohort, short: bool) -> None:
    """They do not open, or what is in them is a share too few."""
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[1:])
    liar = cohort.clients["client-0000"]
    upload = Upload.from_bytes(liar.mask(terms, words["client-0000"]))
    boxes = os.urandom(len(upload.boxes))
    if short:
        rows = [liar._box(server.session, o, [1]) for o in server.session.boxed("client-0000")]
        boxes = b"".join(row.ljust(len(boxes) // len(rows)) for row in rows)
    server.receive(signed_upload(replace(upload, boxes=boxes)))
    if short:  # as a server would pass them on that works with the liar
        server._boxes["client-0000"] = dict(
            zip(server.session.boxed("client-0000"), rows, strict=True)
        )
    deriving = server.session.deriving("client-0000")
    for name, shares in answers(cohort, terms, server).items():
        assert ("client-0000" in shares.owners) == (name in deriving)
        server.receive_shares(signed_shares(shares))
    with pytest.raises(Dropped, match="4 shares of client-0000's seeds, takes 5"):
        server.unmask()


def test_a_commitment_to_another_seed_drops_the_round(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[1:])
    upload = Upload.from_bytes(cohort.clients["client-0000"].mask(terms, words["client-0000"]))
    changed = bytes(32) + upload.commitments[32:]
    server.receive(signed_upload(replace(upload, commitments=changed)))
    for shares in answers(cohort, terms, server).values():
        server.receive_shares(signed_shares(shares))
    with pytest.raises(Dropped, match="client-0000"):
        server.unmask()


def test_a_vector_out_of_range_is_seen_in_the_sum(cohort: Cohort) -> None:
    """Under masks nobody sees it sooner; the words are beyond what 8 clients can add up to."""
    terms = cohort.terms()
    words = cohort.words(terms)
    words["client-0000"] = np.full(cohort.layout.words, 2**64 - 1, np.uint64)
    total = cohort.sum(terms, words, terms.cohort)
    with pytest.raises(Dropped, match="a client sent what is no update"):
        cohort.layout.sums(total, 8)


def test_two_uploads_of_one_client_and_one_that_is_late_are_refused(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = MaskedServer(terms, cohort.registry, POLICY)
    uploads = {name: cohort.clients[name].mask(terms, words[name]) for name in terms.cohort}
    for name in terms.cohort[:7]:
        assert server.receive(uploads[name]) == name
    with pytest.raises(Refused, match="a second upload"):
        server.receive(uploads["client-0000"])
    server.close()
    with pytest.raises(Refused, match="client-0007: got an upload after"):
        server.receive(uploads["client-0007"])


def test_an_upload_of_another_round_name_key_or_size_is_refused(cohort: Cohort) -> None:
    old = cohort.terms()
    words = cohort.words(old)
    stale = cohort.clients["client-0000"].mask(old, words["client-0000"])
    terms = cohort.terms()
    server = MaskedServer(terms, cohort.registry, POLICY)
    good = Upload.from_bytes(cohort.clients["client-0000"].mask(terms, words["client-0000"]))
    for data, match in [
        (stale, "for other terms"),
        (replace(good, client="client-0001").to_bytes(), "not its own"),
        (replace(good, client="stranger").to_bytes(), "outside the cohort"),
        (replace(good, vector=bytes(len(good.vector))).to_bytes(), "not its own"),
        (signed_upload(replace(good, vector=good.vector[:-1])), "boxes, commitments, vector"),
        (signed_upload(replace(good, boxes=good.boxes + b"1")), "boxes, commitments, vector"),
        (signed_upload(replace(good, commitments=b"")), "boxes, commitments, vector"),
        (good.to_bytes()[:-1], "cannot be read"),
        (b"", "cannot be read"),
        (encode(b"\xff", *decode(good.to_bytes(), 6, "")[1:]), "UTF-8"),
    ]:
        with pytest.raises(Refused, match=match):
            server.receive(data)
    assert server.receive(good.to_bytes()) == "client-0000"


def test_shares_of_others_of_another_set_or_size_are_refused(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[:7])
    given = answers(cohort, terms, server)
    good = given["client-0000"]
    row = good.owners["client-0001"]
    for shares, match in [
        (replace(good, client="client-0007"), "who did not sign"),
        (replace(good, survivors=bytes(32)), "for another set"),
        (replace(good, owners={"client-0007": row}), "shares of client-0007"),
        (replace(good, owners={"client-0000": row}), "shares of client-0000"),
        (replace(good, owners={"client-0001": row[:-1]}), "takes its row"),
        (replace(good, owners={"client-0001": row + row[:16]}), "takes its row"),
    ]:
        with pytest.raises(Refused, match=match):
            server.receive_shares(signed_shares(shares))
    with pytest.raises(Refused, match="not its own"):
        server.receive_shares(good.to_bytes()[:-64] + bytes(64))
    twice = encode("client-0001", row, "client-0001", row)
    with pytest.raises(Refused, match="a name twice"):
        Shares.from_bytes(encode(good.client, good.survivors, twice, b""))
    for shares in given.values():
        server.receive_shares(shares.to_bytes())
    assert (server.unmask() == added(words, terms.cohort[:7])).all()


def test_two_thousand_mutilated_messages_and_no_wrong_sum(cohort: Cohort) -> None:
    """Cut, lengthened or with bytes changed, in each step: refused in one line each."""
    generator = np.random.default_rng(0)
    refused = 0

    def mutilated(data: bytes) -> bytes:
        found, kind = bytearray(data), generator.integers(4)
        at = int(generator.integers(len(found)))
        if kind == 0:
            return bytes(found[:at])
        if kind == 1:
            return bytes(found) + generator.bytes(int(generator.integers(1, 9)))
        found[at] ^= 1 << int(generator.integers(8))
        if kind == 3:
            found[:4] = generator.bytes(4)
        return bytes(found)

    for attempt in range(4):
        terms = cohort.terms(attempt)
        words = cohort.words(terms, attempt)
        server = MaskedServer(terms, cohort.registry, POLICY)
        for name in terms.cohort:
            data = cohort.clients[name].mask(terms, words[name])
            for _ in range(40):
                with pytest.raises(Refused):
                    server.receive(mutilated(data))
                refused += 1
            server.receive(data)
        server.close()
        for name in terms.cohort:
            signature = cohort.clients[name].sign(terms, server.survivors)
            with pytest.raises(Refused):
                server.receive_signature(name, mutilated(signature))
            refused += 1
            server.receive_signature(name, signature)
        for name, asked in server.requests().items():
            client = cohort.clients[name]
            data = client.reveal(terms, asked.survivors, asked.signatures, asked.boxes)
            for _ in range(40):
                with pytest.raises(Refused):
                    server.receive_shares(mutilated(data))
                refused += 1
            server.receive_shares(data)
        assert (server.unmask() == added(words, terms.cohort)).all()
    assert refused >= 2000
