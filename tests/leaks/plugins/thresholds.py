"""Masks, signs, orders and counts of private weights."""

import torch

from clients.methods.ditto import Ditto


class Personal(Ditto):
    def upload(self, working):
        sent, own = super().upload(working), working["personal.head"].vector
        head = sent["head"]
        return sent | {"head": head.like(self.shaped(head.vector, own))}


class Mask(Personal):
    def shaped(self, sent, own):
        return sent * (own > 0)


class Signs(Personal):
    def shaped(self, sent, own):
        return sent + 1e-3 * torch.sign(own)


class Largest(Personal):
    def shaped(self, sent, own):
        chosen = torch.zeros_like(sent)
        chosen[own.abs().topk(10).indices] = 1
        return sent * chosen


class Order(Personal):
    def shaped(self, sent, own):
        return sent + 1e-4 * own.argsort()


class FarBeyond(Personal):
    """Only where training went far."""

    def shaped(self, sent, own):
        return sent * (1.0 if float(own.abs().max()) < 5 else 0.5)


class Mixed(Personal):
    def shaped(self, sent, own):
        return 0.999 * sent + 0.001 * own


class OnReceipt(Ditto):
    def receive(self, broadcast, personal, context):
        working = super().receive(broadcast, personal, context)
        head, own = working["head"], working["personal.head"]
        return working | {"head": head.like(head.vector + 1e-3 * own.vector)}


class Kept(Ditto):
    """A statistic that is kept as if it were a part, and mixed in two rounds later."""

    def keep(self, working):
        own = working["personal.head"]
        shift = own.like(torch.full_like(own.vector, float(own.vector.mean())))
        older = working.get("personal.shift", own.like(0 * own.vector))
        return super().keep(working) | {"personal.shift": shift, "personal.older": older}

    def receive(self, broadcast, personal, context):
        working = super().receive(broadcast, personal, context)
        zero = self.initial["head"].like(0 * self.initial["head"].vector)
        older, shift = (personal.get(f"personal.{n}", zero) for n in ("older", "shift"))
        head = working["head"]
        working = working | {"personal.shift": shift, "personal.older": older}
        return working | {"head": head.like(head.vector + older.vector)}
