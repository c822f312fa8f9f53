"""Training: one client or a fold of them, in the clear or privately, and the account of it."""
