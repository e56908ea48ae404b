"""Crystals: identity, validity, likeness, and the files they come in."""
