"""Keys on disk, the registry, what pairs derive, and contributions that cannot be chosen."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from maskers import identity

from fedpers.channels.identity.encoding import Refused, encode
from fedpers.channels.identity.identity import STRIDE, Identity
from fedpers.channels.identity.registry import TAGS, Public, Registry
from fedpers.errors import ConfigError


def test_keys_come_back_from_a_file_that_only_their_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "identity.json"
    made = Identity.new("clinic-7")
    made.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.json"]
    found = Identity.load(path)
    assert found.public == made.public
    assert found.seed(identity(0).public, b"mask") == made.seed(identity(0).public, b"mask")
    with pytest.raises(ConfigError, match="a second key is another client"):
        Identity.new("clinic-7").save(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"client": "a", "agreement": "zz"}', "null"])
def test_a_file_that_is_no_identity_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "identity.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="identity: got"):
        Identity.load(path)


def test_a_file_that_others_may_read_a_link_and_no_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    with pytest.raises(ConfigError, match="enrol the client"):
        Identity.load(path)
    Identity.new("a").save(path)
    os.symlink(path, tmp_path / "link")
    with pytest.raises(ConfigError):
        Identity.load(tmp_path / "link")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Identity.load(path)


def test_two_identities_share_nothing() -> None:
    one, two = Identity.new("a").public, Identity.new("a").public
    for key in ("agreement", "verifying", "anchor", "signature"):
        assert getattr(one, key) != getattr(two, key)


def test_a_public_half_is_bound_to_its_client_and_to_all_its_keys() -> None:
    public, other = identity(0).public, identity(1).public
    assert Public.from_json(json.loads(json.dumps(public.to_json()))) == public
    for key in ("client", "agreement", "verifying", "anchor", "signature"):
        changed = replace(public, **{key: getattr(other, key)})
        with pytest.raises(ConfigError, match="a signature of other keys"):
            Public.from_json(changed.to_json())


def test_a_registry_is_read_back_and_knows_whose_key_changed() -> None:
    registry = Registry(identity(number).public for number in range(3))
    assert Registry.from_json(registry.to_json()).publics == registry.publics
    registry.check(identity(1).public)
    anew = Identity.new(identity(1).client)
    with pytest.raises(Refused, match="client-0001: its identity key has changed"):
        registry.check(anew.public)
    with pytest.raises(Refused, match="stranger: got an unknown client"):
        registry.check(Identity.new("stranger").public)


def test_a_registry_takes_a_client_once_and_a_key_once() -> None:
    public = identity(0).public
    with pytest.raises(ConfigError, match="client-0000 and client-0000"):
        Registry([public, Identity.new(public.client).public])
    with pytest.raises(ConfigError, match="client-0000 and twin"):
        Registry([public, replace(public, client="twin")])
    with pytest.raises(ConfigError, match="a list of public identities"):
        Registry.from_json("{}")
    with pytest.raises(ConfigError, match="a list of public identities"):
        Registry.from_json("[1]")


def test_a_pair_derives_the_same_seeds_and_nobody_else_does() -> None:
    one, two, three = identity(0), identity(1), identity(2)
    seed = one.seed(two.public, b"mask")
    assert seed == two.seed(one.public, b"mask")
    assert seed not in (three.seed(one.public, b"mask"), three.seed(two.public, b"mask"))


def test_seeds_of_rounds_are_hkdf_of_the_agreement_computed_here_by_hmac_alone() -> None:
    """Each seed is a value of its own of one keyed function: HMAC under a key that stays secret,
    so that seeds of some rounds tell of those of others no more than HMAC-SHA-256 does."""

    one, two = identity(0), identity(1)
    private = X25519PrivateKey.from_private_bytes(one._secrets["agreement"])
    agreed = private.exchange(X25519PublicKey.from_public_bytes(two.public.agreement))
    both = sorted(encode(who.client, who.public.agreement) for who in (one, two))
    extracted = hmac.digest(bytes(32), agreed, "sha256")  # RFC 5869, with a salt of zeros
    info = encode("fedpers masked", "pair", *both)
    pair = hmac.digest(extracted, info + b"\x01", "sha256")  # the first block of the expansion
    found = {one.seed(two.public, bytes([tag])) for tag in range(50)}
    assert found == {hmac.digest(pair, bytes([tag, 1]), "sha256") for tag in range(50)}
    assert len(found) == 50 and pair not in found and agreed not in found


def test_a_key_without_a_secret_is_refused() -> None:
    """A point of low order makes the agreement zero, which anybody knows."""
    with pytest.raises(Refused, match="bad agreement key"):
        identity(0).seed(replace(identity(1).public, agreement=bytes(32)), b"mask")


@pytest.mark.parametrize("tag", [0, 1, STRIDE - 1, STRIDE, STRIDE + 1, TAGS - 1, TAGS])
def test_contributions_are_a_chain_that_ends_in_the_anchor(tag: int) -> None:
    value = identity(0).contribution(tag)
    for _ in range(tag):
        value = hashlib.sha256(b"fedpers contribution" + value).digest()
    assert value == identity(0).public.anchor


def test_a_client_has_one_contribution_a_tag() -> None:
    registry = Registry(identity(number).public for number in range(2))
    mine, name = identity(0), identity(0).client
    for tag in (5, 9, 2, TAGS):  # in any order: a registry serves many runs
        registry.check_contribution(name, tag, mine.contribution(tag))
        registry.check_contribution(name, tag, mine.contribution(tag))
    for tag, value in [
        (5, mine.contribution(6)),
        (6, mine.contribution(5)),
        (5, identity(1).contribution(5)),
        (5, bytes(32)),
        (0, mine.contribution(0)),
        (TAGS + 1, bytes(32)),
    ]:
        with pytest.raises(Refused, match="not its own"):
            registry.check_contribution(name, tag, value)
    with pytest.raises(Refused, match="make a new identity"):
        mine.contribution(TAGS + 1)
