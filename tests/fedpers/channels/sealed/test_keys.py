"""Key files: who may read them, what they hold, and what is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from fedpers.channels.sealed import (
    SealedVector,
    auto,
    bfv_for,
    client_from,
    generate,
    load_client,
    load_server,
    new_keys,
    parameters_for,
    rows_for,
    server_from,
    show,
)
from fedpers.channels.sealed.guard import unframe
from fedpers.channels.sealed.keys import MAGIC
from fedpers.channels.sealed.lattice import Channel, Lattice
from fedpers.errors import ConfigError
from fedpers.privacy.noise import secret


def test_written_keys_work_and_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    key_id = new_keys(folder, "auto", 10)
    client, server = load_client(folder / "client.key"), load_server(folder / "server.context")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "client.key").stat().st_mode) == 0o600
    assert sorted(p.name for p in folder.iterdir()) == ["client.key", "server.context"]
    assert client.key_id == server.key_id == key_id
    assert len(key_id) == 16 and int(key_id, 16) >= 0
    vector = torch.tensor([0.5, -0.25])
    sealed = client.seal(vector, range=1.0, source=secret())
    assert float((client.open(server.add([sealed, sealed])) - 2 * vector).abs().max()) < 1e-4


def test_never_overwrites(tmp_path: Path) -> None:
    new_keys(tmp_path, "bfv", 10)
    before = (tmp_path / "client.key").read_bytes()
    with pytest.raises(ConfigError, match="a folder without keys"):
        new_keys(tmp_path, "bfv", 10)
    (tmp_path / "server.context").unlink()
    with pytest.raises(ConfigError, match="a folder without keys"):
        new_keys(tmp_path, "bfv", 10)
    assert (tmp_path / "client.key").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_refuses_a_key_that_others_may_read(tmp_path: Path, mode: int) -> None:
    new_keys(tmp_path, "bfv", 10)
    (tmp_path / "client.key").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_client(tmp_path / "client.key")


def test_refuses_other_cut_and_changed_files(tmp_path: Path) -> None:
    new_keys(tmp_path, "bfv", 10)
    path = tmp_path / "client.key"
    data = path.read_bytes()
    wrong = {
        "length": b"",
        "magic": b"PK" + data[2:],
        "digest": data[:-1],
        "SHA-256": data[:500] + bytes([data[500] ^ 1]) + data[501:],
    }
    for reason, content in wrong.items():
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=reason):
            load_client(path)
        with pytest.raises(ConfigError, match=reason):
            show(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_client(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="a server file"):
        path.write_bytes((tmp_path / "server.context").read_bytes())
        load_client(path)


def test_shows_the_header(tmp_path: Path) -> None:
    key_id = new_keys(tmp_path, "ckks", 100, rows=True)
    for name, holds in (("client.key", "client"), ("server.context", "server")):
        shown = show(tmp_path / name)
        assert (shown["key_id"], shown["scheme"], shown["holds"]) == (key_id, "ckks-rows", holds)
        assert shown["parameters"] == rows_for(100).to_json()
        assert (shown["security"], shown["format"]) == (128, 1)
        assert shown["created"].endswith("+00:00")


@pytest.mark.parametrize("scheme", ["bfv", "ckks-rows"])
def test_the_server_holds_no_secret(scheme: str) -> None:
    parameters = parameters_for(scheme, 4)
    pair = generate(parameters)
    with pytest.raises(ConfigError, match="takes a client file"):
        client_from(pair.server)
    assert not hasattr(server_from(pair.server), "open")
    secret = unframe(MAGIC, pair.client)[1][0]
    lattice = Lattice(parameters)
    key = lattice.seal.SecretKey()
    with Channel() as channel:
        key.load(lattice.context, channel.write(secret))
        size = 48 + 24 + 8 * len(parameters.bits) * parameters.degree
        raw = channel.content(key, size)
        # The server's keys as SEAL holds them, too, not only as they are compressed.
        public = [pair.server]
        for blob, kind in zip(
            unframe(MAGIC, pair.server)[1], ("PublicKey", "RelinKeys"), strict=False
        ):
            loaded = getattr(lattice.seal, kind)()
            loaded.load(lattice.context, channel.write(blob))
            public.append(channel.save(loaded))
    assert len(raw) == size
    for data in public:
        assert not any(secret[at : at + 32] in data for at in range(100, len(secret) - 32, 997))
        assert not any(raw[at : at + 32] in data for at in range(100, len(raw) - 32, 997))
    if scheme == "bfv":
        assert unframe(MAGIC, pair.server)[1] == ()  # no key at all


def test_only_the_same_key_opens() -> None:
    pair, other = generate(bfv_for(4)), generate(bfv_for(4))
    vector = torch.ones(8192)
    sealed = client_from(pair.client).seal(vector, range=1.0, source=secret())
    stranger = client_from(other.client)
    relabelled = SealedVector(**{**vars(sealed), "key_id": other.key_id})
    with pytest.raises(Exception, match="open: a sum beyond"):  # garbage, beyond one term's range
        stranger.open(relabelled)


def test_picks_a_scheme() -> None:
    assert (auto(32).scheme, auto(256).scheme, auto(257).scheme) == ("bfv", "bfv", "ckks")
    assert auto(32, rows=True).scheme == "ckks-rows"
    assert parameters_for("ckks", 32, rows=True).scheme == "ckks-rows"
    with pytest.raises(ConfigError, match="ckks where rows"):
        parameters_for("bfv", 32, rows=True)
    with pytest.raises(ConfigError, match=r"encryption\.scheme"):
        parameters_for("paillier", 32)
