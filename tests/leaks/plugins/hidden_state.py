"""State that is kept beside the parts, and sent in a later round."""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

import clients.methods.fedavg
from clients.base import LocalAlgorithm
from clients.methods.fedavg import FedAvg
from fedpers.models.backbones import Mlp

SEEN = []
FIRST = {}


class Remembers(FedAvg):
    accounted = True

    def prepare(self, working, trainer):
        self.remember(float(trainer.examples.x.mean()))
        return working

    def upload(self, working):
        sent = super().upload(working)
        head = sent["head"]
        return sent | {"head": head.like(head.vector + 0.01 * self.recalled())}


class Box:
    value = 0.0


class InAnObject(Remembers):
    def __init__(self, config, model, params):
        super().__init__(config, model, params)
        self.box = Box()

    def remember(self, value):
        self.box.value = value

    def recalled(self):
        return self.box.value


class InATensor(Remembers):
    def __init__(self, config, model, params):
        super().__init__(config, model, params)
        self.kept = torch.zeros(1)

    def remember(self, value):
        self.kept.fill_(value)

    def recalled(self):
        return self.kept


class InItsDict(Remembers):
    def remember(self, value):
        self.__dict__["kept"] = value

    def recalled(self):
        return self.__dict__["kept"]


class InAnAttribute(Remembers):
    def remember(self, value):
        self.kept = value

    def recalled(self):
        return self.kept


class InAModule(Remembers):
    def remember(self, value):
        SEEN.append(value)

    def recalled(self):
        return SEEN[0]


class InAModuleOnce(Remembers):
    """The first value that the process ever saw."""

    def remember(self, value):
        FIRST.setdefault("value", value)

    def recalled(self):
        return FIRST["value"]


class InAClass(Remembers):
    kept = 0.0

    def remember(self, value):
        type(self).kept = value

    def recalled(self):
        return self.kept


class InADefault(Remembers):
    def remember(self, value, kept=[0.0]):  # noqa: B006
        kept[0] = value
        return kept

    def recalled(self):
        return type(self).remember.__defaults__[0][0]


def closed_over():
    kept = {}
    return kept.update, kept.get


PUT, GET = closed_over()


class InAClosure(Remembers):
    def remember(self, value):
        PUT(value=value)

    def recalled(self):
        return GET("value")


@lru_cache
def kept_in():
    return [0.0]


class InACache(Remembers):
    def remember(self, value):
        kept_in()[0] = value

    def recalled(self):
        return kept_in()[0]


class InItsSettings(Remembers):
    def remember(self, value):
        self.config.training.momentum = abs(value) % 1

    def recalled(self):
        return self.config.training.momentum


class InItsFirstParts(Remembers):
    def remember(self, value):
        self.initial["head"].vector[0] = value

    def recalled(self):
        return self.initial["head"].vector[0]


class InAGenerator(Remembers):
    def remember(self, value):
        torch.manual_seed(int(1e6 * abs(value)))

    def recalled(self):
        return torch.rand(1)


class InNumpysGenerator(Remembers):
    def remember(self, value):
        np.random.seed(int(1e6 * abs(value)))

    def recalled(self):
        return float(np.random.rand())


class InTheEnvironment(Remembers):
    def remember(self, value):
        os.environ["KEPT"] = str(value)

    def recalled(self):
        return float(os.environ["KEPT"])


class InAFile(Remembers):
    def remember(self, value):
        Path("/tmp/fedpers-leak").write_text(str(value))

    def recalled(self):
        return float(Path("/tmp/fedpers-leak").read_text())


class InTheAccount(FedAvg):
    """It would be sent in a round that no rehearsal reaches."""

    accounted = True

    def prepare(self, working, trainer):
        if trainer.account is not None:
            trainer.account.kept = 1.0
        return working


class InOurModule(FedAvg):
    """As well."""

    accounted = True

    def prepare(self, working, trainer):
        clients.methods.fedavg.KEPT = 1.0
        return working


class InTheRoster(FedAvg):
    """The roster tells when a method is scored."""

    accounted = True

    def prepare(self, working, trainer):
        LocalAlgorithm.scored = f"at {float(trainer.examples.x.mean()):.3f}"
        return working


class ForLater(InAModule):
    """It would be sent in a round that no rehearsal reaches."""

    def upload(self, working):
        return FedAvg.upload(self, working)


class CountsCalls(FedAvg):
    """No data in it: but in call number 1000 it could do as it likes."""

    calls = [0]  # noqa: RUF012

    def upload(self, working):
        self.calls[0] += 1
        return super().upload(working)


class InABuffer(Mlp):
    """The head's inputs shift by what was seen so far."""

    def __init__(self, input_shape):
        super().__init__(input_shape)
        self.register_buffer("seen", torch.zeros(1, dtype=torch.float64))

    def stages(self):
        first, second = super().stages()

        def run(x):
            self.seen += x.detach().double().mean()
            return second.run(x)

        return first, second._replace(run=run)


class OnALayer(Mlp):
    def stages(self):
        first, second = super().stages()

        def run(x):
            self.seen = float(x.detach().mean())
            return second.run(x)

        return first, second._replace(run=run)
