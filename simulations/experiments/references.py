"""What a scaled linear model has on the same rows: of all clients together, and of each alone."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from fedpers.data import Examples, FederatedData
from fedpers.seeding import numpy_generator

MOST_ROWS = 4000  # that all clients together are fitted on, so that it takes seconds
MOST_CLIENTS = 50


def references(data: FederatedData, seed: int) -> dict[str, float]:
    """The mean over clients of accuracy, or of R² where numbers are predicted, on *validation*
    splits, of a model ``central`` and one ``local`` to each client; empty for text, or where no
    client has a validation split.

    Logistic regression, or ridge for numbers, of standardised inputs; both of scikit-learn.
    """
    if data.signature.kind == "text":
        return {}
    owned = {client: data.client(client) for client in data.clients[:MOST_CLIENTS]}
    scored = [own for own in owned.values() if len(own.val) and len(own.train)]
    if not scored:
        return {}
    x, y = (torch.cat([getattr(own.train, side) for own in scored]) for side in ("x", "y"))
    rng = numpy_generator(seed, "references")
    chosen = torch.from_numpy(rng.permutation(len(y))[:MOST_ROWS])
    central = fitted(Examples(x[chosen], y[chosen]))
    everywhere = [(central, own.val) for own in scored]
    alone = [(fitted(own.train), own.val) for own in scored]
    return {"central": _mean(everywhere), "local": _mean(alone)}


def fitted(examples: Examples) -> Any:
    """The linear model of some examples; a constant where they are of one class."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _flat(examples), examples.y.numpy()
    numbers = examples.y.is_floating_point()
    one = not numbers and len(np.unique(y)) < 2
    model = Ridge() if numbers else LogisticRegression(max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged, which a reference may
        found = DummyClassifier() if one else make_pipeline(StandardScaler(), model)
        return found.fit(x, y)


def _mean(pairs: list[tuple[Any, Examples]]) -> float:
    """Accuracy as the mean over clients; R² of all their rows together."""
    if not pairs[0][1].y.is_floating_point():
        return float(np.mean([model.score(_flat(val), val.y.numpy()) for model, val in pairs]))
    off = np.concatenate([model.predict(_flat(val)) - val.y.numpy() for model, val in pairs])
    true = np.concatenate([val.y.numpy() for _, val in pairs])
    around = float(((true - true.mean()) ** 2).sum())
    return 1 - float((off**2).sum()) / around if around else 0.0


def _flat(examples: Examples) -> np.ndarray[Any, Any]:
    return examples.x.flatten(1).numpy()
