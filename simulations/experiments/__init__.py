"""Experiments: compare, watch, predict, export."""
