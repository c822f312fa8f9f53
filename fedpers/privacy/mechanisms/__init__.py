"""Mechanisms: how a sum is noised, and what that costs. ``base`` says what one has to do."""

from fedpers.privacy.mechanisms.base import (
    MECHANISMS,
    Mechanism,
    Profile,
    Release,
    mechanism_named,
)
from fedpers.privacy.mechanisms.gaussian import Gaussian

__all__ = ["MECHANISMS", "Gaussian", "Mechanism", "Profile", "Release", "mechanism_named"]
