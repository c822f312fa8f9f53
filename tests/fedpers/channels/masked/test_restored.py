"""A client whose memory comes from a backup masks again under pads that it used: what a server
makes of that, with two of eight clients working for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from maskers import Cohort

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.masked import masks, shamir
from fedpers.channels.masked.client import MaskedClient, opened
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.messages import Shares, Upload
from fedpers.channels.masked.session import Session

POLICY = Policy(minimum=4, corrupt=0.25, dropouts=0.3)
VICTIM, CORRUPT = "client-0001", ("client-0006", "client-0007")


def attack(cohort: Cohort) -> tuple[masks.Words, masks.Words]:
    """The difference of two vectors of the victim as the server finds it, and as it is.

    Both uploads hold the same pair masks. The set names the first; one helper is handed the box of
    the second all the same.
    """
    terms = cohort.terms()
    first, second = cohort.words(terms, 1), cohort.words(terms, 2)
    before = json.loads(cohort.memory.path.read_text())[VICTIM]
    server = cohort.uploaded(terms, first, ())
    sent = {name: one.mask(terms, first[name]) for name, one in cohort.clients.items()}
    for name, data in sent.items():
        server.receive(name, data)
    now = json.loads(cohort.memory.path.read_text())
    cohort.memory.path.write_text(json.dumps({**now, VICTIM: before}))
    again = cohort.clients[VICTIM].mask(terms, second[VICTIM])
    uploads = [Upload.from_bytes(sent[VICTIM]), Upload.from_bytes(again)]
    session, places = server.session, server.session.places(VICTIM)

    shown, others = server.close(), [name for name in terms.cohort if name != VICTIM]
    with pytest.raises(Refused, match="another upload of this client, takes the one that it sent"):
        cohort.clients[VICTIM].sign(terms, shown)
    cohort.signed(terms, server, others)
    boxed = session.boxed(VICTIM)
    size = len(uploads[0].boxes) // len(boxed)
    known: list[dict[int, bytes]] = [{}, {}]  # of each upload: point -> share of the own seed
    for name, boxes in server.boxes().items():
        turned = name == "client-0005"
        if turned:
            at = boxed.index(name) * size
            boxes[VICTIM] = uploads[1].boxes[at : at + size]
        answer = cohort.clients[name].reveal(terms, shown, server.signatures, boxes)
        if row := Shares.from_bytes(answer).owners.get(VICTIM):
            for which in (0, 1) if name in session.deriving(VICTIM) else (int(turned),):
                known[which][places[name]] = row[: shamir.BYTES]
    for name in CORRUPT:
        at = boxed.index(name) * size
        for which, upload in enumerate(uploads):
            key = cohort.clients[name]._key(session, VICTIM, upload.commitments[:32])
            box = opened(key, upload.boxes[at : at + size], len(places))
            assert box is not None
            known[which][places[name]] = box[: shamir.BYTES]

    found = cohort.layout.unpacked(uploads[0].vector) - cohort.layout.unpacked(uploads[1].vector)
    for shares, sign in zip(known, (-1, 1), strict=True):
        chosen = dict(list(shares.items())[: session.graph.threshold])
        masks.add(found, shamir.combine(chosen), sign)
    true = first[VICTIM] - second[VICTIM]
    layout = cohort.layout
    return tuple(layout.unpacked(layout.packed(one)) for one in (found, true))  # type: ignore[return-value]


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path, 8, POLICY, length=60)


def test_of_two_uploads_under_one_tag_the_own_seed_of_one_comes_out_at_most(
    cohort: Cohort,
) -> None:
    found, true = attack(cohort)
    assert not (found == true).any()


def test_with_shares_that_are_not_of_one_upload_the_same_attack_finds_the_difference(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(one: MaskedClient, session: Session, other: str, commitment: bytes) -> bytes:
        return one.identity.seed(session.publics[other], b"shares" + session.digest)

    monkeypatch.setattr(MaskedClient, "_key", key)
    found, true = attack(cohort)
    assert np.array_equal(found, true)


def test_a_client_that_forgot_what_it_signed_reaches_no_quorum_with_the_corrupt(
    cohort: Cohort,
) -> None:
    """It signs a second set, as they do: three of the six that it takes."""
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort)
    shown = server.close()
    before = json.loads(cohort.memory.path.read_text())[VICTIM]
    cohort.signed(terms, server, terms.cohort)
    now = json.loads(cohort.memory.path.read_text())
    cohort.memory.path.write_text(json.dumps({**now, VICTIM: before}))
    less = {name: upload for name, upload in shown.items() if name != "client-0000"}
    one = cohort.clients[VICTIM]
    signatures = {VICTIM: one.sign(terms, less)}
    digest = server.session.survivors(less)
    signatures |= {name: cohort.clients[name].identity.sign(digest) for name in CORRUPT}
    with pytest.raises(Refused, match="signatures: got 3 good ones, takes 6"):
        one.reveal(terms, less, signatures, {})
