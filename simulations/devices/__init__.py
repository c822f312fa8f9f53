"""Devices: a rehearsal of them on this machine, certificates, units, a check."""
