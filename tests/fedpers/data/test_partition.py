import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import arange

from fedpers.config import Config, Data, Partition
from fedpers.data import Examples, FederatedData, Table
from fedpers.data.partition import deal, sorted_names
from fedpers.errors import ConfigError, DataError

Load = Callable[..., FederatedData]
Sides = Callable[[FederatedData], dict[str, set[int]]]


def table(n: int = 400, classes: int = 4, **columns: Any) -> Table:
    y = arange(n) % classes
    return Table("tabular", Examples(y[:, None].float(), y), **columns)


def dealt(name: str, clients: int = 8, seed: int = 0, n: int = 400, **settings: Any) -> Any:
    data = Data(clients=clients, partition=Partition(name=name, **settings))
    return deal(table(n), np.arange(0, n, 1), Config(seed=seed, data=data))


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "shard", "iid", "linear", "square"])
def test_rows_are_dealt_once_and_by_the_seed(name: str) -> None:
    first, again, other = (dealt(name, seed=seed) for seed in (0, 0, 1))

    assert list(first) == [str(k) for k in range(8)]
    everything = np.concatenate(list(first.values()))
    assert len(everything) == len(np.unique(everything)) == 400
    assert all(np.all(np.diff(rows) > 0) for rows in first.values())
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert any(not np.array_equal(first[k], other[k]) for k in first)


def test_partitions_have_their_shape() -> None:
    classes = {
        name: [len(np.unique(rows % 4)) for rows in dealt(name, **settings).values()]
        for name, settings in (
            ("pathological", {"classes_per_client": 3}),
            ("shard", {"shards_per_client": 1}),
        )
    }
    assert classes == {"pathological": [3] * 8, "shard": [1] * 8}
    assert [len(rows) for rows in dealt("iid").values()] == [50] * 8
    assert [len(rows) for rows in dealt("linear", clients=4).values()] == [40, 80, 120, 160]
    assert [len(rows) for rows in dealt("square", clients=3, n=140).values()] == [10, 40, 90]
    sizes = [len(rows) for rows in dealt("exponential", clients=3, n=300).values()]
    assert sizes == [27, 73, 200]  # floors of 300 e^k / (e + e^2 + e^3), rest to the last


def test_equal_shares_are_shuffled() -> None:
    # The rows lie in the order of their source; a client must not get a stretch of them.
    assert all(np.ptp(rows) > 300 for rows in dealt("iid").values())


def test_alpha_sets_how_unlike_clients_are() -> None:
    def share_of_largest_class(alpha: float) -> float:
        parts = dealt("dirichlet", alpha=alpha, min_size=1).values()
        return float(np.mean([np.bincount(rows % 4).max() / len(rows) for rows in parts]))

    assert share_of_largest_class(0.05) > 0.8
    assert share_of_largest_class(1000.0) < 0.32


@settings(max_examples=settings().max_examples // 2)
@given(
    name=st.sampled_from(["dirichlet", "pathological", "shard", "iid", "linear"]),
    clients=st.integers(1, 12),
    n=st.integers(20, 120),
    min_size=st.integers(0, 6),
    seed=st.integers(0, 5),
)
def test_any_deal_is_disjoint_or_one_line(
    name: str, clients: int, n: int, min_size: int, seed: int
) -> None:
    try:
        parts = dealt(name, clients, seed, n, min_size=min_size)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    everything = np.concatenate(list(parts.values()))
    assert len(parts) == clients
    assert len(np.unique(everything)) == len(everything)
    assert np.isin(everything, np.arange(n)).all()
    if name == "dirichlet":
        assert min(len(rows) for rows in parts.values()) >= min_size


def test_dirichlet_goes_on_where_one_partitioner_gives_up() -> None:
    """Sizes that 3 draws in 100 meet: the 11 draws of flwr-datasets mostly fail."""
    parts = [dealt("dirichlet", clients=10, seed=seed, alpha=0.3, min_size=17) for seed in range(3)]
    assert all(min(map(len, part.values())) >= 17 for part in parts)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dirichlet", {"min_size": 51}, r"data\.partition\.min_size: got 51"),
        ("dirichlet", {"min_size": 49, "alpha": 0.1}, r"data\.partition\.min_size: got 49"),
        ("pathological", {"classes_per_client": 5}, r"classes_per_client: got 5, takes .* <= 4"),
        ("shard", {"shards_per_client": 51}, r"data\.partition\.shards_per_client: got 51"),
        ("iid", {"clients": 401}, r"data\.clients: got 401, takes an integer <= 400"),
        ("exponential", {"clients": 30}, r"data\.clients: got 30"),
        ("natural", {}, r"data\.partition\.name: got 'natural', takes .* client column"),
    ],
)
def test_what_cannot_be_dealt_names_the_setting(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        dealt(name, **settings)
    assert "\n" not in str(caught.value)


def test_a_size_that_cannot_be_met_is_known_soon() -> None:
    started = time.perf_counter()
    with pytest.raises(ConfigError, match="min_size: got 5"):
        dealt("dirichlet", clients=500, n=20_000, alpha=0.1, min_size=5)
    assert time.perf_counter() - started < 3


def test_natural_clients_keep_their_names() -> None:
    names = np.array(["10", "2", "b", "2", "a", "10"])
    data = Data(clients=1, partition=Partition(name="natural"))
    parts = deal(table(6, 2, client=names), np.array([0, 1, 2, 3, 5]), Config(data=data))
    assert {client: rows.tolist() for client, rows in parts.items()} == {
        "2": [1, 3],
        "10": [0, 5],
        "b": [2],
    }
    assert list(parts) == ["2", "10", "b"]
    assert sorted_names(names) == ["2", "10", "a", "b"]


@pytest.mark.parametrize("given_val", [False, True])
def test_a_users_own_partition(
    numbered: Load,
    sides: Sides,
    rows: Callable[[Examples], list[int]],
    tmp_path: Path,
    given_val: bool,
) -> None:
    own = {"train_0": np.arange(0, 40), "test_0": np.arange(40, 50)}
    own |= {"train_1": np.arange(50, 60)[::-1], "test_1": np.array([], np.int32)}
    if given_val:
        own |= {"val_0": np.array([60, 61]), "val_1": np.array([62])}
    np.savez(tmp_path / "own.npz", **own)  # type: ignore[arg-type]
    file = ("data.partition.name=file", f"data.partition.path={tmp_path / 'own.npz'}")
    data = numbered(*file, "data.public_fraction=0.3")

    assert data.clients == ["0", "1"]
    zero, one = data.client("0"), data.client("1")
    assert rows(zero.test) == list(range(40, 50)) and rows(one.test) == []
    if given_val:
        assert rows(zero.val) == [60, 61] and rows(zero.train) == list(range(40))
        assert rows(one.val) == [62] and rows(one.train) == list(range(50, 60))
    else:
        assert sorted(rows(zero.train) + rows(zero.val)) == list(range(40))
        assert (len(zero.val), len(one.val)) == (6, 2)
    found = sides(data)  # public ones are among the rows that the file leaves over
    assert len(found["public"]) == 60 and min(found["public"]) >= 60


def test_public_groups_are_none_of_a_users_partition(
    numbered: Load, sides: Sides, tmp_path: Path
) -> None:
    np.savez(tmp_path / "own.npz", train_0=np.arange(0, 95, 5), test_0=np.array([95]))
    file = ("data.partition.name=file", f"data.partition.path={tmp_path / 'own.npz'}")
    found = sides(numbered(*file, "data.split=blocks", group=np.arange(200) // 10))
    assert len(found["public"]) == 40 and min(found["public"]) >= 100


@pytest.mark.parametrize(
    ("change", "overrides", "error", "message"),
    [
        ({"test_1": None}, (), DataError, "mismatch at test_1"),
        ({"train_3": [9], "test_3": [10]}, (), DataError, "mismatch at test_2, test_3, train_2"),
        ({"other": [1]}, (), DataError, "mismatch at other"),
        ({"val_1": [9]}, (), DataError, "mismatch at val_1"),
        ({"test_1": [0]}, (), DataError, "got row 0 twice"),
        ({"test_1": [200]}, (), DataError, r"got rows 200\.\.200, takes 0\.\.199"),
        ({"test_1": [-1]}, (), DataError, "got rows -1"),
        ({"test_1": [0.5]}, (), DataError, "takes row numbers"),
        ({"test_1": [[5]]}, (), DataError, "takes row numbers"),
        ({}, ("data.clients=3",), ConfigError, r"data\.clients: got 3, takes 2"),
        ({}, ("data.public_fraction=0.97",), ConfigError, r"public_fraction: got 0\.97"),
    ],
)
def test_a_users_partition_that_does_not_fit(
    numbered: Load,
    tmp_path: Path,
    change: dict[str, Any],
    overrides: tuple[str, ...],
    error: type[Exception],
    message: str,
) -> None:
    arrays = {"train_0": [0, 1, 2], "test_0": [3], "train_1": [4, 5], "test_1": [6], **change}
    kept = {name: np.array(rows) for name, rows in arrays.items() if rows is not None}
    np.savez(tmp_path / "own.npz", allow_pickle=False, **kept)
    path = f"data.partition.path={tmp_path / 'own.npz'}"
    with pytest.raises(error, match=message) as caught:
        numbered("data.partition.name=file", path, *overrides)
    assert "\n" not in str(caught.value)
