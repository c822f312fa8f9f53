"""The model that every method works on: trunk, feature scaler, head; its tensors by slot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import nn

from fedpers.models.backbones import Backbone, Stage
from fedpers.outputs import Outputs
from fedpers.parts import Part
from fedpers.privacy.noise import Source
from fedpers.tasks.base import Task
from fedpers.tasks.classification import Classification


class Scaler(NamedTuple):
    """``(features - mean) / scale``, both [d]."""

    mean: torch.Tensor
    scale: torch.Tensor


class PersonalModel(nn.Module):
    """Frozen or trainable trunk -> feature scaler -> linear head; its tensors grouped in slots.

    Slots: ``body`` (trainable tensors below the head), ``head`` (its weight and bias, or the
    adapters of the last blocks), ``private`` (LoRA's B factors, where those stay on the device),
    and those that a method adds.

    Args:
        trunk: a module from inputs to features [batch, d]; what it has trainable is the body.
        head: from features to scores; None where the trunk reads its own states out.
        upper: without a head, the beginnings of the paths in the trunk of what forms that slot;
            there is no such slot if none.
        scaler: how features are standardised, None for not at all.
        private_b: put the LoRA B factors in the slot ``private`` instead of the body.
        task: what is learned; None for as many classes as the head has scores.
    """

    mean: torch.Tensor | None
    scale: torch.Tensor | None
    centre: torch.Tensor | None
    whitener: torch.Tensor | None

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Linear | None,
        *,
        scaler: Scaler | None = None,
        upper: tuple[str, ...] = (),
        private_b: bool = False,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.own_head = trunk, head is not None
        if head is not None:
            self.head, self.feature_dim = head, head.in_features
            task = task or Classification.numbered(head.out_features)
        else:
            assert isinstance(trunk, Backbone)
            self.feature_dim = trunk.feature_dim
        assert task is not None
        self.task = task
        self.standardise = scaler is not None
        self.register_buffer("mean", scaler.mean if scaler else None)
        self.register_buffer("scale", scaler.scale if scaler else None)
        # Slot -> clean name -> path of the tensor. Fixed here, since training a phase may
        # switch requires_grad on and off.
        self._paths: dict[str, dict[str, str]] = {"body": {}}
        if self.own_head:
            self._paths["head"] = {f"head.{name}": f"head.{name}" for name in ("weight", "bias")}
        elif upper:
            self._paths["head"] = {}
        for path, parameter in trunk.named_parameters():
            if parameter.requires_grad:
                slot = "head" if upper and path.startswith(upper) else "body"
                slot = "private" if private_b and ".lora_B." in path else slot
                path = f"trunk.{path}"
                self._paths.setdefault(slot, {})[clean_name(path)] = path
        self._owners = {slot: self._find_owners(slot) for slot in self._paths}
        self._stages = trunk.stages() if isinstance(trunk, Backbone) else ()
        self._stem = count_frozen(
            self._stages, [p for n in self._paths.values() for p in n.values()]
        )
        self.after_stem = False
        self.register_buffer("centre", None)
        self.register_buffer("whitener", None)
        self.source: Source | None = None
        self.eval()

    @property
    def has_stem(self) -> bool:
        """Whether there is a stage below the first trained layer."""
        return self._stem > 0

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """What the stages below the first trained layer make of inputs ``x``.

        Nothing in them is trained or random: it can be computed once. ``x`` itself where every
        stage has something trained, or the trunk cannot be cut.
        """
        with torch.no_grad():
            for stage in self._stages[: self._stem]:
                x = stage.run(x)
        return x

    @property
    def prepares(self) -> bool:
        """Whether anything is done to inputs before the first trained layer."""
        return self.has_stem or self.whitener is not None

    def prepared(self, x: torch.Tensor) -> torch.Tensor:
        """What the first trained layer reads of inputs ``x``, whitened if the model does so: it can
        be computed once."""
        return self.whitened(self.stem(x))

    def whiten(self, centre: torch.Tensor, whitener: torch.Tensor) -> None:
        """From now on what the first trained layer reads is (x - centre) whitener, for x [n, d];
        ``centre`` is [d], ``whitener`` [d, d]."""
        self.centre, self.whitener = centre.to(self.device), whitener.to(self.device)

    def whitened(self, x: torch.Tensor) -> torch.Tensor:
        """What ``stem`` made of inputs, whitened if the model does so."""
        if self.whitener is None or self.centre is None:
            return x
        return (x - self.centre) @ self.whitener

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The head's input [batch, d]: the trunk's output, standardised if the model does so.

        ``x`` are inputs, or with ``after_stem`` set what ``prepared`` made of them.
        """
        features = self._through_trunk(x).flatten(1)
        if self.mean is not None and self.scale is not None:
            features = (features - self.mean) / self.scale
        return features

    def forward(self, x: torch.Tensor) -> Outputs:
        """Features and scores of a batch ``x`` of inputs."""
        if not self.own_head:
            assert isinstance(self.trunk, Backbone)
            return self.trunk.read_out(self._through_trunk(x))
        features = self.features(x)
        return Outputs(features, self.head(features))

    def _through_trunk(self, x: torch.Tensor) -> torch.Tensor:
        if self.whitener is not None and not self.after_stem:
            x = self.prepared(x)
        if self._stages and (self.whitener is not None or (self.after_stem and self._stem)):
            for stage in self._stages[self._stem :]:
                x = stage.run(x)
            return x
        return self.trunk(x)  # type: ignore[no-any-return]

    def uniform(self, *shape: int) -> torch.Tensor:
        """Float32 in [0, 1] for what is random in a forward pass of training.

        From ``source``, which the trainer sets where what it trains is released; else from torch's
        own generator, which it seeds.
        """
        if self.source is None:
            return torch.rand(shape, device=self.device)
        found = self.source.uniform(math.prod(shape)).float().view(shape)
        return found.to(self.device, non_blocking=True)

    @property
    def device(self) -> torch.device:
        """Where the model computes. Parts are on the CPU, wherever that is."""
        return next(self.parameters()).device

    @property
    def slots(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """The live tensors of each slot, by clean name, in a fixed order."""
        return {slot: self._tensors(slot) for slot in self._paths}

    def paths(self, slot: str) -> Mapping[str, str]:
        """Where each tensor of a slot is in this module, by clean name."""
        return self._paths[slot]

    def add_slot(self, name: str, module: nn.Module) -> None:
        """Add a method's own module, such as FedCP's gate, as submodule and slot ``name``.

        Its parameters and float buffers form the slot.

        Raises:
            ValueError: the name is taken, the module holds no such tensor, or has BatchNorm.
        """
        if name in self._paths or hasattr(self, name):
            raise ValueError(f"slot: got {name!r}, takes a name that the model does not have yet")
        found = find_batch_norm(module)
        if found is not None:
            raise ValueError(f"slot {name}: got {found}, takes layers without batch statistics")
        tensors = [*module.named_parameters(prefix=name), *module.named_buffers(prefix=name)]
        paths = {path: path for path, tensor in tensors if tensor.is_floating_point()}
        if not paths:
            raise ValueError(f"slot {name}: got a module without tensors, takes at least one")
        self.add_module(name, module)
        self._paths[name] = paths
        self._owners[name] = self._find_owners(name)
        self.train(self.training)

    def read(self, slot: str) -> Part:
        """A copy of a slot's tensors, on the CPU.

        Raises:
            ValueError: the model has no such slot, or it is empty.
        """
        tensors = self._tensors(slot)
        if self.device.type != "cpu" and tensors:  # one copy from there, not one for each tensor
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors.values()]).cpu()
            pieces = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
            shapes = [tensor.shape for tensor in tensors.values()]
            tensors = {
                name: piece.view(shape)
                for name, piece, shape in zip(tensors, pieces, shapes, strict=True)
            }
        return Part.of(tensors)

    @torch.no_grad()
    def write(self, slot: str, part: Part) -> None:
        """Copy ``part`` into a slot's tensors, in place, all or nothing.

        Raises:
            ValueError: the model has no such slot, or the part has another layout (names,
                order, shapes); the dtype may differ.
        """
        tensors = self._tensors(slot)
        takes = [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]
        gives = list(part.layout.shapes)
        if gives != takes:
            for got, own in zip(gives, takes, strict=False):
                if got != own:
                    raise ValueError(f"slot {slot}: got {got[0]} {got[1]}, takes {own[0]} {own[1]}")
            raise ValueError(f"slot {slot}: got {len(gives)} tensors, takes {len(takes)}")
        part = Part(part.layout, part.vector.to(self.device))
        for name, tensor in tensors.items():
            tensor.copy_(part[name])

    def trainable(self, slots: Sequence[str]) -> list[nn.Parameter]:
        """The parameters (not the buffers) of ``slots``, in order."""
        tensors = [tensor for slot in slots for tensor in self._tensors(slot).values()]
        return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]

    def train(self, mode: bool = True) -> Self:
        """Training mode for the modules that own a slot's tensors, evaluation mode elsewhere.

        So dropout stays off and outputs are the same in both modes, while Opacus, which hooks
        only modules in training mode, finds those it needs.
        """
        super().train(False)
        self.training = mode
        for paths in self._paths.values():
            for path in paths.values():
                self.get_submodule(path.rpartition(".")[0]).training = mode
        return self

    def _tensors(self, slot: str) -> dict[str, torch.Tensor]:
        if slot not in self._paths:
            raise ValueError(f"slot: got {slot!r}, takes one of {', '.join(self._paths)}")
        return {name: getattr(owner, leaf) for name, owner, leaf in self._owners[slot]}

    def _find_owners(self, slot: str) -> list[tuple[str, nn.Module, str]]:
        """Each tensor's clean name, its module and its name there. The module, not the tensor:
        moving a model to another device makes new buffers."""
        split = [(name, path.rpartition(".")) for name, path in self._paths[slot].items()]
        return [(name, self.get_submodule(owner), leaf) for name, (owner, _, leaf) in split]


def count_frozen(stages: Sequence[Stage], trained: Sequence[str]) -> int:
    """How many of the first stages read no trained tensor, given those by path in the model."""
    for count, stage in enumerate(stages):
        reads = tuple(f"trunk.{name}." for name in stage.reads)
        if any(path.startswith(reads) for path in trained):
            return count
    return len(stages)


def clean_name(path: str) -> str:
    """A tensor's name without what PEFT adds: ``q.lora_A.default.weight`` -> ``q.lora_A``."""
    return path.removesuffix(".default.weight") if ".lora_" in path else path


def find_batch_norm(module: nn.Module) -> str | None:
    """The name of the first layer in ``module`` that uses batch statistics, or None."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return f"{type(layer).__name__} {name}".strip()
    return None
