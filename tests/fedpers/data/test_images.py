"""Folders of images: classes and clients by their folders, sizes, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedpers.config import load_config
from fedpers.data import FederatedData, device_data, load_data
from fedpers.errors import FedpersError
from simulations.experiments.new_images import write_images

RNG = np.random.default_rng(0)


def draw(path: Path, size: tuple[int, int] = (8, 8), mode: str = "L", value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value, 0, 0)).save(path)


def load(folder: Path, *more: str) -> FederatedData:
    wanted = ["data.name=images", f"data.path={folder}", "data.clients=2", "data.scale=none"]
    return load_data(load_config(None, [*wanted, "data.partition.name=iid", *more]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(12):
        draw(tmp_path / "pets" / ("Katze" if k % 2 else "Hund 犬") / f"{k}.png", value=20 * k)
    (tmp_path / "pets" / "README.txt").write_text("not an image by its name")
    (tmp_path / "pets" / "Katze" / ".hidden.png").write_text("nor this")
    return tmp_path / "pets"


def test_classes_are_folders(folder: Path) -> None:
    data = load(folder)
    assert data.task.names == ("Hund 犬", "Katze") and data.signature.shape == (1, 8, 8)
    total = sum(len(side) for c in data.clients for side in vars(data.client(c)).values())
    assert total + len(data.public) == 12
    assert float(data.inputs.min()) == -1 and float(data.inputs.max()) == pytest.approx(
        220 / 127.5 - 1
    )


def test_clients_are_folders_above(tmp_path: Path) -> None:
    for k in range(24):
        draw(tmp_path / "p" / f"clinic {k % 3}" / f"class {k // 3 % 2}" / f"{k}.jpg")
    data = load(tmp_path / "p", "data.partition.name=natural")
    assert data.clients == ["clinic 0", "clinic 1", "clinic 2"]


def test_several_sizes_are_resized_on_request_and_one_in_colour_makes_all_so(folder: Path) -> None:
    draw(folder / "Katze" / "large.png", (20, 10), "RGB")
    with pytest.raises(FedpersError, match=r"several sizes, .* of 8 x 8 and Katze/large.png of 20"):
        load(folder)
    data = load(folder, "data.image_size=16")
    assert data.signature.shape == (3, 16, 16) and bool(torch.isfinite(data.inputs).all())


def test_sixteen_bits_a_pixel(tmp_path: Path) -> None:
    for k in range(12):
        draw(tmp_path / "p" / f"c{k % 2}" / f"{k}.png", mode="I;16", value=65535 * (k % 2))
    data = load(tmp_path / "p")
    assert data.signature.shape == (1, 8, 8)
    assert data.inputs.unique().tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda p: (p / "Katze" / "no.png").write_text("x"), "Katze/no.png: it is no image that"),
        (lambda p: (p / "Katze" / "no.png").write_bytes(b""), "Katze/no.png: it is no image that"),
        (lambda p: draw(p / "top.png"), "got images such as top.png, takes class/name.png for all"),
        (lambda p: draw(p / "a" / "b" / "c.png"), "got images such as a/b/c.png, takes class/"),
        (lambda p: draw(p / "a" / "b" / "c" / "d.png"), "got images such as a/b/c/d.png"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder: Path, spoil: object, line: str) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(FedpersError) as caught:
        load(folder)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_image_one_class_nothing_and_a_size_for_tables(tmp_path: Path) -> None:
    draw(tmp_path / "p" / "only" / "a.png", (64, 64))
    whole = (tmp_path / "p" / "only" / "a.png").read_bytes()
    with pytest.raises(FedpersError, match="got the one class only, takes at least two"):
        load(tmp_path / "p")
    (tmp_path / "p" / "only" / "b.png").write_bytes(whole[:60])
    with pytest.raises(FedpersError, match=r"only/b\.png: "):
        load(tmp_path / "p")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FedpersError, match=r"got no images \(.bmp, "):
        load(tmp_path / "empty")
    with pytest.raises(FedpersError, match=r"data.image_size: got 8, takes null for tabular"):
        load_data(load_config("configs/diabetes.yaml", ["data.image_size=8"]))
    with pytest.raises(FedpersError, match="takes a folder of images"):
        load(tmp_path / "p" / "only" / "a.png")


def test_a_devices_own_folder_need_not_hold_every_class(folder: Path, tmp_path: Path) -> None:
    server = load(folder, "data.partition.name=devices")
    for k in range(8):
        draw(tmp_path / "mine" / "Katze" / f"{k}.png", value=k)
    config = load_config(None, ["data.scale=none"])
    own = device_data(config, "d", tmp_path / "mine", server.schema)
    assert own.client("d").train.y.unique().tolist() == [1]


def test_a_first_config_reads_them(folder: Path, tmp_path: Path) -> None:
    for k in range(12):
        draw(folder / "Katze" / f"more {k}.png", (20 + k, 30), "RGB")
    path, seen = write_images(tmp_path / "mine", folder)
    assert seen == "24 images of 2 classes, 2 clients"
    assert load_data(load_config(path)).signature.shape[0] == 3
    (folder / "Katze" / "no.png").write_text("x")
    with pytest.raises(FedpersError, match="no image"):
        write_images(tmp_path / "other", folder)
    assert not (tmp_path / "other" / "config.yaml").exists()
