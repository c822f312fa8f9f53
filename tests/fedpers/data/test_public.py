from collections.abc import Callable

import numpy as np
import pytest

from fedpers.data import FederatedData
from fedpers.errors import ConfigError

Load = Callable[..., FederatedData]
Sides = Callable[[FederatedData], dict[str, set[int]]]


def test_a_fraction_of_all_examples_at_random(numbered: Load, sides: Sides) -> None:
    iid = ("data.partition.name=iid", "data.clients=5")
    data, same = numbered(*iid), numbered(*iid)
    other = numbered(*iid, "seed=1")

    public = sides(data)["public"]
    assert len(public) == len(data.public) == 40
    assert public == sides(same)["public"] != sides(other)["public"]
    assert max(public) > 150 and min(public) < 50
    assert sum(map(len, sides(data).values())) == 200


def test_no_public_examples(numbered: Load) -> None:
    data = numbered("data.partition.name=iid", "data.clients=5", "data.public_fraction=0")
    assert len(data.public) == 0 and data.public.x.shape == (0, 1)


def test_whole_clients_take_precedence(numbered: Load, sides: Sides) -> None:
    client = np.repeat([1, 2, 10, 11], 50)
    settings = ("data.partition.name=natural", "data.public_clients=2")
    data = numbered(*settings, client=client)

    public = sides(data)["public"]
    assert len(public) == 100
    owners = {str(client[row]) for row in public}
    assert len(owners) == 2
    assert data.clients == [name for name in ("1", "2", "10", "11") if name not in owners]
    chosen = {
        tuple(numbered(*settings, f"seed={seed}", client=client).clients) for seed in range(8)
    }
    assert len(chosen) > 1


@pytest.mark.parametrize("split", ["group", "blocks"])
def test_whole_groups_where_a_split_keeps_them_together(
    numbered: Load, sides: Sides, split: str
) -> None:
    # 40 groups of 5, some far apart.
    group = np.tile(np.arange(40), 5)
    settings = ("data.partition.name=iid", "data.clients=2", f"data.split={split}")
    found = sides(numbered(*settings, group=group))

    groups = {side: {row % 40 for row in rows} for side, rows in found.items()}
    assert len(groups["public"]) == 8 and len(found["public"]) == 40
    assert groups["public"].isdisjoint(groups["train"] | groups["val"] | groups["test"])


def test_some_group_is_public_and_some_is_not(numbered: Load, sides: Sides) -> None:
    settings = ("data.partition.name=iid", "data.clients=2", "data.split=blocks")
    found = sides(numbered(*settings, group=np.repeat([0, 1], 100)))
    assert len(found["public"]) == 100
    with pytest.raises(ConfigError, match=r"public_fraction: got 0\.2, takes 0 where .* one group"):
        numbered(*settings, group=np.repeat(0, 200))


def test_blocks_of_natural_clients_without_groups(numbered: Load, sides: Sides) -> None:
    settings = ("data.partition.name=natural", "data.split=blocks")
    found = sides(numbered(*settings, client=np.repeat([0, 1], 100)))
    # 99 usable: 20 public at the end, one dropped; the rest is cut as ever.
    assert found["public"] == {*range(80, 100), *range(180, 200)}
    assert 79 not in set().union(*found.values())
    assert found["test"] == {*range(60, 79), *range(160, 179)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.public_clients=1",), "public_clients: got 1, takes 0 where .* dirichlet"),
        (
            ("data.partition.name=natural", "data.public_clients=4"),
            "public_clients: got 4, takes an integer < 4",
        ),
        (("data.public_fraction=0.999",), "public_fraction: got 0.999"),
    ],
)
def test_more_than_there_is(numbered: Load, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        numbered(*overrides, client=np.repeat([1, 2, 3, 4], 50))


NATURAL = ("data.partition.name=natural", "data.public_fraction=0.25")


def test_under_privacy_no_natural_clients_rows_are_public_unless_that_is_said(
    numbered: Load,
) -> None:
    client = np.repeat([1, 2, 10, 11], 50)
    for unit in ("example", "client"):
        private = (*NATURAL, "privacy.enabled=true", f"privacy.unit={unit}")
        with pytest.raises(ConfigError) as caught:
            numbered(*private, client=client)
        assert str(caught.value) == (
            "data.public_fraction: got 0.25, takes 0 with privacy where clients are natural, for "
            "public rows would be their own; set data.public_clients, or "
            "data.public_from_clients=true to make them public"
        )
        assert len(numbered(*private, "data.public_from_clients=true", client=client).public) > 0
        assert len(numbered(*private, "data.public_fraction=0", client=client).public) == 0
        # Whole people who are made public are named as such by the setting itself.
        assert len(numbered(*private, "data.public_clients=1", client=client).public) > 0
    # What is dealt was nobody's before it was set aside, and without privacy nothing is promised.
    assert len(numbered("data.public_fraction=0.25", "privacy.enabled=true").public) > 0
    assert len(numbered(*NATURAL, client=client).public) > 0
