from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpers.data import Examples, FederatedData
from fedpers.data.splits import cut, rows_by
from fedpers.errors import ConfigError

Load = Callable[..., FederatedData]
Sides = Callable[[FederatedData], dict[str, set[int]]]
NATURAL = ("data.partition.name=natural", "data.public_fraction=0")


@pytest.mark.parametrize(
    ("n", "val", "test", "gap", "expected"),
    [
        (20, 0.15, 0.25, 0, (12, 3, 5)),
        (20, 0.15, 0.25, 1, (11, 3, 4)),  # 18 usable: 4.5 -> 4, 2.7 -> 3
        (12, 0.2, 0.3, 1, (5, 2, 3)),
        (12, 0.0, 0.25, 1, (8, 0, 3)),  # one joint only
        (4, 0.15, 0.25, 1, (2, 0, 1)),  # no room for validation, so one joint
        (2, 0.15, 0.25, 0, (1, 0, 1)),
        (2, 0.15, 0.25, 1, (2, 0, 0)),
        (1, 0.15, 0.25, 0, (1, 0, 0)),
        (0, 0.15, 0.25, 1, (0, 0, 0)),
        (10, 0.4, 0.55, 0, (1, 3, 6)),
        (10, 0.3, 0.0, 0, (7, 3, 0)),
    ],
)
def test_cut_by_hand(
    n: int, val: float, test: float, gap: int, expected: tuple[int, int, int]
) -> None:
    assert tuple(len(part) for part in cut(np.arange(n), val, test, gap)) == expected


@given(
    n=st.integers(0, 60),
    test=st.floats(0.01, 0.98),
    share=st.floats(0, 0.99),
    gap=st.integers(0, 1),
)
def test_cut_loses_only_joints(n: int, test: float, share: float, gap: int) -> None:
    val = share * (1 - test)
    train, validation, held_out = cut(np.arange(n), val, test, gap)

    parts = [part for part in (train, validation, held_out) if len(part)]
    joined = np.concatenate([train, validation, held_out])
    assert len(train) >= min(n, 1)
    assert np.all(np.diff(joined) > 0)
    assert len(joined) == n - gap * max(len(parts) - 1, 0)
    for before, after in pairwise(parts):
        assert after[0] - before[-1] == 1 + gap
    assert len(held_out) > 0 or n <= 1 + 2 * gap


def test_rows_by_name_keep_their_order() -> None:
    names = np.array(["b", "a", "b", "c", "a", "b"])
    grouped = rows_by(names, np.array([0, 1, 2, 4, 5]))
    assert [rows.tolist() for rows in grouped] == [[1, 4], [0, 2, 5]]


def test_random_split_meets_its_fractions_and_its_seed(
    numbered: Load, rows: Callable[[Examples], list[int]], sides: Sides
) -> None:
    client = np.repeat(["a", "b"], [40, 160])
    data = numbered(*NATURAL, client=client)

    sizes = [tuple(map(len, vars(data.client(name)).values())) for name in "ab"]
    assert sizes == [(24, 6, 10), (96, 24, 40)]
    assert set().union(*sides(data).values()) == set(range(200))
    same, other = (numbered(*NATURAL, f"seed={seed}", client=client) for seed in (0, 1))
    assert rows(same.client("a").test) == rows(data.client("a").test)
    assert rows(other.client("a").test) != rows(data.client("a").test)


def test_blocks_cut_each_recording_of_each_client(
    numbered: Load, rows: Callable[[Examples], list[int]]
) -> None:
    # Rows 0-19 and 20-29 are client a's recordings 0 and 1, 30-49 client b's own recording 0.
    client, group = np.repeat(["a", "b"], [30, 20]), np.repeat([0, 1, 0], [20, 10, 20])
    data = numbered(*NATURAL, "data.split=blocks", n=50, client=client, group=group)

    a, b = data.client("a"), data.client("b")
    assert rows(a.train) == [*range(11), *range(20, 25)]
    assert rows(a.val) == [12, 13, 14, 26]
    assert rows(a.test) == [16, 17, 18, 19, 28, 29]
    assert rows(b.train) == [*range(30, 41)]
    assert rows(b.val) == [42, 43, 44]
    assert rows(b.test) == [46, 47, 48, 49]


def test_blocks_without_columns_cut_what_each_client_holds(numbered: Load, sides: Sides) -> None:
    data = numbered("data.split=blocks", "data.partition.name=iid", "data.clients=4")
    for client in data.clients:
        own = data.client(client)
        last = [float(part.x.max()) for part in vars(own).values()]
        first = [float(part.x.min()) for part in vars(own).values()]
        assert last[0] < first[1] <= last[1] < first[2]
    assert sum(map(len, sides(data).values())) == 200 - 4 * 2


@pytest.mark.parametrize("partition", ["natural", "dirichlet"])
def test_groups_fall_on_one_side_for_all_clients(
    numbered: Load, sides: Sides, partition: str
) -> None:
    # Each of 4 clients judges each of 100 texts.
    client, group = np.repeat(list("abcd"), 100), np.tile(np.arange(100), 4)
    settings = ("data.split=group", f"data.partition.name={partition}", "data.clients=4")
    data = numbered(*settings, n=400, client=client, group=group)

    found = sides(data)
    texts = {side: {row % 100 for row in numbers} for side, numbers in found.items()}
    assert sum(map(len, texts.values())) == 100  # no text on two sides, none lost
    assert len(texts["public"]) == 20
    assert 8 <= len(texts["test"]) <= 35 and 3 <= len(texts["val"]) <= 25
    other = sides(numbered(*settings, "seed=1", n=400, client=client, group=group))
    assert other["test"] != found["test"]


def test_a_group_needs_no_other_group_to_find_its_side(
    numbered: Load, rows: Callable[[Examples], list[int]]
) -> None:
    client, group = np.repeat(["a", "b"], 60), np.arange(120)
    together = numbered(*NATURAL, "data.split=group", n=120, client=client, group=group)
    alone = numbered(*NATURAL, "data.split=group", n=60, client=client[:60], group=group[:60])
    assert rows(alone.client("a").test) == rows(together.client("a").test)


def test_public_clients_give_no_text_that_others_are_tested_on(
    numbered: Load, sides: Sides
) -> None:
    client, group = np.repeat(list("abcd"), 100), np.tile(np.arange(100), 4)
    settings = ("data.split=group", "data.partition.name=natural", "data.public_clients=1")
    data = numbered(*settings, n=400, client=client, group=group)

    texts = {side: {row % 100 for row in numbers} for side, numbers in sides(data).items()}
    assert len(data.clients) == 3
    assert texts["public"] == texts["train"] != set()


def test_group_needs_groups(numbered: Load) -> None:
    with pytest.raises(ConfigError, match=r"^data\.split: got 'group', takes .* group column"):
        numbered("data.split=group")


def test_max_train_is_a_seeded_choice_of_training_examples(
    numbered: Load, rows: Callable[[Examples], list[int]]
) -> None:
    client = np.repeat(["a", "b"], [180, 20])
    whole = numbered(*NATURAL, client=client)
    capped = numbered(*NATURAL, "data.max_train=30", client=client)
    other = numbered(*NATURAL, "data.max_train=30", "seed=1", client=client)

    assert (capped.size("a"), capped.size("b")) == (30, 12)
    assert set(rows(capped.client("a").train)) < set(rows(whole.client("a").train))
    assert rows(capped.client("a").train) != rows(whole.client("a").train)[:30]
    assert rows(capped.client("a").test) == rows(whole.client("a").test)
    assert rows(other.client("a").train) != rows(capped.client("a").train)
