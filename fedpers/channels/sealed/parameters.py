"""Parameter sets of the schemes, and the check that they are safe and hold a cohort's sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedpers.errors import ConfigError

SCHEMES = ("bfv", "ckks", "ckks-rows")
MAX_COHORT = 65_536

# Homomorphic Encryption Standard (Albrecht et al. 2018), table 1, ternary secrets, classical
# attacks: for a ring degree, the most bits of modulus at 128, 192 and 256 bits of security.
STANDARD = {
    1024: (27, 19, 14),
    2048: (54, 37, 29),
    4096: (109, 75, 58),
    8192: (218, 152, 118),
    16384: (438, 305, 237),
}
LEVELS = (128, 192, 256)

COARSE_BITS = 16  # of a scale, that are rounded off in what is told

# Fresh noise a coefficient in BFV: SEAL cuts its normal distribution at 19.2, and rounding the
# scaled message adds less than 1.
NOISE_BITS = 5
ROW_SCALE_BITS, WEIGHT_BITS, HEAD_SCALE_BITS = 31, 21, 50
MAX_ROW_WEIGHT = 4.0  # sum of |w| in a row: ROW_SCALE + WEIGHT + 2 + sqrt(2) stays below 56 bits


@dataclass(frozen=True)
class Parameters:
    """A scheme with its numbers.

    Args:
        scheme: "bfv" and "ckks" for one common sum; "ckks-rows" also for weighted mixtures and
            inner products.
        degree: N, the coefficients of a polynomial.
        bits: the sizes of the modulus' primes. With several, the last only switches keys.
        capacity: the most vectors that a sum may hold; beyond, sums would wrap in silence.
        value_bits: bits that hold one value: of the quantised value (BFV), of the scale (CKKS).
        values: how many values share a coefficient.
    """

    scheme: str
    degree: int
    bits: tuple[int, ...]
    capacity: int
    value_bits: int
    values: int = 1

    @property
    def guard_bits(self) -> int:
        """Bits above a value that take up the sum of ``capacity`` values."""
        return (self.capacity - 1).bit_length()

    @property
    def field_bits(self) -> int:
        """Bits that one value and its guard take."""
        return self.value_bits + self.guard_bits

    @property
    def plain_bits(self) -> int:
        """Bits of BFV's plain modulus, a power of two."""
        return self.values * self.field_bits

    @property
    def chunk(self) -> int:
        """How many values one ciphertext holds (CKKS: two, as a complex number, in each slot)."""
        return self.degree * self.values

    @property
    def grid(self) -> float:
        """To what opened values are rounded that a server is told, as a share of the range: to 10
        to 100 times CKKS' error, which tells of the key (Li and Micciancio 2020/1533); 0 for BFV,
        which has none."""
        return 0.0 if self.scheme == "bfv" else 2.0 ** (COARSE_BITS - self.value_bits)

    @property
    def security(self) -> int:
        """Bits of security by the standard's table; 0 if less than 128."""
        limits = STANDARD.get(self.degree, (0, 0, 0))
        return max(
            (s for s, m in zip(LEVELS, limits, strict=True) if sum(self.bits) <= m), default=0
        )

    def check(self, cohort: int = 1) -> None:
        """Refuse what is unsafe, what could wrap, and a cohort that the set has no room for.

        Raises:
            ConfigError: naming what is wrong.
        """
        if self.scheme not in SCHEMES:
            raise ConfigError("encryption.scheme", self.scheme, " or ".join(SCHEMES))
        if self.security < 128:
            limit = STANDARD.get(self.degree, (0,))[0]
            raise ConfigError(
                "encryption modulus",
                f"{sum(self.bits)} bits",
                f"at most {limit} bits at degree {self.degree}, for 128 bits of security",
            )
        if not 1 <= cohort <= self.capacity:
            raise ConfigError(
                "cohort", cohort, f"1 to {self.capacity} vectors in a sum", "make keys for more"
            )
        self._check_room()

    def _check_room(self) -> None:
        if self.scheme == "ckks-rows":
            right = (self.bits, self.value_bits) == ((56, 48, 56), ROW_SCALE_BITS)
        elif self.scheme == "bfv":
            # Message, noise of a sum, and the half of a step below which rounding is right.
            need = self.plain_bits + self.guard_bits + NOISE_BITS + 1
            right = len(self.bits) == 1 and need <= self.bits[0] and self.values in (1, 2)
        else:
            # |complex| <= sqrt(2), and the sign.
            right = len(self.bits) == 1 and self.field_bits + 2 <= self.bits[0]
        shared = self.scheme == "bfv" or self.values == 1
        if not (right and shared and self.value_bits >= 8 and all(8 <= b <= 60 for b in self.bits)):
            raise ConfigError(
                "encryption parameters", self.to_json(), "a set with room for its sums"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON form; ``from_json`` reads it back."""
        return {**asdict(self), "bits": list(self.bits)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parameters:
        """Read what ``to_json`` wrote, and check it.

        Raises:
            ConfigError: not such a form, or a set that ``check`` refuses.
        """
        numbers = ("degree", "capacity", "value_bits", "values")
        try:
            given = {name: data[name] for name in ("scheme", "bits", *numbers)}
            integers = [given[name] for name in numbers] + list(given["bits"])
            if set(data) != set(given) or not all(type(n) is int and n > 0 for n in integers):
                raise ValueError
            parameters = cls(**{**given, "bits": tuple(given["bits"])})
        except (KeyError, TypeError, ValueError):
            raise ConfigError("encryption parameters", data, "what a key file holds") from None
        parameters.check()
        return parameters


def bfv_for(cohort: int) -> Parameters:
    """BFV for sums of ``cohort`` quantised vectors: N = 4096 and one prime of 56 bits.

    Two values share a coefficient while 12 bits are left for each: 17 bits for 32 clients, 13 for
    256. Larger cohorts get one of up to 24 bits (1,000 clients: 24).

    Raises:
        ConfigError: a cohort below 1 or above 65,536.
    """
    _check_cohort(cohort)
    guard = (cohort - 1).bit_length()
    room = 56 - NOISE_BITS - 1 - guard
    two = min(24, room // 2 - guard)
    if two >= 12:
        return Parameters("bfv", 4096, (56,), cohort, two, 2)
    return Parameters("bfv", 4096, (56,), cohort, min(24, room - guard))


def ckks_for(cohort: int) -> Parameters:
    """CKKS for sums of ``cohort`` vectors: N = 4096 and one prime of 48 bits.

    A sum needs no prime to multiply or to switch keys with. The scale takes what the cohort
    leaves: 2^41 for 32 clients, 2^36 for 1,000.

    Raises:
        ConfigError: a cohort below 1 or above 65,536.
    """
    _check_cohort(cohort)
    guard = (cohort - 1).bit_length()
    return Parameters("ckks", 4096, (48,), cohort, 46 - guard)


def rows_for(cohort: int) -> Parameters:
    """CKKS with three primes, N = 8192: weighted mixtures, and inner products of unit vectors.

    Vectors to mix are sealed under the first prime alone; only unit vectors use the second.

    Raises:
        ConfigError: a cohort below 1 or above 65,536.
    """
    _check_cohort(cohort)
    return Parameters("ckks-rows", 8192, (56, 48, 56), cohort, ROW_SCALE_BITS)


def _check_cohort(cohort: int) -> None:
    if not 1 <= cohort <= MAX_COHORT:
        raise ConfigError("cohort", cohort, f"1 to {MAX_COHORT} clients")
