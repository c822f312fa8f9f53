"""Mechanisms from outside that do not do what they are charged for are found out."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from fedpers.privacy.leaktest import Finding

UNPAID = r"^a release with noise of [\d.]+ is not in the ledger$"
SENT = r"with one example replaced by another one, part '(body|head)' moves by [\d.e+-]+"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("Whisper", UNPAID),
        ("Everybody", UNPAID),
        ("Silent", SENT),
        pytest.param("OwnNoise", SENT, marks=pytest.mark.slow),
        pytest.param("Guessable", "^torch's generator goes on changing$", marks=pytest.mark.slow),
        pytest.param("Remembering", r"^a noised sum holds [\d.]+ beside", marks=pytest.mark.slow),
    ],
)
def test_a_mechanism_that_leaks_is_refused(
    tried: Callable[..., Finding | None], kind: str, says: str
) -> None:
    settings = ["privacy.steps=1", "privacy.sampling_rate=0.5"]
    found = tried("fedavg", f"privacy.mechanism=mechanisms:{kind}", *settings)
    assert found is not None
    assert re.search(says, found.what), found
