"""Devices: a rehearsal on this machine, certificates, units, a check."""
