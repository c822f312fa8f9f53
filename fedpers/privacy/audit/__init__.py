"""The arithmetic of a privacy audit: what an attack's success proves about epsilon.

An audit tries to break a guarantee. What it gets is a lower bound: a build whose bound lies above
the epsilon that it claims is broken; one whose bound lies below is not thereby proved sound.
"""
