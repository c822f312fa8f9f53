"""What a client keeps on its disk."""

from __future__ import annotations

import logging
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.node.store import ClientStore
from fedpers.parts import Part, Parts

WEIRD = ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "ü", "%", "%2E", "a%2Fb", "a b", "x\0y", "~"]


def parts_of(*values: float) -> Parts:
    return Parts({"personal.head": Part.of({"w": torch.tensor(values)})})


class Breaking(Parts):
    """Parts whose writing stops half way, as on a full disk."""

    def save(self, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_saved_is_loaded_again(tmp_path: Path, durable: bool) -> None:
    store = ClientStore(tmp_path, "7", durable=durable)
    assert store.load("personal") == Parts() and store.load_json("ledger") == {}
    store.save("personal", parts_of(1.0, float("nan")))
    store.save_json("ledger", {"steps": [1, 2]})
    again = ClientStore(tmp_path, "7")  # as after a restart
    assert again.load("personal")["personal.head"].vector[0] == 1.0
    assert again.load("personal")["personal.head"].vector[1].isnan()
    assert again.load_json("ledger") == {"steps": [1, 2]}
    store.save("personal", Parts())
    assert again.load("personal") == Parts()
    assert ClientStore(tmp_path, "70").load_json("ledger") == {}
    again.forget()
    assert store.load_json("ledger") == {} and list(tmp_path.iterdir()) == []
    again.forget()  # nothing there is no error


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "a")
    store.save("personal", parts_of(1.0))
    with pytest.raises(OSError, match="no space left"):
        store.save("personal", Breaking())
    assert store.load("personal")["personal.head"].vector.tolist() == [1.0]
    assert [path.name for path in store.folder.iterdir()] == ["personal.safetensors"]
    with pytest.raises(OSError, match="no space left"):
        store.save("other", Breaking())
    assert store.load("other") == Parts()
    with pytest.raises(TypeError):
        store.save_json("ledger", {"steps": object()})
    assert [path.name for path in store.folder.iterdir()] == ["personal.safetensors"]


def test_only_this_user_can_read_it(tmp_path: Path, no_umask: None) -> None:
    store = ClientStore(tmp_path, "a")
    for _ in range(2):  # the first write, and one in its place
        store.save("personal", parts_of(1.0))
        store.save_json("ledger", {})
        modes = {stat.S_IMODE(path.stat().st_mode) for path in store.folder.iterdir()}
        assert modes == {0o600}
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("client", WEIRD)
def test_any_id_stays_in_a_folder_of_its_own(tmp_path: Path, client: str) -> None:
    root = tmp_path / "state"
    store = ClientStore(root, client)
    store.save("personal", parts_of(1.0))
    (folder,) = root.iterdir()
    assert folder.resolve() == store.folder.resolve() and folder.resolve().parent == root.resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    store.forget()
    assert root.exists()


@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from(WEIRD)), unique=True))
def test_two_ids_never_share_a_folder(clients: list[str]) -> None:
    root = Path("/state")
    folders = [ClientStore(root, client).folder for client in clients]
    assert len(set(folders)) == len(clients)
    assert all(Path(os.path.normpath(folder)).parent == root for folder in folders)


# -- damage --------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file after a bad sector, a cut, a bit flip, or a write of something else."""
    kind, at = rng.randrange(6), rng.randrange(len(data))
    match kind:
        case 0:
            return data[:at]
        case 1:
            flipped = bytearray(data)
            flipped[at] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 2:
            end = min(len(data), at + rng.randrange(1, 65))
            return data[:at] + bytes(end - at) + data[end:]
        case 3:
            return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
        case 4:  # in the header, which says how the rest is to be read
            flipped = bytearray(data)
            for _ in range(rng.randrange(1, 6)):
                flipped[rng.randrange(min(len(data), 500))] = rng.randrange(256)
            return bytes(flipped)
        case _:
            return rng.randbytes(rng.randrange(200))


@pytest.mark.parametrize("seed", range(50))
def test_a_damaged_file_is_named_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(logging.getLogger("fedpers"), "propagate", True)
    rng, store = random.Random(seed), ClientStore(tmp_path, "a")
    first, second = parts_of(*map(float, range(20))), parts_of(*map(float, range(20, 40)))
    store.save_round("personal", 1, first)
    store.save_round("personal", 2, second)
    path = store.folder / "personal-2.safetensors"
    path.write_bytes(damaged(path.read_bytes(), rng))
    found = store.load_before("personal", 3)
    if found.digest() == second.digest():  # what was hit says nothing
        return
    assert found.digest() == first.digest()
    assert f"{path} is damaged" in caplog.text
    # With none left the client starts anew, and says so.
    other = store.folder / "personal-1.safetensors"
    other.write_bytes(other.read_bytes()[:-1])
    assert store.load_before("personal", 3) == Parts()
    assert f"{other} is damaged" in caplog.text
    # The next round writes over what is damaged, and keeps a file before it.
    store.save_round("personal", 3, second)
    assert store.load_before("personal", 4).digest() == second.digest()


@pytest.mark.parametrize("seed", range(50))
def test_damaged_values_are_as_good_as_none(tmp_path: Path, seed: int) -> None:
    rng, store = random.Random(seed), ClientStore(tmp_path, "a")
    values = {"run": "x", "sigma": 1.25, "to": [1, 2]}
    store.save_json("account", values)
    path = store.folder / "account.json"
    path.write_bytes(damaged(path.read_bytes(), rng))
    assert store.load_json("account") in ({}, values)
    store.save_json("account", values)
    assert store.load_json("account") == values


def test_what_was_tampered_with_is_not_used(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "a")
    store.save_json("account", {"sigma": 12.5})
    path = store.folder / "account.json"
    path.write_text(path.read_text().replace("12.5", "02.5").replace("02.5", "1.25"))
    assert store.load_json("account") == {}
    path.write_text('{"sigma": 1.25}')
    assert store.load_json("account") == {}
