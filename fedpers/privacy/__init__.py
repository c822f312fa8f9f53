"""Differential privacy: the plan checked before a run, DP-SGD under Opacus, the ledger."""

from fedpers.privacy.accounting import Release, epsilon_of, noise_multiplier
from fedpers.privacy.ledger import Budget, BudgetSpent, Ledger, data_digest

__all__ = [
    "Budget",
    "BudgetSpent",
    "Ledger",
    "Release",
    "data_digest",
    "epsilon_of",
    "noise_multiplier",
]
