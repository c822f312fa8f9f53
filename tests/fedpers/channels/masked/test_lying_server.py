"""A server that does not keep to the protocol, each lie tried on real clients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from maskers import Cohort, added, identity, of

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.identity import Identity
from fedpers.channels.identity.registry import Registry
from fedpers.channels.masked import masks, shamir
from fedpers.channels.masked.client import MaskedClient, opened
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.memory import Memory
from fedpers.channels.masked.messages import Dropped, Shares, Upload
from fedpers.channels.masked.quantise import Layout
from fedpers.channels.masked.server import MaskedServer
from fedpers.channels.masked.session import Session, Terms

PAIRS = Policy(minimum=4, corrupt=0.25, dropouts=0.3)
SPARSE = replace(PAIRS, all_pairs=3, security=2, correctness=2)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path, 8, PAIRS)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("client-0000", "client-0001", "client-0002"), "got 3 clients, takes 4 or more"),
        (("client-0000", "client-0000", "client-0001", "client-0002"), "out of order or twice"),
        (("client-0001", "client-0000", "client-0002", "client-0003"), "out of order or twice"),
        (("client-0000", "client-0001", "client-0002", "sybil"), "sybil: got an unknown client"),
        (("client-0001", "client-0002", "client-0003", "client-0004"), "without client-0000"),
    ],
)
def test_a_cohort_that_does_not_hold_gets_no_upload(
    cohort: Cohort, names: tuple[str, ...], match: str
) -> None:
    one = cohort.clients["client-0000"]
    with pytest.raises(Refused, match=match):
        one.mask(Terms("run", 0, 1, names, cohort.layout), np.zeros(cohort.layout.words, np.uint64))


def test_terms_with_another_layout_or_no_tag_get_no_upload(cohort: Cohort) -> None:
    terms = cohort.terms()
    one, words = cohort.clients["client-0000"], cohort.words(terms)["client-0000"]
    for wrong, match in [
        (replace(terms, tag=0), "tag: got 0"),
        (replace(terms, tag=-3), "tag: got -3"),
        (replace(terms, layout=Layout(cohort.layout.fields[:1], 7)), "takes 7 or fewer"),
        (replace(terms, contributions=(b"",)), "contributions: got 1, takes 0"),
    ]:
        with pytest.raises(Refused, match=match):
            one.mask(wrong, words)
    with pytest.raises(Refused, match="vector: got 1 words"):
        one.mask(terms, words[:1])


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        (lambda all_of: all_of[:1], "survivors: got 1, takes 6 or more"),
        (lambda all_of: all_of[:5], "survivors: got 5, takes 6 or more"),
        (lambda all_of: (*all_of[:6], "sybil"), r"\['sybil'\], takes clients of the cohort"),
        (lambda all_of: all_of[1:], "survivors: got a set without client-0000"),
        (lambda all_of: (*all_of[:5], all_of[6], all_of[5]), "out of order or twice"),
    ],
)
def test_a_set_of_survivors_that_does_not_hold_is_not_signed(
    cohort: Cohort, chosen: object, match: str
) -> None:
    """Above all "only client-0000 answered", which would be its vector in full."""
    terms = cohort.terms()
    server = cohort.uploaded(terms, cohort.words(terms), terms.cohort)
    shown = server.close()
    with pytest.raises(Refused, match=match):
        cohort.clients["client-0000"].sign(terms, of(shown, chosen(terms.cohort)))  # type: ignore[operator]


def test_a_set_that_cuts_the_graph_is_not_signed(tmp_path: Path) -> None:
    """Of thirty clients enough are there, but two gaps set a stretch of the ring apart."""
    cohort = Cohort(tmp_path, 30, replace(SPARSE, corrupt=0.1))
    terms = cohort.terms()
    graph = Session(terms, cohort.registry, cohort.policy).graph
    gap, most = graph.k // 2, len(graph.ring) // 2
    assert 2 <= graph.k < 14
    gone = {*graph.ring[:gap], *graph.ring[most : most + gap]}
    left = tuple(name for name in terms.cohort if name not in gone)
    assert len(left) >= cohort.policy.quorum(30)
    one = cohort.clients[left[0]]
    one.mask(terms, cohort.words(terms)[one.me])
    with pytest.raises(Refused, match="too few in some place of the graph"):
        one.sign(terms, of({}, left))


def test_the_minimum_is_of_survivors_too(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 8, replace(PAIRS, minimum=8))
    terms = cohort.terms()
    one = cohort.clients["client-0000"]
    one.mask(terms, cohort.words(terms)[one.me])
    with pytest.raises(Refused, match="survivors: got 7, takes 8 or more"):
        one.sign(terms, of({}, terms.cohort[:7]))


def test_a_second_set_is_signed_by_nobody_and_the_first_again(cohort: Cohort) -> None:
    terms = cohort.terms()
    shown = cohort.uploaded(terms, cohort.words(terms), terms.cohort).close()
    for client in list(cohort.clients.values())[:7]:
        first = client.sign(terms, shown)
        with pytest.raises(Refused, match="a second set of survivors"):
            client.sign(terms, of(shown, terms.cohort[:7]))
        assert client.sign(terms, dict(shown)) == first


def test_a_client_signs_no_set_with_an_upload_that_it_did_not_send(cohort: Cohort) -> None:
    terms = cohort.terms()
    server = cohort.uploaded(terms, cohort.words(terms), terms.cohort)
    shown = {**server.close(), "client-0003": bytes(32)}
    with pytest.raises(Refused, match="tag 1: got a set with another upload of this client"):
        cohort.clients["client-0003"].sign(terms, shown)


def test_split_views_reach_no_quorum_even_if_the_corrupt_sign_both(cohort: Cohort) -> None:
    """8 clients, 2 corrupt: the honest 6 see two sets, 3 each; with the corrupt 5 sign each, and
    a quorum is 6. (Bonawitz et al. 2017, ConsistencyCheck.)"""
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort)
    whole = server.close()
    session = Session(terms, cohort.registry, PAIRS)
    corrupt, honest = terms.cohort[:2], terms.cohort[2:]
    boxes = server._boxes
    for seen, names in [(whole, honest[3:]), (of(whole, terms.cohort[:7]), honest[:3])]:
        signatures = {name: cohort.clients[name].sign(terms, seen) for name in names}
        for name in corrupt:
            signatures[name] = identity(int(name[-1])).sign(session.survivors(seen))
        assert len(signatures) == 5 and server.session.quorum == 6
        for name in names:
            sent = {owner: row[name] for owner, row in boxes.items() if name in row}
            with pytest.raises(Refused, match="got 5 good ones, takes 6"):
                cohort.clients[name].reveal(terms, seen, signatures, sent)


def test_clients_that_were_told_different_terms_add_up_to_nothing(cohort: Cohort) -> None:
    """Under one tag half of them are in round 1 and half in round 2: no pads cancel, and neither
    half is a quorum."""
    terms = {False: cohort.terms(1)}
    terms[True] = replace(terms[False], round=2)
    words = cohort.words(terms[False])
    told = {name: terms[place >= 4] for place, name in enumerate(cohort.clients)}
    servers = {half: MaskedServer(terms[half], cohort.registry, PAIRS) for half in terms}
    shown = dict[str, bytes]()
    for place, (name, client) in enumerate(cohort.clients.items()):
        data = client.mask(told[name], words[name])
        with pytest.raises(Refused, match="for other terms"):
            servers[place < 4].receive(name, data)
        servers[place >= 4].receive(name, data)
        shown[name] = Upload.from_bytes(data).commitments[:32]
    for name, client in cohort.clients.items():
        with pytest.raises(Refused, match="not agreed to"):
            client.sign(terms[told[name] is terms[False]], shown)
        assert client.sign(told[name], shown)  # it cannot know yet
    digest = Session(terms[False], cohort.registry, PAIRS).survivors(shown)
    signatures = {name: one.sign(told[name], shown) for name, one in cohort.clients.items()}
    with pytest.raises(Refused, match="got 4 good ones, takes 6"):
        cohort.clients["client-0000"].reveal(terms[False], shown, signatures, {})
    assert digest != Session(terms[True], cohort.registry, PAIRS).survivors(shown)


def test_signatures_of_strangers_other_tags_and_other_sets_do_not_count(cohort: Cohort) -> None:
    old = cohort.terms()
    before = cohort.uploaded(old, cohort.words(old), old.cohort).close()
    old_signatures = {name: c.sign(old, before) for name, c in cohort.clients.items()}
    terms = cohort.terms()
    shown = cohort.uploaded(terms, cohort.words(terms), terms.cohort).close()
    one = cohort.clients["client-0000"]
    own = one.sign(terms, shown)
    forged = {name: identity(0).sign(b"anything") for name in terms.cohort}
    twice = {f"{name} ": own for name in terms.cohort}
    for signatures in (old_signatures, forged, twice, dict.fromkeys(terms.cohort, own)):
        with pytest.raises(Refused, match="good ones, takes 6"):
            one.reveal(terms, shown, {**signatures, one.me: own}, {})
    with pytest.raises(Refused, match="not agreed to"):
        one.reveal(old, before, old_signatures, {})


def test_shares_go_out_for_the_set_that_was_signed_alone(cohort: Cohort) -> None:
    """Even if a quorum of others signed another one behind this client's back."""
    terms = cohort.terms()
    shown = cohort.uploaded(terms, cohort.words(terms), terms.cohort).close()
    one = cohort.clients["client-0000"]
    one.sign(terms, shown)
    less = of(shown, terms.cohort[:7])
    digest = Session(terms, cohort.registry, PAIRS).survivors(less)
    signatures = {name: identity(int(name[-1])).sign(digest) for name in less}
    with pytest.raises(Refused, match="a second set of survivors"):
        one.reveal(terms, less, signatures, {})


def revealed(
    cohort: Cohort, lost: tuple[str, ...]
) -> tuple[Terms, dict[str, Upload], list[Shares]]:
    """A whole round in which ``lost`` upload too late: what the server sees of it."""
    terms = cohort.terms()
    words = cohort.words(terms)
    data = {name: cohort.clients[name].mask(terms, words[name]) for name in terms.cohort}
    uploads = {name: Upload.from_bytes(sent) for name, sent in data.items()}
    there = {n: upload.commitments[:32] for n, upload in uploads.items() if n not in lost}
    signatures = {name: cohort.clients[name].sign(terms, there) for name in there}
    session, answers = Session(terms, cohort.registry, cohort.policy), []
    for name in there:
        boxes = {}
        for owner, upload in uploads.items():  # of those that are out too: it may try
            boxed = session.boxed(owner)
            size = len(upload.boxes) // len(boxed)
            if name in boxed:
                at = boxed.index(name) * size
                boxes[owner] = upload.boxes[at : at + size]
        answer = cohort.clients[name].reveal(terms, there, signatures, boxes)
        answers.append(Shares.from_bytes(answer))
    return terms, uploads, answers


@pytest.mark.parametrize("policy", [PAIRS, SPARSE])
def test_of_no_client_both_the_own_seed_and_pair_seeds_with_survivors_come_out(
    tmp_path: Path, policy: Policy
) -> None:
    cohort = Cohort(tmp_path, 12, policy)
    lost = tuple(cohort.clients)[3:5]
    terms, _, answers = revealed(cohort, lost)
    session = Session(terms, cohort.registry, policy)
    for answer in answers:
        assert not answer.owners.keys() & set(lost)  # of those that are out: nothing at all
        for owner, row in answer.owners.items():
            gone = [other for other in session.graph.neighbours(owner) if other in lost]
            assert len(row) == shamir.BYTES * (1 + len(gone))


def test_an_upload_that_comes_after_the_shares_stays_masked(cohort: Cohort) -> None:
    """The server knows all its pair seeds by then; its own seed keeps it (double masking)."""
    late = "client-0003"
    terms, uploads, answers = revealed(cohort, (late,))
    words, session = cohort.words(terms)[late], Session(terms, cohort.registry, PAIRS)
    found = cohort.layout.unpacked(uploads[late].vector)
    for owner in session.graph.neighbours(late):
        points = session.graph.neighbours(owner)
        shares = {
            1 + points.index(answer.client): answer.owners[owner][16:]
            for answer in answers
            if owner in answer.owners
        }
        seed = shamir.combine(shares)
        assert seed == cohort.clients[owner]._pair(session, late)
        masks.add(found, seed, -masks.side(late, owner))
    found = cohort.layout.unpacked(cohort.layout.packed(found))
    assert (found != words).all()
    with pytest.raises(Refused, match="which was served"):  # nor can it be asked again
        cohort.clients[late].mask(terms, words)


def test_boxes_of_other_helpers_owners_and_tags_do_not_open(cohort: Cohort) -> None:
    old, old_uploads, _ = revealed(cohort, ())
    terms, uploads, answers = revealed(cohort, ())
    assert old.tag < terms.tag and all(len(answer.owners) == 7 for answer in answers)
    session = Session(terms, cohort.registry, PAIRS)
    one = cohort.clients["client-0005"]
    assert session.boxed("client-0001") == ("client-0005", "client-0006", "client-0007")
    size = len(uploads["client-0001"].boxes) // 3
    mine = uploads["client-0001"].boxes[:size]
    keys = {
        owner: one._key(session, owner, upload.commitments[:32])
        for owner, upload in uploads.items()
        if owner != one.me
    }
    assert opened(keys["client-0001"], mine, 8)
    for box, owner in [
        (mine, "client-0002"),
        (uploads["client-0001"].boxes[size : 2 * size], "client-0001"),
        (old_uploads["client-0001"].boxes[:size], "client-0001"),
        (mine[:-1] + bytes([mine[-1] ^ 1]), "client-0001"),
        (mine[:9], "client-0001"),
        (b"", "client-0001"),
    ]:
        assert opened(keys[owner], box, 8) is None


def test_an_altered_public_key_is_named_and_what_was_masked_with_it_not_taken(
    cohort: Cohort, tmp_path: Path
) -> None:
    forged = Identity.new("client-0001").public
    with pytest.raises(Refused, match="client-0001: its identity key has changed"):
        cohort.registry.check(forged)
    others = [public for name, public in cohort.registry.publics.items() if name != "client-0001"]
    memory = Memory(tmp_path / "fooled.json")
    memory.enrol(["client-0000"])
    fooled = MaskedClient(identity(0), Registry([*others, forged]), PAIRS, memory)
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort[1:])
    with pytest.raises(Refused, match="client-0000: got an upload for other terms"):
        server.receive("client-0000", fooled.mask(terms, words["client-0000"]))
    with pytest.raises(Refused, match="client-0000: its identity key has changed"):
        MaskedClient(
            Identity.new("client-0000"),
            cohort.registry,
            PAIRS,
            cohort.clients["client-0000"].memory,
        )


@pytest.mark.parametrize("other", [{"minimum": 5}, {"corrupt": 0.1}, {"security": 39}])
def test_a_server_under_another_policy_gets_nothing_that_fits(
    cohort: Cohort, other: dict[str, int]
) -> None:
    terms = cohort.terms()
    server = MaskedServer(terms, cohort.registry, replace(PAIRS, **other))  # type: ignore[arg-type]
    one = cohort.clients["client-0000"]
    with pytest.raises(Refused, match="compare registry, policy, layout and tag"):
        server.receive(one.me, one.mask(terms, cohort.words(terms)[one.me]))


def test_a_graph_s_seed_cannot_be_ground(tmp_path: Path) -> None:
    """A contribution is one of its client alone, and is said when cohort and tag are fixed."""
    cohort = Cohort(tmp_path, 9, SPARSE)
    bare = Terms("run", 0, 5, tuple(cohort.clients), cohort.layout)
    one = cohort.clients["client-0000"]
    given = {name: client.advertise(bare) for name, client in cohort.clients.items()}
    good = replace(bare, contributions=tuple(given.values()))
    words = cohort.words(good)[one.me]
    for place, value in [
        (3, identity(3).contribution(4)),  # of an earlier tag
        (3, identity(3).contribution(6)),  # of a later one
        (3, given["client-0004"]),
        (3, bytes(32)),
        (0, bytes(32)),  # this client's own
    ]:
        tried = list(good.contributions)
        tried[place] = value
        with pytest.raises(Refused, match=f"client-000{place}: got a contribution that is not"):
            one.mask(replace(bare, contributions=tuple(tried)), words)
    with pytest.raises(Refused, match="contributions: got 0, takes 9"):
        one.mask(bare, words)
    for other in (  # another draw: of other clients, of another run, of a layout
        replace(good, cohort=good.cohort[:8], contributions=good.contributions[:8]),
        replace(good, run="another"),
        replace(good, round=1),
        replace(good, layout=Layout(cohort.layout.fields[:1], 10)),
    ):
        with pytest.raises(Refused, match="not agreed to"):
            one.mask(other, words)
        with pytest.raises(Refused, match="which was served"):
            one.advertise(replace(other, contributions=()))
    one.mask(good, words)


def test_a_graph_is_drawn_anew_only_so_often(tmp_path: Path) -> None:
    """A server that does not like a graph starts over: 3 times here, not 2^40."""
    cohort = Cohort(tmp_path, 9, SPARSE)
    rings = [Session(cohort.terms(), cohort.registry, SPARSE).graph.ring for _ in range(3)]
    assert len(set(rings)) == 3
    with pytest.raises(Refused, match="round 0: got tag number 4, takes 3 a round"):
        cohort.terms()


def test_a_contribution_is_not_said_for_nothing(cohort: Cohort) -> None:
    with pytest.raises(Refused, match="all pairs mask without a seed"):
        cohort.clients["client-0000"].advertise(cohort.terms())


def test_a_server_that_answers_for_clients_gets_no_further_than_their_keys(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort)
    server.close()
    cohort.signed(terms, server, terms.cohort[:5])
    with pytest.raises(Refused, match="not its own"):
        server.receive_signature("client-0006", identity(0).sign(server._digest))
    with pytest.raises(Dropped, match="5 signed, takes 6"):
        server.signatures  # noqa: B018
    cohort.signed(terms, server, terms.cohort[5:])
    cohort.revealed(terms, server, terms.cohort)
    assert (server.unmask() == added(words, terms.cohort)).all()
