"""Privacy whose unit is the client, at the nodes: updates are clipped, and noised in shares where
the server is not trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fedpers.channels.node import Kept, Leaving, NodeChannel, Sends
from fedpers.config import Config
from fedpers.errors import ClientError
from fedpers.parts import Layout, Parts
from fedpers.privacy import mechanism_named
from fedpers.privacy.gdp import ROUNDING
from fedpers.privacy.noise import Sources
from fedpers.records import Row
from fedpers.robust import clipped


class ClientNoiseNode(NodeChannel):
    """What a client sends where privacy is that of the client as a whole: a change of C at most,
    with its share of the noise where the server is not trusted, and a report that says nothing.

    Args:
        inner: the channel around which this one is.
        sources: of the shares.
        least: the least noise multiplier that it takes the server's word for.
    """

    counts: ClassVar[bool] = False

    def __init__(
        self, config: Config, inner: NodeChannel, sources: Sources, least: float = 0.0
    ) -> None:
        super().__init__()
        self.least, self.untrusted = least, config.encryption.enabled
        self.norm, self.inner, self.sources = config.privacy.max_grad_norm, inner, sources
        self.kind = mechanism_named(config.privacy.mechanism)
        self.kinds, self.opens = inner.kinds, inner.opens

    def introduction(
        self, kept: Kept, clients: Sequence[str], terms: Mapping[str, Any]
    ) -> dict[str, Any]:
        """As the channel within."""
        return self.inner.introduction(kept, clients, terms)

    def prepare(self, update: Parts, sent: Parts) -> Parts:
        """What was received plus the change, clipped."""
        return clipped(self.inner.prepare(update, sent), sent, self.norm)

    def stands_in(self, sent: Parts) -> Sends | None:
        """What it received, a change of zero, and a report that says no more than others' do.

        A failure may come of a client's data, and so would tell of them; and the share of the noise
        would be missing that the client was to add.
        """
        return sent, {"examples": 1, "loss": None}

    def arrive(self, kept: Kept, rows: Sequence[Row], body: Mapping[str, Any]) -> list[Parts]:
        """As the channel within."""
        return self.inner.arrive(kept, rows, body)

    def leave(self, kept: Kept, leaving: Leaving) -> Row | None:
        """With this client's share of the noise, if it has to add one: those of as many clients as
        are taken to be honest add up to all of it.

        Raises:
            ClientError: the server says less noise than the settings come to, or none.
        """
        noise = leaving.body.get("channel", {}).get("noise")
        if noise is None:
            if self.untrusted and leaving.update:
                raise ClientError("noise: got none, takes a multiplier, for a sum is to have it")
            return self.inner.leave(kept, leaving)
        sigma = float(noise["sigma"])
        if not sigma >= self.least * (1 - ROUNDING):
            raise ClientError(f"noise: got {sigma:.4g}, takes {self.least:.4g} or more")
        if not self.inner.adds_noise:
            mechanism, shares = self.kind(sigma, 1.0), int(noise["honest"])
            known = self.norm, self.sources("share", leaving.server_round, leaving.client)
            noised = {
                n: p.like(mechanism.noised_share(p.vector.float(), *known, shares))
                for n, p in leaving.update.items()
            }
            leaving = leaving._replace(update=Parts(noised))
        return self.inner.leave(kept, leaving)

    def disclosed(self, report: Mapping[str, Any]) -> Mapping[str, Any]:
        """As the channel within."""
        return self.inner.disclosed(report)

    def as_declared(
        self, row: Row, declared: Mapping[str, Layout], terms: Mapping[str, Any]
    ) -> Row:
        """As the channel within."""
        return self.inner.as_declared(row, declared, terms)

    def derives(self, terms: Mapping[str, Any], sent: Sequence[str]) -> list[str]:
        """As the channel within."""
        return self.inner.derives(terms, sent)

    def take_seconds(self) -> dict[str, float]:
        """As the channel within."""
        return self.inner.take_seconds()
