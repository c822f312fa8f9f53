"""Names of built-in things, dotted paths, and plug-ins of installed packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedpers.errors import ConfigError
from fedpers.registry import Registry


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write modules to a folder that is importable; the names are the tests' own."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def registry(package: str, group: str | None = None) -> Registry[type]:
    return Registry("fruit", key="basket.fruit", package=package, group=group)


def test_modules_of_the_package_register_at_the_first_look_up(shop: Callable[..., None]) -> None:
    add = "from reg_a import fruits\n@fruits.register('{0}')\nclass {1}: ...\n"
    shop(
        {
            "reg_a/__init__.py": "from fedpers.registry import Registry\n"
            "fruits = Registry('fruit', key='basket.fruit', package='reg_a')\n",
            "reg_a/plum.py": add.format("plum", "Plum"),
            "reg_a/fig.py": add.format("fig", "Fig"),
            "reg_a/fruit_app.py": "raise RuntimeError('an app is not imported')\n",
            "reg_a/_private.py": "raise RuntimeError('nor is this')\n",
        }
    )
    from reg_a import fruits  # type: ignore[import-not-found]

    assert fruits.names() == ["fig", "plum"]
    plum = fruits.get("plum")
    assert plum.__name__ == "Plum" and fruits.name_of(plum) == "plum"
    assert fruits.name_of(Path) == f"{Path.__module__}:Path"


def test_a_miss_lists_what_there_is(shop: Callable[..., None]) -> None:
    shop({"reg_b/__init__.py": ""})
    fruits = registry("reg_b")
    fruits.register("plum")(int)
    fruits.register("fig")(str)
    with pytest.raises(ConfigError) as error:
        fruits.get("pear")
    takes = "one of fig, plum, or a dotted path package.module:Name"
    assert str(error.value) == f"basket.fruit: got 'pear', takes {takes}"


def test_a_name_taken_twice_is_an_error_unless_it_is_the_same_thing(
    shop: Callable[..., None],
) -> None:
    shop({"reg_c/__init__.py": ""})
    fruits = registry("reg_c")
    fruits.register("plum")(int)
    fruits.register("plum")(int)  # a module that is imported again
    with pytest.raises(ValueError, match="'plum' is registered twice"):
        fruits.register("plum")(str)
    assert fruits.get("plum") is int


def test_a_dotted_path_is_imported(shop: Callable[..., None]) -> None:
    shop({"reg_d/__init__.py": "", "reg_e/__init__.py": "", "reg_e/garden.py": "class Pear: ...\n"})
    fruits = registry("reg_d")
    pear = fruits.get("reg_e.garden:Pear")
    assert pear.__name__ == "Pear" and fruits.name_of(pear) == "reg_e.garden:Pear"
    assert fruits.names() == []


@pytest.mark.parametrize("path", ["reg_no_such:Pear", "pathlib:Pear", ":Pear", "pathlib:"])
def test_a_path_that_leads_nowhere_is_one_line(shop: Callable[..., None], path: str) -> None:
    shop({"reg_f/__init__.py": ""})
    with pytest.raises(ConfigError) as error:
        registry("reg_f").get(path)
    line = str(error.value)
    assert line.startswith(f"basket.fruit: got {path!r}, takes a path that can be imported")
    assert "PYTHONPATH" in line and "\n" not in line


def test_installed_packages_bring_their_own(shop: Callable[..., None]) -> None:
    info = "reg_h-1.0.dist-info"
    shop(
        {
            "reg_g/__init__.py": "",
            "reg_h.py": "class Kiwi: ...\n",
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: reg_h\nVersion: 1.0\n",
            f"{info}/entry_points.txt": "[test.fruits]\nkiwi = reg_h:Kiwi\nplum = reg_h:Kiwi\n"
            "lime = reg_h:Lime\nfig = reg_gone:Fig\n",
        }
    )
    fruits = registry("reg_g", group="test.fruits")
    fruits.register("plum")(int)
    assert fruits.names() == ["fig", "kiwi", "lime", "plum"]
    assert fruits.get("kiwi").__name__ == "Kiwi"
    assert fruits.get("plum") is int  # the built-in one comes first
    assert registry("reg_g").names() == []
    for broken in ("lime", "fig"):
        with pytest.raises(ConfigError, match=rf"got '{broken}', takes a path that can be imp"):
            fruits.get(broken)
