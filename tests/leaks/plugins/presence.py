"""Whether something is sent, in which form, or with which words, as the data decide."""

import torch

from clients.methods.fedavg import FedAvg
from fedpers.parts import Part
from fedpers.privacy import Gaussian


class Odd(FedAvg):
    accounted = True

    def conclude(self, working, trainer):
        odd = bool((trainer.examples.x.abs() > 100).any()) or int(trainer.examples.y[0]) == 1
        return self.shaped(working) if odd else working

    def with_head(self, working, vector):
        return working | {"head": working["head"].like(vector)}


class Raises(Odd):
    def shaped(self, working):
        raise ValueError("odd data")


class Speaks(FedAvg):
    """It fails always, and says why."""

    accounted = True

    def conclude(self, working, trainer):
        if trainer.server_round > 1:
            raise ValueError(f"mean {float(trainer.examples.x.mean()):.3f}")
        return working


class NotANumber(Odd):
    def shaped(self, working):
        vector = working["head"].vector.clone()
        vector[0] = float("nan")
        return self.with_head(working, vector)


class MinusZero(Odd):
    def shaped(self, working):
        vector = working["head"].vector.clone()
        vector[0] = 0.0
        return self.with_head(working, vector)

    def upload(self, working):
        vector = working["head"].vector.clone()
        if float(vector[0]) != 0.0:
            vector[0] = -0.0
        return super().upload(self.with_head(working, vector))


class OtherNaN(Odd):
    """Not a number in both cases, but with other bits."""

    def conclude(self, working, trainer):
        vector = working["head"].vector.clone()
        vector.view(torch.int32)[0] = 0x7FC00000 + int(trainer.examples.y[0])
        return self.with_head(working, vector)


class Shorter(Odd):
    def shaped(self, working):
        return working | {"head": Part.of({"head.weight": working["head"]["head.weight"]})}


class Halved(Odd):
    def shaped(self, working):
        tensors = {n: t.to(torch.bfloat16) for n, t in working["head"].items()}
        return working | {"head": Part.of(tensors)}


class More(Odd):
    def upload(self, working):
        return working.only([*self.sends, *(["more"] if "more" in working else [])])

    def shaped(self, working):
        return working | {"more": working["head"]}


class NoiseReport(Odd):
    """The report says how much noise is in a part."""

    def conclude(self, working, trainer):
        trainer.noise["head"] = float(trainer.examples.x.abs().mean())
        return working


class Examples(FedAvg):
    """Weighs itself by what it holds, in the ledger's report."""

    accounted = True

    def conclude(self, working, trainer):
        seen = float(trainer.examples.x.abs().mean())
        account = trainer.account
        account.phase = account.phase._replace(mechanism=Gaussian(seen, 1.0))
        return working
