"""Stage III: is the labelled candidate a hit or a miss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inv_design.screening.mlip import failure_verdict, flag_reasons, numbers
from inv_design.screening.target import target_reasons
from inv_design.screening.verdict import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inv_design.config import DftConfig
    from inv_design.objective import Targets


def screen_dft(
    calculation: Mapping[str, Any] | None,
    *,
    targets: Targets,
    config: DftConfig,
    known: Mapping[str, float] | None = None,
    attempts: Sequence[Mapping[str, Any]] = (),
) -> Verdict:
    """Return stage III's verdict: ``passed`` is a hit, ``rejected`` a miss.

    Parameters
    ----------
    calculation
        The label's calculation record (kind ``eos`` or ``elastic`` by surrogate, gpaw or vasp), or ``None``.
    targets
        Property -> what is wanted, or objectives; every one for which there is a value is checked.
    known
        What else is known of the crystal, property -> number, such as its cost.
    attempts
        All attempts at the label, this one among them; by default it is the only one.
    """
    if calculation is None:
        return Verdict("dft", "waiting")
    if calculation.get("state") != "completed":
        return failure_verdict("dft", calculation, attempts, config.retries)
    values = numbers(calculation.get("results") or {})
    reasons = flag_reasons(calculation.get("flags") or ())
    if "bulk_modulus_vrh" not in values:
        reasons.append(Reason("target", None, None, "no bulk modulus in the results"))
    # a range is judged as it is stated: a cheaper stage allowed for its own error, a label has none to allow for
    reasons += target_reasons({**(known or {}), **values}, targets, tolerance=config.tolerance, range_tolerance=0.0)
    return Verdict("dft", "rejected" if reasons else "passed", tuple(reasons))
