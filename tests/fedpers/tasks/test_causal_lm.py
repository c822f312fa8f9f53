from math import e, log

import pytest
import torch

from fedpers.config import Columns, NoParams
from fedpers.errors import DataError
from fedpers.outputs import Outputs
from fedpers.tasks import CausalLM, TokenCounts

TARGETS = torch.tensor([[5, 6, -100], [-100, 7, -100]])
# Log-probabilities of the targets, then of the likeliest tokens; what is not scored is 0.
SCORES = torch.tensor(
    [[log(0.5), log(0.25), 0, log(0.5), log(0.5), 0], [0, log(0.125), 0, 0, log(0.75), 0]]
)


def task() -> CausalLM:
    return CausalLM(3)


def test_loss_is_the_mean_over_an_examples_own_tokens() -> None:
    found = task().loss(Outputs(SCORES, SCORES), TARGETS)
    torch.testing.assert_close(found, torch.tensor([1.5 * log(2), 3 * log(2)]))
    assert task().loss(Outputs(SCORES, SCORES), torch.full((2, 3), -100)).tolist() == [0, 0]


def test_tally_and_metrics_by_hand() -> None:
    better = SCORES.clone()
    better[1, 1] = better[1, 4]  # the second text's token is the likeliest now
    tally = task().tally({"personal": better, "global": SCORES}, TARGETS)
    assert (tally.n, tally.tokens) == (2, 3)
    assert tally.wins("personal", "global") == 1
    assert tally.wins("global", "personal") == 0
    perplexity, accuracy, ece = (metric.of for metric in CausalLM.metrics.values())
    assert perplexity([tally], "global") == pytest.approx(e ** (6 * log(2) / 3))
    assert accuracy([tally], "global") == pytest.approx(1 / 3)
    assert accuracy([tally], "personal") == pytest.approx(2 / 3)
    # Bin 0.5..0.6: two tokens, one of them right; bin 0.7..0.8: one, wrong.
    assert ece([tally], "global") == pytest.approx((abs(1 - 1.0) + abs(0 - 0.75)) / 3)
    # Two clients: their sums, not the mean of their figures.
    assert perplexity([tally, tally], "global") == perplexity([tally], "global")
    gated = tally.with_gated("personal")
    assert perplexity([gated], "gated") == perplexity([gated], "personal")
    assert TokenCounts.from_json(gated.to_json()) == gated


def test_a_model_that_broke_down_is_counted() -> None:
    broken = torch.full_like(SCORES, float("nan"))
    tally = task().tally({"personal": broken, "global": SCORES}, TARGETS)
    assert tally.nll["personal"] == 300
    assert tally.wins("global", "personal") == 2
    assert CausalLM.metrics["perplexity"].of([tally], "personal") == pytest.approx(e**50)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", -1),
        ("tokens", 1.5),
        ("nll", {"personal": -1.0}),
        ("nll", {"personal": float("nan")}),
        ("nll", {"nobody": 1.0}),
        ("right", {"personal": [9] * 10}),
        ("right", {"personal": [0] * 9}),
        ("confidence", {"personal": [1.0] * 10}),
        ("confidence", {"personal": "much"}),
        ("won", {"personal": {"global": 1}}),
    ],
)
def test_sums_that_cannot_be_are_refused(name: str, value: object) -> None:
    good = task().tally({"personal": SCORES}, TARGETS).to_json()
    with pytest.raises(ValueError, match=name):
        TokenCounts.from_json({**good, name: value})


def test_targets_of_another_kind_are_refused() -> None:
    for targets in (torch.zeros(3), torch.zeros(3, 2)):
        with pytest.raises(DataError, match="takes token ids"):
            CausalLM.of(targets, NoParams())
    made, targets = CausalLM.encode(TARGETS.numpy(), "here", Columns(), NoParams())
    assert made.places == 3 and torch.equal(targets, TARGETS)


def test_what_is_made_up_is_like_the_real() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = task().made_up(8, generator)
    scores = task().made_up_scores(8, generator)
    assert targets.shape == (8, 3) and scores.shape == (8, task().outputs)
    assert bool((scores <= 0).all()) and bool((targets[:, 0] > 0).all())
    assert torch.isfinite(task().confidence(scores, targets)).all()
    assert float(task().divergence(scores, scores)) == 0
    assert len(task().read(scores)) == 8
