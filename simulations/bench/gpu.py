"""Clients a second with LoRA on a ViT-B/16, at once against one by one, on a GPU.

    python -m simulations.bench.gpu --clients 32 --fold 8,32 --precision bfloat16

The model has ViT-B/16's shape and random weights, so that nothing is fetched; each client trains
adapters on all query and value layers, and a head, for one batch. Without a GPU it computes on the
CPU and says so: ``--size small`` shows there that it works.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from clients.base import find_algorithm
from clients.training.groups import train_group
from clients.training.layers import Fold
from clients.training.trainer import Trainer
from fedpers.compute import device_for, device_name
from fedpers.config import Lora, load_config
from fedpers.context import Context
from fedpers.data import Examples
from fedpers.models import PersonalModel
from fedpers.models.hf import HfImage
from fedpers.models.lora import add_lora
from fedpers.parts import Parts
from simulations.bench.row import medians

SHAPES = {
    "base": {"image_size": 224, "patch_size": 16},
    "small": {
        **{"image_size": 32, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "intermediate_size": 128},
    },
}
CLASSES = 10


def vit(size: str) -> PersonalModel:
    """A vision transformer with LoRA's default, and a head, by the names of ``SHAPES``."""
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    shape = transformers.ViTConfig(num_labels=CLASSES, **SHAPES[size])
    model = transformers.ViTForImageClassification(shape).eval()
    model.classifier = nn.Identity()
    trunk = HfImage(model, shape.hidden_size, "classifier", {})
    trunk.requires_grad_(False)
    add_lora(trunk, Lora(), 0)
    return PersonalModel(trunk, nn.Linear(shape.hidden_size, CLASSES))


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(SHAPES), default="base")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="examples of a client")
    parser.add_argument("--fold", default="8,32", help="group sizes, beside one by one")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    device = device_for(1.0)
    name = device_name(1.0) if device.type == "cuda" else "CPU: no GPU is in sight"
    print(f"{name}, ViT {given.size}, {given.precision}, batches of {given.batch}")
    model = vit(given.size).to(device)
    settings = [f"training.batch_size={given.batch}", f"training.precision={given.precision}"]
    config = load_config(None, ["strategy.name=fedavg", *settings])
    found, params = find_algorithm("fedavg", config, [])
    algorithm, side = found(config, model, params), SHAPES[given.size]["image_size"]
    examples = [
        Examples(torch.randn(given.batch, 3, side, side), torch.arange(given.batch) % CLASSES)
        for _ in range(given.clients)
    ]
    examples = [own.to(device) for own in examples]
    fold, broadcast = Fold(model), algorithm.initial

    def run(size: int) -> None:
        for first in range(0, given.clients, size):
            some = examples[first : first + size]
            trainers = [
                Trainer(config, model, algorithm, own, server_round=1, client=str(first + k))
                for k, own in enumerate(some)
            ]
            workings = [
                algorithm.receive(broadcast, Parts(), Context(own.client, 1)) for own in trainers
            ]
            for result in train_group(algorithm, fold if size > 1 else None, trainers, workings):
                if isinstance(result, Exception):
                    raise result
        if device.type == "cuda":
            torch.cuda.synchronize()

    sizes = [1, *(int(size) for size in given.fold.split(","))]
    runs = [partial(run, size) for size in sizes]
    seconds = medians(runs, given.repeats, time.perf_counter)
    for size, took in zip(sizes, seconds, strict=True):
        print(
            f"{'one by one' if size == 1 else f'in groups of {size}':<18}"
            f"{given.clients / took:8.1f} clients a second, {seconds[0] / took:.2f} times"
        )
    if fold.most < given.clients:
        print(f"memory took at most {fold.most} clients at once")


if __name__ == "__main__":
    main()
