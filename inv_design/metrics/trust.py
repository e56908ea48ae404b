"""Trust: what predictor, potential and label say of the same candidates, and how often a stage's verdict held.

Plain candidate summaries in, plain numbers out. Moduli in GPa; errors are relative to the later judge unless a name
says otherwise, and a value that quality flags put in doubt takes no part in them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.metrics.prediction import mae_log10
from inv_design.metrics.share import Share
from inv_design.predictors.target import Target
from inv_design.predictors.validation import Validation
from inv_design.screening.quality import distrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Summary = Mapping[str, Any]

JUDGES = ("predictor", "mlip", "label")
"""In order of rising cost; the label is DFT, or a surrogate that its method names."""
PAIRS = (("predictor", "mlip"), ("predictor", "label"), ("mlip", "label"))
PATHS = ("I rejected", "I passed, II rejected", "I passed, II passed", "undecided")
VERDICTS = ("hit", "miss", "failed", "not labelled")
"""Of the label: a miss is outside a target's window, or has a quality flag that puts its modulus in doubt."""
Z95 = 1.959964


@dataclass(frozen=True)
class Judgement:
    """What one judge says of a candidate: K in GPa, who it is, its standard deviation if known, what is in doubt."""

    value: float
    method: str
    std: float | None = None
    doubts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One candidate: its judgements side by side, the verdicts on its way, and whether it was hit, missed or neither.

    Attributes
    ----------
    judgements
        Judge -> what it says, of those that have a value.
    path, verdict
        One of :data:`PATHS` and of :data:`VERDICTS`.
    duplicate
        Whether it was rejected as a duplicate: no judgement of its modulus.
    audited
        Whether it was labelled although stage II had rejected it.
    label_id
        The calculation that is its label.
    """

    candidate_id: str
    structure_id: str
    formula: str
    round: int
    judgements: dict[str, Judgement]
    path: str
    verdict: str
    duplicate: bool = False
    audited: bool = False
    label_id: str | None = None

    def deviation(self, judge: str, reference: str) -> float | None:
        """Return K by ``judge`` over K by ``reference``, minus 1; ``None`` where one of them has no value."""
        one, other = self.judgements.get(judge), self.judgements.get(reference)
        return one.value / other.value - 1 if one and other and other.value > 0 else None

    def record(self) -> dict[str, Any]:
        """Return it as plain data, with the deviations of each pair."""
        deviations = {f"{a}_{b}": self.deviation(a, b) for a, b in PAIRS}
        return {**asdict(self), "deviations": deviations}


def rows_of(
    summaries: Iterable[Summary], *, predictor: str = "predictor", potential: Callable[[int], str] = lambda _: "mlip"
) -> list[Row]:
    """Return a row per candidate, in the order given.

    Parameters
    ----------
    predictor
        Name of the predictor.
    potential
        Round -> name of the potential that judged its candidates in stage II.
    """
    return [_row(s, predictor, potential) for s in summaries if isinstance(s.get("round"), int)]


def _row(summary: Summary, predictor: str, potential: Callable[[int], str]) -> Row:
    stages = summary.get("stages") or {}
    audit = summary.get("audit") or {}
    label = audit or stages.get("dft") or {}
    sources = (
        ("predictor", stages.get("predictor") or {}, predictor),
        ("mlip", stages.get("mlip") or {}, potential(summary["round"])),
        ("label", label, str(label.get("method") or "label")),
    )
    return Row(
        candidate_id=str(summary["candidate_id"]),
        structure_id=str(summary.get("structure_id")),
        formula=str(summary.get("formula") or ""),
        round=summary["round"],
        judgements={judge: found for judge, record, name in sources if (found := judgement(record, name)) is not None},
        path=_path(stages),
        verdict={"passed": "hit", "rejected": "miss", "failed": "failed"}.get(str(label.get("status")), "not labelled"),
        duplicate=summary.get("duplicate_of") is not None,
        audited=bool(audit) and audit.get("status") in ("passed", "rejected", "failed"),
        label_id=label.get("calculation_id"),
    )


def judgement(record: Mapping[str, Any], method: str) -> Judgement | None:
    """Return what a stage's record (``value`` in GPa, ``std``, ``flags``) says, ``None`` without a number."""
    value, std = record.get("value"), record.get("std")
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    known = float(std) if isinstance(std, int | float) and math.isfinite(std) and std > 0 else None
    return Judgement(float(value), method, known, distrusted(record.get("flags") or ()))


def _path(stages: Mapping[str, Any]) -> str:
    first, second = ((stages.get(stage) or {}).get("status") for stage in ("predictor", "mlip"))
    if first == "rejected":
        return PATHS[0]
    if second in ("rejected", "passed"):
        return PATHS[1] if second == "rejected" else PATHS[2]
    return PATHS[3]


# -- judges against each other ----------------------------------------------------------------------------------------


def agreement(rows: Iterable[Row], judge: str, reference: str) -> dict[str, Any]:
    """Return how far ``judge`` is from ``reference`` on the candidates that both have a value for.

    Returns
    -------
    dict
        ``n``; ``left_out``: pairs that quality flags put in doubt; and with two pairs or more ``mean_relative_error``,
        ``median_relative_error``, ``bias`` (mean of judge / reference - 1), ``bias_gpa``, ``spearman`` (rank
        correlation, -1..1, ``None`` where one side is constant), ``mae_log10``, and of a judge with standard deviations
        ``coverage_1s``, ``coverage_2s``: shares within one and two of them, of log K, as the report's reliability has
        them (0.683 and 0.954 if they are honest).
    """
    both = [r for r in rows if judge in r.judgements and reference in r.judgements]
    pairs = [(r.judgements[judge], r.judgements[reference]) for r in both]
    sound = [(a, b) for a, b in pairs if not a.doubts and not b.doubts and a.value > 0 and b.value > 0]
    result: dict[str, Any] = {"judge": judge, "reference": reference, "n": len(sound)}
    result["left_out"] = len(pairs) - len(sound)
    if len(sound) < 2:
        return result
    mine, theirs = (np.array([pair[side].value for pair in sound]) for side in (0, 1))
    relative = mine / theirs - 1
    result |= {
        "mean_relative_error": float(np.abs(relative).mean()),
        "median_relative_error": float(np.median(np.abs(relative))),
        "bias": float(relative.mean()),
        "bias_gpa": float((mine - theirs).mean()),
        "spearman": spearman(mine, theirs),
        "mae_log10": mae_log10(theirs, mine),
    }
    with_std = [(a.value, b.value, a.std) for a, b in sound if a.std is not None]
    if len(with_std) > 1:
        values, labels, std = (np.array(column) for column in zip(*with_std, strict=True))
        scores = np.abs(Validation(Target.of("bulk_modulus_vrh"), labels, values, std, "candidates").scores())
        result |= {f"coverage_{k}s": float((scores <= k).mean()) for k in (1, 2)}
    return result


def spearman(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float | None:
    """Return the rank correlation of two lists of equal length, ``None`` where one of them is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(values) for values in (one, other))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def agreements(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return :func:`agreement` of each pair of judges, apart for each method of either side, those with n > 0."""
    found = []
    for judge, reference in PAIRS:
        both = [r for r in rows if judge in r.judgements and reference in r.judgements]
        methods = dict.fromkeys((r.judgements[judge].method, r.judgements[reference].method) for r in both)
        for mine, theirs in methods:
            chosen = [r for r in both if (r.judgements[judge].method, r.judgements[reference].method) == (mine, theirs)]
            found.append(
                {**agreement(chosen, judge, reference), "method": mine, "reference_method": theirs,
                 "rounds": sorted({r.round for r in chosen})}
            )  # fmt: skip
    return found


# -- verdicts ---------------------------------------------------------------------------------------------------------


def confusion(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Return path -> verdict -> candidates: what the stages said against what the label says."""
    table = {path: dict.fromkeys(VERDICTS, 0) for path in PATHS}
    for row in rows:
        table[row.path][row.verdict] += 1
    return table


def interval(share: Share) -> tuple[float, float] | None:
    """Return the 95 % interval of a share (Wilson, J. Am. Stat. Assoc. 22, 209 (1927)), ``None`` of nothing."""
    if not share.total:
        return None
    p, n = share.count / share.total, share.total
    middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def verdict_shares(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return what is known of the stages' verdicts as shares, each with its counts and its 95 % interval.

    Returns
    -------
    dict
        ``stage_I_by_II``: of the candidates that stage I passed and stage II judged, those that it passed;
        ``stage_II_by_III``: of those that both passed and that have a label, the hits (the precision);
        ``stage_II_misses``: of those that stage II rejected and that were labelled all the same, the hits.
    """
    table = confusion(rows)
    rejected, passed = table[PATHS[1]], table[PATHS[2]]
    second = sum(passed.values())
    shares = {
        "stage_I_by_II": Share(second, second + sum(rejected.values())),
        "stage_II_by_III": Share(passed["hit"], passed["hit"] + passed["miss"]),
        "stage_II_misses": Share(rejected["hit"], rejected["hit"] + rejected["miss"]),
    }
    return {name: {**share.record(), "interval": interval(share)} for name, share in shares.items()}


def unknown(rows: Sequence[Row]) -> list[str]:
    """Return, in words, what the verdicts do not tell: rejected candidates have no label."""
    first = [r for r in rows if r.path == PATHS[0]]
    second = [r for r in rows if r.path == PATHS[1]]
    lines = []
    if first:
        copies = sum(r.duplicate for r in first)
        also = f" ({copies} of them as duplicates)" if copies else ""
        lines.append(
            f"Stage I rejected {len(first)} candidates{also}; none has a label, so that how many hits were among them "
            "is not known."
        )
    labelled = [r for r in second if r.verdict in ("hit", "miss")]
    if second and not labelled:
        lines.append(
            f"Stage II rejected {len(second)} candidates; none has a label, so that its rate of missed hits is not "
            "known (stages.dft.audit_per_round labels some at random)."
        )
    elif labelled:
        lines.append(
            f"Stage II rejected {len(second)} candidates; {len(labelled)} of them, chosen at random, were labelled, "
            f"{sum(r.verdict == 'hit' for r in labelled)} are hits. A label is no judge of stability against strain."
        )
    waiting = sum(r.path == PATHS[2] and r.verdict == "not labelled" for r in rows)
    if waiting:
        lines.append(f"{waiting} candidates passed stage II and were not labelled: the budget did not reach them.")
    return lines


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def before_and_after(
    rows: Sequence[Row], base: Mapping[str, Judgement], learned: Mapping[int, frozenset[str]]
) -> list[dict[str, Any]]:
    """Return per round the configured potential and the round's fine-tuned one against the same labels.

    Parameters
    ----------
    base
        Structure id -> what the configured potential says of it.
    learned
        Round -> ids of the calculations that its potential learned from, of the rounds that have a fine-tuned one. A
        candidate whose label is among them is left out: what is left was labelled after the training.

    Returns
    -------
    list
        ``round``, ``n``, ``learned`` (labels in the training), ``method``, and ``before`` and ``after`` as
        :func:`agreement` has them.
    """
    found = []
    for number, known in sorted(learned.items()):
        held_out = [r for r in rows if r.round == number and r.label_id not in known and _comparable(r, base)]
        if not held_out:
            continue
        earlier = [_judged_by(r, base[r.structure_id]) for r in held_out]
        after = agreement(held_out, "mlip", "label")
        found.append(
            {
                "round": number,
                "n": after["n"],
                "learned": len(known),
                "method": held_out[0].judgements["mlip"].method,
                "base": base[held_out[0].structure_id].method,
                "before": agreement(earlier, "mlip", "label"),
                "after": after,
            }
        )
    return found


def _comparable(row: Row, base: Mapping[str, Judgement]) -> bool:
    """Return whether a candidate has a sound value by both potentials and a label."""
    judgements = [base.get(row.structure_id), row.judgements.get("mlip"), row.judgements.get("label")]
    return all(j is not None and j.value > 0 and not j.doubts for j in judgements)


def _judged_by(row: Row, judgement: Judgement) -> Row:
    return replace(row, judgements={**row.judgements, "mlip": judgement})
