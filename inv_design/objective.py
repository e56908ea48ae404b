"""Objective: what a campaign wants of one property: a value, a range, or as much or as little of it as there is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Targets = Mapping[str, Any] | Sequence["Objective"]

Kind = Literal["value", "range", "max", "min"]

PROPERTY_UNITS = {
    "bulk_modulus_vrh": "GPa",
    "shear_modulus_vrh": "GPa",
    "density": "g/cm^3",
    "volume_per_atom": "Å^3",
    "e_above_hull": "eV/atom",
    "formation_energy_per_atom": "eV/atom",
    "cost": "",
}
"""Properties that every campaign may target, and the unit that each is stored in; a campaign may declare its own."""

ALIASES = {"bulk_modulus": "bulk_modulus_vrh", "K": "bulk_modulus_vrh", "G": "shear_modulus_vrh"}
"""Short names that the command line and campaign.yaml accept."""

TITLES = {
    "bulk_modulus_vrh": "bulk modulus",
    "shear_modulus_vrh": "shear modulus",
    "volume_per_atom": "volume per atom",
    "e_above_hull": "energy above hull",
}
"""What properties are called in a sentence; others by their name."""

UPPER_BOUNDS = frozenset({"e_above_hull"})
"""Targets that are a largest wanted value: a relative deviation from an energy near zero says nothing."""
SIGNED = frozenset({"e_above_hull", "formation_energy_per_atom"})
"""Properties that may be zero or negative; those that a campaign declares may be, too."""

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_VALUE = re.compile(rf"\s*({NUMBER})\s*(\S.*?)?\s*")
_RANGE = re.compile(rf"\s*({NUMBER})?\s*\.\.\s*({NUMBER})?\s*(\S.*?)?\s*")


@dataclass(frozen=True)
class Objective:
    """What is wanted of one property.

    Attributes
    ----------
    name, unit
        The stored name, and the unit of all numbers.
    kind
        ``value``: as near as possible; ``range``: between two bounds; ``max`` and ``min``: a direction, which orders
        candidates and rejects none.
    value
        The wanted number of kind ``value``.
    low, high
        The bounds of kind ``range``; infinite where that side is open.
    """

    name: str
    kind: Kind
    unit: str = ""
    value: float | None = None
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def parse(cls, name: str, wanted: Any, *, own: Mapping[str, str] | None = None) -> Self:
        """Return the objective of ``350``, ``"350 GPa"``, ``"300..400 GPa"``, ``"..0.1"``, ``"max"`` or ``"min"``.

        Parameters
        ----------
        name
            The property, or its short name.
        own
            The campaign's own properties -> unit.

        Raises
        ------
        ValueError
            If the property is unknown, or the text is none of these, has another unit, or is not positive where the
            property must be.
        """
        name = property_name(name, own=own)
        unit = {**PROPERTY_UNITS, **(own or {})}[name]
        text = str(wanted).strip()
        if text in ("max", "min"):
            return cls(name, "max" if text == "max" else "min", unit)
        positive = name not in SIGNED and name not in (own or {})
        if ".." in text:
            return cls._range(name, text, unit, positive=positive)
        number = _number(name, text, unit, positive=positive)
        if name in UPPER_BOUNDS:
            return cls(name, "range", unit, high=number)
        return cls(name, "value", unit, value=number)

    @classmethod
    def _range(cls, name: str, text: str, unit: str, *, positive: bool) -> Self:
        match = _RANGE.fullmatch(text)
        if match is None or match.group(1) is match.group(2) is None:
            raise ValueError(
                f"target {name}: {text!r} is not a range, write for example '{_example(unit, '300..400')}'"
            )
        _check_unit(name, match.group(3), unit)
        low, high = (
            open_side if part is None else float(part)
            for part, open_side in zip(match.groups(), (-math.inf, math.inf), strict=False)
        )
        if any(part is not None and not math.isfinite(float(part)) for part in match.groups()[:2]):
            raise ValueError(f"target {name}: a bound of {text!r} is not finite; leave it out instead")
        if not low < high:
            raise ValueError(f"target {name}: the range {text!r} is empty; write the lower bound first")
        if positive and high <= 0:
            raise ValueError(f"target {name}: {text!r} holds no positive value; give an upper bound above 0 {unit}")
        return cls(name, "range", unit, low=low, high=high)

    @property
    def plain(self) -> float | str:
        """The objective as campaign.yaml and the database have it; :meth:`parse` reads it back."""
        if self.kind in ("max", "min"):
            return self.kind
        if self.kind == "value":
            assert self.value is not None
            return self.value
        if self.name in UPPER_BOUNDS and math.isinf(self.low):
            return self.high
        low, high = ("" if math.isinf(bound) else repr(bound) for bound in (self.low, self.high))
        return f"{low}..{high} {self.unit}".strip()

    @property
    def text(self) -> str:
        """The objective for people, such as ``350 GPa``, ``300 to 400 GPa``, ``at most 0.1 eV/atom`` or ``max``."""
        if self.kind in ("max", "min"):
            return self.kind
        if self.kind == "value":
            return f"{self.value:g} {self.unit}".strip()
        if math.isinf(self.low):
            return f"at most {self.high:g} {self.unit}".strip()
        if math.isinf(self.high):
            return f"at least {self.low:g} {self.unit}".strip()
        return f"{self.low:g} to {self.high:g} {self.unit}".strip()

    @property
    def title(self) -> str:
        """What the property is called in a sentence."""
        return TITLES.get(self.name, self.name.replace("_", " "))

    @property
    def centre(self) -> float:
        """The number to aim at: the value, or the middle of a range with two bounds.

        Raises
        ------
        ValueError
            If there is no such number.
        """
        if self.value is not None:
            return self.value
        if self.kind != "range" or math.isinf(self.low) or math.isinf(self.high):
            raise ValueError(f"target {self.name}: {self.text} has no middle; give a value or a range with two bounds")
        return (self.low + self.high) / 2

    def deviation(self, value: float) -> float:
        """Return the relative deviation of a number: from the value, or from the nearest bound outside a range.

        Li et al. 2025, equation 1, for one crystal. 0 inside a range and for a direction. A bound of 0, from which no
        relative deviation can be told, counts as one unit.
        """
        if self.kind == "value":
            assert self.value is not None
            return abs(value - self.value) / (abs(self.value) or 1.0)
        if self.kind == "range":
            if value < self.low:
                return (self.low - value) / (abs(self.low) or 1.0)
            if value > self.high:
                return (value - self.high) / (abs(self.high) or 1.0)
        return 0.0

    def badness(self, value: float) -> float:
        """Return what is to be small: the deviation, or the value itself (``min``) or its negative (``max``)."""
        return {"max": -value, "min": value}.get(self.kind, self.deviation(value))

    @property
    def logarithmic(self) -> bool:
        """Whether errors of the property are relative: it is always positive."""
        return self.name in PROPERTY_UNITS and self.name not in SIGNED

    def bounds(self, tolerance: float) -> tuple[float, float]:
        """Return the interval that counts as met: within a relative ``tolerance`` of a value; a range as it is."""
        if self.kind == "value":
            assert self.value is not None
            margin = tolerance * (abs(self.value) or 1.0)  # as for the deviation, a unit stands in for zero
            return self.value - margin, self.value + margin
        return self.low, self.high

    def record(self) -> dict[str, Any]:
        """Return the objective as a plain record: ``property``, ``kind``, ``unit``, ``value``, ``low``, ``high``."""
        low, high = (None if math.isinf(bound) else bound for bound in (self.low, self.high))
        return {
            "property": self.name, "kind": self.kind, "unit": self.unit, "value": self.value, "low": low,
            "high": high,
        }  # fmt: skip


def property_name(name: str, *, own: Mapping[str, str] | None = None) -> str:
    """Return the stored name of a property (``K`` -> ``bulk_modulus_vrh``).

    Parameters
    ----------
    own
        The campaign's own properties -> unit.

    Raises
    ------
    ValueError
        If no such property can be targeted.
    """
    full = ALIASES.get(name, name)
    known = {**PROPERTY_UNITS, **(own or {})}
    if full not in known:
        raise ValueError(
            f"unknown property {name!r}; known: {', '.join(sorted(known))}; "
            f"declare one of your own with its unit, such as properties: {{{name}: UNIT}}"
        )
    return full


def objectives_of(targets: Targets, *, own: Mapping[str, str] | None = None) -> list[Objective]:
    """Return the objectives of targets as campaign.yaml has them (property -> what is wanted), in their order.

    Objectives are returned as they are.
    """
    if not hasattr(targets, "items"):
        return list(targets)
    return [Objective.parse(name, wanted, own=own) for name, wanted in targets.items()]


def _number(name: str, text: str, unit: str, *, positive: bool) -> float:
    match = _VALUE.fullmatch(text)
    if match is None:
        raise ValueError(f"target {name}: {text!r} is not a number with a unit, write for example '{_example(unit)}'")
    _check_unit(name, match.group(2), unit)
    number = float(match.group(1))
    if not math.isfinite(number):
        raise ValueError(f"target {name}: {text!r} is not finite")
    if positive and number <= 0:
        raise ValueError(f"target {name}: {number:g} {unit} is not positive; give a value above 0 {unit}".strip())
    return number


def _check_unit(name: str, given: str | None, unit: str) -> None:
    if given not in (None, unit):
        raise ValueError(f"target {name}: unit {given!r} is not supported, give it in {unit or 'plain numbers'}")


def _example(unit: str, number: str = "350") -> str:
    return f"{number} {unit}".strip()
