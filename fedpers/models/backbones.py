"""Small backbones: modules from inputs to features, without dropout and batch statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from fedpers.errors import ConfigError
from fedpers.outputs import Outputs
from fedpers.registry import Registry


class Stage(NamedTuple):
    """One step of a forward pass: the submodules whose tensors it reads, and what it does."""

    reads: tuple[str, ...]
    run: Callable[[torch.Tensor], torch.Tensor]


class Backbone(nn.Module):
    """A trunk: ``Backbone(input_shape)``, called with x [batch, *input_shape].

    A backbone of your own is a subclass, registered or named by its dotted path
    ``package.module:Class`` in ``model.name``. It returns features [batch, feature_dim] and
    must neither drop out at random nor use batch statistics. It defines ``forward``, or better
    ``stages``: what lies below the first trained layer is then computed once for each example.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    """The kinds of task it fits: image, signal, tabular, text."""
    lora_target: Sequence[str] = ()
    """The modules that get LoRA adapters when ``model.lora.target`` is empty."""
    blocks_path: str = ""
    """Where its list of blocks is, the last of which can be adapted alone; "" for no list."""
    adapts_blocks_alone: ClassVar[bool] = False
    """Whether an adapter outside of the blocks would do nothing."""
    feature_dim: int
    """d, the number of features."""

    def stages(self) -> Sequence[Stage]:
        """The forward pass in steps; none where it cannot be cut."""
        return ()

    def read_out(self, states: torch.Tensor) -> Outputs:
        """Features and scores, of what ``forward`` gives: for a task that brings no head."""
        raise NotImplementedError("read_out")

    def generate(self, ids: torch.Tensor, most: int) -> torch.Tensor:
        """The tokens [m], at most ``most``, that a language model takes for likeliest after ``ids``
        [L], one after another."""
        raise NotImplementedError("generate")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [batch, feature_dim] of a batch of inputs."""
        for stage in self.stages():
            x = stage.run(x)
        return x


BACKBONES: Registry[type[Backbone]] = Registry(
    "model", key="model.name", package="fedpers.models", group="fedpers.models"
)


@BACKBONES.register("mlp")
class Mlp(Backbone):
    """Two hidden layers of 128 units with ReLU, on the flattened input."""

    kinds = ("image", "signal", "tabular")
    lora_target = ("hidden2",)
    feature_dim = 128

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(prod(input_shape), 128)
        self.hidden2 = nn.Linear(128, 128)

    def stages(self) -> Sequence[Stage]:
        """The two hidden layers, from x [batch, ...]."""
        return (
            Stage(("hidden1",), lambda x: F.relu(self.hidden1(x.flatten(1)))),
            Stage(("hidden2",), lambda x: F.relu(self.hidden2(x))),
        )


@BACKBONES.register("table")
class TableMlp(Backbone):
    """Two hidden layers of 64 units with LayerNorm and ReLU, beside the columns themselves: what is
    linear needs no detour, and few rows suffice. Trained as a whole (``model.lora: null``)."""

    kinds = ("tabular",)
    lora_target = ("hidden2",)

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        (columns,) = input_shape
        self.hidden1, self.hidden2 = nn.Linear(columns, 64), nn.Linear(64, 64)
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.feature_dim = 64 + columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From x [batch, columns]."""
        hidden = F.relu(self.norm1(self.hidden1(x)))
        hidden = F.relu(self.norm2(self.hidden2(hidden)))
        return torch.cat([hidden, x], 1)


@BACKBONES.register("linear")
class Linear(Backbone):
    """A weight and an offset for each column, which start as 1 and 0: with the head a logistic or
    linear regression. Trained as a whole (``model.lora: null``)."""

    kinds = ("tabular",)

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        (columns,) = input_shape
        self.feature_dim = columns
        self.weigh = nn.Conv1d(columns, columns, 1, groups=columns)
        nn.init.ones_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From x [batch, columns]."""
        return self.weigh(x.unsqueeze(2)).squeeze(2)  # type: ignore[no-any-return]


@BACKBONES.register("cnn")
class Cnn(Backbone):
    """The CNN of FedAvg (1602.05629): two 5x5 convolutions with pooling, 512 hidden units.

    With a head of 10 classes it has 582,026 parameters on 28x28x1, as in PFLlib: no padding.
    Images smaller than 16 pixels are padded so that something is left after pooling.
    """

    kinds = ("image",)
    lora_target = ("fc",)
    feature_dim = 512

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        padding = 0 if min(height, width) >= 16 else 2
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=padding)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=padding)
        sides = [self._pooled(side, padding) for side in (height, width)]
        if min(sides) < 1:
            takes = "another backbone for images smaller than 4x4"
            raise ConfigError("model.name", "cnn", takes)
        self.fc = nn.Linear(64 * prod(sides), 512)

    @staticmethod
    def _pooled(side: int, padding: int) -> int:
        for _ in range(2):
            side = (side - 4 + 2 * padding) // 2
        return side

    def stages(self) -> Sequence[Stage]:
        """Two convolutions and a hidden layer, from x [batch, channels, height, width]."""
        # Pooled first, which gives the same bits, ReLU has a quarter of the work.
        return (
            Stage(("conv1",), lambda x: F.relu(F.max_pool2d(self.conv1(x), 2))),
            Stage(("conv2",), lambda x: F.relu(F.max_pool2d(self.conv2(x), 2)).flatten(1)),
            Stage(("fc",), lambda x: F.relu(self.fc(x))),
        )


@BACKBONES.register("conv1d")
class Conv1d(Backbone):
    """Three convolutions over time with GroupNorm, then the mean over time; for signals [C, T]."""

    kinds = ("signal",)
    lora_target = ("conv3",)
    feature_dim = 64

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        channels, _ = input_shape
        self.conv1 = nn.Conv1d(channels, 64, 5, padding=2)
        self.conv2 = nn.Conv1d(64, 64, 5, padding=2)
        self.conv3 = nn.Conv1d(64, 64, 5, padding=2)
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(8, 64) for _ in range(3))

    def stages(self) -> Sequence[Stage]:
        """Three convolutions, from x [batch, C, T]."""

        def halved(x: torch.Tensor) -> torch.Tensor:
            return F.relu(F.max_pool1d(x, 2, ceil_mode=True))

        return (
            Stage(("conv1", "norm1"), lambda x: halved(self.norm1(self.conv1(x)))),
            Stage(("conv2", "norm2"), lambda x: halved(self.norm2(self.conv2(x)))),
            Stage(("conv3", "norm3"), lambda x: F.relu(self.norm3(self.conv3(x))).mean(2)),
        )


@BACKBONES.register("vit-tiny")
class VitTiny(Backbone):
    """A vision transformer of width 64, depth 3 and 4 heads, with the mean over patches.

    The patch divides the image: 7 pixels on 28x28, 4 on 32x32, 2 on 8x8.
    """

    kinds = ("image",)
    lora_target = ("blocks.2.q", "blocks.2.v")
    blocks_path = "blocks"
    feature_dim = 64

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        patch = patch_size(height, width)
        self.patch = nn.Conv2d(channels, 64, patch, stride=patch)
        # An Embedding, not a bare Parameter: Opacus knows its per-sample gradient.
        self.positions = nn.Embedding((height // patch) * (width // patch), 64)
        self.blocks = nn.ModuleList(Block(64, heads=4) for _ in range(3))
        self.norm = nn.LayerNorm(64)

    def stages(self) -> Sequence[Stage]:
        """Patches, three blocks and the mean, from x [batch, channels, height, width]."""
        blocks = [Stage((f"blocks.{k}",), block) for k, block in enumerate(self.blocks)]
        return (
            Stage(("patch", "positions"), self._tokens),
            *blocks,
            Stage(("norm",), lambda tokens: self.norm(tokens).mean(1)),
        )

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        places = torch.arange(tokens.shape[1], device=x.device).expand(len(x), -1)
        return tokens + self.positions(places)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block with separate q, k, v and output layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """From [batch, tokens, width] to the same shape."""
        x = self.norm1(tokens)
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.proj(mixed)
        return tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))  # type: ignore[no-any-return]


def patch_size(height: int, width: int) -> int:
    """The patch's side: it divides both sides and leaves about 4 to 8 patches a side."""
    side = min(height, width)
    most = max(1, min(side // 4, max(7, side // 8)))
    shared = gcd(height, width)
    return max(size for size in range(1, most + 1) if shared % size == 0)
