"""What a predictor learns: a property, its unit, the scale it is learned on, and its physical bounds."""

from __future__ import annotations

import builtins
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from inv_design.predictors import calibration

if TYPE_CHECKING:
    from collections.abc import Mapping

Scale = Literal["log", "linear"]
DECADE = 10.0


@dataclass(frozen=True)
class Target:
    """A scalar property of a crystal as a predictor sees it.

    On the ``log`` scale the predictor learns log10 of the value, its errors are relative, and every label must be
    positive: moduli, densities. On the ``linear`` scale it learns the value as it is: energies, gaps.

    Attributes
    ----------
    property, unit
        Such as ``"band_gap"`` and ``"eV"``.
    scale
        ``"log"``, ``"linear"``, or ``None``: decided by the labels, see :meth:`resolved`.
    lower, upper
        Physical bounds in ``unit``; predictions are clipped to them, labels are not. ``None``: unbounded.
    """

    property: str
    unit: str = ""
    scale: Scale | None = None
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        if self.scale not in (None, *get_args(Scale)):
            raise ValueError(f"scale {self.scale!r} of {self.property} is unknown; choose log or linear")
        for name in ("lower", "upper"):
            bound = getattr(self, name)
            if bound is not None and not np.isfinite(bound):
                raise ValueError(f"{name} bound {bound!r} of {self.property} is not finite; leave it out instead")
        if self.lower is not None and self.upper is not None and not self.lower < self.upper:
            raise ValueError(f"bounds {self.lower!r} and {self.upper!r} of {self.property} leave no value between them")
        if self.scale == "log" and self.upper is not None and self.upper <= 0:
            raise ValueError(f"upper bound {self.upper!r} of {self.property} is not positive; use the linear scale")

    @classmethod
    def of(cls, property: str, **fields: Any) -> Self:
        """Return the target of a property: what :data:`KNOWN` says of it, with ``fields`` that are not ``None``."""
        known = KNOWN.get(property, {})
        return cls(property, **known | {name: value for name, value in fields.items() if value is not None})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the target of a model file's configuration; files without one learned log10, without bounds."""
        if "target" in config:
            return cls(**config["target"])
        return cls(config["property"], config["unit"], "log")

    def as_config(self) -> dict[str, Any]:
        """Return the fields as plain values, for a model file."""
        return asdict(self)

    def resolved(self, values: np.ndarray) -> Self:
        """Return the target with its scale decided by the labels (n,) if it is ``None``.

        Logarithmic if all labels are positive and span more than a factor of ten, else linear.
        """
        if self.scale is not None:
            return self
        wide = len(values) > 0 and values.min() > 0 and values.max() > DECADE * values.min()
        return replace(self, scale="log" if wide else "linear")

    @builtins.property
    def logarithmic(self) -> bool:
        """Whether the predictor learns log10 of the value."""
        return self.scale == "log"

    @builtins.property
    def encoded_unit(self) -> str:
        """The unit of the learned number, such as ``log10(GPa)``."""
        return f"log10({self.unit})" if self.logarithmic else self.unit

    def metric(self, name: str) -> str:
        """Return the name of an error of the learned number: ``mae`` -> ``mae_log10`` on the log scale."""
        return f"{name}_log10" if self.logarithmic else name

    def check(self, values: np.ndarray) -> None:
        """Raise if a label cannot be learned on this scale.

        Raises
        ------
        ValueError
            If a value is not finite, or not positive on the log scale; it names the index.
        """
        usable = np.isfinite(values) & ((values > 0) | (not self.logarithmic))
        bad = np.flatnonzero(~usable)
        if bad.size:
            wanted = "positive and finite" if self.logarithmic else "finite"
            raise ValueError(f"value {values[bad[0]]!r} at index {bad[0]} is not {wanted}; drop that entry")

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Return what is learned (n,) from values (n,) in ``unit``."""
        return np.log10(values) if self.logarithmic else np.asarray(values, dtype=float)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """Return values (n,) in ``unit`` from learned numbers (n,), clipped to the bounds."""
        values = 10.0**encoded if self.logarithmic else np.asarray(encoded, dtype=float)
        return np.clip(values, self.lower, self.upper) if (self.lower, self.upper) != (None, None) else values

    def deviation(self, encoded: np.ndarray, encoded_std: np.ndarray) -> np.ndarray:
        """Return the standard deviation (n,) in ``unit`` of learned numbers (n,): half the width of their interval."""
        if not self.logarithmic:
            return encoded_std
        return calibration.half_width(self.encode(self.decode(encoded)), encoded_std)

    def encoded_deviation(self, values: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Return the standard deviation (n,) of the learned number, the inverse of :meth:`deviation`."""
        return np.arcsinh(std / values) / np.log(10.0) if self.logarithmic else np.asarray(std, dtype=float)


KNOWN: dict[str, dict[str, Any]] = {
    "bulk_modulus_vrh": {"unit": "GPa", "scale": "log", "lower": 0.0, "upper": 1000.0},
    "shear_modulus_vrh": {"unit": "GPa", "scale": "log", "lower": 0.0, "upper": 1000.0},
    "density": {"unit": "g/cm^3", "scale": "log", "lower": 0.0},
    "volume_per_atom": {"unit": "Å^3", "scale": "log", "lower": 0.0},
    "e_above_hull": {"unit": "eV/atom", "scale": "linear", "lower": 0.0},
    "formation_energy_per_atom": {"unit": "eV/atom", "scale": "linear"},
    "energy_per_atom": {"unit": "eV/atom", "scale": "linear"},
    "band_gap": {"unit": "eV", "scale": "linear", "lower": 0.0},
}
"""Properties with a unit, scale and bounds of their own; 1000 GPa is twice the bulk modulus of diamond."""
