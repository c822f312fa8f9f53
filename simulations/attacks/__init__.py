"""Attacks on a run, and what they find: poisoned updates, membership, inversion, audits."""
