"""Conditional crystal generators behind one protocol."""
