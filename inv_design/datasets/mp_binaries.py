"""The packaged Materials Project binaries: 3,081 compounds with PBE elastic moduli (CC BY 4.0)."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymatgen.core import Structure

SOURCE = "Materials Project, PBE elastic moduli (CC BY 4.0), binary compounds as collected by matcalc's benchmark"


@dataclass(frozen=True)
class LabelledStructure:
    """A crystal with reference labels.

    Attributes
    ----------
    structure
        The crystal.
    labels
        Property name -> value in the unit fixed for that property (GPa for moduli).
    source_id
        The id in the source, such as ``mp-867189``.
    """

    structure: Structure
    labels: dict[str, float]
    source_id: str
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def chemsys(self) -> str:
        """Chemical system, such as ``Al-Ni``."""
        return self.structure.chemical_system


def load_mp_binaries() -> list[LabelledStructure]:
    """Return all 3,081 packaged compounds, outliers included; moduli in GPa."""
    from pymatgen.core import Structure

    path = resources.files("inv_design.datasets") / "data" / "mp_binary_elasticity.json.gz"
    with path.open("rb") as raw, gzip.open(raw) as lines:
        entries = json.load(lines)
    return [
        LabelledStructure(
            structure=Structure.from_dict(entry["structure"]),
            labels={name: float(entry[name]) for name in ("bulk_modulus_vrh", "shear_modulus_vrh")},
            source_id=entry["mp_id"],
        )
        for entry in entries
    ]


def filter_dataset(
    entries: Iterable[LabelledStructure],
    *,
    elements: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    max_sites: int = 20,
    label: str = "bulk_modulus_vrh",
    label_range: tuple[float, float] = (0.0, 500.0),
) -> list[LabelledStructure]:
    """Return the entries of a campaign's data (the filter of Li et al. 2025, section II).

    Parameters
    ----------
    elements
        Allowed element symbols; ``None`` allows all.
    exclude
        Element symbols that no entry may contain.
    max_sites
        Largest number of sites in the cell.
    label, label_range
        The label must lie in (low, high], in its unit (0 < K <= 500 GPa in the paper).
    """
    allowed = None if elements is None else frozenset(elements)
    banned = frozenset(exclude)
    low, high = label_range
    kept = []
    for entry in entries:
        symbols = {element.symbol for element in entry.structure.composition.elements}
        if (allowed is not None and not symbols <= allowed) or symbols & banned or len(entry.structure) > max_sites:
            continue
        if low < entry.labels[label] <= high:
            kept.append(entry)
    return kept


def load_alloys() -> list[LabelledStructure]:
    """Return the 1,309 packaged alloys: metals only, no actinides, at most 20 sites, 0 < K <= 500 GPa."""
    from inv_design.structures.elements import expand_elements

    return filter_dataset(
        load_mp_binaries(), elements=expand_elements(["metals"]), exclude=expand_elements(["actinides"])
    )
