"""Bench: how long things take, side by side."""
