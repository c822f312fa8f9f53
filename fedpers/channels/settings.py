"""Settings of channels: what becomes of updates that the server is not to read."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedpers.params import setting


@dataclass
class Masks:
    """Masked sums; clients refuse what breaks them.

    ``bits``: of a client's value within ``encryption.range``; with ``privacy.unit: client`` of its
    change within the clipping norm, and the noise comes on top. ``minimum``: clients in a sum, at
    the least. ``corrupt``: share of a cohort that may work with the server. ``dropouts``: share of
    it that may be lost in a round. ``attempts``: sums that a client takes part in for one round.
    ``most_examples``: a client with more weighs as one with so many.
    """

    bits: int = setting(16, least=1, most=32)
    minimum: int = setting(3, least=2)
    corrupt: float = setting(1 / 3, least=0, below=1)
    dropouts: float = setting(0.3, least=0, below=0.5)
    attempts: int = setting(3, least=1)
    most_examples: int = setting(1000, least=1)


@dataclass
class Encryption:
    """Encrypted aggregation.

    ``scheme``: ``masked`` (the server has sums and no client's update, and there is no common key,
    see ``masks``); ``bfv`` (quantised, exact sums) or ``ckks``, under one key of all clients.
    ``auto`` takes masked sums where the method's server needs sums alone and no such key is given.
    ``keys``: the folder with ``client.key`` on the nodes and ``server.context`` on the server, as
    made by ``fedpers keys new``; null: the nodes of a simulation make a key for the run.
    ``range``: values beyond -range..range are clipped to it.
    ``honest``: of a cohort, the share of clients that is trusted to answer and to add its part of
    the noise, where the server cannot (``privacy.unit: client``). ``rotate_at``: from this round on
    updates are sealed under the key in ``next.key`` and ``next.context`` beside the other files;
    what was sealed before can still be opened.
    """

    enabled: bool = False
    scheme: str = setting("auto", choices=("auto", "ckks", "bfv", "masked"))
    keys: str | None = None
    range: float = setting(8.0, above=0, most=1e6)
    honest: float = setting(0.5, above=0, most=1)
    rotate_at: int | None = setting(None, least=2)
    masks: Masks = field(default_factory=Masks)
