"""Phases that are others in later rounds, or hang on the data."""

from dataclasses import replace

import torch

from clients.methods.ditto import Ditto
from clients.methods.fedavg import FedAvg
from fedpers.parts import Part
from fedpers.phases import Prox

ROUND = [0]


class ByRound(Ditto):
    """From its third round on the shared branch is held near the personal one."""

    accounted = True

    def prepare(self, working, trainer):
        ROUND[0] = trainer.server_round
        return working

    def phases(self):
        personal, shared = super().phases()
        if ROUND[0] > 2:
            anchor = {slot: f"personal.{slot}" for slot in self.slots}
            shared = replace(shared, prox=Prox(1.0, anchor))
        return [personal, shared]


class InTheLastRound(ByRound):
    def phases(self):
        personal, shared = Ditto.phases(self)
        if ROUND[0] == self.config.rounds:
            shared = replace(shared, model=personal.model)
        return [personal, shared]


class ByItsData(FedAvg):
    accounted = True

    def train(self, working, trainer):
        for phase in self.phases():
            working = trainer.run(self.chosen(phase, trainer), working)
        return working


class Rate(ByItsData):
    def chosen(self, phase, trainer):
        return replace(phase, lr=0.01 + 0.01 * float(trainer.examples.x.abs().mean()))


class Penalty(ByItsData):
    def chosen(self, phase, trainer):
        anchor = {slot: f"received.{slot}" for slot in self.slots}
        return replace(phase, prox=Prox(float(trainer.examples.x.abs().mean()), anchor))


class Trained(ByItsData):
    def chosen(self, phase, trainer):
        few = float(trainer.examples.x.mean()) > 5
        return replace(phase, trains=("head",) if few else phase.trains)


class Skipped(ByItsData):
    """Whether it trains at all."""

    def train(self, working, trainer):
        return working if int(trainer.examples.y[0]) == 0 else super().train(working, trainer)

    def chosen(self, phase, trainer):
        return phase


class Named(ByItsData):
    """Its noise goes by another name, so that other draws are used."""

    def chosen(self, phase, trainer):
        return replace(phase, name=f"with {float(trainer.examples.x.mean()):.3f}")


class OneMore(ByItsData):
    """A second phase that was not declared, for some."""

    def train(self, working, trainer):
        working = super().train(working, trainer)
        if int(trainer.examples.y[0]) == 0:
            working = super().train(working, trainer)
        return working

    def chosen(self, phase, trainer):
        return phase


class NotReleased(ByItsData):
    """Trained without noise, and sent."""

    def chosen(self, phase, trainer):
        return replace(phase, released=False)


class InOneRound(Ditto):
    """In the seventh round, and in no other."""

    accounted = True

    def conclude(self, working, trainer):
        if trainer.server_round != 7:
            return working
        head, own = working["head"], working["personal.head"]
        return working | {"head": head.like(head.vector + 1e-3 * own.vector)}


class AfterSoManyRounds(InOneRound):
    """It counts its rounds in a part that it keeps."""

    def receive(self, broadcast, personal, context):
        before = personal.get("personal.rounds", Part.of({"rounds": torch.zeros(1)}))
        counted = {"personal.rounds": before.like(before.vector + 1)}
        return super().receive(broadcast, personal, context) | counted

    def conclude(self, working, trainer):
        if float(working["personal.rounds"].vector) < 9:
            return working
        head, own = working["head"], working["personal.head"]
        return working | {"head": head.like(head.vector + 1e-3 * own.vector)}
