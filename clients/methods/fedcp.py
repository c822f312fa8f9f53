"""FedCP (Zhang et al., KDD 2023, arXiv 2307.01217): a policy splits each feature vector into what
a personal and what a global head should see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.base import LocalAlgorithm, algorithms
from fedpers.config import setting
from fedpers.context import Context
from fedpers.errors import ConfigError
from fedpers.models import Outputs, PersonalModel
from fedpers.models.slots import FrozenHead, PolicyGate
from fedpers.parts import Part, Parts
from fedpers.phases import Phase

BANDWIDTHS = (10.0, 15.0, 20.0, 50.0)


@dataclass
class FedCPParams:
    """``lam`` is the paper's lambda, the weight of the alignment (its scripts use 5).

    ``gate_width``: a bottleneck in the gate (None: the published gate of width 2d).
    """

    lam: float = setting(5.0, least=0)
    gate_width: int | None = setting(None, least=1)


@algorithms.register("fedcp")
class FedCP(LocalAlgorithm):
    """Body f, gate (CPN), personal head W_i; frozen during a round: global head W_g, body f_g.

    z = f(x); context c = z * v_i / ||v_i||, where v_i is the sum of W_i's rows, taken once when W_g
    is received; (r, s) = CPN(c); scores = W_i (r * z) + W_g (s * z) + b. Loss: the task's +
    lambda MMD(f(X), f_g(X)). Sent: f, the CPN and the mixed head 0.5 W_i + 0.5 W_g.

    Where the published code errs, this does not: no Gumbel noise in predictions; one bias, the
    personal head's, instead of two; all parts go to every client, so that those which sat out are
    not scored with parts of different rounds; a personal head starts as the global one, so that a
    newcomer's model is exactly the global model.
    """

    Params = FedCPParams
    keeps = ("head",)
    sends = ("body", "head", "gate")
    scored = "after combining, before local training"

    def check(self, model: PersonalModel) -> None:
        """As the base; what is split is what one layer reads."""
        if not model.own_head:
            takes = "a method for adapters in blocks: fedcp splits what a layer reads, its head"
            raise ConfigError("strategy.name", self.config.strategy.name, takes)

    def extend(self, model: PersonalModel) -> None:
        """The gate, and the frozen head with the client vector."""
        width = self.params.gate_width
        model.add_slot("gate", PolicyGate(model.feature_dim, width, self.config.seed))
        model.add_slot("frozen", FrozenHead(model.head))

    def receive(self, broadcast: Parts, personal: Parts, context: Context) -> Parts:
        """As the base, with the frozen head and the client vector."""
        working = super().receive(broadcast, personal, context)
        own = working["personal.head"]["head.weight"].sum(dim=0)
        weight = broadcast["head"]["head.weight"]
        frozen = {"frozen.weight": weight, "frozen.vector": F.normalize(own, dim=0)}
        return working | {"frozen": Part.of(frozen)}

    def forward(self, model: PersonalModel, x: Tensor, *, training: bool = False) -> Outputs:
        """Both heads, each on its share of the features; Gumbel noise in training only."""
        gate, frozen = model.get_submodule("gate"), model.get_submodule("frozen")
        assert isinstance(frozen, FrozenHead)
        features = model.features(x)
        uniform = model.uniform(len(x), 2 * model.feature_dim) if training else None
        r, s = gate(features * frozen.vector, uniform)
        global_scores = (s * features) @ frozen.weight.T
        return Outputs(features, model.head(r * features) + global_scores)

    def phases(self) -> Sequence[Phase]:
        """Body, personal head and gate together; the alignment is to the received body."""
        model, private = self.branch(self.keeps), self.config.privacy.enabled
        aligned = self.params.lam > 0
        return [
            Phase(
                name="local training",
                model=model,
                trains=tuple(slot for slot in self.slots if slot != "frozen"),
                released=True,
                loss=self.aligned_loss if aligned and private else None,
                batch_loss=self.alignment if aligned and not private else None,
                reference={**model, "body": "received.body"} if aligned else None,
            )
        ]

    def upload(self, working: Parts) -> Parts:
        """Body and gate, and the mean of the personal and the received global head."""
        own, received = working["personal.head"], working["received.head"]
        mixed = own.like(0.5 * own.vector + 0.5 * received.vector)
        return working.only(["body"]) | {"head": mixed, "gate": working["gate"]}

    def filled(self, mode: str) -> Mapping[str, str]:
        """Personal: both heads. Global: the received head in both places, where the gate, whose
        shares add up to 1, changes nothing."""
        return self.branch(self.keeps if mode == "personal" else ())

    def aligned_loss(self, outputs: Outputs, targets: Tensor, reference: Outputs | None) -> Tensor:
        """For private runs, as MMD looks across a batch: per sample [batch], the task's loss plus
        lambda ||f(x) - f_g(x)||^2 / d."""
        assert reference is not None
        distance = (outputs.features - reference.features).square().mean(dim=1)
        return self.task.loss(outputs, targets) + float(self.params.lam) * distance

    def alignment(self, outputs: Outputs, targets: Tensor, reference: Outputs | None) -> Tensor:
        """lambda times the squared MMD between a batch's features now and as received."""
        assert reference is not None
        return mmd(outputs.features, reference.features) * float(self.params.lam)


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of x and y [n, d], biased, summed over four RBF kernels.

    k_q(u, w) = exp(-||u - w||^2 / (2 q)), q in 10, 15, 20, 50 (the published code's).
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # torch.cdist's gradient loses itself in square roots of zero.
        squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        distance = squares.clamp_min(0)
        return torch.stack([torch.exp(-distance / (2 * q)) for q in BANDWIDTHS]).sum(dim=0)

    return (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)).mean()
