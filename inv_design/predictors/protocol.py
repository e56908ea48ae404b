"""What a predictor is: fitted on labelled crystals, it returns a value and an uncertainty for each new one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pymatgen.core import Structure

    from inv_design.predictors.target import Target

    Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Prediction:
    """Predicted values of one property for ``n`` crystals, in the order they were given.

    Attributes
    ----------
    values
        Predicted values (n,) in ``unit``; NaN where a crystal could not be predicted.
    std
        One standard deviation (n,) in ``unit``, calibrated so that about 68 % of true values lie within it; or NaN.
    unit, property
        Such as ``"GPa"`` and ``"bulk_modulus_vrh"``.
    errors
        One line per crystal that says why it could not be predicted, ``None`` where it could.
    """

    values: np.ndarray
    std: np.ndarray
    unit: str
    property: str
    errors: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.errors:
            object.__setattr__(self, "errors", [None] * len(self.values))
        if not len(self.values) == len(self.std) == len(self.errors):
            raise ValueError(
                f"{len(self.values)} values, {len(self.std)} std and {len(self.errors)} errors; give equal numbers"
            )

    def __len__(self) -> int:
        return len(self.values)


@runtime_checkable
class Predictor(Protocol):
    """A model of one scalar property of a crystal."""

    name: str
    property: str
    unit: str

    def fit(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        groups: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        warm_start: Predictor | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Train on ``values`` (n,) in ``unit`` and return metrics such as ``mae_log10`` on held-out groups.

        Parameters
        ----------
        structures, values
            The training set; every value finite, and positive if the property is learned on the log scale.
        groups
            Names (n,) that keep likely duplicates on one side of the hold-out split; the chemical systems by default.
        weights
            Relative weights (n,) of the labels, 1 by default.
        seed
            The result is reproducible from it, on one thread.
        warm_start
            A fitted predictor of the same kind and shape whose weights are continued.
        progress
            Called with (steps done, steps in all, one-line message).

        Raises
        ------
        ValueError
            If a value cannot be learned, a crystal has no graph, or the lengths differ; it names the index.
        """
        ...

    def predict(self, structures: Sequence[Structure]) -> Prediction:
        """Return the prediction for each crystal, in order; a crystal that fails becomes NaN with its error."""
        ...

    def to_bytes(self) -> bytes:
        """Return the model as a blob of :func:`inv_design.weights.pack`, configuration and metrics included."""
        ...

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the model of a blob written by :meth:`to_bytes`."""
        ...


def check_training_set(
    structures: Sequence[Structure],
    values: Sequence[float],
    groups: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    *,
    target: Target,
) -> tuple[Target, np.ndarray, list[str], np.ndarray]:
    """Return (target, its scale decided; values (n,); groups (n); weights (n,) of mean 1), or say which entry is unfit.

    Raises
    ------
    ValueError
        If lengths differ, the set has fewer than two crystals, or a value or weight is not usable; it names the index.
    """
    labels = np.asarray(values, dtype=float)
    scale = np.ones(len(structures)) if weights is None else np.asarray(weights, dtype=float)
    names = [s.chemical_system for s in structures] if groups is None else [str(g) for g in groups]
    for label, length in (("values", len(labels)), ("groups", len(names)), ("weights", len(scale))):
        if length != len(structures):
            raise ValueError(f"{length} {label} for {len(structures)} structures; give one for each")
    if len(structures) < 2:
        raise ValueError(f"{len(structures)} structures cannot train a predictor; give at least 2")
    target = target.resolved(labels)
    target.check(labels)
    bad = np.flatnonzero(~(np.isfinite(scale) & (scale >= 0)))
    if bad.size:
        raise ValueError(f"weight {scale[bad[0]]!r} at index {bad[0]} is negative or not finite; give a number >= 0")
    if scale.sum() <= 0:
        raise ValueError(f"all {len(scale)} weights are 0; give at least one positive weight")
    return target, labels, names, scale / scale.mean()
