"""Seeds per purpose."""

from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpers.seeding import numpy_generator, seed_for, seeded, torch_generator

pieces = st.one_of(st.integers(-9, 99), st.text(max_size=3))


def test_a_seed_is_the_documented_hash() -> None:
    digest = hashlib.sha256()
    for text in (b"int:7", b"str:batches", b"int:3"):
        digest.update(len(text).to_bytes(4, "big") + text)
    assert seed_for(7, "batches", 3) == int.from_bytes(digest.digest()[:8], "big") >> 1


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(pieces, max_size=4).map(tuple)), unique=True))
def test_distinct_paths_give_distinct_seeds_of_63_bits(
    paths: list[tuple[int, tuple[int | str, ...]]],
) -> None:
    seeds = [seed_for(seed, *path) for seed, path in paths]
    assert len(set(seeds)) == len(paths)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neither_type_nor_cut_of_the_pieces_is_lost() -> None:
    assert seed_for(0, 1) != seed_for(0, "1")
    assert seed_for(0, "1", "23") != seed_for(0, "12", "3")
    assert seed_for(0, 1, "a") != seed_for(0, "a", 1)
    assert seed_for(0) != seed_for(0, "")


def test_generators_repeat_their_draws() -> None:
    first, again = (torch.rand(4, generator=torch_generator(1, "a")) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(4, generator=torch_generator(1, "b")))
    draws = [numpy_generator(1, "a").random(4).tolist() for _ in range(2)]
    assert draws[0] == draws[1] != numpy_generator(2, "a").random(4).tolist()


def test_seeded_seeds_torch_within_and_leaves_its_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1, "a"):
        first = torch.rand(3)
        torch.rand(99)
    assert torch.equal(torch.rand(2), expected)
    try:
        with seeded(1, "a"):
            assert torch.equal(torch.rand(3), first)
            before = torch.get_rng_state()
            with seeded(1, "b"):
                assert not torch.equal(torch.rand(3), first)
            assert torch.equal(torch.get_rng_state(), before)
            raise KeyError
    except KeyError:
        pass
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), expected)
