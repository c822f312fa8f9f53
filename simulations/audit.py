"""The privacy audit: attacks on the clients' real code, by what a server sees.

Three experiments, in this process: a lower bound on epsilon from inserted canaries, membership
inference, and the reconstruction of an example from an update. None of them proves a build sound;
each can show that it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.account import Account
from clients.base import algorithms, decayed
from clients.host import PERSONAL, ClientHost
from clients.store import ClientStore
from clients.trainer import Trainer
from fedpers.config import Config
from fedpers.data import Examples, load_data
from fedpers.errors import ConfigError
from fedpers.evaluation.run_folder import replace_file
from fedpers.outputs import Outputs
from fedpers.parts import Parts, combine
from fedpers.privacy import BudgetSpent, Release
from fedpers.privacy.audit import (
    auc,
    bound_by_scores,
    inclusion_scores,
    lira,
    psnr,
    tpr_at,
)
from fedpers.privacy.noise import Source
from fedpers.seeding import torch_generator
from fedpers.tasks.base import Task
from simulations.audited import Replaced, audited, start_over
from simulations.inversion import invert, save_pictures
from strategies.base import find_strategy

Values = NDArray[np.float64]


class Noiseless(Account):
    """For the auditor's own trainings, which are not released: no noise and no charge."""

    def take_phase(self) -> Release:
        """The steps of a phase, on all examples."""
        return Release(0.0, 1.0, self.phase.steps)

    def expected(self, rate: float, examples: int) -> float:
        """Of the examples that there are."""
        return rate * examples

    def noised(self, what: str, counts: Tensor, source: Source) -> Tensor:
        """The counts as they are."""
        return counts


# -- a lower bound on epsilon from one run ---------------------------------------------------


def lower_bound(config: Config, *, canaries: int = 200) -> dict[str, Any]:
    """An empirical lower bound on epsilon, to be below what the ledger says.

    Canaries (random inputs with random labels) are put among one client's training examples, each
    by a fair coin. The server, which here is the attacker, sends that client the same model in
    every round of the run and sees all its uploads. It knows everything but the coins: what the
    client has besides, and what each canary would add to an upload, measured by training without
    noise and one canary more or less. With a sound method and one step a round that is the
    canary's clipped gradient; an unsound one may leak in other ways, and they count as well. The
    size of the data set is public, by which an upload is scaled.

    Below a sampling rate of 1 the server does not know which of the client's examples were drawn.
    What each of them would add is measured too, and told apart from what the canaries do.

    Args:
        config: the run's settings, with ``privacy.enabled``.
        canaries: how many. With the client's own examples, where these are sampled, they have to
            be fewer than the scalars that a client sends.

    Returns:
        claimed (by the ledger, after the run), at least (the bound at 95% confidence), delta,
        rounds, and the guesses.
    """
    with audited(config) as host:
        client = max(host.data.clients, key=host.data.size)
        own = host.data.client(client).train
        extra = random_examples(own, host.data.task, canaries, config.seed)
        broadcast = host.algorithm.initial.only(host.algorithm.sends)
        rate = config.privacy.sampling_rate
        sampled = len(own) if rate < 1 else 0
        most = len(_flat(broadcast)) - sampled
        if canaries >= most:
            takes = f"an integer < {most}, the scalars that a client sends"
            takes += f" less its {sampled} examples" if sampled else ""
            raise ConfigError("canaries", canaries, takes)
        coins = torch_generator(config.seed, "audit", "coins")
        included = torch.rand(canaries, generator=coins) < 0.5
        expected, influences = _influences(host, client, own, extra, broadcast, sampled)

        train = _joined(own, extra.take(included.nonzero().view(-1)))
        start_over(host, Replaced(host.data, {client: train}))
        total, rounds, report = torch.zeros_like(expected), 0, dict[str, Any]()
        for server_round in range(1, config.rounds + 1):
            try:
                upload, report = host.train(client, server_round, broadcast)
            except BudgetSpent:
                break
            # By which the client divides.
            counted = host.config.privacy.protects_counts
            divisor = report["examples"] if counted else len(train)
            change = divisor * (_flat(upload) - _flat(broadcast))
            total += change / decayed(1.0, config, server_round)
            rounds += 1
        # Scores take everything to vary as a coin does, by 1/4; how often an own example was drawn,
        # over all steps and in units of the mean, varies by (1 - q) / (q steps).
        steps = rounds * config.privacy.steps
        influences[canaries:] *= 2 * ((1 - rate) / (rate * steps)) ** 0.5
        scores = inclusion_scores(total / rounds - expected, influences)[:canaries]
        bound = bound_by_scores(scores, included, report["delta"])
        return {
            "claimed": report["epsilon"],
            "at_least": bound.epsilon,
            "delta": report["delta"],
            "sigma": report["sigma"],
            "rounds": rounds,
            "canaries": bound.canaries,
            "guesses": bound.guesses,
            "correct": bound.correct,
            "auc": auc(scores[included].numpy(), scores[~included].numpy()),
        }


def _influences(
    host: ClientHost, client: str, own: Examples, extra: Examples, broadcast: Parts, sampled: int
) -> tuple[Tensor, Tensor]:
    """What an upload is expected to be, [d], and what each canary and each of the first ``sampled``
    own examples adds to it, [m + sampled, d].

    All times the number of examples, by which the client divides. Each of them is switched on or
    off beside all own examples and a random half of the canaries.
    """
    m = len(extra)
    start_over(host, Replaced(host.data, {client: _joined(extra, own)}))
    everything = host.examples.client(client).train
    data = host.data.client(client)
    store = ClientStore(host.stores, client)
    known = (host.config, host.algorithm, client, data, host.ledgers, store)
    account = Noiseless(*known, host.sources)

    def change(inside: Tensor) -> Tensor:
        rows = inside.nonzero().view(-1)
        trainer = Trainer(
            host.config,
            host.model,
            host.algorithm,
            everything.take(rows),
            server_round=1,
            client=client,
            account=account,
        )
        working = host.algorithm.receive(broadcast, Parts())
        upload = host.algorithm.upload(host.algorithm.train(working, trainer))
        return len(rows) * (_flat(upload) - _flat(broadcast))

    inside = torch.ones(len(everything), dtype=torch.bool)
    half = torch.rand(m, generator=torch_generator(host.config.seed, "audit", "half")) < 0.5
    inside[:m] = half
    base, rows = change(inside), []
    for k in range(m + sampled):
        switched = inside.clone()
        switched[k] = ~switched[k]
        rows.append((change(switched) - base) * (-1.0 if inside[k] else 1.0))
    influences = torch.stack(rows)
    return base + (0.5 - half.double()) @ influences[:m], influences


def _flat(parts: Parts) -> Tensor:
    return torch.cat([part.vector.double() for part in parts.values()])


def _joined(*pieces: Examples) -> Examples:
    return Examples(torch.cat([p.x for p in pieces]), torch.cat([p.y for p in pieces]))


def random_examples(like: Examples, task: Task, count: int, seed: int) -> Examples:
    """Inputs drawn evenly from the range of the given ones (tokens: from those in use), with
    random targets."""
    generator = torch_generator(seed, "audit", "canaries")
    y = task.made_up(count, generator)
    if not like.x.is_floating_point():
        ids, mask = like.x[:, 0], like.x[:, 1]
        chosen = torch.randint(ids.numel(), (count, ids.shape[1]), generator=generator)
        return Examples(torch.stack([ids.flatten()[chosen], mask[:1].expand(count, -1)], 1), y)
    low, high = like.x.amin(), like.x.amax()
    x = torch.rand((count, *like.x.shape[1:]), generator=generator)
    return Examples(low + (high - low) * x, y)


# -- membership inference --------------------------------------------------------------------


def membership(config: Config, *, shadows: int = 4) -> dict[str, Any]:
    """Who was trained on what, guessed from models: area under the curve, and found at 1% FPR.

    Each client trains on a random half of all its examples; the other half are the non-members.
    All clients take part in each round and the server averages what they send. Attacked are the
    last global model and a client's last upload, which the server sees, and its personal model,
    which nobody does; each by the loss alone, and by LiRA with as many ``shadows`` (two
    or more), trained in the same way on other halves.
    """
    runs: list[tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]] = []
    with audited(config) as host:
        data = host.data
        everything = {c: data.client(c) for c in data.clients}
        pools = {c: _joined(d.train, d.val, d.test) for c, d in everything.items()}
        pools = {c: pool for c, pool in pools.items() if len(pool) >= 4}
        for k in range(shadows + 1):
            # Shadows come in pairs, the second on what the first one leaves out.
            draw, other = ("target", False) if k == 0 else (f"shadow {(k - 1) // 2}", k % 2 == 0)
            inside = {c: _half(config.seed, draw, c, len(p)) ^ other for c, p in pools.items()}
            train = {c: p.take(inside[c].nonzero().view(-1)) for c, p in pools.items()}
            start_over(host, Replaced(data, train, pools))
            runs.append((torch.cat(list(inside.values())), _confidences(host)))
    members = runs[0][0].numpy()
    found: dict[str, Any] = {"members": int(members.sum()), "others": int((~members).sum())}
    for model, (loss, target) in runs[0][1].items():
        others = np.stack([run[model][1].numpy() for _, run in runs[1:]])
        chosen = np.stack([inside.numpy() for inside, _ in runs[1:]])
        attacks = {"loss": -loss.numpy(), "lira": lira(target.numpy(), others, chosen)}
        found[model] = {
            name: {
                "auc": auc(scores[members], scores[~members]),
                "tpr_at_1_fpr": tpr_at(scores[members], scores[~members]),
            }
            for name, scores in attacks.items()
        }
    return found


def _confidences(host: ClientHost) -> dict[str, tuple[Tensor, Tensor]]:
    """Trains all clients; each model's loss and confidence on all examples, by client."""
    config, algorithm = host.config, host.algorithm
    broadcast, uploads = algorithm.initial.only(algorithm.sends), dict[str, Parts]()
    for server_round in range(1, config.rounds + 1):
        for client in host.data.clients:
            try:
                uploads[client], _ = host.train(client, server_round, broadcast)
            except BudgetSpent:  # its last upload stays what it was
                continue
        if algorithm.sends:
            weights = torch.full((1, len(uploads)), 1 / len(uploads))
            (broadcast,) = combine(weights, list(uploads.values()))
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for client in host.data.clients:
        split, personal = (
            host.examples.client(client),
            ClientStore(host.stores, client).load_before(PERSONAL, config.rounds + 1),
        )
        trainer = Trainer(
            config, host.model, algorithm, split.train, server_round=config.rounds, client=client
        )
        views = {
            "global": ("global", algorithm.receive(broadcast, personal)),
            "upload": ("global", algorithm.receive(uploads[client], personal)),
            "personal": (
                "personal",
                algorithm.tune(algorithm.receive(broadcast, personal), trainer),
            ),
        }
        for name, (mode, working) in views.items():
            working = algorithm.recall(working, trainer)
            scores = algorithm.predict(mode, working, split.test.x, trainer)
            if scores is not None:
                found.setdefault(name, []).append(_judged(host.data.task, scores, split.test.y))
    return {name: _columns(pieces) for name, pieces in found.items()}


def _judged(task: Task, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores.double()
    outputs = Outputs(scores.new_zeros(len(scores), 0), scores)
    return task.loss(outputs, targets), task.confidence(scores, targets)


def _columns(pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    losses, confidences = zip(*pieces, strict=True)
    return torch.cat(losses), torch.cat(confidences)


def _half(seed: int, draw: str, client: str, count: int) -> Tensor:
    order = torch.randperm(count, generator=torch_generator(seed, "audit", draw, client))
    return order < count // 2


# -- all of it -----------------------------------------------------------------------------------


def audit(config: Config, folder: Path, *, canaries: int = 200, shadows: int = 4) -> dict[str, Any]:
    """Run the three experiments and write ``audit.json`` and ``inversion.png``.

    Membership and inversion are tried with privacy off, and on if the settings have it on.

    Args:
        config: the run's settings, with absolute paths.
        folder: made if it is not there.

    Returns:
        What is written: epsilon (None without privacy, or where nothing is sent), membership and
        inversion by "off" and "on" (inversion None for text, or where nothing is sent).

    Raises:
        ConfigError: the settings protect clients, whose noise is not in what one client sends.
    """
    if config.privacy.enabled and config.privacy.unit == "client":
        takes = "example: what is inserted to be found are examples of one client"
        raise ConfigError("privacy.unit", "client", takes, "or set privacy.enabled=false")
    folder.mkdir(parents=True, exist_ok=True)
    builds = {"off": replace(config, privacy=replace(config.privacy, enabled=False))}
    if config.privacy.enabled:
        builds["on"] = config
    sends = algorithms.get(find_strategy(config).client_side()).sends
    found: dict[str, Any] = {
        "epsilon": lower_bound(config, canaries=canaries) if sends and "on" in builds else None,
        "membership": {name: membership(build, shadows=shadows) for name, build in builds.items()},
        "inversion": None,
    }
    kind = load_data(config).signature.kind
    if sends and kind != "text":
        rows: dict[str, Tensor] = {}
        for name, build in builds.items():
            rows["original"], rows[f"privacy {name}"] = invert(build)
        width = float(rows["original"].max() - rows["original"].min())
        found["inversion"] = {
            name: [
                psnr(o, x, width)
                for o, x in zip(rows["original"], rows[f"privacy {name}"], strict=True)
            ]
            for name in builds
        }
        if kind == "image":
            save_pictures(rows, folder / "inversion.png")
    replace_file(folder / "audit.json", json.dumps(found, indent=2) + "\n")
    return found


def results_folder(config: Path, overrides: Sequence[str], out: Path | None) -> Path:
    """Where an audit of ``config``, a YAML file or a run's folder, puts its results.

    In the run's folder, whose report shows them, unless ``overrides`` make it another run's audit.
    """
    if out is None:
        name = config.resolve().name if config.is_dir() else config.stem
        out = config if config.is_dir() and not overrides else Path("runs") / f"audit-{name}"
    return out.resolve()


def refuted(found: Mapping[str, Any]) -> bool:
    """Whether an audit's result shows that the claimed epsilon does not hold."""
    epsilon = found["epsilon"]
    return epsilon is not None and bool(epsilon["at_least"] > epsilon["claimed"])


def audit_lines(found: Mapping[str, Any]) -> list[str]:
    """An audit's result in a few lines of text."""
    lines, epsilon = [], found["epsilon"]
    if epsilon:
        verdict = "BROKEN" if refuted(found) else "not refuted"
        lines.append(
            f"epsilon: claimed {epsilon['claimed']:.2f}, at least {epsilon['at_least']:.2f} "
            f"({epsilon['correct']} of {epsilon['guesses']} guesses): {verdict}"
        )
    for build, models in found["membership"].items():
        for model in ("global", "upload", "personal"):
            for attack, figures in models.get(model, {}).items():
                lines.append(
                    f"membership, privacy {build:3}  {model:8} {attack:4}  AUC "
                    f"{figures['auc']:.3f}  TPR at 1% FPR {100 * figures['tpr_at_1_fpr']:.1f} %"
                )
    for build, values in (found["inversion"] or {}).items():
        lines.append(f"inversion, privacy {build:3}  PSNR {np.mean(values):.1f} dB")
    return lines
