"""What of one client's examples leaves as noised sums, beside what its phases train."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.training.account import LABELS, Account
from clients.training.view import ForwardPass, ModelView
from fedpers.config import Config
from fedpers.data import Examples
from fedpers.errors import ClientError
from fedpers.models import PersonalModel
from fedpers.privacy.noise import Source


class Releasing(ModelView):
    """A view that has one client's training examples, and its account; see ``Trainer``."""

    def __init__(
        self,
        config: Config,
        model: PersonalModel,
        algorithm: ForwardPass,
        examples: Examples,
        server_round: int,
        client: str,
        account: Account | None,
    ) -> None:
        super().__init__(model, algorithm)
        self.config = config
        self.examples = examples.to(self.device)
        self.server_round, self.client = server_round, client
        self.account = account

    def release_counts(self, contributions: Tensor, what: str = LABELS) -> Tensor:
        """Counts [C] of the client's examples that are to be sent.

        Under privacy what an example adds is clipped to norm 1, and the sum is noised for that.

        Args:
            contributions: what each training example adds, in their order, [n, C] on the CPU.

        Raises:
            ClientError: not one row an example; or, under privacy, as ``Account.noised``.
        """
        if contributions.ndim != 2 or len(contributions) != len(self.examples):
            got, n = tuple(contributions.shape), len(self.examples)
            raise ClientError(f"counts: got {got}, takes what each example adds, [{n}, C]")
        if self.account is None:
            return contributions.sum(0)
        source = self._source(what)
        finite = torch.isfinite(contributions).all(1, keepdim=True)
        contributions = torch.where(finite, contributions, 0.0)
        factors = (1 / contributions.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)
        source.witness([contributions], factors)
        return self.account.noised(what, factors @ contributions, source)

    def _source(self, purpose: str) -> Source:
        """What is secret in this round and serves one purpose."""
        assert self.account is not None
        return self.account.sources(self.server_round, self.client, purpose)
