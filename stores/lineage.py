"""Lineage."""

from __future__ import annotations


def lineage() -> None:
    """Soon."""
