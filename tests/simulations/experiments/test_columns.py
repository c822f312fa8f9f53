"""What columns of files from elsewhere are taken for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedpers.config import load_config
from fedpers.data import load_data
from simulations.experiments.columns import Found, look
from simulations.experiments.new import write

N = 60
RNG = np.random.default_rng(3)
LABEL = ["a", "b"] * (N // 2)


def seen(folder: Path, cells: list[Any], name: str = "x", **form: Any) -> Found:
    """What is found in a column, beside a good one; and a config of it reads the file."""
    path = folder / "t.csv"
    rows = {name: cells, "good": RNG.standard_normal(N), "y": LABEL}
    pd.DataFrame(rows).to_csv(path, index=False, **form)
    found = look(path, "y", None)
    data = load_data(load_config(write(folder / "mine", path, "y", None, found)))
    assert data.signature.kind == "tabular" and len(data.clients) == 2
    return found


def test_numbers_with_a_few_words(tmp_path: Path) -> None:
    found = seen(tmp_path, [*(f"{v:.2f}" for v in RNG.standard_normal(N - 3)), "k.A.", "n/a", "?"])
    assert found.words == ["k.A."] and found.missing and "x" in found.features


def test_numbers_among_many_words_are_values_of_a_category(tmp_path: Path) -> None:
    found = seen(tmp_path, ["1", "2", "red"] * (N // 3))
    assert found.categories == {"x": ["1", "2", "red"]} and not found.words


@pytest.mark.parametrize("cells", [["51.2 %", "3%"], ["$1,234.50", "$12.00"], ["1,5", "-2,25"]])
def test_numbers_with_signs(tmp_path: Path, cells: list[str]) -> None:
    decimal = "," if cells[0] == "1,5" else "."
    found = seen(tmp_path, cells * (N // 2), decimal=decimal)
    assert found.features[0] == "x" and not found.categories
    assert found.decimal == decimal


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("%Y-%m-%d", "ISO8601"),
        ("%Y-%m-%dT%H:%M:%SZ", "ISO8601"),
        ("%d.%m.%Y", "%d.%m.%Y"),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M"),
        ("%m/%d/%Y", "%m/%d/%Y"),
    ],
)
def test_dates(tmp_path: Path, form: str, written: str) -> None:
    days = pd.Timestamp("2023-01-25") + pd.to_timedelta(RNG.integers(0, 900, N), unit="D")
    assert seen(tmp_path, list(days.strftime(form))).dates == {"x": written}


@pytest.mark.parametrize(
    ("cells", "name", "why"),
    [
        ([""] * N, "x", "there is nothing in it"),
        ([7] * N, "x", "it is the same in all rows"),
        (["7.0", "7"] * (N // 2), "x", "it is the same in all rows"),
        (list(range(N)), "x", "it numbers the rows"),
        (list(RNG.permutation(10**6)[:N]), "patient_id", "it numbers the rows"),
        ([f"text {k}" for k in range(N)], "x", f"text of {N} different values"),
    ],
)
def test_what_says_nothing_is_left_out(
    tmp_path: Path, cells: list[Any], name: str, why: str
) -> None:
    found = seen(tmp_path, cells, name)
    assert found.left_out == {name: why} and found.features == ["good"]


def test_one_value_or_nothing_says_something(tmp_path: Path) -> None:
    assert seen(tmp_path, ["", "smoker"] * (N // 2)).categories == {"x": ["smoker"]}


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_a_separator_within_quotes_is_none(tmp_path: Path, sign: str) -> None:
    name = 'height, "m"; a|b,c,d'
    found = seen(tmp_path, list(RNG.standard_normal(N)), name, sep=sign)
    assert found.features == [name, "good"]


def test_a_byte_order_mark_and_names_from_everywhere(tmp_path: Path) -> None:
    found = seen(tmp_path, ["北京", "Köln"] * (N // 2), "Größe 大", encoding="utf-8-sig")
    assert found.categories == {"Größe 大": ["Köln", "北京"]} and found.encoding == "utf-8-sig"


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ([1.0, 2.0] * (N // 2), ["1", "2"]),
        ([0, 1, 2] * (N // 3), ["0", "1", "2"]),
        (["yes", "no"] * (N // 2), ["no", "yes"]),
        ([True, False] * (N // 2), ["False", "True"]),
        (list(range(15)) * (N // 15), None),  # four rows each: a number
        (list(RNG.standard_normal(N)), None),
    ],
)
def test_what_is_learned(tmp_path: Path, label: list[Any], classes: list[str] | None) -> None:
    rows = {"good": RNG.standard_normal(N), "y": label}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    found = look(tmp_path / "t.csv", "y", None)
    assert found.classes == classes
    data = load_data(load_config(write(tmp_path / "mine", tmp_path / "t.csv", "y", None, found)))
    assert data.task.names == (tuple(classes) if classes else ("y",))


def test_the_scale_of_a_number_is_told_roughly_however_far_from_zero(tmp_path: Path) -> None:
    rows = {"good": RNG.standard_normal(N), "y": 1_234_567 + 100 * RNG.standard_normal(N)}
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    scale = look(tmp_path / "t.csv", "y", None).scale
    assert scale is not None
    assert abs(scale[0] - rows["y"].mean()) <= 10 and abs(scale[1] / rows["y"].std() - 1) < 0.1
