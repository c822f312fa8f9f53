"""The plain channel: updates as they are, to a server that reads them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fedpers.channels.base import Channel, Method, Mixed, Needs, Reveals, Turn
from fedpers.channels.named import CHANNELS
from fedpers.channels.node import Kept, Leaving, NodeChannel
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError
from fedpers.mixing import Mixing
from fedpers.models.lora import product_error
from fedpers.parts import Layout, Part, Parts, combine
from fedpers.records import Row, in_the_clear
from fedpers.robust import combine_robustly, left_out, too_long
from fedpers.streaming import StreamingMean

log = logging.getLogger("fedpers")


class PlainNode(NodeChannel):
    """What a client sends and receives is as the method made it."""

    def prepare(self, update: Parts, sent: Parts) -> Parts:
        """As it is."""
        return update

    def arrive(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> list[Parts]:
        """As it came."""
        return [in_the_clear(row) for row in rows]

    def leave(self, kept: Kept, leaving: Leaving) -> Row:
        """As it is."""
        return leaving.update

    def as_declared(
        self, row: Row, declared: Mapping[str, Layout], terms: Mapping[str, Any]
    ) -> Row:
        """The parts of the method, in their order, and finite."""
        return as_declared(row, declared)


@CHANNELS.register("plain")
class Plain(Channel):
    """Y = W X on what clients send, or a rule that a few liars cannot move."""

    name = "plain"
    node = PlainNode
    reveals = Reveals(
        server="every client's update, and its report", nodes="the mixtures that they receive"
    )
    in_the_clear = True
    splits = True

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self._product_error_known = False
        self._mixed: tuple[Mixing, list[Parts]] | None = None  # for what is derived of them

    @classmethod
    def check(cls, config: Config, needs: Needs, weighted: str) -> None:
        """Robust rules serve no method that reads updates, from liars too, or has weights."""
        rule, cure = config.strategy.combine, "set strategy.combine=mean"
        if rule == "mean":
            return
        if needs.reads is not None:
            takes = f"mean for a method whose server reads {needs.reads}"
            raise ConfigError("strategy.combine", rule, takes, f"or {cure}")
        if weighted == "own" or needs.rows or needs.banks:
            takes = "mean for a method with a mixing of its own"
            raise ConfigError("strategy.combine", rule, takes, cure)

    def stream(self, size: int) -> StreamingMean | None:
        """A mean by ``weights``, of which nobody looks at a single update."""
        more = self.method.weighted == "own" or self.method.needed != Needs()
        if more or self.config.strategy.combine != "mean":
            return None
        return StreamingMean(self.method.layouts, size, self._log_product_error)

    def accept(self, client: str, sent: Row, update: Row) -> str | None:
        """It has the parts that were sent, finite, and is not too long."""
        layouts = self.method.layouts
        if not isinstance(update, Parts) or not self._fits(update, layouts):
            return f"update: got {update}, takes parts {sorted(layouts)} as sent"
        if (broken := update.first_not_finite()) is not None:
            return f"update: part {broken!r} is not finite"
        most = self.config.strategy.max_update_norm
        return None if most is None else too_long(in_the_clear(sent), update, most)

    def _fits(self, update: Parts, layouts: Mapping[str, Layout]) -> bool:
        """Whether the parts are those that are shared; of a bank's copies some may be missing."""
        missing = {n.partition("@")[0] for n in layouts if n not in update}
        known = update.layouts == {name: layouts.get(name) for name in update}
        return known and missing <= set(self.method.needed.banks)

    def mix(self, turn: Turn, mixing: Mixing, updates: Mapping[str, Row]) -> Mixed:
        """The mean, or the mixtures, or what the rule makes of the updates."""
        settings, given = self.config.strategy, [in_the_clear(row) for row in updates.values()]
        if settings.combine != "mean":
            if settings.combine != "median" and not left_out(settings.trim, len(given)):
                log.warning("strategy.trim leaves out nobody of %d updates", len(given))
            return Mixed([combine_robustly(settings.combine, given, settings.trim)])
        self._log_product_error(mixing.weights[0], given)
        if self.method.needed.derived:
            self._mixed = mixing, given
        if not self.method.needed.banks and not mixing.parts:
            return Mixed(combine(mixing.weights, given))
        return Mixed(self._by_part(turn, mixing, given))

    def _by_part(self, turn: Turn, mixing: Mixing, given: Sequence[Parts]) -> list[Parts]:
        """Each part with weights of its own, among the updates that have it; as it was sent where
        nobody has."""
        sent = in_the_clear(turn.sent)
        mixed: list[dict[str, Part]] = [{} for _ in mixing.recipients]
        for name in self.method.layouts:
            there = [k for k, update in enumerate(given) if name in update]
            weights = mixing.parts.get(name, mixing.weights)[:, there]
            total = weights.sum(dim=1, keepdim=True)
            some = bool(there) and bool((total > 0).all())
            pieces = [given[k].only([name]) for k in there]
            rows = combine(weights / total, pieces) if some else [sent] * len(mixed)
            for parts, row in zip(mixed, rows, strict=True):
                parts[name] = row[name]
        return [Parts(parts) for parts in mixed]

    def reveal(self, row: Row) -> Parts:
        """As it is."""
        return in_the_clear(row)

    def derived(self, name: str) -> Part:
        """The weighted mean of what the server makes of each update."""
        if self._mixed is None:
            raise ClientError(f"derived: got {name!r} before anything was mixed")
        mixing, updates = self._mixed
        weights = (mixing.weights[0] / mixing.weights[0].max()).tolist()
        total: Tensor | None = None
        for weight, update in zip(weights, updates, strict=True):
            part = self.method.derive(name, update)
            scaled = weight * part.vector
            total = scaled if total is None else total + scaled
        assert total is not None
        return part.like(total / sum(weights))

    def compare(
        self, models: Mapping[str, Row], weights: Callable[[Mapping[str, Parts]], Tensor]
    ) -> dict[str, Tensor]:
        """The server reads them all."""
        found = weights({client: in_the_clear(model) for client, model in models.items()})
        return dict(zip(models, found, strict=True))

    def mix_slots(self, weights: Tensor, updates: Sequence[Row], names: Sequence[str]) -> list[Row]:
        """Products of weights and slots."""
        return list(combine(weights, [in_the_clear(update).only(names) for update in updates]))

    def join(self, row: Row, update: Row, names: Sequence[str]) -> Row:
        """Copied, for a checkpoint holds both."""
        parts = in_the_clear(update)
        return in_the_clear(row) | {n: parts[n].like(parts[n].vector.clone()) for n in names}

    def _log_product_error(self, weights: Tensor, updates: Sequence[Parts]) -> None:
        """Say once what averaging both LoRA factors costs (``model.lora.share: both``): of the
        updates of a round, or of the first that are mixed where they are mixed as they come."""
        lora = self.config.model.lora
        if self._product_error_known or lora is None or "body" not in updates[0]:
            return
        self._product_error_known = True
        if lora.share == "both":
            error = product_error(weights, [update["body"] for update in updates])
            if error is not None:
                log.info(
                    "LoRA: averaging both factors misses the mean product by %.1f %% (%d clients)",
                    100 * error,
                    len(updates),
                )


def as_declared(upload: Row, declared: Mapping[str, Layout]) -> Parts:
    """An upload's parts in the declared order; of the copies of a bank (``slot@k``) some.

    Raises:
        ClientError: they are others, or laid out otherwise, or not finite.
    """
    layouts = upload.layouts
    known = isinstance(upload, Parts) and all(declared.get(n) == x for n, x in layouts.items())
    if not known or any("@" not in name for name in declared if name not in layouts):
        takes = f"parts {', '.join(declared) or 'none'}, laid out as in the model"
        raise ClientError(f"upload: got {upload}, takes {takes}")
    parts = in_the_clear(upload)
    if (broken := parts.first_not_finite()) is not None:
        raise ClientError(f"upload: part {broken!r} is not finite")
    return parts.only(name for name in declared if name in parts)
