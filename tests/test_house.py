"""The counts of the house: they find what they look for, and the house keeps to their bounds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from drawing import draw, floor_of
from syntax import channel_settings, circles, imports, names, override_lookups

SCRIPT = Path(__file__).with_name("house.py")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOUSE = load()


@pytest.mark.parametrize("count", HOUSE.COUNTS, ids=lambda count: count.what)
def test_the_house_keeps_to_its_bounds(count) -> None:  # type: ignore[no-untyped-def]
    assert len(count.found()) <= count.most, count.found()


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A house of three modules whose circle is closed by a lazy and a type-only import."""
    (tmp_path / "fedpers").mkdir()
    (tmp_path / "fedpers" / "__init__.py").write_text("")
    (tmp_path / "fedpers" / "one.py").write_text("from fedpers.two import f\nimport os.path\n")
    (tmp_path / "fedpers" / "two.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from fedpers import three\n"
        "def f(): ...\n"
    )
    (tmp_path / "fedpers" / "three.py").write_text(
        "def g():\n    import fedpers.one\n    from fedpers.two import f\n"
    )
    return tmp_path


def test_lazy_and_type_only_imports_close_a_circle(house: Path) -> None:
    graph = imports(house)
    assert graph["fedpers.two"] == {"fedpers.three": 3}
    assert graph["fedpers.three"] == {"fedpers.one": 2, "fedpers.two": 3}
    assert circles(graph) == [["fedpers.one", "fedpers.three", "fedpers.two"]]
    del graph["fedpers.two"]["fedpers.three"]  # type: ignore[attr-defined]
    assert circles(graph) == []


def test_two_circles_that_share_no_module_are_two() -> None:
    graph = {"a": {"b": 1}, "b": {"a": 1, "c": 1}, "c": {"d": 1}, "d": {"c": 1}, "e": {"a": 1}}
    assert circles(graph) == [["a", "b"], ["c", "d"]]


OVERRIDES = """
if type(self).mixing is not Base.mixing: ...
if cls.mixing is Method.mixing: ...
if getattr(type(a), hook) is not getattr(Base, hook): ...
if getattr(cls, "f") == Base.f: ...
if a.f.__func__ is b.f.__func__: ...
if name in cls.__dict__: ...
if name in vars(type(self)): ...
"""
NO_OVERRIDES = """
if part is not sent.part: ...
if self.name == Kind.OTHER: ...
if name in self.slots: ...
yield thing.__func__
"""


@pytest.mark.parametrize(("text", "lines"), [(OVERRIDES, range(2, 9)), (NO_OVERRIDES, ())])
def test_ways_to_find_out_about_an_override(tmp_path: Path, text: str, lines: range) -> None:
    (tmp_path / "x.py").write_text(f"def f():\n{text[1:]}".replace("\n", "\n    ").rstrip())
    assert [*override_lookups(tmp_path / "x.py")] == [*lines]


def test_names_are_had_from_code_and_from_texts_but_not_from_comments(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        '"""one\ntwo"""\nfrom a.b import c  # seven\ndef three(four, *, f=five.six): ...\n'
    )
    found = set(names(path))
    assert {("one", 1), ("two", 2), ("a.b.c", 3), ("three", 4), ("four", 4)} <= found
    assert {("five", 4), ("six", 4)} <= found and ("seven", 3) not in found


def test_reads_of_a_channels_settings(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "if config.encryption.enabled: ...\n"
        "if privacy.enabled and privacy.unit == 'client': ...\n"
        "if unit != 'example': ...\n"
        "if config.privacy.by_client: ...\n"
        "print(config.privacy.unit, encryption)\n"
    )
    assert sorted(channel_settings(path)) == [1, 2, 3, 4]


def test_words_of_a_channel() -> None:
    for text in ("sealing", "SealedParts", "ClientLevel", "client_level", "at_seal_x", "ckks"):
        assert HOUSE.names_a_channel(text), text
    for text in ("revealed", "sealskin", "client levels", "attention_mask", "channel"):
        assert not HOUSE.names_a_channel(text), text


def test_who_imports_stands_above_what_is_imported() -> None:
    below = {"fedpers.data.sources": 1}
    graph = {
        "fedpers.models.build": {**below, "fedpers.config": 1},
        "fedpers.models.lora": {},
        "fedpers.data.sources": {"fedpers.config": 1, "fedpers.errors": 1},
        "fedpers.errors": {},
        "fedpers.config": {"fedpers.errors": 1},
    }
    floor = [[box.title or box.text for box in row] for row in floor_of("fedpers", graph)]
    assert floor == [["models"], ["data"], ["config · errors"]]
    # Two rooms that import each other's files, though no two files do.
    graph["fedpers.data.sources"]["fedpers.models.lora"] = 1
    floor = [[box.title or box.text for box in row] for row in floor_of("fedpers", graph)]
    assert floor == [["models"], ["data"], ["config · errors"]]


def test_the_picture_is_of_this_house() -> None:
    picture = draw()
    drawn = (SCRIPT.parents[1] / "docs" / "house.svg").read_text(encoding="utf-8")
    assert drawn == picture, "draw it anew: python tests/house.py --draw docs/house.svg"
    for name in ("attacks", "methods", "training", "channels", "tasks"):
        assert f">{name}/<" in picture
    assert "prefers-color-scheme: dark" in picture
