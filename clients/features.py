"""What frozen layers make of the examples, computed once."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from fedpers.data import ClientData, Examples, FederatedData
from fedpers.models import PersonalModel

LIMIT = 2**30  # bytes kept in one process
CHUNK = 1024  # examples in one forward pass


class FeatureCache:
    """The clients' examples as the layers below the first trained one leave them.

    The model is told to expect them so (``PersonalModel.after_stem``). What does not fit into
    ``limit`` bytes is computed anew; the clients used least recently make room.
    """

    def __init__(self, data: FederatedData, model: PersonalModel, limit: int = LIMIT) -> None:
        self.data, self.model, self.limit = data, model, limit
        model.after_stem = True
        self._kept: OrderedDict[str, ClientData] = OrderedDict()
        self._bytes = 0

    def client(self, client: str) -> ClientData:
        """A client's training, validation and test examples."""
        if client in self._kept:
            self._kept.move_to_end(client)
            return self._kept[client]
        own = self.data.client(client)
        made = ClientData(*(self._through_stem(e) for e in (own.train, own.val, own.test)))
        self._kept[client] = made
        self._bytes += _nbytes(made)
        while self._bytes > self.limit and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _nbytes(dropped)
        return made

    def _through_stem(self, examples: Examples) -> Examples:
        pieces: list[Tensor] = [self.model.stem(piece) for piece in torch.split(examples.x, CHUNK)]
        return Examples(torch.cat(pieces), examples.y)


def _nbytes(data: ClientData) -> int:
    return sum(part.x.nbytes + part.y.nbytes for part in (data.train, data.val, data.test))
