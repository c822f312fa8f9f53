"""What a client has served is on its disk before anything leaves, and is served once."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from maskers import Cohort

from fedpers.channels.identity.encoding import Refused
from fedpers.channels.identity.identity import Identity
from fedpers.channels.masked.client import carry_out
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.memory import Memory
from fedpers.errors import ConfigError

PAIRS = Policy(minimum=2, corrupt=0.2, dropouts=0.3, attempts=2)
SPARSE = replace(PAIRS, all_pairs=3, security=1, correctness=1)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path, 5, PAIRS)


def state(cohort: Cohort, name: str) -> dict[str, object]:
    found = json.loads(cohort.memory.path.read_text())[name]
    assert isinstance(found, dict)
    return found


def test_each_step_is_on_the_disk_before_its_message(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 9, SPARSE)
    terms = cohort.terms()
    assert terms.contributions
    one = cohort.clients[terms.cohort[0]]
    joined = state(cohort, one.me)
    assert joined["tag"] == 1 and joined["session"]
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort)
    uploaded = state(cohort, one.me)
    assert uploaded["session"] not in ("", joined["session"]) and not uploaded["survivors"]
    one.sign(terms, server.close())
    assert state(cohort, one.me)["survivors"] == server._digest.hex()
    assert one.memory.path.stat().st_mode & 0o777 == 0o600


def test_nothing_leaves_if_the_disk_refuses(cohort: Cohort) -> None:
    """A folder where the file was: it can neither be read nor replaced."""
    terms = cohort.terms()
    one = cohort.clients[terms.cohort[0]]
    one.memory.path.unlink()
    one.memory.path.mkdir()
    with pytest.raises(Refused, match="memory"):
        one.mask(terms, cohort.words(terms)[one.me])


def test_a_vector_is_masked_once_a_tag_whatever_the_words(cohort: Cohort) -> None:
    terms = cohort.terms()
    one, words = cohort.clients[terms.cohort[0]], cohort.words(terms)
    one.mask(terms, words[one.me])
    with pytest.raises(Refused, match="which was served"):
        one.mask(terms, words[one.me])
    with pytest.raises(Refused, match="which was served"):
        one.mask(replace(terms, round=7), words[one.me])
    with pytest.raises(Refused, match="which was served"):
        one.mask(replace(terms, run="another run"), words[one.me])


def test_a_client_whose_memory_is_gone_is_silent(cohort: Cohort) -> None:
    terms = cohort.terms()
    one, words = cohort.clients[terms.cohort[0]], cohort.words(terms)
    one.memory.path.unlink()
    with pytest.raises(Refused, match="enrol anew"):
        one.mask(terms, words[one.me])
    assert not one.memory.path.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"client-0000": {"more": 2}}', '{"client-0000": 3}', "\0"]
)
def test_a_memory_that_cannot_be_read_is_silence(cohort: Cohort, text: str) -> None:
    terms = cohort.terms()
    one = cohort.clients[terms.cohort[0]]
    one.memory.path.write_text(text)
    with pytest.raises(Refused, match="cannot be read"):
        one.mask(terms, cohort.words(terms)[one.me])


def test_a_link_in_place_of_the_memory_is_refused(cohort: Cohort) -> None:
    terms = cohort.terms()
    one = cohort.clients[terms.cohort[0]]
    other = one.memory.path.with_name("other.json")
    one.memory.path.rename(other)
    os.symlink(other, one.memory.path)
    with pytest.raises(Refused, match="cannot be read"):
        one.mask(terms, cohort.words(terms)[one.me])


def test_a_repeated_round_takes_a_new_tag_and_other_pads_and_only_so_often(cohort: Cohort) -> None:
    first, second, third = cohort.terms(3), cohort.terms(3), cohort.terms(3)
    words = cohort.words(first)
    one = cohort.clients[first.cohort[0]]
    assert one.tag == 0
    uploads = [one.mask(terms, words[one.me]) for terms in (first, second)]
    assert one.tag == second.tag
    assert uploads[0] != uploads[1]
    with pytest.raises(Refused, match=r"round 3: got tag number 3, takes 2 a round"):
        one.mask(third, words[one.me])
    one.mask(cohort.terms(4), words[one.me])
    with pytest.raises(Refused, match="round 3"):  # nor after another round
        one.mask(cohort.terms(3), words[one.me])
    one.mask(replace(cohort.terms(3), run="the next run"), words[one.me])


def test_steps_are_taken_in_order(cohort: Cohort) -> None:
    terms = cohort.terms()
    one = cohort.clients[terms.cohort[0]]
    survivors = dict.fromkeys(terms.cohort, bytes(32))
    with pytest.raises(Refused, match="not agreed to"):
        one.sign(terms, survivors)
    one.mask(terms, cohort.words(terms)[one.me])
    signatures = dict.fromkeys(terms.cohort, b"")
    with pytest.raises(Refused, match="signatures: got 0 good ones"):
        one.reveal(terms, survivors, signatures, {})
    later = cohort.terms()
    one.mask(later, cohort.words(later)[one.me])
    with pytest.raises(Refused, match="not agreed to"):  # the old tag is over
        one.sign(terms, survivors)


def test_a_restarted_client_goes_on_from_its_file(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, 5, PAIRS)
    terms = cohort.terms()
    words = cohort.words(terms)
    server = cohort.uploaded(terms, words, terms.cohort)
    server.close()
    for name, client in cohort.clients.items():  # every client is a new object, from files alone
        path = tmp_path / "keys" / name
        client.identity.save(path)
        client.identity, client.memory = Identity.load(path), Memory(client.memory.path)
    cohort.signed(terms, server, terms.cohort)
    cohort.revealed(terms, server, terms.cohort)
    server.unmask()


def test_of_two_processes_at_once_one_masks(cohort: Cohort) -> None:
    terms = cohort.terms()
    one, words = cohort.clients[terms.cohort[0]], cohort.words(terms)

    def mask(_: int) -> bool:
        try:
            return bool(one.mask(terms, words[one.me]))
        except Refused:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(mask, range(16))) == 1


def test_a_memory_is_made_once(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m.json")
    memory.enrol(["one"])
    memory.enrol(["two"])
    with pytest.raises(ConfigError, match="not forgotten"):
        memory.enrol(["one"])
    with pytest.raises(Refused, match="memory: it does not know three"):
        memory.of("three")


def test_of_several_clients_one_that_may_not_costs_itself(cohort: Cohort) -> None:
    terms = cohort.terms()
    words = cohort.words(terms)
    cohort.clients["client-0002"].mask(terms, words["client-0002"])
    found = carry_out([one.uploading(terms) for one in cohort.clients.values()])
    assert [name for name, said in found.items() if isinstance(said, Exception)] == ["client-0002"]
    assert {row.tag for row in cohort.memory.read().values()} == {terms.tag}
