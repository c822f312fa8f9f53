"""Why something of a client is missing, in words that tell nothing of its data."""

from __future__ import annotations

LOG = "failures.log"  # of a node: in a device's state folder, in a simulation's run/state
POLICY_LOG = "policy.log"  # of a device, likewise
SPENT, FAILED, DATA, KEY, POLICY = "spent", "failed", "data", "key", "policy"
_WHY = f"{LOG} in the state folder there says why"
WORDS = {
    SPENT: "its privacy budget is spent",
    FAILED: f"it failed; {_WHY}",
    DATA: f"the data there cannot be used; {_WHY}",
    KEY: f"the key there cannot be used; {_WHY}",
    POLICY: f"its owner's policy forbids it; {POLICY_LOG} in the state folder there says why",
}
"""All that leaves a node of a failure where reasons stay there, and what it means."""


def meaning(reason: str) -> str:
    """A node's word as a line for people; any other reason as it is."""
    return WORDS.get(reason, reason)
