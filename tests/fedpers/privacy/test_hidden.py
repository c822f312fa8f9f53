"""Where state can hide, and that each place is looked into."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hiding import ACTS, Method, model

from fedpers.privacy.hidden import Untouched, moved, state_of

HERE = "hiding"


@pytest.mark.parametrize("where", ACTS)
def test_state_is_found_wherever_it_is(where: str) -> None:
    method, layers = Method(), model()

    def look() -> dict[str, str]:
        return state_of(method, layers, list(layers.parameters()), [HERE])

    before = look()
    assert moved(before, look()) is None
    ACTS[where](method, layers)
    assert moved(before, look()) is not None


def test_slots_and_others_modules_say_nothing() -> None:
    method, layers = Method(), model()
    before = state_of(method, layers, list(layers.parameters()), [HERE])
    with torch.no_grad():
        layers.weight.add_(1)
    sys.modules["fedpers.config"].__dict__["odd"] = 1
    try:
        assert moved(before, state_of(method, layers, list(layers.parameters()), [HERE])) is None
    finally:
        del sys.modules["fedpers.config"].__dict__["odd"]


def test_what_is_replaced_in_a_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedpers.parts

    untouched = Untouched()
    assert untouched.changed() is None
    for where, name, full in (
        (fedpers.parts, "combine", "fedpers.parts.combine"),
        (fedpers.parts.Parts, "only", "fedpers.parts.Parts.only"),
        (torch.Tensor, "clamp", "torch.Tensor.clamp"),  # hides what it inherits
        (torch.nn.functional, "relu", "torch.nn.functional.relu"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, lambda *_: None)
            assert untouched.changed() == full
        assert untouched.changed() is None


def test_files_and_processes_are_noticed(tmp_path: Path) -> None:
    """In a process of its own: what listens cannot be sent away again."""
    from clients.leaktest.rehearsal import apart

    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()

    def work() -> list[str]:
        import subprocess

        from fedpers.privacy.hidden import watch

        seen = watch(str(inside))
        (inside / "a").write_text("a")
        Path("/dev/null").write_text("a")
        assert seen == []
        Path(__file__).read_text()
        assert seen == []
        outside.write_text("a")
        subprocess.run(["true"], check=True)
        return seen

    seen = apart(work)
    assert seen[0] == f"a file is written, {outside}" and seen[-1] == "a process is started"
