"""What frozen layers make of the examples, computed once."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fedpers.cache import cached, fingerprint
from fedpers.data import ClientData, Examples, FederatedData
from fedpers.errors import ConfigError
from fedpers.models import PersonalModel

log = logging.getLogger("fedpers")

LIMIT = 2**30  # bytes that one process keeps where it computes
CHUNK = 256  # examples in one forward pass


class FeatureCache:
    """The clients' examples as the layers below the first trained one leave them.

    The model is told to expect them so (``PersonalModel.after_stem``). They are where the model is.
    Texts are encoded once a machine: it is slow, and the same texts come back at other clients and
    in other runs.

    Args:
        data: whose examples these are.
        model: the node's, on its device.
        limit: bytes to keep there. What goes beyond that is kept in memory-mapped files that have
            no name, and are gone with the process however it ends. Inputs that no layer changed are
            taken from ``data`` again instead.
        stem: False to keep the inputs themselves.
    """

    def __init__(
        self, data: FederatedData, model: PersonalModel, limit: int = LIMIT, *, stem: bool = True
    ) -> None:
        self.data, self.model, self.limit = data, model, limit
        self.model.after_stem = stem
        self._kept: dict[str, ClientData] = {}
        self._mapped: dict[str, ClientData] = {}
        self._bytes = 0
        self._encoded: dict[bytes, Tensor] = {}
        if stem and not data.inputs.is_floating_point():  # tokens
            self._encoded = encode_texts(data, model, limit)

    def client(self, client: str) -> ClientData:
        """A client's training, validation and test examples."""
        if client in self._kept:
            return self._kept[client]
        if client not in self._mapped:
            made = ClientData(*(self._through_stem(e) for e in _splits(self.data.client(client))))
            size = sum(e.x.nbytes + e.y.nbytes for e in _splits(made))
            if self._bytes + size <= self.limit:
                self._kept[client] = made
                self._bytes += size
                return made
            if not (self.model.after_stem and self.model.prepares):
                return made
            self._mapped[client] = ClientData(*(mapped(e) for e in _splits(made)))
        return ClientData(*(e.to(self.model.device) for e in _splits(self._mapped[client])))

    def _through_stem(self, examples: Examples) -> Examples:
        if self._encoded and len(examples):
            rows = [self._encoded[row.tobytes()] for row in examples.x.numpy()]
            encoded = Examples(torch.stack(rows), examples.y).to(self.model.device)
            return Examples(self.model.whitened(encoded.x), encoded.y)
        moved = examples.to(self.model.device)
        if not self.model.after_stem:
            return moved
        pieces = [self.model.prepared(piece) for piece in torch.split(moved.x, CHUNK)]
        return Examples(torch.cat(pieces), moved.y)


def encode_texts(data: FederatedData, model: PersonalModel, limit: int) -> dict[bytes, Tensor]:
    """What the frozen layers make of each distinct text, by the bytes of its tokens.

    Empty where there are no such layers, or where it would take more than ``limit`` bytes.
    """
    texts = torch.unique(data.inputs, dim=0)
    device = model.device
    first = model.stem(texts[:1].to(device))
    if first.dtype == texts.dtype or len(texts) * first.nbytes > limit:  # still tokens, or too much
        return {}
    frozen = {
        name: tensor for name, tensor in model.trunk.state_dict().items() if ".lora_" not in name
    }
    named = {"encoded": type(model.trunk).__name__}
    if device.type != "cpu":  # the last bits are other ones there
        named["device"] = device.type
    key = fingerprint(named, {"texts": texts, **frozen})

    def compute() -> dict[str, Tensor]:
        log.info("encoding %d texts with the frozen layers; kept for later runs", len(texts))
        return {"x": model.stem(texts.to(device))}

    encoded = cached(key, compute)["x"]
    return {row.tobytes(): x for row, x in zip(texts.numpy(), encoded, strict=True)}


def mapped(examples: Examples) -> Examples:
    """The same examples on the CPU, their inputs in a file that is mapped into memory.

    It lies in a private folder under TMPDIR, and loses its name as soon as it is mapped.

    Raises:
        ConfigError: the folder cannot be written, or has no room for it.
    """
    x, y = examples.x.cpu(), examples.y.cpu()
    if not x.numel():
        return Examples(x, y)
    flat = x.as_strided((x.numel(),), (1,))  # in the order in which it lies: channels may be last
    try:
        with tempfile.TemporaryDirectory(prefix="fedpers-features-") as folder:  # this user's alone
            path = Path(folder) / "x"
            # tofile would not say that the disk is full; and numpy has no bfloat16.
            path.write_bytes(flat.view(torch.uint8).numpy().data)
            kept = torch.from_file(str(path), shared=False, size=x.numel(), dtype=x.dtype)
    except OSError as error:
        takes = f"a folder with room for {x.nbytes} bytes of features ({error})"
        raise ConfigError("TMPDIR", tempfile.gettempdir(), takes) from None
    return Examples(kept.as_strided(x.shape, x.stride()), y)


def _splits(data: ClientData) -> tuple[Examples, Examples, Examples]:
    return data.train, data.val, data.test
