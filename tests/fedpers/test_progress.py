"""Lines on how far a long stretch is: none of a short one."""

from __future__ import annotations

import logging

import pytest

from fedpers.progress import Progress


def test_a_line_a_while_and_none_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fedpers")
    assert list(Progress("round 3", 5, every=0.0).steps(2)) == [0, 2, 4]
    assert [r.getMessage() for r in caplog.records] == [
        f"round 3: {done} of 5 clients, 0 s" for done in (0, 2, 4)
    ]
    caplog.clear()
    Progress("round 3", 5, every=0.0).at(5)
    assert list(Progress("round 4", 5).steps(1)) == [0, 1, 2, 3, 4]
    assert not caplog.records
