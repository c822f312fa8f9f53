import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedpers.config import TaskSettings
from fedpers.data.arrays import check_finite, read_npz, to_inputs, to_names
from fedpers.errors import DataError


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "input_shape"),
    [
        ((5, 4, 3), "uint8", "image", (1, 4, 3)),
        ((5, 3, 4, 6), "uint8", "image", (3, 4, 6)),
        ((5, 3, 4, 6), "float64", "image", (3, 4, 6)),
        ((5, 9, 8), "float16", "signal", (9, 8)),
        ((5, 7), "float32", "tabular", (7,)),
        ((5, 7), ">f4", "tabular", (7,)),
    ],
)
def test_kind_follows_shape_and_type(
    shape: tuple[int, ...], dtype: str, kind: str, input_shape: tuple[int, ...]
) -> None:
    found, x = to_inputs(np.zeros(shape, dtype), "x")

    assert found == kind
    assert x.dtype == torch.float32
    assert tuple(x.shape) == (5, *input_shape)


def test_pixels_are_scaled_and_floats_are_not() -> None:
    _, pixels = to_inputs(np.array([[0, 51, 255]], np.uint8), "x")
    _, floats = to_inputs(np.array([[0.0, 51.0, 1.5]], np.float16), "x")

    assert torch.allclose(pixels, torch.tensor([[-1.0, -0.6, 1.0]]))
    assert floats.tolist() == [[0.0, 51.0, 1.5]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3), np.int64), "int64"),
        (np.zeros((2, 3), np.complex64), "complex64"),
        (np.zeros(3), r"\(3,\)"),
        (np.zeros((0, 3)), r"\(0, 3\)"),
        (np.zeros((2, 1, 1, 1, 1)), "reshape"),
        (np.zeros((2, 8, 8, 3), np.uint8), "channels second"),
    ],
)
def test_bad_inputs_are_one_line(x: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        to_inputs(x, "file: x")

    assert str(caught.value).startswith("file: x: got") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "row"), [([1.0, np.nan], 1), ([-np.inf, 0.0], 0), ([0.0, 0.0, 1e300], 2)]
)
def test_what_is_not_finite_is_one_line(rows: list[float], row: int) -> None:
    _, x = to_inputs(np.array(rows)[:, None], "x")
    with pytest.raises(
        DataError, match=rf"^file: x: got NaN, .* in row {row} \(from 0\)"
    ) as caught:
        check_finite(x, "file: x")
    assert "\n" not in str(caught.value)


def test_names_are_integers_or_text() -> None:
    assert to_names(np.array([10, 2], np.int8), "client").tolist() == ["10", "2"]
    assert to_names(["07", "7"], "client").tolist() == ["07", "7"]
    with pytest.raises(DataError, match="float64"):
        to_names([1.0, 2.0], "client")


def test_npz_reads_arrays_and_names(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((3, 2)), y=[0, 1, 1], client=[7, 7, 8], group=["a", "b", "b"])

    table = read_npz(path)

    assert table.client is not None and table.client.tolist() == ["7", "7", "8"]
    assert table.group is not None and table.group.tolist() == ["a", "b", "b"]
    assert (table.kind, table.signature.shape, table.task.outputs) == ("tabular", (2,), 2)


def test_npz_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    np.savez(tmp_path / "objects.npz", x=np.array([Trap()], dtype=object), y=[0])
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap()))

    for name in ("objects.npz", "pickle.npz"):
        with pytest.raises(DataError, match="cannot be read"):
            read_npz(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_unreadable_npz_is_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, x=np.random.default_rng(0).random((50, 20)), y=np.arange(50) % 2)
    content = whole.read_bytes()
    damaged = content[:400] + bytes(200) + content[600:]
    for name, bad in (("cut", content[:-90]), ("damaged", damaged), ("empty", b""), ("text", b"x")):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(bad)
        with pytest.raises(DataError, match=f"{name}.npz") as caught:
            read_npz(path)
        assert "\n" not in str(caught.value)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="a single array"):
        read_npz(tmp_path / "single.npy")
    with pytest.raises(DataError, match="cannot be read"):
        read_npz(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 1))}, "got x, takes arrays x and y; add y"),
        ({"x": np.zeros((2, 1)), "y": np.array([0, 1, 1])}, "x: got shape"),
        ({"x": np.zeros((2, 1)), "y": np.array(1)}, "y: got shape"),
        ({"x": np.zeros((2, 1)), "y": np.array([0, 1]), "client": np.array([0])}, "client: got"),
    ],
)
def test_arrays_that_do_not_fit(
    tmp_path: Path, arrays: dict[str, np.ndarray[Any, Any]], message: str
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(DataError, match=message):
        read_npz(path)


def test_an_archive_says_what_its_classes_are_called(tmp_path: Path) -> None:
    path, x = tmp_path / "data.npz", np.zeros((3, 2), dtype=np.float32)
    np.savez(path, x=x, y=[0, 1, 0], names=["cat", "dog"])
    assert read_npz(path).task.names == ("cat", "dog")  # type: ignore[union-attr]
    given = TaskSettings("classification", {"names": ["a", "b", "c"]})
    assert read_npz(path, task=given).task.names == ("a", "b", "c")  # type: ignore[union-attr]
    np.savez(path, x=x, y=[0, 1, 2], names=["cat", "dog"])
    with pytest.raises(DataError, match=r"y: got int64 such as 2, takes integers in 0\.\.1 or cat"):
        read_npz(path)
