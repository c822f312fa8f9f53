"""Noise in masked sums: what clients add in shares, and what they refuse to add less than.

The server says the noise multiplier of the whole and what it has the vector look like. Each client
reckons the rest anew, from its own settings: into how many shares the noise is cut, in which steps,
and how many have to answer until it is whole. So nothing that a server says makes it less.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpers.channels.identity.encoding import Refused, encode
from fedpers.channels.masked.graph import Policy
from fedpers.channels.masked.masks import Words
from fedpers.channels.masked.quantise import WEIGHT, Field, Layout, Values
from fedpers.channels.masked.session import Terms
from fedpers.config import Config
from fedpers.errors import ClientError, ConfigError
from fedpers.parts import Parts
from fedpers.privacy.discrete import Integers
from fedpers.privacy.noise import Source
from fedpers.privacy.shares import BITS, Shares, honest_of

MOST_BITS = 62  # of a sum, in a word


@dataclass(frozen=True)
class NoisedField(Field):
    """One part of noised changes, integers below and above 0.

    Args:
        shares: of the whole change, of which this is a piece.
    """

    shares: Shares = field(kw_only=True)

    @classmethod
    def of(cls, name: str, length: int, shares: Shares) -> NoisedField:
        """The field of a part of so many values."""
        bound = -shares.norm, shares.norm
        return cls(name, length, bound, shares.bits, shares=shares)

    @property
    def signed(self) -> bytes:
        """As of any field; and the noise."""
        noise = encode(self.shares.size, self.shares.sigma, self.shares.honest)
        return encode(super().signed, noise)

    def width(self, clients: int) -> int:
        """Bits that sums of so many clients leave with a probability of 2e-23 a value. What leaves
        them wraps, after all noise is in it: that costs accuracy, not privacy.

        Raises:
            ConfigError: more than a word has.
        """
        width = self.shares.reach(clients).bit_length() + 1
        if width > MOST_BITS:
            raise ConfigError(BITS, self.bits, "fewer, for so many clients and so much noise")
        return width

    def lift(self, clients: int) -> int:
        """Half of the sum's range."""
        return 1 << (self.width(clients) - 1)

    def integers(self, values: Values, weight: float, source: Source) -> Words:
        """Noised integers as they are, modulo 2^64.

        Raises:
            ClientError: another length, or other numbers than integers.
        """
        if values.shape != (self.length,) or values.dtype != np.int64:
            takes = f"integers ({self.length},)"
            raise ClientError(f"{self.name}: got {values.dtype} {values.shape}, takes {takes}")
        return values.view(np.uint64)

    def sum_of(
        self, total: npt.NDArray[np.int64], weights: float, clients: int
    ) -> npt.NDArray[np.float64]:
        """The sum of changes, noised.

        Raises:
            Dropped: it lies where no sum of so many clients does.
        """
        if int(np.abs(total).max()) > self.shares.reach(clients):
            raise self.beyond(clients)
        return self.shares.changes(total)


def shares_of(config: Config, sigma: float, cohort: int, size: int) -> Shares:
    """How a cohort shares the noise of a sum of ``size`` values.

    Args:
        sigma: noise multiplier of the whole.

    Raises:
        ConfigError: the bits of a value are too few for it.
    """
    honest = honest_of(config.encryption.honest, cohort)
    bits = config.encryption.masks.bits
    return Shares(size, config.privacy.max_grad_norm, bits, sigma, honest)


def least_answers(config: Config, policy: Policy, cohort: int) -> int:
    """How many of a cohort have to answer until the honest ones' noise is whole, though all who may
    work with the server answer too."""
    return honest_of(config.encryption.honest, cohort) + policy.corrupted(cohort)


def check_terms(terms: Terms, config: Config, said: Mapping[str, Any]) -> Shares:
    """The shares of the noise in which a client answers these terms.

    Args:
        config: of the client.
        said: of the noise: ``sigma``, and ``honest``, beyond which a device's policy may not go.

    Raises:
        Refused: another noise, or a field without it.
    """
    fields = [one for one in terms.layout.fields if one.name != WEIGHT]
    size = sum(one.length for one in fields)
    shares = shares_of(config, float(said["sigma"]), len(terms.cohort), size)
    if not int(said["honest"]) >= shares.honest:
        told = f"shares of {said['honest']} clients"
        raise Refused(f"noise: got {told}, takes of {shares.honest} or more, as the terms are")
    for one in fields:
        if not isinstance(one, NoisedField) or one.shares != shares:
            got = one.shares if isinstance(one, NoisedField) else "none"
            raise Refused(f"noise of {one.name}: got {got}, takes {shares}")
    return shares


def check_survivors(
    terms: Terms, config: Config, policy: Policy, survivors: Collection[str]
) -> None:
    """Refuse a set in which the noise is not whole.

    Raises:
        Refused: too few survived.
    """
    least = least_answers(config, policy, len(terms.cohort))
    if len(survivors) < least:
        got = f"{len(survivors)} survivors"
        raise Refused(f"noise: got {got}, takes {least} or more, whose shares make it whole")


def noised_values(
    layout: Layout, shares: Shares, update: Parts, sent: Parts, source: Source
) -> Mapping[str, Integers]:
    """One client's noised change from what it received, by field.

    Raises:
        ClientError: the layout has other parts, or the change is not finite.
    """
    fields = [one for one in layout.fields if one.name != WEIGHT]
    names = [one.name.removeprefix("part ") for one in fields]
    if set(names) != set(update) or set(names) - set(sent):
        raise ClientError(f"upload: got {sorted(update)}, takes {sorted(names)}")
    changes = [
        update[name].vector.double().numpy() - sent[name].vector.double().numpy() for name in names
    ]
    noised = shares.noised(np.concatenate(changes), source)
    ends = np.cumsum([len(change) for change in changes])[:-1]
    return dict(zip((one.name for one in fields), np.split(noised, ends), strict=True))
