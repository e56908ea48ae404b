"""What the baselines share: training crystals with a property model, and the checks of conditions and samples."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Self

from inv_design.generators.protocol import SavedAsBytes
from inv_design.structures.validity import geometry_reasons

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from pymatgen.core import Structure

    from inv_design.generators.known_crystals import KnownCrystals
    from inv_design.generators.protocol import Condition


class Baseline(SavedAsBytes):
    """A generator without a network. The first ``len(values)`` of the ``known`` crystals are those it learned from."""

    name: str
    settings: Any
    property: str
    values: np.ndarray
    known: KnownCrystals
    last_statistics: dict[str, Any]
    _fitted: bool

    def avoiding(self, structures: Sequence[Structure]) -> Self:
        """Return a generator that shares the fitted parts and refuses these crystals too, as if they were known."""
        other = copy(self)
        other.known = self.known.joined(structures)
        other.last_statistics = {}
        return other

    def _need_fit(self) -> None:
        if not self._fitted:
            raise RuntimeError("this baseline is not fitted; call fit or load a file")

    def _elements(self) -> list[int]:
        """Return the atomic numbers of the training crystals, sorted."""
        return sorted({int(z) for crystal in self.known.crystals[: len(self.values)] for z in crystal.numbers})

    def _keep_known(self, before: KnownCrystals) -> None:
        """Add the crystals known before that are not learned from any more: still not to be returned."""
        for crystal in before.crystals:
            if not self.known.contains(crystal.to_structure()):
                self.known.add(crystal)

    def _check(self, condition: Condition) -> tuple[float, list[int]]:
        """Return (target, atomic numbers allowed) of a condition."""
        from pymatgen.core import Element

        self._need_fit()
        condition.refuse_shape(self.name)
        if set(condition.targets) != {self.property}:
            raise ValueError(
                f"the condition targets {sorted(condition.targets)}; this generator knows {self.property!r}"
            )
        target = float(condition.targets[self.property])
        if not target > 0:
            raise ValueError(f"the target {self.property} = {target} is not positive")
        present = self._elements()
        allowed = [z for z in present if condition.allows({Element.from_Z(z).symbol})]
        if not allowed:
            raise ValueError(f"the condition leaves none of the {len(present)} elements the generator knows")
        return target, allowed

    def _refuse(self, structure: Structure, found: KnownCrystals) -> str | None:
        """Return why a crystal is not a new sample, or ``None``."""
        if geometry_reasons(structure, min_ratio=self.settings.min_ratio):
            return "geometry"
        if self.known.contains(structure):
            return "known"
        return "duplicate" if self.settings.unique and found.contains(structure) else None
