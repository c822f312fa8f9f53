"""Training a trunk on the public split before it is frozen, and what its features look like."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from fedpers.cache import cached, fingerprint
from fedpers.config import Config, Pretrain
from fedpers.errors import ConfigError
from fedpers.models.backbones import Backbone
from fedpers.models.personal import Scaler
from fedpers.progress import Progress
from fedpers.seeding import seed_for, seeded, torch_generator
from fedpers.tasks.classification import Classification

if TYPE_CHECKING:
    from fedpers.data import Examples, FederatedData

log = logging.getLogger("fedpers")

# The norm that a standardised feature vector has on average (root mean square).
FEATURE_NORM = 4.0


def check_public(config: Config, data: FederatedData) -> None:
    """That the public split holds what ``model.pretrain`` and ``model.standardise`` need.

    Raises:
        ConfigError: it does not.
    """
    settings, public = config.model.pretrain, data.public
    wanted = None
    if settings.task != "none":
        wanted = f"model.pretrain.task is {settings.task}"
    elif config.model.standardise:
        wanted = "model.standardise is true"
    if wanted and len(public.x) == 0:
        takes = f"public examples when {wanted}"
        cure = "set it above 0, or data.public_clients where clients are natural"
        raise ConfigError("data.public_fraction", config.data.public_fraction, takes, cure)
    if config.model.standardise and config.model.lora is None:
        takes = "false when model.lora is null (features of a trained trunk move)"
        raise ConfigError("model.standardise", True, takes)
    if settings.task == "clusters":
        if data.signature.kind == "text":
            takes = "none or labels for text: k-means over token ids means nothing"
            raise ConfigError("model.pretrain.task", "clusters", takes)
        if settings.clusters > len(public.x):
            takes = f"at most {len(public.x)}, the number of public examples"
            raise ConfigError("model.pretrain.clusters", settings.clusters, takes)
    if settings.task == "labels":
        if not isinstance(data.task, Classification):
            takes = "none or clusters where no classes are learned"
            raise ConfigError("model.pretrain.task", "labels", takes)
        present = set(public.y.tolist())
        chosen = set(settings.classes) or present
        if len(chosen) < 2 or not chosen <= present & set(range(data.task.outputs)):
            takes = f"at least two of the public split's labels: {sorted(present)}"
            raise ConfigError("model.pretrain.classes", settings.classes, takes)


def pretrain(trunk: Backbone, settings: Pretrain, public: Examples, seed: int) -> None:
    """Train ``trunk`` on ``public`` as ``settings`` say, in place; once, then from the cache.

    The labels are read for the task ``labels`` only.
    """
    if settings.task == "none":
        return
    relevant = {"pretrain": asdict(settings), "backbone": type(trunk).__name__, "seed": seed}
    labels = {"public.y": public.y} if settings.task == "labels" else {}
    content = {"public.x": public.x, **labels, **trunk.state_dict()}

    def compute() -> dict[str, torch.Tensor]:
        how = f"{len(public)} public examples ({settings.task}), {settings.epochs} epochs"
        log.info("pre-training %s on %s; kept for later runs", type(trunk).__name__, how)
        x, y = _examples_and_targets(settings, public, seed)
        _fit(trunk, settings, x, y, seed)
        return trunk.state_dict()

    trunk.load_state_dict(cached(fingerprint(relevant, content), compute))


def feature_scaler(trunk: Backbone, x: torch.Tensor) -> Scaler:
    """How to standardise features, by public inputs ``x``: mean and scale [d].

    (f - mean) / (sd + 0.1 of all features' sd): the second term keeps features that hardly
    vary small. Then to a norm of 4 (root mean square over ``x``), so that one learning rate and
    one clipping norm suit every backbone.
    """

    def compute() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            batches = [trunk(batch).flatten(1) for batch in torch.split(x, 256)]
        features = torch.cat(batches).double()
        mean, sd = features.mean(0), features.std(0, correction=0)
        scale = sd + 0.1 * features.std(correction=0)
        scale = scale.clamp_min(1e-6)
        norm = ((features - mean) / scale).square().sum(1).mean().sqrt()
        scale = scale * (norm / FEATURE_NORM).clamp_min(1e-6)
        return {"mean": mean.float(), "scale": scale.float()}

    relevant = {"scaler": FEATURE_NORM, "backbone": type(trunk).__name__}
    key = fingerprint(relevant, {"public.x": x, **trunk.state_dict()})
    return Scaler(**cached(key, compute))


def _examples_and_targets(
    settings: Pretrain, public: Examples, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [n, ...] and what to predict of them, int64 [n] from 0 on."""
    if settings.task == "clusters":
        from sklearn.cluster import KMeans

        state = seed_for(seed, "model", "clusters") % 2**32
        clusters = KMeans(settings.clusters, n_init=4, random_state=state)
        numbers = clusters.fit_predict(public.x.flatten(1).numpy())
        return public.x, torch.from_numpy(numbers).long()
    chosen = torch.tensor(sorted(set(settings.classes) or set(public.y.tolist())))
    kept = torch.isin(public.y, chosen)
    return public.x[kept], torch.searchsorted(chosen, public.y[kept])


@torch.enable_grad()
def _fit(
    trunk: Backbone, settings: Pretrain, x: torch.Tensor, targets: torch.Tensor, seed: int
) -> None:
    """Train ``trunk`` under a temporary head, with Adam and without dropout."""
    with seeded(seed, "model", "pretrain", "head"):
        head = nn.Linear(trunk.feature_dim, int(targets.max()) + 1)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=settings.lr)
    generator = torch_generator(seed, "model", "pretrain", "batches")
    progress = Progress("pre-training", settings.epochs, "epochs")
    for epoch in range(settings.epochs):
        progress.at(epoch)
        order = torch.randperm(len(x), generator=generator)
        for batch in torch.split(order, settings.batch_size):
            loss = F.cross_entropy(head(trunk(x[batch]).flatten(1)), targets[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    optimizer.zero_grad()
