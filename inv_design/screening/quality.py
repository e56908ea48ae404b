"""Quality flags that make a result unusable: neither to pass a stage, nor as a label to learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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


MAX_MLIP_DFT = {"bulk_modulus_vrh": 0.20, "volume_per_atom": 0.05}
"""Relative differences between potential and DFT up to which a candidate is not flagged."""


def mlip_dft_difference(
    mlip: Mapping[str, Any] | None, dft: Mapping[str, Any] | None
) -> tuple[dict[str, float], list[str]]:  # fmt: skip
    """Return (relative difference by quantity, flags) of a candidate's stage-II and stage-III ``results``.

    The difference is (potential - DFT) / DFT of ``bulk_modulus_vrh`` and ``volume_per_atom``, where both have the
    number; a flag ``mlip_dft_bulk_modulus`` or ``mlip_dft_volume`` says that it is larger than 20 or 5 %. Neither puts
    the label in doubt: DFT is the label, and the flag says where the potential does not hold.
    """
    differences: dict[str, float] = {}
    flags = []
    for name, flag in (("bulk_modulus_vrh", "mlip_dft_bulk_modulus"), ("volume_per_atom", "mlip_dft_volume")):
        one, other = _positive(mlip, name), _positive(dft, name)
        if one is not None and other is not None:
            differences[name] = one / other - 1.0
            if abs(differences[name]) > MAX_MLIP_DFT[name]:
                flags.append(flag)
    return differences, flags


def _positive(results: Mapping[str, Any] | None, name: str) -> float | None:
    value = (results or {}).get(name)
    number = float(value) if isinstance(value, int | float) else 0.0
    return number if 0 < number < float("inf") else None
