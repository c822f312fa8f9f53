"""What of one client's examples leaves as noised sums, beside what its phases train."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.training.account import LABELS, SUMS, Account
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
        self._sums = 0  # released in this round

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
        return self.release(what, contributions).clamp_min(0)

    def release_sums(self, x: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        """The sum [k] of what each training example has, and how many there are: means, moments,
        prototypes. It may be done ``releases_sums`` times a round.

        A row longer than ``bound`` is clipped to it, and one that is not finite is left out. Under
        privacy sum and number are noised together, for one charge: with the noise multiplier sigma
        of that, each value of the sum by sqrt(2) sigma bound, and the number by sqrt(2) sigma.

        Args:
            x: a row for each training example, in their order, [n, k].
            bound: > 0.

        Raises:
            ClientError: not one row an example; or, under privacy, as ``Account.noised``.
        """
        if x.ndim != 2 or len(x) != len(self.examples):
            got, n = tuple(x.shape), len(self.examples)
            raise ClientError(f"sums: got {got}, takes a row for each example, [{n}, k]")
        x = x.detach().cpu().float()
        finite = torch.isfinite(x).all(1, keepdim=True)
        x = torch.where(finite, x / bound, 0.0)
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1.0)
        rows = torch.cat([x, finite.float()], dim=1) / 2**0.5
        total = rows.sum(0)
        if self.account is not None:
            self._sums += 1
            total = self.release(SUMS, rows, self._sums)
        total = total * 2**0.5
        return total[:-1] * bound, total[-1]

    def release(self, what: str, rows: Tensor, *which: int) -> Tensor:
        """The noised sum of rows [n, k] on the CPU, one for each training example, each clipped to
        norm 1; one that is not finite is left out.

        Args:
            what: as which it was charged.
            which: of several in a round.
        """
        assert self.account is not None
        source = self._source(what, *which)
        finite = torch.isfinite(rows).all(1, keepdim=True)
        rows = torch.where(finite, rows, 0.0)
        factors = (1 / rows.norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)
        source.witness([rows], factors)
        return self.account.noised(what, factors @ rows, source)

    def _source(self, purpose: str, *which: int) -> Source:
        """What is secret in this round and serves one purpose."""
        assert self.account is not None
        return self.account.sources(self.server_round, self.client, purpose, *which)
