"""What frozen layers make of the examples, computed once."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from fedpers.data import ClientData, Examples, FederatedData
from fedpers.models import PersonalModel
from fedpers.models.cache import cached, fingerprint

LIMIT = 2**30  # bytes kept in one process
CHUNK = 1024  # examples in one forward pass


class FeatureCache:
    """The clients' examples as the layers below the first trained one leave them.

    The model is told to expect them so (``PersonalModel.after_stem``). What does not fit into
    ``limit`` bytes is computed anew; the clients used least recently make room. Texts are encoded
    once a machine: it is slow, and the same texts come back at other clients and in other runs.
    """

    def __init__(self, data: FederatedData, model: PersonalModel, limit: int = LIMIT) -> None:
        self.data, self.model, self.limit = data, model, limit
        model.after_stem = True
        self._kept: OrderedDict[str, ClientData] = OrderedDict()
        self._bytes = 0
        self._encoded = encode_texts(data, model, limit) if data.task.kind == "text" else {}

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
        if self._encoded and len(examples):
            rows = [self._encoded[row.tobytes()] for row in examples.x.numpy()]
            return Examples(torch.stack(rows), examples.y)
        pieces: list[Tensor] = [self.model.stem(piece) for piece in torch.split(examples.x, CHUNK)]
        return Examples(torch.cat(pieces), examples.y)


def encode_texts(data: FederatedData, model: PersonalModel, limit: int) -> dict[bytes, Tensor]:
    """What the frozen layers make of each distinct text, by the bytes of its tokens.

    Empty where there are no such layers, or where it would take more than ``limit`` bytes.
    """
    texts = torch.unique(data.inputs, dim=0)
    first = model.stem(texts[:1])
    if first.dtype == texts.dtype or len(texts) * first.nbytes > limit:  # still tokens, or too much
        return {}
    frozen = {
        name: tensor for name, tensor in model.trunk.state_dict().items() if ".lora_" not in name
    }
    key = fingerprint({"encoded": type(model.trunk).__name__}, {"texts": texts, **frozen})
    encoded = cached(key, lambda: {"x": model.stem(texts)})["x"]
    return {row.tobytes(): x for row, x in zip(texts.numpy(), encoded, strict=True)}


def _nbytes(data: ClientData) -> int:
    return sum(part.x.nbytes + part.y.nbytes for part in (data.train, data.val, data.test))
