"""What every generator is: it learns from labelled crystals and proposes new ones under a condition."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pymatgen.core import Structure

    Progress = Callable[[int, int, str], None]
    """Called with (steps done, steps in all, name of the part)."""


_SHAPE = ("sites", "composition", "crystal_system")


@dataclass(frozen=True)
class Condition:
    """What a sampled crystal shall be.

    Attributes
    ----------
    targets
        Property name -> wanted value in its fixed unit, such as ``{"bulk_modulus_vrh": 350.0}`` (GPa).
    exclude_elements
        Symbols that no sample may contain.
    elements
        Symbols that samples may contain; ``None`` allows every element that the generator knows.
    max_sites
        Largest number of sites in the primitive cell; ``None`` leaves it to the generator.
    sites
        Exact number of sites in the primitive cell.
    composition
        Reduced formula, such as ``"Re3W"``.
    crystal_system
        Such as ``"cubic"``.
    """

    targets: dict[str, float]
    exclude_elements: frozenset[str] = frozenset()
    elements: frozenset[str] | None = None
    max_sites: int | None = None
    sites: int | None = None
    composition: str | None = None
    crystal_system: str | None = None

    def refuse_shape(self, name: str) -> None:
        """Say that a generator cannot fix what only some can.

        Raises
        ------
        ValueError
            If sites, a composition or a crystal system are asked for.
        """
        for key in _SHAPE:
            if getattr(self, key) is not None:
                raise ValueError(f"the generator {name} cannot fix {key} = {getattr(self, key)!r}; use con_cdvae")

    def allows(self, symbols: set[str] | frozenset[str]) -> bool:
        """Return whether a crystal of these elements is within the condition."""
        return not (symbols & self.exclude_elements) and (self.elements is None or symbols <= self.elements)

    def to_dict(self) -> dict[str, Any]:
        """Return the condition as plain JSON types, element lists sorted."""
        return {
            "targets": dict(self.targets),
            "exclude_elements": sorted(self.exclude_elements),
            "elements": None if self.elements is None else sorted(self.elements),
            "max_sites": self.max_sites,
            **{key: getattr(self, key) for key in _SHAPE if getattr(self, key) is not None},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the condition that :meth:`to_dict` described."""
        elements = data.get("elements")
        return cls(
            targets={name: float(value) for name, value in data["targets"].items()},
            exclude_elements=frozenset(data.get("exclude_elements", ())),
            elements=None if elements is None else frozenset(elements),
            max_sites=data.get("max_sites"),
            **{key: data.get(key) for key in _SHAPE},
        )


@dataclass(frozen=True)
class Sample:
    """One generated crystal.

    Attributes
    ----------
    structure
        The crystal, fully ordered, as decoded (not relaxed).
    index
        Position within the call, 0 .. n-1.
    condition
        :meth:`Condition.to_dict` of the condition it was sampled under.
    seed
        The seed of the call; (generator, condition, seed, n, index) determine the crystal.
    score
        The generator's own prediction of the targeted property (GPa for moduli), or ``None`` if it makes none.
    metadata
        Plain JSON facts about this sample, such as the number of rejected draws before it.
    """

    structure: Structure
    index: int
    condition: dict[str, Any]
    seed: int
    score: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    """What a generator can do.

    Attributes
    ----------
    conditions
        Property names that :class:`Condition` may target.
    trainable
        Whether ``fit`` and ``finetune`` change what is sampled.
    ranges
        Property name -> (lowest, highest) value seen in training; targets beyond it are extrapolation.
    description
        One sentence for listings.
    elements
        Symbols that samples can contain, sorted; empty before ``fit``.
    """

    conditions: tuple[str, ...]
    trainable: bool
    ranges: dict[str, tuple[float, float]]
    description: str
    elements: tuple[str, ...] = ()


@runtime_checkable
class Generator(Protocol):
    """A conditional crystal generator.

    All methods are deterministic: the same data, settings, seed and number of threads give the same result. ``budget``
    multiplies the number of training steps of the settings (never a wall time), so that it is reproducible as well.
    """

    name: str
    last_statistics: dict[str, Any]
    """Facts about the last ``sample`` call: draws, rejections by reason, seconds."""

    def fit(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        property: str = "bulk_modulus_vrh",
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Train from scratch on crystals with one value each; return metrics by name.

        Raises
        ------
        ValueError
            If there is nothing to learn from (no crystal, lengths that differ, values that are not positive).
        """
        ...

    def finetune(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        replay_structures: Sequence[Structure] = (),
        replay_values: Sequence[float] = (),
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Continue training in place on new crystals, mixed with a replay of old ones; return metrics by name.

        Without ``replay_structures`` the generator replays the training crystals it carries.

        Raises
        ------
        RuntimeError
            If the generator was not fitted before.
        """
        ...

    def sample(self, n: int, condition: Condition, *, seed: int = 0, progress: Progress | None = None) -> list[Sample]:
        """Return ``n`` crystals that pass the generator's own checks, fewer only if draws run out.

        Raises
        ------
        RuntimeError
            If the generator was not fitted before.
        ValueError
            If the condition targets an unknown property or leaves no element.
        """
        ...

    def to_bytes(self) -> bytes:
        """Return the fitted generator as one :func:`inv_design.weights.pack` blob."""
        ...

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the generator of a blob written by :meth:`to_bytes`."""
        ...

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_bytes` to a file."""
        ...

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file written by :meth:`save`."""
        ...

    def capabilities(self) -> Capabilities:
        """Return what this generator can do."""
        ...


class SavedAsBytes:
    """``save`` and ``load`` for generators that have ``to_bytes`` and ``from_bytes``."""

    def to_bytes(self) -> bytes:
        """Return the generator as one blob."""
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the generator of a blob."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the generator to a file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a generator from a file."""
        return cls.from_bytes(Path(path).read_bytes())
