"""Every method under every one of its parameters: encrypted as in the clear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

import pytest

from clients.base import algorithms
from fedpers.channels.plain import PlainNode
from fedpers.channels.sealed.node import SealedNode
from fedpers.parts import Parts
from strategies.base import strategies

UNEVEN = [
    *("data.partition.name=dirichlet", "data.partition.alpha=0.5", "data.clients=6"),
    *("training.epochs=2", "model.pretrain.task=clusters", "model.pretrain.epochs=3"),
    *("model.standardise=true", "evaluation.outside=0"),
]
# FedCP's gate has values beyond 8, which would be clipped.
ENCRYPTED = ["encryption.enabled=true", "encryption.scheme=ckks", "encryption.range=32"]
# Signals other than the weights need what nobody knows under encryption.
REFUSED = {("pfedsim", "signal")}
# Adam's steps on two examples do not shrink with their gradients: what CKKS leaves would grow.
CHOSEN = {"kd_batch": 64, "topology": "ring"}
UNSEEN = ("local", "ifca", "pfedgraph")  # it sends nothing; they are refused
QUICK = [("perada", "weights=examples")]


def others(field: Field[Any]) -> list[Any]:
    """Values of a parameter that are not its default."""
    if field.name in CHOSEN:
        return [CHOSEN[field.name]]
    limits, default = field.metadata.get("limits", {}), field.default
    if choices := field.metadata.get("choices"):
        return [choice for choice in choices if choice != default]
    if isinstance(default, bool):
        return [not default]
    tried = [2, 3] if "int" in str(field.type) else [0.3, 0.6]
    above, most = limits.get("above") or float("-inf"), limits.get("most") or float("inf")
    return [value for value in tried if value != default and above < value <= most][:1]


def cases() -> Iterator[tuple[str, str | None]]:
    """Each method as it is, and with one parameter changed."""
    for name in strategies.names():
        if name in UNSEEN:
            continue
        yield name, None
        strategy = strategies.get(name)
        sides = [strategy.Params, algorithms.get(strategy.client_side()).Params]
        for field in {f.name: f for side in sides for f in fields(side)}.values():
            assert field.default is not MISSING
            found = others(field)
            assert found, f"{name}: no other value of {field.name}"
            if (name, field.name) not in REFUSED:
                yield from ((name, f"{field.name}={value}") for value in found)


def sent(run: Any, name: str, settings: list[str], patch: pytest.MonkeyPatch) -> list[Parts]:
    """What clients were sent, in the clear."""
    seen: list[Parts] = []

    def noted(arrive: Any) -> Any:
        def note(self: Any, *message: Any) -> list[Parts]:
            parts: list[Parts] = arrive(self, *message)
            seen.extend(parts)
            return parts

        return note

    with patch.context() as patched:
        for half in (PlainNode, SealedNode):
            patched.setattr(half, "arrive", noted(half.arrive))
        assert run(name, *UNEVEN, *settings).failures() == {}
    return seen


@pytest.mark.parametrize(
    ("name", "setting"),
    [c if c in QUICK else pytest.param(*c, marks=pytest.mark.slow) for c in cases()],
)
def test_encrypted_as_in_the_clear(
    run: Any, monkeypatch: pytest.MonkeyPatch, name: str, setting: str | None
) -> None:
    """Both rounds: in the first clients are told their weights after the training, then before."""
    settings = ["rounds=2", *([f"strategy.params.{setting}"] if setting else [])]
    plain = sent(run, name, settings, monkeypatch)
    sealed = sent(run, name, [*settings, *ENCRYPTED], monkeypatch)
    assert len(plain) == len(sealed)
    # The last message of each round is its mean, to be evaluated. What pFedSim's clients are sent
    # to train in between is mixed by rounded weights.
    # What is opened for PerAda's server is rounded, and then distilled: Adam's steps do not shrink.
    rounded = 1e-3 if name == "perada" else 0.0
    last = 0.01 if name == "pfedsim" else max(1e-4, rounded)
    for place, most in ((3, max(1e-5, rounded)), (-1, last)):
        one, other = plain[place], sealed[place]
        assert list(one) == list(other)
        assert max(float((one[n].vector - other[n].vector).abs().max()) for n in one) < most
