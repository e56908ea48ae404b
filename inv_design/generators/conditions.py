"""Further conditions of the latent prior: other properties, sites, symmetry and composition, each shown or not.

Con-CDVAE's "full" strategy conditions the prior on many things at once (Ye, Weng & Wu 2024); here each has a mask, so
that any subset can be asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from inv_design.generators.crystals import cell_volume, element_features

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inv_design.generators.crystals import CanonicalCrystal

SUPPLIED = ("shear_modulus_vrh", "formation_energy_per_atom")
"""Quantities that must come with the training crystals: GPa, eV/atom."""

DERIVED = ("density", "volume_per_atom")
"""Quantities that follow from a crystal: g/cm^3, Å^3."""

SCALARS = (*SUPPLIED, *DERIVED, "sites")
LINEAR = ("formation_energy_per_atom",)  # may be negative; all others enter by their logarithm
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
CENTRES = np.linspace(-2.5, 2.5, 12)

GROUPS = (*SCALARS, "crystal_system", "composition")
"""What can be shown or hidden on its own, in the order of the mask."""

AMU_PER_A3 = 1.66053906660  # g/cm^3
_SYMPREC = 0.01


def _widths() -> list[int]:
    return [len(CENTRES)] * len(SCALARS) + [len(SYSTEMS), 2 * element_features().shape[1]]


def feature_size() -> int:
    """Return the number of features that :meth:`Conditions.features` gives."""
    return sum(_widths())


def feature_owners() -> np.ndarray:
    """Return the group (feature_size(),) that each feature belongs to."""
    return np.repeat(np.arange(len(GROUPS)), _widths())


@dataclass
class Conditions:
    """The further conditions of the training crystals, and how they are scaled.

    Attributes
    ----------
    scalars
        Values (m, len(SCALARS)) in their units, NaN where unknown.
    systems
        Index of the crystal system (m,).
    fractions
        Atomic fractions (m, 95).
    mean, std
        Of the scalars (or their logarithms), each (len(SCALARS),).
    """

    scalars: np.ndarray
    systems: np.ndarray
    fractions: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, crystals: Sequence[CanonicalCrystal], supplied: Mapping[str, Sequence[float]] | None = None) -> Self:
        """Return the conditions of crystals.

        Raises
        ------
        ValueError
            If ``supplied`` names an unknown quantity or has another length.
        """
        scalars, systems, fractions = describe(crystals, supplied)
        scaled = _scaled(scalars)
        with np.errstate(all="ignore"):
            known = np.isfinite(scaled)
            count = np.maximum(known.sum(0), 1)
            mean = np.where(known, scaled, 0.0).sum(0) / count
            std = np.sqrt(np.where(known, (scaled - mean) ** 2, 0.0).sum(0) / count)
        return cls(scalars, systems, fractions, mean, np.maximum(std, 0.05))

    def extended(
        self, crystals: Sequence[CanonicalCrystal], supplied: Mapping[str, Sequence[float]] | None = None
    ) -> Conditions:
        """Return the conditions with further crystals behind, on the same scale."""
        more = describe(crystals, supplied)
        scalars, systems, fractions = (
            np.concatenate(pair) for pair in zip((self.scalars, self.systems, self.fractions), more, strict=True)
        )
        return Conditions(scalars, systems, fractions, self.mean, self.std)

    def rows(self, index: np.ndarray) -> Conditions:
        """Return the conditions of the chosen crystals."""
        return Conditions(self.scalars[index], self.systems[index], self.fractions[index], self.mean, self.std)

    def value_of(self, name: str) -> np.ndarray:
        """Return one of the scalars (m,), NaN where unknown."""
        return self.scalars[:, SCALARS.index(name)]

    def known(self) -> np.ndarray:
        """Return a mask (m, len(GROUPS)) of what is known of each crystal."""
        return np.column_stack([np.isfinite(_scaled(self.scalars)), self.systems >= 0, self.fractions.sum(1) > 0])

    def features(self) -> np.ndarray:
        """Return features (m, feature_size()): Gaussians of the scaled scalars, one-hot system, composition moments."""
        scaled = np.nan_to_num((_scaled(self.scalars) - self.mean) / self.std).clip(-3.0, 3.0)
        width = CENTRES[1] - CENTRES[0]
        basis = np.exp(-((scaled[:, :, None] - CENTRES) ** 2) / (2 * width**2)).reshape(len(scaled), -1)
        system = np.eye(len(SYSTEMS) + 1)[self.systems][:, : len(SYSTEMS)]  # -1 is the row of zeros
        table = element_features()
        mean = self.fractions @ table
        spread = np.sqrt(np.maximum(self.fractions @ table**2 - mean**2, 0.0))
        return np.column_stack([basis, system, mean, spread])

    def wish(self, scalars: Mapping[str, float], system: str | None, fractions: np.ndarray | None) -> Conditions:
        """Return one row that knows only what is asked for, on this scale."""
        values = np.array([[scalars.get(name, np.nan) for name in SCALARS]])
        index = np.array([-1 if system is None else SYSTEMS.index(system)])
        shares = np.zeros((1, self.fractions.shape[1])) if fractions is None else fractions[None, :]
        return Conditions(values, index, shares, self.mean, self.std)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return arrays that :meth:`from_tensors` takes back; the fractions follow from the crystals."""
        return {
            "conditions.scalars": self.scalars.astype(np.float32),
            "conditions.systems": self.systems.astype(np.int8),
            "conditions.mean": self.mean,
            "conditions.std": self.std,
        }

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, np.ndarray], crystals: Sequence[CanonicalCrystal]) -> Self:
        """Return the conditions that :meth:`to_tensors` described."""
        return cls(
            arrays["conditions.scalars"].astype(float),
            arrays["conditions.systems"].astype(int),
            np.stack([_fractions(crystal.numbers) for crystal in crystals]),
            arrays["conditions.mean"],
            arrays["conditions.std"],
        )


def describe(
    crystals: Sequence[CanonicalCrystal], supplied: Mapping[str, Sequence[float]] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scalars (m, len(SCALARS)), crystal systems (m,) and atomic fractions (m, 95) of crystals.

    Raises
    ------
    ValueError
        If ``supplied`` names an unknown quantity or has another length.
    """
    columns: dict[str, Any] = {}
    for name, values in (supplied or {}).items():
        if name not in SUPPLIED:
            raise ValueError(f"cannot condition on {name!r} from labels; known: {', '.join(SUPPLIED)}")
        if len(values) != len(crystals):
            raise ValueError(f"{len(values)} values of {name} for {len(crystals)} crystals; give one each, NaN unknown")
        columns[name] = np.array(values, dtype=float)
    if not crystals:
        return np.zeros((0, len(SCALARS))), np.zeros(0, dtype=int), np.zeros((0, len(element_features())))
    fractions = np.stack([_fractions(crystal.numbers) for crystal in crystals])
    sizes = np.array([len(crystal.numbers) for crystal in crystals], dtype=float)
    volumes = np.array([float(cell_volume(c.lengths, c.angles)) for c in crystals]) / sizes
    columns |= {"volume_per_atom": volumes, "density": density(fractions, volumes), "sites": sizes}
    unknown = np.full(len(crystals), np.nan)
    scalars = np.column_stack([columns.get(name, unknown) for name in SCALARS])
    return scalars, np.array([SYSTEMS.index(crystal_system(c)) for c in crystals]), fractions


def density(counts: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    """Return densities (n,) in g/cm^3 of atoms (n, 95) in volumes (n,) in Å^3."""
    return counts @ _masses() * AMU_PER_A3 / volumes


def crystal_system(crystal: CanonicalCrystal) -> str:
    """Return the crystal system that spglib finds; triclinic where it finds none."""
    import spglib

    structure = crystal.to_structure()
    cell: Any = (structure.lattice.matrix, structure.frac_coords, crystal.numbers.tolist())
    try:
        dataset = spglib.get_symmetry_dataset(cell, symprec=_SYMPREC)
    except spglib.SpglibError:
        dataset = None
    return SYSTEMS[0] if dataset is None else system_of_group(dataset.number)


def system_of_group(number: int) -> str:
    """Return the crystal system of a space group 1 .. 230 (International Tables for Crystallography A)."""
    last = (2, 15, 74, 142, 167, 194, 230)
    return SYSTEMS[next(i for i, end in enumerate(last) if number <= end)]


def _fractions(numbers: np.ndarray) -> np.ndarray:
    shares = np.bincount(numbers, minlength=len(element_features())).astype(float)
    return shares / shares.sum()


def _scaled(scalars: np.ndarray) -> np.ndarray:
    linear = np.array([name in LINEAR for name in SCALARS])
    with np.errstate(all="ignore"):
        logs = np.where(scalars > 0, np.log(np.where(scalars > 0, scalars, 1.0)), np.nan)
    return np.where(linear, scalars, logs)


_MASSES: np.ndarray | None = None


def _masses() -> np.ndarray:
    """Return atomic masses (95,) in unified atomic mass units; entry 0 is zero."""
    from pymatgen.core import Element

    global _MASSES  # noqa: PLW0603
    if _MASSES is None:
        _MASSES = np.array([0.0, *(float(Element.from_Z(z).atomic_mass) for z in range(1, len(element_features())))])
    return _MASSES
