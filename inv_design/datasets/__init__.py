"""Labelled crystals: the packaged Materials Project binaries and readers for users' own data."""
