"""pFedSim on the server: similarities of heads, and the mixtures of bodies made of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from one_round import mix

from fedpers.parts import Part, Parts
from strategies.methods.pfedsim import mixing_weights, similarities

# Clients with two classes in two dimensions. Cosines of the rows of
# a and b: (3, 4) (4, 3) / 25 = .96 and (1, 0) (-1, 0) = -1, mean -.02: below 0, so 0;
# a and c: a row of zeros 0, and (1, 0) (2, 0) / 2 = 1, mean .5;
# b and c: 0 and -1, mean -.5, so 0.
A = [[3.0, 4.0], [1.0, 0.0]]
B = [[4.0, 3.0], [-1.0, 0.0]]
C = [[0.0, 0.0], [2.0, 0.0]]
SELF = -math.log(1e-4)  # 9.2103404, as s_ii = .9999
HALF = -math.log(0.5)  # .6931472


def update(body: float, head: list[list[float]]) -> Parts:
    weight = torch.tensor(head)
    return Parts(
        {
            "body": Part.of({"trunk.weight": torch.full((2, 2), body)}),
            "head": Part.of({"head.weight": weight, "head.bias": torch.zeros(len(weight))}),
        }
    )


def one_round(strategy: Any, server_round: int, updates: dict[str, Parts], *asked: str) -> None:
    """Broadcast to ``asked`` and those who answer, combine what came, refine."""
    for client in {*updates, *asked}:
        strategy.broadcast(server_round, client)
    reports = {client: {"examples": 1} for client in updates}
    mixing = strategy.mixing(server_round, reports)
    mix(strategy, updates, mixing, server_round=server_round, reports=reports)
    strategy.refine(server_round)


def test_similarities_of_three_clients() -> None:
    found = similarities(torch.tensor([A, B, C]))
    expected = [[0.9999, 0.0, 0.5], [0.0, 0.9999, 0.0], [0.5, 0.0, 0.9999]]
    torch.testing.assert_close(found, torch.tensor(expected))
    # Scale plays no role; b turned round is like a: (.96 + 1) / 2, here with a row turned.
    turned = [[4.0, 3.0], [9.0, 0.0]]
    assert float(similarities(torch.tensor([A, turned]))[0, 1]) == pytest.approx(0.98)
    # Twins would be infinitely alike.
    twins = similarities(torch.tensor([A, A]))
    torch.testing.assert_close(twins, torch.full((2, 2), 0.9999))


def test_mixing_weights_of_three_clients() -> None:
    weights = mixing_weights(similarities(torch.tensor([A, B, C])))
    # a: 9.2103404 for itself, 0 for b, .6931472 for c, divided by their sum: .93001, 0, .06999.
    own, other = SELF / (SELF + HALF), HALF / (SELF + HALF)
    assert (own, other) == (pytest.approx(0.93001, abs=1e-5), pytest.approx(0.06999, abs=1e-5))
    expected = torch.tensor([[own, 0.0, other], [0.0, 1.0, 0.0], [other, 0.0, own]])
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    assert bool(mixing_weights(similarities(torch.tensor([A, A]))).isfinite().all())


@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.just(0.0) | st.floats(1e-12, 1e6),  # squares of smaller ones are 0 in float32
    st.integers(0, 99),
)
def test_any_heads_give_rows_that_add_up_to_one(
    clients: int, classes: int, d: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads = scale * torch.randn(clients, classes, d, generator=generator)
    similarity = similarities(heads)
    assert bool((similarity >= 0).all()) and float(similarity.max()) <= 0.99991
    torch.testing.assert_close(similarity, similarity.T)
    for i in range(clients):
        for j in range(i):
            # Torch takes norms below its eps, 1e-8, for eps.
            pair = heads[i].double(), heads[j].double()
            cosine = F.cosine_similarity(*pair, dim=1, eps=1e-30).mean().clamp(0, 0.9999).float()
            torch.testing.assert_close(similarity[i, j], cosine, rtol=1e-3, atol=1e-4)
    weights = mixing_weights(similarity)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(clients))
    assert bool((weights.diagonal() >= weights.max(dim=1).values - 1e-6).all())


# -- noise that is known -------------------------------------------------------------------------


def test_noise_is_taken_off_by_hand() -> None:
    # One class, d = 4, v = 1: a's and b's powers are 20 - 4 = 16 and 13 - 4 = 9, both above the
    # noise's spread sqrt(8). Independent noise does not touch their product, 6.
    heads = torch.tensor([[[4.0, 2.0, 0.0, 0.0]], [[0.0, 3.0, 2.0, 0.0]]])
    found = similarities(heads, torch.eye(2))
    assert float(found[0, 1]) == pytest.approx(6 / (4 * 3))
    assert float(similarities(heads)[0, 1]) == pytest.approx(6 / (20 * 13) ** 0.5)
    # Noise in common adds d times its covariance to the product: 6 - 4 * .5.
    common = similarities(heads, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    assert float(common[0, 1]) == pytest.approx(4 / (4 * 3))
    # At v = 2, b's power is 13 - 8 = 5, below 2 sqrt(8): it does not stand out of the noise.
    quiet = similarities(heads, torch.diag(torch.tensor([1.0, 2.0])))
    assert float(quiet[0, 1]) == 0 and float(quiet[1, 1]) == pytest.approx(0.9999)
    assert torch.equal(mixing_weights(quiet), torch.eye(2))


def noisy(cosine: float, variance: float, seed: int) -> torch.Tensor:
    """Two clients' heads of 10 classes in 256 dimensions, rows of power 256 with the same cosine in
    all classes, each with noise of that variance a scalar."""
    generator = torch.Generator().manual_seed(seed)
    classes, d = 10, 256
    first, second = torch.linalg.qr(torch.randn(classes, d, 2, generator=generator)).Q.unbind(2)
    other = cosine * first + (1 - cosine**2) ** 0.5 * second
    heads = d**0.5 * torch.stack([first, other])
    return heads + variance**0.5 * torch.randn(heads.shape, generator=generator)


@pytest.mark.parametrize("cosine", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("variance", [0.25, 1.0])
def test_the_corrected_similarity_is_not_shrunk(cosine: float, variance: float) -> None:
    raw, corrected = [], []
    for seed in range(60):
        heads = noisy(cosine, variance, seed)
        raw.append(float(similarities(heads)[0, 1]))
        corrected.append(float(similarities(heads, variance * torch.eye(2))[0, 1]))
    shrunk = cosine / (1 + variance)
    assert sum(raw) / 60 == pytest.approx(shrunk, abs=0.02)
    assert sum(corrected) / 60 == pytest.approx(cosine, abs=0.02)


def test_clients_that_send_noise_alone_are_like_nobody() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 10, 256, generator=generator)
    found = similarities(2 * noise, 4 * torch.eye(6))
    # A sixth of the rows stand out by chance, and a pair of classes in forty has a cosine at all.
    assert float((found - found.diag().diag()).max()) < 0.1
    assert float((found - found.diag().diag()).mean()) < 0.02
    # Whoever has something to say is not drawn to them either.
    found = similarities(2 * noise + torch.eye(6, 10)[:, :, None] * 50, 4 * torch.eye(6))
    assert float((found - found.diag().diag()).max()) < 0.1


def test_the_noise_of_centred_heads_by_hand(bind: Any) -> None:
    strategy = bind("pfedsim", "strategy.params.signal=centred")
    strategy.variances = {"a": 9.0, "b": 0.0, "c": 0.0}
    # a's noise e is 2/3 e in its own row, -1/3 e in the others': 9 times the products of these.
    expected = torch.tensor([[4.0, -2.0, -2.0], [-2.0, 1.0, 1.0], [-2.0, 1.0, 1.0]])
    torch.testing.assert_close(strategy._noise(["a", "b", "c"]), expected)
    strategy.variances = {"a": 1.0, "b": 1.0, "c": 1.0}
    # Variances 4/9 + 1/9 + 1/9 = 2/3, covariances -2/9 - 2/9 + 1/9 = -1/3.
    equal = torch.eye(3) - 1 / 3
    torch.testing.assert_close(strategy._noise(["a", "b", "c"]), equal)
    assert strategy._noise(["a", "b", "new"]) is None
    strategy.params.signal = "weights"
    torch.testing.assert_close(strategy._noise(["a", "c"]), torch.eye(2))


def test_centred_similarities_are_not_shrunk_either() -> None:
    # Three heads of 256 orthogonal scalars: about their mean all cosines are -1/2. Two alike and
    # one apart: differences d/3, d/3 and -2d/3, so cosines 1, and -1 with the third.
    generator, d = torch.Generator().manual_seed(0), 256
    near, far = torch.randn(2, 10, d, generator=generator)
    centring, found, raw = torch.eye(3) - 1 / 3, [], []
    for _ in range(60):
        heads = torch.stack([near, near, far]) + torch.randn(3, 10, d, generator=generator)
        centred = heads - heads.mean(dim=0)
        found.append(float(similarities(centred, centring)[0, 1]))
        raw.append(float(similarities(centred)[0, 1]))
    # Rows stand at 2/9 of d above noise of 2/3 of d, and the noise's covariance is -1/3 of d: the
    # raw cosine is (2/9 - 1/3) / (2/9 + 2/3), below 0.
    assert sum(raw) / 60 < 0.01
    assert sum(found) / 60 > 0.8


@pytest.mark.parametrize(
    ("signal", "total"), [("weights", 0.29), ("centred", 0.29), ("delta", 0.25)]
)
def test_noise_adds_up_where_clients_train_their_own_head_on(
    bind: Any, signal: str, total: float
) -> None:
    strategy = bind("pfedsim", f"strategy.params.signal={signal}", "rounds=4")

    def heard(server_round: int, noise: Any) -> None:
        strategy.reported = {"a": {"examples": 1, "noise": noise}}
        strategy._note()

    heard(1, {"head": 0.9, "body": 0.1})
    assert strategy.variances == {"a": pytest.approx(0.81)}
    heard(2, {"head": 0.2})  # its head came from the server: the noise of before is in all heads
    assert strategy.variances == {"a": pytest.approx(0.04)}
    strategy.rows = {"a": strategy.parts}  # from here on it is its own
    heard(3, {"head": 0.5})
    assert strategy.variances == {"a": pytest.approx(total)}
    for nothing in ({}, None, {"head": "loud"}):
        heard(4, nothing)
    assert strategy.variances == {"a": pytest.approx(total)}


def test_what_clients_say_of_their_noise_reaches_the_mixture(bind: Any) -> None:
    # Rows of power 5 and product 4; noise of .25 a scalar in two dimensions takes .5 off the power:
    # .8 becomes 4 / 4.5. In the third row of figures one client says nothing.
    first, second = [[1.0, 2.0], [2.0, 1.0]], [[2.0, 1.0], [1.0, 2.0]]
    for spreads, cosine in (((0.5, 0.5), 4 / 4.5), ((0.0, 0.0), 0.8), ((0.5, None), 0.8)):
        strategy = bind("pfedsim", "rounds=2")
        updates = {"a": update(1.0, first), "b": update(3.0, second)}
        reports = {
            client: {"examples": 1, "noise": {} if spread is None else {"head": spread}}
            for client, spread in zip(updates, spreads, strict=True)
        }
        for client in updates:
            strategy.broadcast(1, client)
        mix(strategy, updates, strategy.mixing(1, reports), reports=reports)
        strategy.refine(1)
        assert float(strategy.similarity[0, 1]) == pytest.approx(cosine, abs=1e-5)
        own, other = SELF, -math.log(1 - cosine)
        expected = torch.full((4,), (own * 1 + other * 3) / (own + other))
        torch.testing.assert_close(strategy.broadcast(2, "a")["body"].vector, expected)


def test_first_everyone_gets_the_mean_then_a_mixture_of_bodies_and_the_own_head(bind: Any) -> None:
    strategy = bind("pfedsim", "rounds=5")  # rho = .5: rounds 1 and 2 generalise
    updates = {"a": update(1.0, A), "b": update(10.0, B), "c": update(100.0, C)}
    one_round(strategy, 1, updates)
    assert strategy.generalisation_rounds == 2 and strategy.rows == {}
    for client in ("a", "b", "c", "new"):
        assert strategy.broadcast(2, client) is strategy.parts
    torch.testing.assert_close(strategy.parts["body"].vector, torch.full((4,), 37.0))
    one_round(strategy, 2, updates)
    own, other = SELF / (SELF + HALF), HALF / (SELF + HALF)
    for client, value, head in (
        ("a", own * 1 + other * 100, A),
        ("b", 10.0, B),
        ("c", other * 1 + own * 100, C),
    ):
        sent = strategy.broadcast(3, client)
        torch.testing.assert_close(
            sent["body"].vector, torch.full((4,), value), rtol=1e-4, atol=1e-4
        )
        assert sent["head"]["head.weight"].tolist() == head
    # Clients that are new get the mean of all; so do all for their evaluation, as global model.
    assert strategy.broadcast(3, "new") is strategy.parts
    assert strategy.broadcast_to_evaluate(3, "a") is strategy.parts
    # A client that does not take part is still mixed in, as it was last.
    one_round(strategy, 3, {"a": update(2.0, A)})
    c = strategy.broadcast(4, "c")["body"].vector
    torch.testing.assert_close(c, torch.full((4,), other * 2 + own * 100), rtol=1e-4, atol=1e-4)


def test_examples_weigh_the_global_mean(bind: Any) -> None:
    strategy = bind("pfedsim")
    reports = {"a": {"examples": 1}, "b": {"examples": 3}}
    assert strategy.mixing(1, reports).weights.tolist() == [[0.25, 0.75]]


def test_the_signal_may_be_the_change_since_the_broadcast(bind: Any) -> None:
    strategy = bind("pfedsim", "strategy.params.signal=delta", "rounds=4")
    # From a head of zeros, the change is the head.
    one_round(strategy, 1, {"a": update(0.0, A), "c": update(0.0, C)})
    one_round(strategy, 2, {"a": update(0.0, A), "c": update(0.0, C)})
    # Round 2 began at the mean M = (A + C) / 2: a moved by (A - C) / 2, c by the opposite.
    assert float(strategy.similarity[0, 1]) == 0.0
    # Round 3 begins at the own heads. a moves by A, c does not answer: it moved last in round 2.
    double = (2 * torch.tensor(A)).tolist()
    one_round(strategy, 3, {"a": update(0.0, double)}, "c")
    torch.testing.assert_close(strategy.moves["a"], torch.tensor(A))
    torch.testing.assert_close(strategy.moves["c"], (torch.tensor(C) - torch.tensor(A)) / 2)


def test_the_signal_may_be_the_difference_from_the_mean_head(bind: Any) -> None:
    strategy = bind("pfedsim", "strategy.params.signal=centred", "rounds=2")
    near = [[3.0, 4.1], [1.0, 0.1]]
    far = [[3.0, 3.0], [1.0, -1.0]]
    clients = {"a": update(0.0, A), "b": update(0.0, near), "c": update(0.0, far)}
    one_round(strategy, 1, clients)
    centred = strategy.similarity
    plain = similarities(torch.tensor([A, near, far]))
    # All three heads are much alike; about their mean, c is on the other side.
    assert float(plain[0, 2]) > 0.6 and float(centred[0, 2]) == 0.0
    assert float(centred[0, 1]) > 0.9


@pytest.mark.parametrize(
    ("rho", "rounds", "expected"), [(0.5, 5, 2), (0.57, 100, 57), (0.1, 5, 0), (1.0, 3, 3)]
)
def test_how_many_rounds_generalise(bind: Any, rho: float, rounds: int, expected: int) -> None:
    strategy = bind("pfedsim", f"strategy.params.rho={rho}", f"rounds={rounds}")
    assert strategy.generalisation_rounds == expected
    strategy.config.rounds = 200  # as ``start(num_rounds=200)`` does
    assert strategy.generalisation_rounds == round(rho * 200)


def test_a_node_may_host_clients_known_and_new(serve: Any) -> None:
    settings = ["rounds=4", "strategy.params.rho=0.25"]
    server = serve("pfedsim", *settings, hosts=[["1", "2", "3"]], acts={"2": "fail"})
    server.train(1)
    server.grid.acts, _ = {}, server.grid.seen.clear()
    server.train(2)
    _, _, body, rows = server.grid.seen[-1]
    sent = {client: rows[row] for client, row in body["rows"].items()}
    # 1 and 3 have heads of ones and threes; the mean, which 2 gets, weighs them by examples.
    heads = {client: parts["head"].vector.unique().tolist() for client, parts in sent.items()}
    assert heads == {"1": [1.0], "2": [2.5], "3": [3.0]}
    assert server.run.round.answers.failures == {}
