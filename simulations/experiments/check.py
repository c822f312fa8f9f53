"""What there is before a run: the data as a run will have them, and what they can show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import sqrt
from statistics import median

import torch

from fedpers.config import Config
from fedpers.data import Examples, FederatedData, load_data, load_table
from fedpers.models.build import build_model, remark
from fedpers.privacy.accounting import calibrated, default_delta
from fedpers.privacy.mechanisms import Gaussian
from simulations.backends.checks import check
from simulations.experiments.references import references

SIDES = ("train", "val", "test")
DISAGREE = 0.1  # of a client's test rows: on so many do two fair models usually differ
FEW = 20  # training rows of a client, below which little of a model can be its own
EPSILONS = (8.0, 2.0)


def examine(config: Config) -> Iterator[str]:
    """What there is to say, a line each; the data are read in the clear, here.

    Raises:
        FedpersError: the run would be refused.
    """
    check(config)
    data = load_data(config)
    owned = {client: data.client(client) for client in [*data.clients, *data.held_out]}
    splits = {side: [getattr(own, side) for own in owned.values()] for side in SIDES}
    rows = sum(len(e) for each in splits.values() for e in each)
    kind, shape = data.signature.kind, " x ".join(str(size) for size in data.signature.shape)
    yield f"data: {rows} rows of {len(data.clients)} clients, and {len(data.public)} public; {kind}"
    yield f"inputs: {shape}{_odd(splits['train'])}{_missing(config)}"
    yield f"learned: {data.task.described}{_named(data, splits['train'])}"
    for side, each in splits.items():
        sizes = [len(examples) for examples in each]
        least, middle, most = min(sizes), median(sizes), max(sizes)
        yield f"{side}: {sum(sizes)} rows; a client has {least} to {most}, half at most {middle:g}"
    yield data.scaling.about or "features: as they are"
    yield data.remark
    yield remark(config)
    yield _twice(splits)
    yield from _harm(splits["test"])
    yield from _privacy(config, data)
    found = references(data, config.seed)
    if found:
        unit = "R²" if data.public.y.is_floating_point() else "accuracy"
        said = ", ".join(f"{name} {100 * value:.1f} %" for name, value in found.items())
        yield f"a scaled linear model has, in {unit} on validation rows: {said}"
    yield from _settings(config, data, splits["train"])


def _odd(trained: Iterable[Examples]) -> str:
    """Columns that do not vary."""
    x = torch.cat([examples.x for examples in trained])
    if x.ndim != 2 or len(x) < 2:
        return ""
    still = int((x == x[0]).all(0).sum())
    return f"; {still} of them the same in all training rows" if still else ""


def _missing(config: Config) -> str:
    """How many cells of a table are empty."""
    if config.data.missing == "error":
        return ""
    x = load_table(config).examples.x
    empty = torch.isnan(x)
    return f"; {int(empty.sum())} cells missing, in {int(empty.any(0).sum())} columns"


def _named(data: FederatedData, trained: Iterable[Examples]) -> str:
    """How often each class is there."""
    y = torch.cat([examples.y for examples in trained])
    if y.is_floating_point():
        return ""
    counts = Counter(y.tolist())
    names = [f"{name} {counts[number]}" for number, name in enumerate(data.task.names)]
    absent = [name for number, name in enumerate(data.task.names) if not counts[number]]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    without = f"; nobody trains on {', '.join(absent[:5])}" if absent else ""
    return f" (training rows: {shown}){without}"


def _twice(splits: dict[str, list[Examples]]) -> str:
    """Test rows that somebody trains on."""
    seen = {row.numpy().tobytes() for examples in splits["train"] for row in examples.x}
    tested = [row.numpy().tobytes() for examples in splits["test"] for row in examples.x]
    both = sum(row in seen for row in tested)
    if not both:
        return "no test row is among the training rows"
    cure = "set data.columns.group and data.split=group, or drop them"
    return f"{both} of {len(tested)} test rows are among the training rows as well; {cure}"


def _harm(tested: list[Examples]) -> Iterator[str]:
    """What of a client's loss can be told from chance, by the number of its test rows."""
    sizes = [len(examples) for examples in tested if len(examples)]
    one, n = median(sizes), sum(sizes)
    least = 100 * 1.96 * sqrt(DISAGREE / one)
    mean = 100 * 1.96 * sqrt(DISAGREE / n)
    yield (
        f"least detectable: {min(least, 100):.0f} points for a client of {one:g} test rows, "
        f"{mean:.1f} for all together (where models differ on {DISAGREE:.0%} of the rows)"
    )


def _privacy(config: Config, data: FederatedData) -> Iterator[str]:
    """How much noise an epsilon asks for in a round's mean of all clients."""
    sizes = [data.size(client) for client in data.clients]
    model = build_model(config, data)
    numbers = sum(model.read(slot).layout.size for slot in model.slots)
    delta = config.privacy.delta or default_delta(max(sizes))
    steps = config.rounds * config.privacy.steps
    for epsilon in EPSILONS:
        sigma = calibrated(Gaussian, epsilon, delta, config.privacy.sampling_rate, steps).sigma
        # A client's mean gradient is of norm <= clip; its noise sigma clip / n in each coordinate.
        noise = sigma * sqrt(numbers * sum((1 / max(n, 1)) ** 2 for n in sizes)) / len(sizes)
        hope = "hopeless" if noise > 3 else "hard" if noise > 0.5 else "within reach"
        yield (
            f"epsilon {epsilon:g} for {steps} steps (delta {delta:g}): noise of {noise:.2g} times "
            f"the largest mean gradient over {numbers:,} numbers; {hope}"
        )


def _settings(config: Config, data: FederatedData, trained: list[Examples]) -> Iterator[str]:
    """Settings that would fit better."""
    better = []
    if data.signature.kind == "tabular":
        if remark(config):
            better.append("model.name=table model.lora=null")
        if not data.scaling.about and data.remark:
            better.append("data.scale=sums" if not config.confidential else "data.scale=declared")
    most = max(len(examples) for examples in trained)
    if config.training.batch_size > most:
        better.append(f"training.batch_size={max(4, most // 2)}")
    yield f"settings that would fit: {' '.join(better)}" if better else "settings: they fit"
    few = sum(len(examples) < FEW for examples in trained)
    if few:
        yield f"{few} clients have fewer than {FEW} training rows: expect little of their own"
