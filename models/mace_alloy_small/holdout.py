"""The held-out chemical systems of mace-alloy-small: chosen by a hash, so that every script finds the same ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SALT = "mace-alloy-small:"
HELD_OUT_ALLOYS = 150
VALIDATION_ALLOYS = 75


def held_out_systems(chemsyses: Iterable[str], n_alloys: int = HELD_OUT_ALLOYS) -> set[str]:
    """Return binary chemical systems, in the order of SHA-256(SALT + system), until ``n_alloys`` entries are reached.

    ``chemsyses`` has one item per alloy (repeats count). Pure elements are never held out.
    """
    counts = Counter(system for system in chemsyses if "-" in system)
    held: set[str] = set()
    total = 0
    for system in sorted(counts, key=lambda name: hashlib.sha256((SALT + name).encode()).hexdigest()):
        if total >= n_alloys:
            break
        held.add(system)
        total += counts[system]
    return held


def validation_systems(chemsyses: Iterable[str], n_alloys: int = VALIDATION_ALLOYS) -> set[str]:
    """Return the binary systems that follow the held-out ones in the same order: to choose settings by."""
    systems = list(chemsyses)
    return held_out_systems(systems, HELD_OUT_ALLOYS + n_alloys) - held_out_systems(systems)
