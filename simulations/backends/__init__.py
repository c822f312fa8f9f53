"""Backends: this process, or Flower with Ray."""
