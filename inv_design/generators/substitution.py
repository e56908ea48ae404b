"""The baseline any user could write: other elements in known structures, scaled, ranked by a composition model."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.generators.baseline import Baseline
from inv_design.generators.crystals import (
    CanonicalCrystal,
    padded_numbers,
    species_order,
)
from inv_design.generators.known_crystals import KnownCrystals, reduced_formula
from inv_design.generators.property_model import count_elements
from inv_design.generators.protocol import Condition, Sample
from inv_design.generators.training import volumes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inv_design.generators.protocol import Progress


@dataclass(frozen=True)
class SubstitutionSettings:
    """Settings of the baseline.

    Attributes
    ----------
    pool
        Substitutions drawn and ranked in one call of ``sample``.
    max_sites
        Largest number of sites of a prototype.
    caution
        Weight of the property model's standard deviation in the ranking.
    min_ratio
        Smallest distance of a sample as a share of the sum of metallic radii.
    unique
        Whether samples of one call must differ from each other.
    """

    pool: int = 12000
    max_sites: int = 20
    caution: float = 0.0
    min_ratio: float = 0.75
    unique: bool = True


class Substitution(Baseline):
    """Random elements in the structures of the training set, ranked by predicted property.

    Each draw takes a training crystal, gives every species another random element, scales the cell to the sum of fitted
    atomic volumes, and is ranked by a model of the property on composition and volume. Keyword arguments are the
    fields of :class:`SubstitutionSettings`.
    """

    name = "substitution"
    description = "Baseline: random elements in known structures, ranked by a composition model"

    def __init__(self, **settings: Any) -> None:
        super().__init__(SubstitutionSettings(**settings))

    def sample(self, n: int, condition: Condition, *, seed: int = 0, progress: Progress | None = None) -> list[Sample]:
        """Return the ``n`` best-ranked substitutions that are valid, new and different."""
        target, allowed = self._check(condition)
        started = time.perf_counter()
        rng = np.random.default_rng(seed)
        largest = min(self.settings.max_sites, condition.max_sites or self.settings.max_sites)
        eligible = [c for c in self._learned() if len(c.numbers) <= largest and len(set(c.numbers)) <= len(allowed)]
        if not eligible:
            raise ValueError(f"no prototype has at most {largest} sites and {len(allowed)} species")
        drawn = [_substitute(eligible[i], allowed, rng) for i in rng.integers(len(eligible), size=self.settings.pool)]
        counts = count_elements(padded_numbers(drawn))
        cells = np.maximum(counts @ self.property_model.volumes, 1e-3)
        scales = (cells / volumes_of(drawn)) ** (1 / 3)
        predicted, deviation = self.property_model.predict(counts, cells)
        cost = np.abs(np.log(predicted / target)) + self.settings.caution * deviation
        accepted: list[Sample] = []
        found = KnownCrystals()
        rejected: Counter[str] = Counter()
        order = np.argsort(cost, kind="stable")
        for i in _one_per_formula(order, drawn):
            if len(accepted) == n:
                break
            crystal = drawn[i]
            scaled = CanonicalCrystal(crystal.numbers, crystal.coords, crystal.lengths * scales[i], crystal.angles)
            structure = scaled.to_structure()
            reason = self._refuse(structure, found)
            if reason is not None:
                rejected[reason] += 1
                continue
            found.add(scaled, structure)
            facts = {"generator": self.name, "predicted_log_std": float(deviation[i])}
            accepted.append(Sample(structure, len(accepted), condition.to_dict(), seed, float(predicted[i]), facts))
            if progress is not None:
                progress(len(accepted), n, "sampling")
        self.last_statistics = {
            "wanted": n,
            "accepted": len(accepted),
            "draws": len(drawn),
            "rejected": dict(sorted(rejected.items())),
            "seconds": time.perf_counter() - started,
        }
        return accepted


def _substitute(crystal: CanonicalCrystal, allowed: list[int], rng: np.random.Generator) -> CanonicalCrystal:
    """Return the crystal with a random element for each species, site order kept canonical by number only."""
    species = species_order(crystal.numbers)
    chosen = rng.choice(allowed, size=len(species), replace=False)
    table = dict(zip(species, (int(z) for z in chosen), strict=True))
    numbers = np.array([table[int(z)] for z in crystal.numbers])
    return CanonicalCrystal(numbers, crystal.coords, crystal.lengths, crystal.angles)


def _one_per_formula(order: np.ndarray, crystals: list[CanonicalCrystal]) -> Iterator[int]:
    """Yield indices in order, the first of every reduced formula before the others."""
    seen: set[tuple[tuple[int, int], ...]] = set()
    later = []
    for index in order.tolist():
        formula = reduced_formula(crystals[index].numbers)
        if formula in seen:
            later.append(index)
            continue
        seen.add(formula)
        yield index
    yield from later
