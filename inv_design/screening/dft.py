"""Stage III: is the labelled candidate a hit or a miss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inv_design.screening.mlip import failure_reason, flag_reasons, numbers
from inv_design.screening.target import target_reasons
from inv_design.screening.verdict import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inv_design.config import DftConfig


def screen_dft(
    calculation: Mapping[str, Any] | None, *, targets: Mapping[str, float], config: DftConfig
) -> Verdict:  # fmt: skip
    """Return stage III's verdict: ``passed`` is a hit, ``rejected`` a miss.

    Parameters
    ----------
    calculation
        The label's calculation record (kind ``eos`` or ``elastic`` by surrogate, gpaw or vasp), or ``None``.
    targets
        Property -> wanted value; every one for which the results hold a value is checked.
    """
    if calculation is None:
        return Verdict("dft", "waiting")
    if calculation.get("state") != "completed":
        return Verdict("dft", "failed", (failure_reason(calculation),))
    values = numbers(calculation.get("results") or {})
    reasons = flag_reasons(calculation.get("flags") or ())
    if "bulk_modulus_vrh" not in values:
        reasons.append(Reason("target", None, targets.get("bulk_modulus_vrh"), "no bulk modulus in the results"))
    reasons += target_reasons(values, targets, tolerance=config.tolerance)
    return Verdict("dft", "rejected" if reasons else "passed", tuple(reasons))
