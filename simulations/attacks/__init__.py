"""Attacks: poisoned updates, membership, inversion, audits."""
