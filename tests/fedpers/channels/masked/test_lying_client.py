"""Clients that send what they should not: refused, passed over, or the round is dropped."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from maskers import Cohort, added, answered

from fedpers.channels.identity.encoding import Refused, decode, encode
from fedpers.channels.masked.client import NONCE, MaskedClient
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.messages import Dropped, Shares, Upload, summed, unsummed
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Session, Terms

POLICY = Policy(minimum=3, corrupt=0.25, dropouts=0.3)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path, 8, POLICY)


def answers(cohort: Cohort, terms: Terms, server: MaskedServer) -> dict[str, Shares]:
    """What each signer would give."""
    server.close()
    cohort.signed(terms, server, server.survivors)
    given = answered(cohort.revealing(terms, server, server.survivors))
    return {name: Shares.from_bytes(data) for name, data in given.items()}


def spoilt(shares: Shares) -> Shares:
    """The same with one bit of each row changed."""
    rows = {owner: row[:-1] + bytes([row[-1] ^ 1]) for owner, row in shares.owners.items()}
    return replace(shares, owners=rows)


def boxed(owner: MaskedClient, session: Session, helper: str, upload: Upload, row: bytes) -> bytes:
    """A row as the owner boxes it for a helper."""
    return AESGCM(owner._key(session, helper, upload.commitments[:32])).encrypt(NONCE, row, None)


def test_a_helper_s_garbage_is_passed_over_and_the_helper_suspected(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[:7])
    for name, shares in answers(cohort, terms, server).items():
        server.receive_shares(name, (spoilt(shares) if name[-1] == "2" else shares).to_bytes())
    assert (server.unmask() == added(words, terms.cohort[:7])).all()
    assert server.suspects == {"client-0002"}


def test_more_garbage_than_spare_shares_drops_the_round(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort)
    for place, (name, shares) in enumerate(answers(cohort, terms, server).items()):
        server.receive_shares(name, (spoilt(shares) if place % 2 else shares).to_bytes())
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
        boxed(liar, server.session, helper, upload, os.urandom(16 * 8))
        for helper in server.session.boxed("client-0000")
    ]
    server.receive("client-0000", replace(upload, boxes=b"".join(garbage)).to_bytes())
    for name, shares in answers(cohort, terms, server).items():
        server.receive_shares(name, shares.to_bytes())
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
        helpers = server.session.boxed("client-0000")
        rows = [boxed(liar, server.session, one, upload, bytes(16)) for one in helpers]
        boxes = b"".join(row.ljust(len(boxes) // len(rows)) for row in rows)
    server.receive("client-0000", replace(upload, boxes=boxes).to_bytes())
    if short:  # as a server would pass them on that works with the liar
        server._boxes["client-0000"] = dict(
            zip(server.session.boxed("client-0000"), rows, strict=True)
        )
    deriving = server.session.deriving("client-0000")
    for name, shares in answers(cohort, terms, server).items():
        assert ("client-0000" in shares.owners) == (name in deriving)
        server.receive_shares(name, shares.to_bytes())
    with pytest.raises(Dropped, match="4 shares of client-0000's seeds, takes 5"):
        server.unmask()


def test_a_commitment_to_another_seed_drops_the_round(cohort: Cohort) -> None:
    """To the one with client-0001, who is lost, so that it has to come out."""
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[2:])
    upload = Upload.from_bytes(cohort.clients["client-0000"].mask(terms, words["client-0000"]))
    changed = upload.commitments[:32] + bytes(32) + upload.commitments[64:]
    server.receive("client-0000", replace(upload, commitments=changed).to_bytes())
    for name, shares in answers(cohort, terms, server).items():
        server.receive_shares(name, shares.to_bytes())
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
        server.receive(name, uploads[name])
    with pytest.raises(Refused, match="a second upload"):
        server.receive("client-0000", uploads["client-0000"])
    server.close()
    with pytest.raises(Refused, match="client-0007: got an upload after"):
        server.receive("client-0007", uploads["client-0007"])


def test_an_upload_of_another_round_name_or_size_is_refused(cohort: Cohort) -> None:
    old = cohort.terms()
    words = cohort.words(old)
    stale = cohort.clients["client-0000"].mask(old, words["client-0000"])
    terms = cohort.terms()
    server = MaskedServer(terms, cohort.registry, POLICY)
    good = Upload.from_bytes(cohort.clients["client-0000"].mask(terms, words["client-0000"]))
    whole = good.to_bytes()
    for data, match in [
        (stale, "for other terms"),
        (replace(good, client="client-0001").to_bytes(), "client-0000: got the upload of client-"),
        (replace(good, vector=good.vector[:-1]).to_bytes(), "boxes, commitments, vector"),
        (replace(good, boxes=good.boxes + b"1").to_bytes(), "boxes, commitments, vector"),
        (replace(good, commitments=b"").to_bytes(), "boxes, commitments, vector"),
        (whole[:-1], "cut or changed on their way"),
        (bytes([whole[0] ^ 1]) + whole[1:], "cut or changed on their way"),
        (b"", "cut or changed on their way"),
        (summed(b"abc"), "cannot be read"),
        (summed(encode(b"\xff", *decode(unsummed(whole, ""), 5, "")[1:])), "UTF-8"),
    ]:
        with pytest.raises(Refused, match=match):
            server.receive("client-0000", data)
    for sender, match in [("stranger", "outside the cohort"), ("client-0001", "takes its own")]:
        with pytest.raises(Refused, match=match):  # the transport knows who sent it
            server.receive(sender, whole)
    server.receive("client-0000", whole)


def test_shares_of_others_of_another_set_or_size_are_refused(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[:7])
    given = answers(cohort, terms, server)
    good = given["client-0000"]
    row = good.owners["client-0001"]
    for sender, shares, match in [
        ("client-0007", replace(good, client="client-0007"), "who did not sign"),
        ("client-0001", good, "client-0001: got the shares of client-0000, takes its own"),
        ("client-0000", replace(good, survivors=bytes(32)), "for another set"),
        ("client-0000", replace(good, owners={"client-0007": row}), "shares of client-0007"),
        ("client-0000", replace(good, owners={"client-0000": row}), "shares of client-0000"),
        ("client-0000", replace(good, owners={"client-0001": row[:-1]}), "takes its row"),
        ("client-0000", replace(good, owners={"client-0001": row + row[:16]}), "takes its row"),
    ]:
        with pytest.raises(Refused, match=match):
            server.receive_shares(sender, shares.to_bytes())
    twice = encode("client-0001", row, "client-0001", row)
    with pytest.raises(Refused, match="a name twice"):
        Shares.from_bytes(summed(encode(good.client, good.survivors, twice)))
    for name, right in given.items():
        server.receive_shares(name, right.to_bytes())
    assert (server.unmask() == added(words, terms.cohort[:7])).all()
