"""Differential privacy: the plan checked before a run, DP-SGD under Opacus, the ledger."""

from fedpers.privacy.accounting import epsilon_of, mu_of, noise_multiplier
from fedpers.privacy.ledger import Budget, BudgetSpent, Ledger, data_digest
from fedpers.privacy.sampled import Release

__all__ = [
    "Budget",
    "BudgetSpent",
    "Ledger",
    "Release",
    "data_digest",
    "epsilon_of",
    "mu_of",
    "noise_multiplier",
]
