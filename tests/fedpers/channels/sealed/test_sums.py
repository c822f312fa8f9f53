"""Round trips, sums and mixtures against plain arithmetic, for both schemes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpers.channels.sealed import (
    ClientCipher,
    Parameters,
    SealedVector,
    ServerCipher,
    bfv_for,
    ckks_for,
    client_from,
    clip,
    generate,
    rows_for,
    server_from,
)
from fedpers.channels.sealed.bfv import BfvClient
from fedpers.errors import ClientError, ConfigError
from fedpers.privacy.noise import known

SETS = {"bfv": bfv_for, "ckks": ckks_for, "ckks-rows": rows_for}


@cache
def ciphers(scheme: str, cohort: int) -> tuple[ClientCipher, ServerCipher]:
    pair = generate(SETS[scheme](cohort))
    return client_from(pair.client), server_from(pair.server)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tolerance(client: ClientCipher, terms: int, range: float) -> float:
    """How far an opened sum may be from the exact one, whose values are within terms * range."""
    float32 = 2**-24 * terms * range  # the opened value is rounded to 24 bits
    if isinstance(client, BfvClient):
        return terms * client.step(range) + float32  # and each term to a step before it is sealed
    return terms * 1e-6 * range + float32


@pytest.mark.parametrize("scheme", ["bfv", "ckks", "ckks-rows"])
@given(
    part=st.sampled_from(["one", "below", "full", "above", "several"]),
    terms=st.integers(1, 4),
    span=st.sampled_from([1e-3, 0.5, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=settings().max_examples // 5)
def test_sums_as_plain_arithmetic_does(
    scheme: str, part: str, terms: int, span: float, seed: int
) -> None:
    client, server = ciphers(scheme, 4)
    chunk = client.parameters.chunk
    sizes = {"one": 1, "below": chunk - 1, "full": chunk, "above": chunk + 1}
    size = sizes.get(part, 2 * chunk + 17)
    vectors = uniform(terms, size, seed=seed) * span
    vectors[:, 0] = span  # the ends of the range
    vectors[:, -1] = -span
    messages = [client.seal(v, range=span, source=known(seed)()).to_bytes() for v in vectors]
    total = server.add(SealedVector.from_bytes(m) for m in messages)
    opened = client.open(SealedVector.from_bytes(total.to_bytes()))
    assert (opened.shape, opened.dtype) == ((size,), torch.float32)
    assert (total.kind, total.terms, total.size) == ("sum", terms, size)
    exact = vectors.double().sum(0)
    assert float((opened - exact).abs().max()) <= tolerance(client, terms, span)
    alone = client.open(SealedVector.from_bytes(messages[0]))
    assert float((alone - vectors[0]).abs().max()) <= tolerance(client, 1, span)


def test_sums_of_sums_are_sums() -> None:
    for scheme in SETS:
        client, server = ciphers(scheme, 4)
        vectors = uniform(4, 50)
        sealed = [client.seal(v, range=1.0, source=known(0)()) for v in vectors]
        total = server.add([server.add(sealed[:2]), server.add(sealed[2:])])
        assert total.terms == 4
        error = (client.open(total) - vectors.double().sum(0)).abs().max()
        assert float(error) <= tolerance(client, 4, 1.0)


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_a_thousand_terms(scheme: str) -> None:
    client, server = ciphers(scheme, 1000)
    # Every value at the end of the range: the largest sum there can be.
    vectors = uniform(1000, 6)
    vectors[:, 0], vectors[:, 1] = 1.0, -1.0
    sealed = [client.seal(v, range=1.0, source=known(i)()) for i, v in enumerate(vectors)]
    total = server.add(sealed)
    # Opened in float32, whose spacing at 1,000 is 6e-5: compare the mean.
    error = client.open(total).double() / 1000 - vectors.double().mean(0)
    assert float(error.abs().max()) < 1e-7
    if isinstance(client, BfvClient):
        integers = torch.stack([client.open_integers(s) for s in sealed])
        assert torch.equal(client.open_integers(total), integers.sum(0))
        assert int(client.open_integers(total)[0]) == 1000 * client.levels
    with pytest.raises(ClientError, match="more than 1000 terms"):
        server.add([*sealed, sealed[0]])


def test_two_values_share_a_coefficient_up_to_their_largest_sum() -> None:
    client, server = ciphers("bfv", 32)
    assert isinstance(client, BfvClient)
    # 56 bits: 5 of noise, 1 of rounding, 5 of the sum's noise leave 45: 2 x (17 + 5).
    assert (client.parameters.values, client.parameters.value_bits) == (2, 17)
    assert client.step(1.0) == 2 / 131071
    top = torch.ones(client.parameters.chunk)
    total = server.add([client.seal(top, range=1.0, source=known(0)())] * 32)
    assert torch.equal(client.open(total), 32 * top)
    bottom = client.seal(-top, range=1.0, source=known(0)())
    assert torch.equal(client.open(server.add([bottom] * 32)), -32 * top)


@pytest.mark.parametrize(
    ("cohort", "values", "bits"), [(1, 2, 24), (32, 2, 17), (256, 2, 13), (257, 1, 24)]
)
def test_packs_by_the_cohort(cohort: int, values: int, bits: int) -> None:
    parameters = bfv_for(cohort)
    parameters.check(cohort)
    assert (parameters.values, parameters.value_bits) == (values, bits)
    # The sum of the noise, 2^5 a vector at most, is below half of the message's unit.
    assert cohort * 2**5 <= 2 ** (56 - parameters.plain_bits - 1)


def test_rounding_is_unbiased() -> None:
    client, _ = ciphers("bfv", 256)
    assert isinstance(client, BfvClient)
    # 4,000.25 steps above -1: the integers are 4,000 or 4,001, with mean 4,000.25.
    vector = torch.full((8192,), 4000.25 * 2 / 8191 - 1)
    integers = client.open_integers(client.seal(vector, range=1.0, source=known(1)()))
    assert set(integers.tolist()) == {4000, 4001}
    # Four standard deviations, sqrt(0.25 * 0.75 / 8192) each; float32 itself is off by 0.0003.
    assert abs(float(integers.double().mean()) - 4000.25) < 4 * 0.00479 + 0.0003
    again = client.seal(vector, range=1.0, source=known(1)())
    assert torch.equal(client.open_integers(again), integers)  # by the source passed


def test_mixes_rows() -> None:
    client, server = ciphers("ckks-rows", 5)
    vectors = uniform(5, client.parameters.chunk + 3) * 2
    weights = torch.tensor(
        [
            [0.2, 0.2, 0.2, 0.2, 0.2],
            [1.0, 0.0, 0.0, 0.0, 0.0],
            [-0.5, 1.5, 0.25, -0.75, 1.0],  # of absolute sum 4
        ]
    )
    sealed = [client.seal(v, range=2.0, source=known(0)()) for v in vectors]
    rows = server.mix(weights, [SealedVector.from_bytes(s.to_bytes()) for s in sealed])
    opened = torch.stack([client.open(SealedVector.from_bytes(r.to_bytes())) for r in rows])
    assert [r.weight for r in rows] == [pytest.approx(1.0), 1.0, 4.0]
    assert float((opened - weights @ vectors).abs().max()) < 1e-5


def test_refuses_weights_that_would_wrap() -> None:
    client, server = ciphers("ckks-rows", 5)
    sealed = [client.seal(uniform(3), range=1.0, source=known(0)())] * 2
    for weights in ([[4.0, 0.1]], [[0.0, 0.0]], [[float("nan"), 1.0]], [[1.0]]):
        with pytest.raises(ConfigError, match="weights"):
            server.mix(torch.tensor(weights), sealed)
    client, server = ciphers("bfv", 4)
    with pytest.raises(ConfigError, match="ckks-rows for mix"):
        server.mix(torch.ones(1, 1), [client.seal(uniform(3), range=1.0, source=known(0)())])


def test_inner_products_of_unit_vectors() -> None:
    client, _ = ciphers("ckks-rows", 5)
    heads = uniform(4, 4096 + 5)  # two chunks
    heads[3] = 2 * heads[0]  # parallel
    heads[2] = 0
    sealed = [SealedVector.from_bytes(client.seal_unit(h).to_bytes()) for h in heads]
    opened = torch.stack([client.open_unit(one) for one in sealed])
    expected = torch.nn.functional.normalize(heads.double(), dim=1)
    assert float((opened @ opened.T - expected @ expected.T).abs().max()) < 1e-9
    with pytest.raises(ClientError, match="kind"):
        client.open(sealed[0])


def test_refuses_values_it_cannot_seal() -> None:
    for scheme in SETS:
        client, _ = ciphers(scheme, 4)
        vector = torch.tensor([0.5, -3.0, 2.0, 1.0])
        with pytest.raises(ClientError, match="2 values beyond the range 1, the largest 3"):
            client.seal(vector, range=1.0, source=known(0)())
        clipped = client.seal(clip(vector, 1.0), range=1.0, source=known(0)())
        expected = torch.tensor([0.5, -1, 1, 1])
        assert float((client.open(clipped) - expected).abs().max()) < 1e-5
        for wrong in (torch.tensor([float("nan")]), torch.tensor([float("inf")])):
            with pytest.raises(ClientError, match="NaN or infinity"):
                client.seal(wrong, range=1.0, source=known(0)())
        for wrong in (torch.zeros(0), torch.zeros(2, 2)):
            with pytest.raises(ClientError, match="takes a vector"):
                client.seal(wrong, range=1.0, source=known(0)())
        with pytest.raises(ClientError, match="range"):
            client.seal(vector, range=0.0, source=known(0)())


def test_the_same_vector_is_never_encrypted_the_same() -> None:
    for scheme in SETS:
        client, _ = ciphers(scheme, 4)
        one, two = (client.seal(torch.ones(9), range=1.0, source=known(0)()) for _ in "ab")
        assert one.chunks[0][:64] != two.chunks[0][:64]
        assert one.chunks[0][-64:] != two.chunks[0][-64:]  # the seeds


def test_adds_only_what_is_alike() -> None:
    client, server = ciphers("bfv", 4)
    one = client.seal(uniform(10), range=1.0, source=known(0)())
    with pytest.raises(ClientError, match="size"):
        server.add([one, client.seal(uniform(11), range=1.0, source=known(0)())])
    with pytest.raises(ClientError, match="range"):
        server.add([one, client.seal(uniform(10), range=2.0, source=known(0)())])
    with pytest.raises(ClientError, match="key id"):
        stranger = client_from(generate(bfv_for(4)).client)
        server.add([one, stranger.seal(uniform(10), range=1.0, source=known(0)())])
    with pytest.raises(ClientError, match="scheme"):
        server.add([ciphers("ckks", 4)[0].seal(uniform(10), range=1.0, source=known(0)())])
    with pytest.raises(ClientError, match="nothing"):
        server.add([])


@pytest.mark.parametrize("scheme", ["bfv", "ckks", "ckks-rows"])
def test_a_sum_beyond_the_range_is_refused(scheme: str) -> None:
    client, server = ciphers(scheme, 4)
    top = client.seal(torch.full((10,), 5.0), range=5.0, source=known(0)())
    total = server.add([top, top])
    assert float((client.open(total) - 10).abs().max()) < 1e-5
    with pytest.raises(ClientError, match="open"):  # 10 is no value of one vector in [-5, 5]
        client.open(SealedVector(**{**vars(total), "terms": 1, "weight": 1.0}))


@pytest.mark.parametrize("cohort", [0, -1, 65_537])
def test_refuses_cohorts(cohort: int) -> None:
    for make in SETS.values():
        with pytest.raises(ConfigError, match="cohort"):
            make(cohort)


def test_checks_security_and_room() -> None:
    assert [make(32).security for make in SETS.values()] == [256, 256, 128]
    with pytest.raises(ConfigError, match="at most 54 bits at degree 2048"):
        Parameters("bfv", 2048, (56,), 32, 17, 2).check()
    with pytest.raises(ConfigError, match="at most 109 bits at degree 4096"):
        Parameters("ckks", 4096, (55, 55), 32, 36).check()
    with pytest.raises(ConfigError, match="room for its sums"):
        Parameters("bfv", 4096, (56,), 32, 18, 2).check()
    with pytest.raises(ConfigError, match="room for its sums"):
        Parameters("ckks", 4096, (48,), 1000, 37).check()
    with pytest.raises(ConfigError, match="1 to 32 vectors"):
        bfv_for(32).check(33)


def test_bytes_for_a_common_row() -> None:
    client, server = ciphers("bfv", 32)
    size = 4 * client.parameters.chunk
    sealed = client.seal(uniform(size), range=1.0, source=known(0)())
    assert len(sealed.to_bytes()) / size < 3.6
    assert len(server.add([sealed]).to_bytes()) / size < 7.1
