"""What the packaged predictors learned from: the trusted labels of the 1,309 packaged alloys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inv_design.datasets.mp_binaries import LabelledStructure

PROPERTIES = ("bulk_modulus_vrh", "shear_modulus_vrh")
MIN_SHEAR = 1.0
"""GPa. A smaller shear modulus is that of a crystal about to shear away: its logarithm is noise."""
MAX_SHEAR_RATIO = 1.5
"""Of G to K. At 3/2 Poisson's ratio (3K - 2G) / (6K + 2G) is 0; no metal has less, so the tensor is wrong."""


def packaged_training_set(property: str = "bulk_modulus_vrh") -> list[LabelledStructure]:
    """Return the packaged alloys whose label of ``property`` is trusted.

    All 1,309 alloys for the bulk modulus, whose filter is 0 < K <= 500 GPa already; for the shear modulus those with
    1 GPa <= G <= 3/2 K.

    Raises
    ------
    ValueError
        If the packaged data have no such property.
    """
    from inv_design.datasets.mp_binaries import load_alloys

    if property not in PROPERTIES:
        raise ValueError(f"the packaged alloys have no {property!r}; choose from {', '.join(PROPERTIES)}")
    alloys = load_alloys()
    if property == "bulk_modulus_vrh":
        return alloys
    return [a for a in alloys if MIN_SHEAR <= a.labels[property] <= MAX_SHEAR_RATIO * a.labels["bulk_modulus_vrh"]]
