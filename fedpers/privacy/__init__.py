"""Privacy: the plan checked before a run, mechanisms, their accounting, the ledger."""

from fedpers.privacy.accounting import calibrated, epsilon_of, mu_of
from fedpers.privacy.ledger import Budget, BudgetSpent, Ledger, data_digest
from fedpers.privacy.mechanisms import (
    MECHANISMS,
    Gaussian,
    Mechanism,
    Profile,
    Release,
    mechanism_named,
)

__all__ = [
    "MECHANISMS",
    "Budget",
    "BudgetSpent",
    "Gaussian",
    "Ledger",
    "Mechanism",
    "Profile",
    "Release",
    "calibrated",
    "data_digest",
    "epsilon_of",
    "mechanism_named",
    "mu_of",
]
