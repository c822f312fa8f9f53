"""Channels: what an update passes through on its way into a mixture."""
