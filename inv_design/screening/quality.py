"""Quality flags that make a result unusable: neither to pass a stage, nor as a label to learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

DISTRUSTED = frozenset(
    {
        "bulk_modulus_out_of_bounds",
        "bulk_modulus_mismatch",
        "symmetry_residual",
        "stress_not_linear",
        "reference_not_relaxed",
        "ions_unstable",
        "derivative_out_of_bounds",
        "eos_residual",
        "minimum_outside_range",
        "unconverged_relaxation",
        "non_finite:bulk_modulus_vrh",
    }
)
"""Flags of :mod:`inv_design.mechanics.flags` that put the bulk modulus itself in doubt.

Born stability has a rule of its own, and a shear modulus out of bounds says little about the bulk modulus: it is shown.
"""


def distrusted(flags: Iterable[str]) -> list[str]:
    """Return the flags that put the bulk modulus in doubt, in order."""
    return [flag for flag in flags if flag in DISTRUSTED]
