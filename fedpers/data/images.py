"""Images from files: as columns of a table hold them, or as folders that say what is on them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpers.config import Config
from fedpers.data.arrays import to_inputs, to_names, to_targets
from fedpers.data.examples import Examples, Table
from fedpers.errors import ConfigError, DataError, line_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
GREY = {"1", "L", "LA", "I", "F"}  # and I;16 in its kinds
DEEP = 256.0  # from 16 bits a pixel to 8


def folder_table(path: Path, config: Config) -> Table:
    """A table from ``class/name.png`` or ``client/class/name.png`` under ``path``.

    Files that are no images by their names, and hidden ones, are passed over.

    Raises:
        DataError: there are no images, some at another depth, or one that cannot be read; several
            sizes without ``data.image_size``; targets that are none of the task.
    """
    found = image_files(path)
    depths = Counter(len(file.parts) for file in found)
    if not found or len(depths) > 1 or not set(depths) <= {2, 3}:
        got = f"no images ({', '.join(sorted(SUFFIXES))})"
        if found:
            rare = min(depths, key=lambda depth: depths[depth])
            odd = next(file for file in found if len(file.parts) == rare)
            got = f"images such as {odd}"
        takes = "class/name.png for all, or client/class/name.png for all"
        raise DataError(f"{path}: got {got}, takes {takes}; move them")
    kind, x = images_of(map(str, found), path, path, config.data.image_size)
    classes = [file.parts[-2] for file in found]
    task, y = to_targets(classes, f"{path}: folders of classes", config.data.columns, config.task)
    client = None
    if set(depths) == {3}:
        client = to_names([file.parts[0] for file in found], f"{path}: folders of clients")
    return Table(kind, Examples(x, y), client, None, task)


def image_files(path: Path) -> list[Path]:
    """The images under a folder, as paths from there, in order; hidden ones are none."""
    found = (file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in found if not any(p.startswith(".") for p in file.parts))


def images_of(
    cells: Iterable[Any], where: Path | str, folder: Path, size: int | None = None
) -> tuple[str, torch.Tensor]:
    """The kind of input, and images as [n, C, H, W]: grey if all are, else RGB.

    Args:
        cells: decoded images, encoded ones (in a dict or not), or paths.
        folder: in which the paths are.
        size: pixels of both sides that all are brought to; None where they are of one size.

    Raises:
        DataError: one cannot be read, or they are of several sizes.
    """
    images: list[Any] = []
    first: tuple[str, tuple[int, int]] | None = None
    for row, cell in enumerate(cells):
        name = f"{cell}" if isinstance(cell, str) else f"image in row {row} (from 0)"
        try:
            image = _image(cell, folder)
            if size is not None and image.size != (size, size):
                image = image.convert("L" if _is_grey(image) else "RGB").resize((size, size))
        except (OSError, TypeError, ValueError, SyntaxError) as error:
            reason = line_of(error)
            raise DataError(f"{where}: {name}: {reason}; mend or remove it") from None
        first = first or (name, image.size)
        if image.size != first[1]:
            got = f"{first[0]} of {_shown(first[1])} and {name} of {_shown(image.size)}"
            cure = f"set data.image_size={min(*first[1], *image.size)}, say"
            raise DataError(f"{where}: got images of several sizes, {got}; {cure}")
        images.append(image)
    if not images:
        raise DataError(f"{where}: got no images, takes at least one")
    if all(map(_is_grey, images)):
        pixels = np.stack([_grey(image) for image in images])[:, None]
    else:
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return to_inputs(pixels, f"{where}: images")


def _image(cell: Any, folder: Path) -> Any:
    """A cell as a PIL image, upright as its camera says."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(cell, Image.Image):
        return cell
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not isinstance(cell, bytes | str):
        raise TypeError(f"got {type(cell).__name__}, takes an encoded image or a path")
    source = io.BytesIO(cell) if isinstance(cell, bytes) else folder / cell
    try:
        with Image.open(source) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    except UnidentifiedImageError:
        raise ValueError("it is no image that can be read") from None


def _is_grey(image: Any) -> bool:
    return image.mode in GREY or str(image.mode).startswith("I;16")


def _grey(image: Any) -> NDArray[np.uint8]:
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
    pixels = np.asarray(image, dtype=np.float64)
    return np.clip(pixels / (DEEP if pixels.max(initial=0) > 255 else 1), 0, 255).astype(np.uint8)


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def check_images(config: Config, kind: str) -> None:
    """That only images are to be resized.

    Raises:
        ConfigError: they are others.
    """
    if config.data.image_size is not None and kind != "image":
        raise ConfigError("data.image_size", config.data.image_size, f"null for {kind} data")
