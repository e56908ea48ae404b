"""ReportData: everything that the report shows, as plain values; no database."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

    from inv_design.objective import Objective
    from inv_design.report.trust import Trust

STAGE_TITLES = {
    "predictor": "I · rules and predictor",
    "mlip": "II · machine-learned potential",
    "dft": "III · label",
}
"""Stage -> title; the label's method (DFT or surrogate) is named beside it."""


@dataclass
class StageCount:
    """What happened to the candidates of one round in one stage; counts of candidates.

    Attributes
    ----------
    stage
        ``predictor``, ``mlip`` or ``dft``.
    method
        What judged, such as ``cgcnn``, ``mace-alloy-small`` or ``surrogate (CHGNet E(V))``.
    reasons
        Rule of rejection -> candidates that it rejected first.
    over_budget
        How many of those waiting the round's budget does not reach.
    """

    stage: str
    entered: int = 0
    passed: int = 0
    rejected: int = 0
    failed: int = 0
    waiting: int = 0
    method: str = ""
    reasons: dict[str, int] = field(default_factory=dict)
    over_budget: int = 0


@dataclass
class RoundData:
    """One round: what made its candidates, and what became of them."""

    number: int
    generated: int
    stages: list[StageCount]
    generator: str = ""
    training_set: str = ""
    training_size: int | None = None


@dataclass
class Distribution:
    """Bulk moduli of the candidates of one round as one judge sees them.

    Attributes
    ----------
    judge
        Who gave the values, such as ``predictor (cgcnn)`` or ``label: surrogate (CHGNet E(V))``.
    stage
        The stage that the judge belongs to; figures are ordered by it.
    values
        In GPa, one per candidate.
    left_out
        How many more values there are that quality flags put in doubt.
    """

    round: int
    stage: str
    judge: str
    values: list[float]
    left_out: int = 0


@dataclass
class Evaluation:
    """How well a round's generator hits one target: ``n`` crystals generated for it and judged, none screened out.

    Attributes
    ----------
    target, median
        In GPa.
    mean_relative_error
        Mean of abs(value - target) / target over the crystals (Li et al. 2025, equation 1), dimensionless.
    values
        The judged values in GPa, where they are known one by one.
    """

    round: int
    target: float
    judge: str
    n: int
    mean_relative_error: float
    median: float | None = None
    values: list[float] = field(default_factory=list)


@dataclass
class Parity:
    """Predicted against reference values of one property in GPa, point by point.

    Attributes
    ----------
    rounds
        The round of each point, where the points are candidates.
    """

    title: str
    predicted: list[float]
    reference: list[float]
    predicted_by: str
    reference_by: str
    std: list[float] | None = None
    rounds: list[int] | None = None


@dataclass
class Reliability:
    """How often labels lie in a predictor's central intervals: ``nominal`` and ``observed`` shares, 0..1, of n labels.

    Attributes
    ----------
    title
        Whose labels, such as ``held-out crystals`` or ``candidates``.
    """

    title: str
    nominal: list[float]
    observed: list[float]
    n: int


@dataclass
class ParetoPoint:
    """A candidate among several objectives: property -> number, what became of it, and whether nothing beats it.

    Attributes
    ----------
    state
        ``hit``, ``open`` (passed so far, or waiting) or ``out`` (rejected or failed).
    front
        Whether it is on the Pareto front of all objectives among those that are not out.
    """

    id: str
    formula: str
    values: dict[str, float]
    state: str
    round: int
    front: bool = False


@dataclass
class ElementStage:
    """Which elements the crystals of one stage are made of, as :mod:`inv_design.metrics.elements` counts them.

    Attributes
    ----------
    shares
        Element -> share of the atoms, 0..1.
    enrichment
        Element -> how many times its share in the training set.
    """

    stage: str
    n: int
    shares: dict[str, float]
    enrichment: dict[str, float] = field(default_factory=dict)


@dataclass
class LatentMap:
    """Latent vectors (n, d) of crystals with their bulk moduli (n) in GPa; ``added`` (n) is the round that added each.

    ``added`` is 0 for the initial training set.
    """

    vectors: Any
    values: Sequence[float]
    added: Sequence[int]
    model: str = ""


@dataclass
class StageNumber:
    """One number of a candidate: the value in GPa, its standard deviation if known, and what it comes from."""

    stage: str
    method: str
    value: float | None
    std: float | None = None
    property: str = "bulk_modulus_vrh"


@dataclass
class BestCandidate:
    """A candidate for the table of the best: its crystal and the numbers of each stage.

    Attributes
    ----------
    structure, spacegroup
        Of the crystal that ``crystal`` names: ``relaxed by vasp``, ``generated``.
    waits_for
        Stage -> ``waiting``, or that the budget does not reach it.
    """

    id: str
    formula: str
    structure: Structure | None
    numbers: list[StageNumber]
    round: int
    spacegroup: str = ""
    born_stable: bool | None = None
    e_above_hull: float | None = None
    flags: list[str] = field(default_factory=list)
    crystal: str = ""
    waits_for: dict[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> StageNumber | None:
        """The bulk modulus by the most trusted method there is: the last stage with a value."""
        moduli = [n for n in self.numbers if n.value is not None and n.property == "bulk_modulus_vrh"]
        return moduli[-1] if moduli else None


@dataclass
class ReportData:
    """A campaign as the report shows it.

    Attributes
    ----------
    target
        The bulk modulus wanted, in GPa.
    tolerance
        Relative deviation within which a labelled candidate counts as a hit.
    training_values
        Training-set bulk moduli in GPa by round; the last known set stands for rounds that are absent.
    element_sets
        Round -> the elements of each candidate that passed stage I.
    element_stages
        Round -> the element shares of each stage.
    warnings
        Round -> one line per element that it favours too much.
    objectives
        What is wanted, the bulk modulus first.
    pareto
        The candidates that have a value of every objective, where there are several.
    reliability
        One curve of the last predictor's intervals per set of labels.
    trust
        Predictor, potential and label side by side.
    label_method
        What gave the labels, such as ``VASP (PBE)`` or ``surrogate (CHGNet E(V))``.
    provenance
        Heading -> (name, value) lines of the footer.
    """

    campaign: str
    target: float
    tolerance: float
    rounds: list[RoundData]
    created_at: str
    label_method: str = ""
    training_values: dict[int, list[float]] = field(default_factory=dict)
    distributions: list[Distribution] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    parities: list[Parity] = field(default_factory=list)
    latent: LatentMap | None = None
    element_sets: dict[int, list[list[str]]] = field(default_factory=dict)
    element_stages: dict[int, list[ElementStage]] = field(default_factory=dict)
    warnings: dict[int, list[str]] = field(default_factory=dict)
    objectives: list[Objective] = field(default_factory=list)
    pareto: list[ParetoPoint] = field(default_factory=list)
    reliability: list[Reliability] = field(default_factory=list)
    trust: Trust | None = None
    best: list[BestCandidate] = field(default_factory=list)
    provenance: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def label_is_surrogate(self) -> bool:
        """Whether the labels are not DFT."""
        return "surrogate" in self.label_method.lower()

    def labels(self) -> dict[int, list[float]]:
        """Return the label values in GPa by round."""
        found: dict[int, list[float]] = {}
        for item in self.distributions:
            if item.stage == "dft":
                found.setdefault(item.round, []).extend(item.values)
        return found

    def hits(self) -> dict[int, tuple[int, int]]:
        """Return round -> (labels that are hits, labels), for the rounds that have labels."""
        counts = {r.number: s for r in self.rounds for s in r.stages if s.stage == "dft"}
        return {n: (s.passed, s.passed + s.rejected) for n, s in counts.items() if s.passed + s.rejected}

    def training_for(self, number: int) -> list[float]:
        """Return the training-set values in GPa that round ``number`` was generated from."""
        known = [r for r in self.training_values if r <= number]
        return self.training_values[max(known)] if known else next(iter(self.training_values.values()), [])


def element_shares(sets: Sequence[Sequence[str]]) -> list[tuple[str, float]]:
    """Return (element, share of the crystals that contain it, 0..1), largest first, ties by symbol."""
    counts = Counter(symbol for elements in sets for symbol in set(elements))
    total = len(sets)
    return [(symbol, count / total) for symbol, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
