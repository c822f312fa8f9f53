"""A client's whole update within a norm: against liars, and for privacy by client."""

from __future__ import annotations

from fedpers.parts import Parts


def clipped(upload: Parts, broadcast: Parts, norm: float) -> Parts:
    """What was received plus the change, scaled so that its norm over all parts is at most ``norm``
    (McMahan et al. 2018, arXiv 1710.06963, flat clipping).

    Args:
        upload: parts that were received, as they are to be sent.
        broadcast: the same parts as they came.
        norm: > 0.
    """
    changes = {n: p.vector.float() - broadcast[n].vector.float() for n, p in upload.items()}
    length = sum(float(change.double().square().sum()) for change in changes.values()) ** 0.5
    if length <= norm:
        return upload
    scale = norm / length
    return Parts(
        {n: p.like(broadcast[n].vector.float() + scale * changes[n]) for n, p in upload.items()}
    )
