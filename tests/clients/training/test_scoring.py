"""What a method is asked to predict, and for whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clients.base import LocalAlgorithm
from clients.node.host import ClientHost
from clients.training.scoring import Splits
from clients.training.trainer import Trainer
from clients.training.view import ModelView
from fedpers.config import Config
from fedpers.parts import Parts

TRANSDUCTIVE = """
from clients.methods.fedavg import FedAvg


class Centres(FedAvg):
    '''Scores less the mean of those it is asked for: of one split it must not be another's.'''

    def predict(self, mode, working, x, view, split):
        scores = super().predict(mode, working, x, view, split)
        return scores - scores.mean(0) if split == "test" else scores
"""

IN_PLACE = """
from clients.methods.fedavg import FedAvg


class InPlace(FedAvg):
    '''Tunes what it received, and keeps no copy of it.'''

    def tuning(self):
        return self.newcomer(40)
"""


def test_what_is_tuned_in_place_is_no_global_model(
    small: Callable[..., Config], plugin: Any, tmp_path: Path
) -> None:
    name = f"{plugin('in_place', IN_PLACE)}:InPlace"
    host = ClientHost(small(name), name, (), tmp_path / "state")
    plain = ClientHost(small("fedavg"), "fedavg", (), tmp_path / "plain")
    trained, _ = plain.train("0", 1, plain.algorithm.initial)
    ours, theirs = (h.evaluate("0", 1, trained).test.to_json() for h in (host, plain))
    assert ours["detail"]["modes"]["global"] == theirs["detail"]["modes"]["global"]
    assert ours["detail"]["modes"]["personal"] != theirs["detail"]["modes"]["personal"]


def test_each_split_is_predicted_on_its_own(
    small: Callable[..., Config], plugin: Any, tmp_path: Path
) -> None:
    name = f"{plugin('centres', TRANSDUCTIVE)}:Centres"
    host = ClientHost(small(name), name, (), tmp_path / "state")
    plain = ClientHost(small("fedavg"), "fedavg", (), tmp_path / "plain")
    trained, _ = plain.train("0", 1, plain.algorithm.initial)
    ours, theirs = (h.evaluate("0", 1, trained).to_json() for h in (host, plain))
    assert ours["val"] == theirs["val"] and ours["outside"] == theirs["outside"]
    # By hand: the mean over the test inputs alone.
    split, view = plain.examples.client("0"), ModelView(plain.model, plain.algorithm)
    filling = plain.algorithm.filled("global")
    assert filling is not None
    scores = view.outputs(filling, trained, split.test.x).scores
    tally = plain.data.task.tally({"personal": scores - scores.mean(0)}, split.test.y, detail=True)
    assert ours["test"]["correct"]["personal"] == tally.to_json()["correct"]["personal"]
    assert ours["test"] != theirs["test"]


def test_one_pass_gives_each_split_its_own_rows(toys: Any) -> None:
    bound = toys.bind("fedper")
    body, heads = toys.body(torch.eye(2)), [toys.head([[1.0, 0.0], [0.0, k]]) for k in (2.0, 3.0)]
    xs = [torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.0, 4.0]])]
    view, filling = Splits(bound.model, bound.algorithm, xs), bound.algorithm.filled("personal")
    for head, first, last in ((heads[0], 2.0, 8.0), (heads[1], 3.0, 12.0)):
        working = Parts({"body": body, "personal.head": head})
        assert view.outputs(filling, working, xs[0]).scores.tolist() == [[1.0, first], [2.0, 0.0]]
        assert view.outputs(filling, working, xs[1]).scores.tolist() == [[0.0, last]]
        # Other inputs than a whole split are computed by themselves.
        assert view.outputs(filling, working, xs[1] + 1).scores.tolist() == [[1.0, last / 4 * 5]]


class Learned(LocalAlgorithm):
    """Personalises by no phase: its head becomes the mean input of each class."""

    keeps = ("head",)
    sends = ("body",)

    def tune(self, working: Parts, trainer: Trainer, batches: int | None = None) -> Parts:
        """Nothing without batches."""
        if batches == 0:
            return working
        x, y = trainer.examples.x, trainer.examples.y
        means = torch.stack([x[y == k].mean(0) for k in (0, 1)])
        head = torch.cat([means.flatten(), torch.zeros(2)])
        return working | {"personal.head": working["personal.head"].like(head)}


def test_a_newcomer_passes_through_tune(toys: Any) -> None:
    bound = toys.bind("fedper")
    algorithm = Learned(bound.config, bound.model, None)
    working = Parts(
        {"body": toys.body(torch.eye(2)), "personal.head": toys.head(torch.zeros(2, 2))}
    )
    assert algorithm.tune(working, bound.trainer, 0) is working
    tuned = algorithm.tune(working, bound.trainer, 5)
    probe: Tensor = torch.tensor([[2.0, 0.0]])
    scores = algorithm.predict("personal", tuned, probe, bound.trainer, "test")
    # The means of (1, 2), (0, 3) and of (2, -1), (-1, 1): (1/2, 5/2) and (1/2, 0).
    assert scores is not None and scores.tolist() == [[1.0, 1.0]]
