"""Causal language modelling: each token of a text by those before it, by log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpers.config import Columns, NoParams, TaskSettings
from fedpers.errors import DataError
from fedpers.outputs import Outputs
from fedpers.tasks import token_metrics
from fedpers.tasks.base import TASKS, Metric, Task
from fedpers.tasks.token_counts import LEAST, TokenCounts

NOT_SCORED = -100  # what PyTorch and transformers call a target that does not count


@TASKS.register("causal-lm")
class CausalLM(Task):
    """Targets are the tokens of a text, int64 [n, T]: token t + 1 of the example at place t, or
    -100 where it is padding or of the context.

    Scores are [n, 2 T]: first the log-probability of each target token, then that of the likeliest
    token at its place; 0 where nothing is scored. Vocabularies are too large to keep more.

    A model wins a text from another where it gives it a higher likelihood.

    Args:
        places: T, one less than ``data.max_tokens``.
    """

    Params = NoParams
    predicts_text = True
    has_base = True
    tally_type = TokenCounts
    names = ("the next token",)
    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": Metric(
            label="perplexity",
            of=token_metrics.perplexity,
            better="lower",
            unit="none",
            meaning="e to the mean negative log-likelihood of a client’s target tokens",
            told="has a perplexity of {} on",
        ),
        "token_accuracy": Metric(
            label="token accuracy",
            of=token_metrics.accuracy,
            meaning="how often the likeliest token is the next one",
        ),
        "token_ece": Metric(
            label="ECE",
            of=token_metrics.ece,
            better="lower",
            compared=False,
            pools=True,
            meaning="how far the likeliest token’s probability is from how often it is right, over "
            "10 bins; all clients together",
        ),
    }

    def __init__(self, places: int) -> None:
        self.places = places

    @classmethod
    def encode(
        cls,
        values: Sequence[Any] | NDArray[Any],
        where: str,
        columns: Columns,
        params: NoParams,
    ) -> tuple[Self, Tensor]:
        """Token ids [n, T], and -100."""
        targets = torch.as_tensor(values)
        return cls.of(targets, params), targets

    @classmethod
    def of(cls, targets: Tensor, params: NoParams) -> Self:
        """Of so many places."""
        if targets.ndim != 2 or targets.is_floating_point():
            got = f"{targets.dtype} of shape {tuple(targets.shape)}"
            takes = f"token ids [n, places], {NOT_SCORED} where nothing is scored"
            raise DataError(f"data: y: got {got}, takes {takes}; name data.columns.text")
        return cls(targets.shape[1])

    def strata(self, targets: Tensor) -> Tensor:
        """All texts alike."""
        return torch.zeros(len(targets), dtype=torch.int64)

    def settings(self) -> TaskSettings:
        """By name alone: the places are the data's."""
        return TaskSettings(TASKS.name_of(type(self)))

    @property
    def described(self) -> str:
        """What is learned."""
        return f"the next token, at up to {self.places} places of a text"

    @property
    def outputs(self) -> int:
        """2 T."""
        return 2 * self.places

    def head(self, width: int) -> None:
        """None: a language model has its own, from hidden states to words."""
        return

    def loss(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """The mean negative log-likelihood of each example's own target tokens; 0 without any."""
        scored = targets != NOT_SCORED
        likelihoods = outputs.scores[:, : self.places] * scored
        return -likelihoods.sum(1) / scored.sum(1).clamp_min(1)

    def divergence(self, scores: Tensor, teacher: Tensor) -> Tensor:
        """The mean squared difference of the target tokens' log-probabilities."""
        own, other = scores[:, : self.places], teacher[:, : self.places]
        return (own - other).square().sum() / (other != 0).sum().clamp_min(1)

    def made_up(self, count: int, generator: torch.Generator) -> Tensor:
        """Texts of several lengths, of few words."""
        words = torch.randint(1, 24, (count, self.places), generator=generator)
        used = torch.randint(1, self.places + 1, (count, 1), generator=generator)
        return torch.where(torch.arange(self.places) < used, words, NOT_SCORED)

    def made_up_scores(self, count: int, generator: torch.Generator) -> Tensor:
        """Logarithms of probabilities."""
        return torch.rand(count, self.outputs, generator=generator).clamp_min(1e-6).log()

    def tally(
        self, scores: Mapping[str, Tensor], targets: Tensor, *, detail: bool = True
    ) -> TokenCounts:
        """Sums over tokens."""
        halves = {mode: torch.split(found, self.places, dim=1) for mode, found in scores.items()}
        return TokenCounts.of(targets != NOT_SCORED, halves)

    def confidence(self, scores: Tensor, targets: Tensor) -> Tensor:
        """log p / (1 - p) of the geometric mean p of the target tokens' probabilities."""
        mean = -self.loss(Outputs(scores, scores), targets).clamp(1e-6, -LEAST)
        return mean - torch.log1p(-mean.exp())

    def read(self, scores: Tensor) -> list[str]:
        """The perplexity of each text."""
        found = scores[:, : self.places].double()
        nll = -found.sum(1) / (found != 0).sum(1).clamp_min(1)
        return [f"{float(value):.1f}" for value in nll.exp()]

    @property
    def reading(self) -> str:
        """What ``read`` gives."""
        return "perplexity of the text"
