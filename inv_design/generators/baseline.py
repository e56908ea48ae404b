"""What the baselines share: training crystals with a property model, and the checks of conditions and samples."""

from __future__ import annotations

from copy import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from inv_design.generators.crystals import canonical_crystal, fit_atomic_volumes, padded_numbers
from inv_design.generators.known_crystals import KnownCrystals
from inv_design.generators.property_model import PropertyModel, count_elements
from inv_design.generators.protocol import Capabilities, SavedAsBytes
from inv_design.generators.training import volumes_of
from inv_design.structures.validity import geometry_reasons

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

    from inv_design.generators.crystals import CanonicalCrystal
    from inv_design.generators.protocol import Condition, Progress


class Baseline(SavedAsBytes):
    """A generator without a network: training crystals, and a model of the property on composition and volume.

    The first ``len(values)`` of the ``known`` crystals are those it learned from.
    """

    name: str
    description: ClassVar[str]
    settings: Any
    known: KnownCrystals
    property_model: PropertyModel

    def __init__(self, settings: Any) -> None:
        self.settings = settings
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
        """Keep the crystals; fit atomic volumes and the property model."""
        targets = _checked(structures, values)
        self.property = property
        self._take([canonical_crystal(structure) for structure in structures], targets, seed)
        if progress is not None:
            progress(1, 1, "property model")
        return {"crystals": float(len(self.values))}

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
        """Add crystals and refit; without a replay the old ones stay."""
        self._need_fit()
        targets = _checked(structures, values)
        old, old_values = self._learned(), self.values
        if len(replay_structures) or len(replay_values):
            old_values = _checked(replay_structures, replay_values)
            old = [canonical_crystal(structure) for structure in replay_structures]
        before = self.known
        new = [canonical_crystal(structure) for structure in structures]
        self._take([*old, *new], np.concatenate([old_values, targets]), seed)
        self._keep_known(before)
        return {"crystals": float(len(self.values))}

    def avoiding(self, structures: Sequence[Structure]) -> Self:
        """Return a generator that shares the fitted parts and refuses these crystals too, as if they were known."""
        other = copy(self)
        other.known = self.known.joined(structures)
        other.last_statistics = {}
        return other

    def capabilities(self) -> Capabilities:
        """Return the conditions, ranges and elements of this generator."""
        from pymatgen.core import Element

        present = self._elements() if self._fitted else []
        return Capabilities(
            conditions=(self.property,),
            trainable=True,
            ranges={self.property: (float(self.values.min()), float(self.values.max()))} if self._fitted else {},
            description=self.description,
            elements=tuple(sorted(Element.from_Z(z).symbol for z in present)),
        )

    def to_bytes(self) -> bytes:
        """Return the fitted baseline as one safetensors blob."""
        from inv_design.weights import pack

        self._need_fit()
        arrays, model_config = self.property_model.to_tensors()
        config = {
            "generator": self.name,
            "settings": asdict(self.settings),
            "property": self.property,
            "property_model": model_config,
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
        made.property_model = PropertyModel.from_tensors(tensors, config["property_model"])
        made._fitted = True
        return made

    def _take(self, crystals: list[CanonicalCrystal], values: np.ndarray, seed: int) -> None:
        self.known, self.values = KnownCrystals(crystals), values
        self.property_model = PropertyModel.fit(
            count_elements(padded_numbers(crystals)), volumes_of(crystals), values, fit_atomic_volumes(crystals),
            seed=seed,
        )  # fmt: skip
        self._fitted = True

    def _learned(self) -> list[CanonicalCrystal]:
        """Return the crystals that it learned from."""
        return self.known.crystals[: len(self.values)]

    def _need_fit(self) -> None:
        if not self._fitted:
            raise RuntimeError("this baseline is not fitted; call fit or load a file")

    def _elements(self) -> list[int]:
        """Return the atomic numbers of the training crystals, sorted."""
        return sorted({int(z) for crystal in self._learned() for z in crystal.numbers})

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


def _checked(structures: Sequence[Structure], values: Sequence[float]) -> np.ndarray:
    if len(structures) != len(values) or not len(structures):
        raise ValueError(f"{len(structures)} structures and {len(values)} values; equally many, at least one, needed")
    targets = np.array(values, dtype=float)
    if not (np.isfinite(targets) & (targets > 0)).all():
        raise ValueError("every value must be positive; the property model learns the logarithm")
    return targets
