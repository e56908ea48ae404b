"""The baseline any user could write: other elements in known structures, scaled, ranked by a composition model."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from inv_design.generators.baseline import Baseline
from inv_design.generators.crystals import (
    CanonicalCrystal,
    canonical_crystal,
    fit_atomic_volumes,
    padded_numbers,
    species_order,
)
from inv_design.generators.known_crystals import KnownCrystals, reduced_formula
from inv_design.generators.property_model import PropertyModel, count_elements
from inv_design.generators.protocol import Capabilities, Condition, Sample
from inv_design.generators.training import volumes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pymatgen.core import Structure

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

    def __init__(self, **settings: Any) -> None:
        self.settings = SubstitutionSettings(**settings)
        self.last_statistics: dict[str, Any] = {}
        self.property = "bulk_modulus_vrh"
        self.values = np.zeros(0)
        self._fitted = False

    def fit(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        property: str = "bulk_modulus_vrh",
        seed: int = 0,
        budget: float | None = None,  # noqa: ARG002 - nothing here takes steps
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Keep the crystals as prototypes and fit atomic volumes and the property model."""
        if len(structures) != len(values) or not len(structures):
            raise ValueError(
                f"{len(structures)} structures and {len(values)} values; equally many, at least one, needed"
            )
        targets = np.array(values, dtype=float)
        if not (np.isfinite(targets) & (targets > 0)).all():
            raise ValueError("every value must be positive; the property model learns the logarithm")
        self.property = property
        self._take([canonical_crystal(structure) for structure in structures], targets, seed)
        if progress is not None:
            progress(1, 1, "property model")
        return {"crystals": float(len(self.known))}

    def finetune(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        replay_structures: Sequence[Structure] = (),
        replay_values: Sequence[float] = (),
        seed: int = 0,
        budget: float | None = None,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> dict[str, float]:
        """Add crystals to the prototypes and refit; without a replay the old ones stay."""
        self._need_fit()
        if len(structures) != len(values) or len(replay_structures) != len(replay_values):
            raise ValueError("structures and values, and replay_structures and replay_values, must be equally many")
        old, old_values = self.prototypes, self.values
        if len(replay_structures):
            old = [canonical_crystal(structure) for structure in replay_structures]
            old_values = np.array(replay_values, dtype=float)
        new = [canonical_crystal(structure) for structure in structures]
        known = self.known
        self._take([*old, *new], np.concatenate([old_values, np.array(values, dtype=float)]), seed)
        self._keep_known(known)
        return {"crystals": float(len(self.prototypes))}

    def _take(self, crystals: list[CanonicalCrystal], values: np.ndarray, seed: int) -> None:
        volumes = fit_atomic_volumes(crystals)
        self.prototypes, self.values = crystals, values
        self.known = KnownCrystals(crystals)
        self.property_model = PropertyModel.fit(
            count_elements(padded_numbers(crystals)), volumes_of(crystals), values, volumes, seed=seed
        )
        self._fitted = True

    def sample(self, n: int, condition: Condition, *, seed: int = 0, progress: Progress | None = None) -> list[Sample]:
        """Return the ``n`` best-ranked substitutions that are valid, new and different."""
        target, allowed = self._check(condition)
        started = time.perf_counter()
        rng = np.random.default_rng(seed)
        largest = min(self.settings.max_sites, condition.max_sites or self.settings.max_sites)
        eligible = [c for c in self.prototypes if len(c.numbers) <= largest and len(set(c.numbers)) <= len(allowed)]
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

    def capabilities(self) -> Capabilities:
        """Return the conditions, ranges and elements of this generator."""
        from pymatgen.core import Element

        present = self._elements() if self._fitted else []
        return Capabilities(
            conditions=(self.property,),
            trainable=True,
            ranges={self.property: (float(self.values.min()), float(self.values.max()))} if self._fitted else {},
            description="Baseline: random elements in known structures, ranked by a composition model",
            elements=tuple(sorted(Element.from_Z(z).symbol for z in present)),
        )

    def to_bytes(self) -> bytes:
        """Return the fitted baseline as one safetensors blob."""
        from inv_design.weights import pack

        if not self._fitted:
            raise RuntimeError("this baseline is not fitted; there is nothing to save")
        arrays, model_config = self.property_model.to_tensors()
        config = {
            "generator": self.name,
            "settings": asdict(self.settings),
            "property": self.property,
            "property_model": model_config,
            "prototypes": len(self.prototypes),
        }
        return pack(arrays | self.known.to_tensors() | {"values": self.values}, config)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the baseline of a blob."""
        from inv_design.weights import unpack

        tensors, config = unpack(blob)
        if config.get("generator") != cls.name:
            raise ValueError(f"the model file holds a {config.get('generator')!r}, not a {cls.name!r}")
        made = cls(**config["settings"])
        made.property, made.values = config["property"], tensors["values"]
        made.known = KnownCrystals.from_tensors(tensors)
        made.prototypes = made.known.crystals[: config["prototypes"]]
        made.property_model = PropertyModel.from_tensors(tensors, config["property_model"])
        made._fitted = True
        return made


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
