"""Sums over all clients, beside the rounds: statistics, and losses by which settings are chosen.

Each client makes a vector of its own examples; what comes out is the mean over all examples. It
passes the run's channel as updates do: added up as they come, under encryption, under masks; the
server has the sum alone. In private runs it is noised and charged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedpers.channels.base import Needs, Opening
from fedpers.channels.build import channel_of
from fedpers.errors import RunError
from fedpers.models.whitening import whitening_of, width_read
from fedpers.moments import Frame, width
from fedpers.parts import Layout, Part, Parts
from fedpers.pooling import FRAME, MOMENTS, POOLED
from strategies.base import PersonalizedStrategy
from strategies.budgets import Budgets
from strategies.post import Post
from strategies.roster import Roster
from strategies.round import Round
from strategies.signal import SignalToNoise

log = logging.getLogger("fedpers")


class Vector(PersonalizedStrategy):
    """One vector of each client, as a method whose update it is: a round and a channel take it for
    any other.

    Args:
        method: that of the run, whose parts its clients receive.
        size: of the vector.
        server_round: the last that was trained.
    """

    shares = (POOLED,)
    weights = "examples"

    def __init__(self, method: PersonalizedStrategy, size: int, server_round: int) -> None:
        self.method, self.config, self.model = method, method.config, method.model
        self.params, self.task, self.schema = method.params, method.task, method.schema
        self.layouts = {POOLED: Layout(((POOLED, (size,)),))}
        self.rows, self.updates, self.reported, self.polled = {}, {}, {}, {}
        self.needed, self.similarity = Needs(), None
        self.parts, self.known, self.server_round = Parts(), method.known, server_round
        self.channel = channel_of(self)

    def client_side(self) -> str:  # type: ignore[override]
        """The run's own: its clients answer."""
        return self.method.client_side()

    def param_names(self) -> list[str]:  # type: ignore[override]
        """Likewise."""
        return self.method.param_names()

    def select(self, server_round: int, clients: Any) -> list[str]:
        """Everybody."""
        return list(clients)

    def broadcast(self, server_round: int, client: str) -> Any:
        """What the client would receive to be evaluated."""
        return self.method.broadcast_to_evaluate(self.server_round, client)

    def says(self, server_round: int, client: str) -> Mapping[str, Any]:
        """As the method says."""
        return self.method.says(self.server_round, client)


class Pools:
    """Asks all clients for vectors, and has their mean.

    Args:
        method, roster, budgets: of the run.
    """

    def __init__(self, method: PersonalizedStrategy, roster: Roster, budgets: Budgets) -> None:
        self.method, self.roster, self.budgets = method, roster, budgets
        self.server_round = self.asked = 0

    def open(self, wire: Post, state: Path, resumed: bool) -> None:
        """Take up the run, its nodes being there."""
        self._wire, self._state, self._resumed = wire, state, resumed

    def __call__(self, what: str, size: int) -> Tensor:
        """The mean [size] over all clients' examples of the vectors that their side makes.

        Args:
            what: which vector, as the client side calls it.

        Raises:
            RunError: too few clients answered, or nobody could open it.
        """
        method, vector = self.method, Vector(self.method, size, self.server_round)
        post = Post(vector, self.roster)
        post.grid, post.run_folder = self._wire.grid, self._wire.run_folder
        clients, said = len(self.roster.clients), self.roster.said
        vector.channel.open(Opening(post, clients, said, self._state, self._resumed))
        # It goes on where the method's own is, and that one where it ends.
        vector.channel.load_state({}, method.channel.state()[1])
        # Numbers of their own, above all rounds': what clients keep for a round is not mixed up.
        self.asked += 1
        number = 1_000_000 + 1000 * self.server_round + self.asked
        turn = Round(number, vector, self.roster, post, self.budgets, SignalToNoise())
        about = {"about": what, "of": self.server_round, "size": size}
        messages = turn.ask("train.pool", **about)
        mixed = turn.take(post.send(messages))
        method.channel.load_state({}, vector.channel.state()[1])
        if not mixed:
            why = turn.unused or next(iter(turn.answers.failures.values()), "nobody answered")
            raise RunError(f"{what}: no sum over the clients ({why})")
        return vector.channel.reveal(vector.parts)[POOLED].vector

    @property
    def config(self) -> Any:
        """The run's settings."""
        return self.method.config

    def choose(self, what: str, size: int) -> int:
        """Which of ``size`` settings has the least mean loss over all clients' validation
        examples, of the losses that their side has for each."""
        losses = self(what, size)
        best = int(losses.argmin())
        log.info("%s: %d of %d has the least pooled loss, %.3f", what, best, size, losses[best])
        return best

    def whitening(self) -> Part:
        """How features are whitened, by sums over the clients (``model.whiten=sums``)."""
        method, classes = self.method, self.method.task.outputs
        features = width_read(method.model, method.schema.signature)
        frame = self.frame(FRAME, features)
        return whitening_of(self(MOMENTS, width(features, classes)), classes, frame)

    def frame(self, what: str, features: int) -> Frame:
        """The common scale of features, of which all clients then know; see ``fedpers.moments``."""
        if self.config.privacy.by_example:
            return Frame.fixed(features)
        frame = Frame.of(self(what, 2 * features))
        told = {"mean": frame.mean.float(), "spread": frame.spread.float()}
        self.method.known = self.method.known | {what: Part.of(told)}
        return Frame(told["mean"], told["spread"], False)
