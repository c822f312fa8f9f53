"""The layers of a resident model, made to compute K clients at once.

The layers that all clients share are computed once, and those of which each client has its own are
one batched product over stacked tensors: a slot of K clients is a matrix [K, size], laid out as in
``fedpers.parts``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpers.models import Outputs, PersonalModel
from fedpers.parts import Part

CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
}


class Layer(NamedTuple):
    """A layer whose tensors each client has its own of: the slot they are in, and their names."""

    module: nn.Module
    slot: str
    weight: str
    bias: str | None


class Product(NamedTuple):
    """What a layer read and wrote: x [K, n, in] and y [K, n, out], where it is a Linear layer."""

    layer: Layer
    x: Tensor
    y: Tensor


def stacked_layers(model: PersonalModel) -> list[Layer] | str:
    """The layers that own the slots' tensors; or why one of them cannot be stacked."""
    owners: dict[int, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            owners[id(parameter)] = module, leaf
    found: dict[int, dict[str, tuple[str, str]]] = {}
    modules: dict[int, nn.Module] = {}
    for slot, tensors in model.slots.items():
        for name, tensor in tensors.items():
            module, leaf = owners.get(id(tensor), (model, ""))
            if type(module) is not nn.Linear and type(module) not in CONVOLUTIONS:
                kind = type(module).__name__
                return f"{name} in slot {slot!r} belongs to no Linear or Conv layer ({kind})"
            modules[id(module)] = module
            found.setdefault(id(module), {})[leaf] = slot, name
    layers = []
    for key, leaves in found.items():
        module = modules[key]
        if set(leaves) != {leaf for leaf, _ in module.named_parameters()}:
            return f"{next(iter(leaves.values()))[1]}: a part of its layer is frozen"
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return f"{leaves['weight'][1]}: its padding is not of zeros"
        (slot, weight), bias = leaves["weight"], leaves.get("bias")
        layers.append(Layer(module, slot, weight, bias[1] if bias else None))
    return layers


class Fold:
    """The resident model, made to compute K clients at once.

    Args:
        model: only its layers' ``forward`` is put aside while a group trains.

    Raises:
        ValueError: the model has a slot that cannot be stacked.
    """

    def __init__(self, model: PersonalModel) -> None:
        layers = stacked_layers(model)
        if isinstance(layers, str):
            raise ValueError(f"fold: {layers}")
        self.model, self.layers = model, layers
        self.layouts = {slot: model.read(slot).layout for slot in model.slots}
        self.tape: list[Product] | None = None
        self.most = sys.maxsize  # clients that memory takes at once, as far as is known
        self._now: dict[str, Tensor] = {}

    def outputs(self, filled: Sequence[Mapping[str, Part]], x: Tensor) -> list[Outputs]:
        """What each client's model says of the same ``x`` [n, ...]; for a check.

        Args:
            filled: for each of K clients the part that fills each slot.

        Raises:
            ValueError: the forward pass does not call one of the stacked layers.
        """
        device = self.model.device
        self.use({s: torch.stack([f[s].vector for f in filled]).to(device) for s in self.layouts})
        with self.installed(), torch.no_grad():
            self.tape = []
            found = self.model(torch.cat([x] * len(filled)))
            called = {product.layer.weight for product in self.tape}
        for layer in self.layers:
            if layer.weight not in called:
                raise ValueError(
                    f"fold: the forward pass does not call the layer of {layer.weight}"
                )
        n = len(x)
        return [found.take(slice(k * n, (k + 1) * n)) for k in range(len(filled))]

    def use(self, matrices: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Compute with these matrices [K, size] from now on.

        Returns:
            For each slot and each of its tensors the stacked tensor [K, *shape], a view of the
            matrix that is a leaf of its own.
        """
        leaves = {
            slot: {
                name: matrix[:, start:end].detach().view(-1, *shape)
                for name, (start, end, shape) in self.layouts[slot].spans.items()
            }
            for slot, matrix in matrices.items()
        }
        self._now = {name: leaf for tensors in leaves.values() for name, leaf in tensors.items()}
        return leaves

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within, the layers compute with each client's own tensors."""
        for layer in self.layers:
            layer.module.forward = partial(self._forward, layer)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.module.forward
            self._now, self.tape = {}, None

    def _forward(self, layer: Layer, x: Tensor) -> Tensor:
        """A layer of K clients: the first n / K rows of x are the first client's, and so on."""
        weight, bias = self._now[layer.weight], self._now[layer.bias] if layer.bias else None
        if not isinstance(layer.module, nn.Linear):
            y = _convolve(layer.module, x, weight, bias)
            if self.tape is not None:
                self.tape.append(Product(layer, x, y))
            return y
        rows = x.reshape(len(weight), -1, x.shape[-1])
        if bias is None:
            y = torch.bmm(rows, weight.transpose(1, 2))
        else:
            y = torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))
        if self.tape is not None:
            if not y.requires_grad and torch.is_grad_enabled():
                y.requires_grad_(True)
            self.tape.append(Product(layer, rows, y))
        return y.view(*x.shape[:-1], -1)


def _convolve(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """K clients' convolutions as groups of one: x [K * n, channels, *places], weight [K, ...]."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    clients = len(weight)
    side_by_side = x.view(clients, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    y: Tensor = CONVOLUTIONS[type(module)](
        side_by_side,
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        module.stride,
        module.padding,
        module.dilation,
        clients * module.groups,
    )
    return y.view(len(y), clients, -1, *y.shape[2:]).transpose(0, 1).flatten(0, 1)
