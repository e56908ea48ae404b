"""Stage II: relaxation and elastic tensor with a machine-learned potential."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inv_design.screening.quality import distrusted
from inv_design.screening.retries import retry_due
from inv_design.screening.target import target_reasons
from inv_design.screening.verdict import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inv_design.config import MlipConfig
    from inv_design.objective import Targets
    from inv_design.screening.verdict import Stage


def screen_mlip(
    calculation: Mapping[str, Any] | None,
    *,
    targets: Targets,
    config: MlipConfig,
    known: Mapping[str, float] | None = None,
    attempts: Sequence[Mapping[str, Any]] = (),
) -> Verdict:
    """Return stage II's verdict (Li et al. 2025, II C 2, with Born's criteria of II C 3 applied already here).

    Parameters
    ----------
    calculation
        The calculation record (kind ``elastic``, method ``mlip``), or ``None`` if there is none yet.
    targets
        Property -> what is wanted, or objectives; every one for which there is a value is checked.
    known
        What else is known of the crystal, property -> number, such as its cost.
    attempts
        All attempts at the result, this one among them; by default it is the only one.
    """
    if calculation is None:
        return Verdict("mlip", "waiting")
    if calculation.get("state") != "completed":
        return failure_verdict("mlip", calculation, attempts, config.retries)
    results = calculation.get("results") or {}
    reasons = []
    if results.get("relaxed") is False:
        message = f"relaxation did not converge to {config.fmax:g} eV/Å in {config.max_steps} steps"
        reasons.append(Reason("relaxation", False, config.fmax, message))
    if results.get("structure_matched") is False:
        change = results.get("volume_change")
        message = "relaxed into another structure" + (
            f" (volume change {100 * change:+.0f} %)" if change is not None else ""
        )
        reasons.append(Reason("keep_structure", results.get("rms"), dict(config.keep_structure), message))
    if config.born_stable and not results.get("born_stable"):
        eigenvalues = results.get("eigenvalues") or []
        lowest = min(eigenvalues) if eigenvalues else None
        message = "elastic tensor is not positive definite" + (
            f" (lowest eigenvalue {lowest:.1f} GPa)" if lowest is not None else ""
        )
        reasons.append(Reason("born_stable", lowest, 0.0, message))
    reasons += flag_reasons(calculation.get("flags") or ())
    reasons += target_reasons({**(known or {}), **numbers(results)}, targets, tolerance=config.tolerance)
    if not reasons and results.get("bulk_modulus_vrh") is None:
        reasons.append(Reason("target", None, None, "no bulk modulus in the results"))
    return Verdict("mlip", "rejected" if reasons else "passed", tuple(reasons))


def failure_verdict(
    stage: Stage, calculation: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], retries: int
) -> Verdict:
    """Return the verdict on a failed calculation: ``waiting`` for another attempt if one is due, else ``failed``."""
    number = max(len(attempts), 1)
    if retry_due(attempts or [calculation], retries):
        why, error = calculation.get("reason"), calculation.get("error") or "no error recorded"
        message = f"attempt {number} of {retries + 1} failed ({why}): {error}"
        return Verdict(stage, "waiting", (Reason("retry", number, retries + 1, message),))
    return Verdict(stage, "failed", (failure_reason(calculation, attempts=number),))


def failure_reason(calculation: Mapping[str, Any], *, attempts: int = 1) -> Reason:
    """Return the reason of a failed calculation: its own error, and what kind of failure it was where it says so."""
    kind = calculation.get("reason")
    kind = None if kind == "error" else kind
    details = [*([kind] if kind else []), *([f"{attempts} attempts"] if attempts > 1 else [])]
    text = f" ({', '.join(details)})" if details else ""
    message = f"calculation failed{text}: {calculation.get('error') or 'no error recorded'}"
    return Reason(f"calculation:{kind}" if kind else "calculation", kind, None, message)


def flag_reasons(flags: Iterable[str]) -> list[Reason]:
    """Return a reason for each quality flag that makes a result unusable."""
    return [Reason("quality", flag, None, f"quality flag {flag!r}") for flag in distrusted(flags)]


def numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the plain numbers of a result record."""
    return {k: float(v) for k, v in results.items() if isinstance(v, int | float) and not isinstance(v, bool)}
