"""A first config for a folder of images of one's own."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from statistics import median

from fedpers.config import load_config
from fedpers.data import load_data
from fedpers.data.images import image_files
from fedpers.errors import ConfigError
from simulations.experiments.new import NAME, yaml_text

LARGEST = 64  # pixels a side that are suggested where images are of several sizes
STEPS, BATCH, ROUNDS, TRAINED = 300, 16, 20, 0.6
EACH = 40  # images of a client, where they are dealt


def write_images(folder: Path, path: Path) -> tuple[Path, str]:
    """Write the config for the images under ``path`` into ``folder``; its path, and what was found.

    Raises:
        ConfigError: there is a config already, or no image.
        DataError: the images cannot be read, or do not lie as ``data.name=images`` takes them.
    """
    target = folder / NAME
    if target.exists():
        raise ConfigError("DIR", str(folder), f"a folder without {NAME}", "name another one")
    if not (found := image_files(path)):
        takes = "a csv file, or a folder of images as class/name.png or client/class/name.png"
        raise ConfigError("--from", str(path), takes)
    owned = bool(found) and len(found[0].parts) == 3
    owners = len({file.parts[0] for file in found}) if owned else 0
    clients = owners or max(2, min(10, len(found) // EACH))
    epochs = max(1, min(10, ceil(STEPS / ROUNDS / ceil(TRAINED * len(found) / clients / BATCH))))
    partition = "{name: natural}  # the folders above those of classes"
    lines = [
        f"# {path.name}: {len(found)} images. Look at it first: fedpers check THIS-FILE",
        f"rounds: {ROUNDS}",
        "data:",
        "  name: images  # class/name.png, or client/class/name.png",
        f"  path: {yaml_text(str(path.resolve()))}",
        f"  image_size: {_size([path / file for file in found])}  # pixels a side, for all",
        f"  partition: {partition if owned else '{name: iid}  # nobody owns an image'}",
        *([] if owned else [f"  clients: {clients}"]),
        "  public_fraction: 0",
        "# A small network, all of which is trained: no adapters on a frozen one.",
        "model: {name: cnn, lora: null}",
        f"strategy: {{name: ditto, params: {{mu: {1 if owned else 3}}}}}",
        "training:",
        f"  epochs: {epochs}  # so many that a client takes about {STEPS} steps or more in all",
        f"  batch_size: {BATCH}",
        "  lr: 0.02",
        "  lr_decay: cosine",
        "  momentum: 0.9",
        "evaluation: {every: 5}",
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(lines), encoding="utf-8")
    try:
        data = load_data(load_config(target))
    except BaseException:
        target.unlink()
        raise
    seen = f"{len(found)} images of {len(data.task.names)} classes, {len(data.clients)} clients"
    return target, seen


def _size(found: list[Path]) -> str:
    """``null`` where all images are of one size and not large."""
    from PIL import Image

    sides = []
    for file in found:
        try:
            with Image.open(file) as image:
                sides.append(image.size)
        except (OSError, ValueError, SyntaxError):
            continue  # the reader says which and why
    if not sides or (len(set(sides)) == 1 and max(sides[0]) <= LARGEST):
        return "null"
    return str(max(8, min(LARGEST, round(median(min(side) for side in sides)))))
