"""A potential's modulus as one more input: what a committee and an MLIP say together is better than either alone.

A committee knows composition and geometry from labels, a universal potential knows energies of millions of other
crystals; their errors are nearly independent. This is stacked generalisation (Wolpert, Neural Netw. 5, 241 (1992)) with
a linear second level. It costs what the potential costs, seconds per crystal, and belongs after a relaxation.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from inv_design.predictors import calibration
from inv_design.predictors.element_properties import MAX_Z
from inv_design.predictors.folds import grouped_folds
from inv_design.predictors.protocol import Prediction
from inv_design.predictors.target import Target
from inv_design.predictors.validation import TENSOR, Validation
from inv_design.weights import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Composition

DISAGREEMENT = 0.5  # in log10: what a potential says beyond a factor of three of the committee is not believed
COMPOSITION_WEIGHTS = (0.0, 0.3, 1.0)  # of the element fractions against the other inputs; 0 leaves them out
HUBER = 1.35  # the usual choice: 95 % as efficient as least squares if the errors are normal
PENALTIES = (0.01, 0.1, 1.0)
INNER_FOLDS = 5


class StackedPredictor:
    """Predicts a modulus from a committee's value, a potential's modulus, the volume and the composition.

    The linear model corrects the committee: its target is log10 of the label over the committee's value, its inputs are
    the disagreement between potential and committee, the committee's value, the volume, the potential's modulus times
    the logarithm of the volume, and the element fractions. The loss is Huber's, because both parents have outliers.

    Parameters
    ----------
    property
        A property that is learned on the log scale.
    mlip
        Name of the potential whose moduli are the input, for the record; another potential needs another fit.
    floor, scale
        The uncertainty in log10 is ``scale * sqrt(committee std^2 + (disagreement / 4)^2 + floor^2)``; ``scale`` is
        fitted on out-of-fold errors.
    """

    name = "stacked"

    def __init__(
        self,
        property: str | Target = "bulk_modulus_vrh",
        *,
        mlip: str = "",
        floor: float = 0.01,
        scale: float = 1.0,
    ) -> None:
        target = property if isinstance(property, Target) else Target.of(property)
        self.target = target if target.scale else replace(target, scale="log")
        if not self.target.logarithmic:
            raise ValueError(f"{self.target.property} is not learned on the log scale; only moduli can be stacked")
        self.property, self.unit = self.target.property, self.target.unit
        self.mlip = mlip
        self.floor = floor
        self.scale = scale
        self.coefficients: np.ndarray | None = None  # of the inputs, and the intercept
        self.composition_weight, self.penalty = 0.0, 0.0  # chosen by the fit
        self.metrics: dict[str, Any] = {}
        self.validation: Validation | None = None

    def fit(
        self,
        committee_log_k: Sequence[float] | np.ndarray,
        mlip_moduli: Sequence[float] | np.ndarray,
        volumes: Sequence[float] | np.ndarray,
        compositions: Sequence[Composition],
        values: Sequence[float] | np.ndarray,
        *,
        groups: Sequence[str] | None = None,
        committee_std: Sequence[float] | np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Fit the correction and return ``mae_log10`` over grouped folds beside the parents' own.

        Parameters
        ----------
        committee_log_k, committee_std
            log10 of the committee's value (n,) and its standard deviation (n,) in log10, both *out of fold*: by a
            committee that was not trained on the crystal's group, such as ``default_predictor().validation``. Values of
            a committee for its own training crystals would be trusted far too much.
        mlip_moduli, volumes
            The potential's modulus (n,) in GPa and volume (n,) in Å^3 per atom at its own minimum. Crystals without a
            positive finite modulus are left out. The potential must not have been trained on the labels either.
        compositions
            Of the crystals (n,).
        values
            Labels (n,) in GPa.
        groups
            Names (n,) that keep likely duplicates in one fold; the chemical systems by default.

        Raises
        ------
        ValueError
            If lengths differ, a label is not positive and finite, or fewer than 20 crystals in 5 groups are usable.
        """
        labels = np.asarray(values, dtype=float)
        names = np.array([c.chemical_system for c in compositions] if groups is None else list(groups), dtype=str)
        if not len(labels) == len(names) == len(committee_log_k):
            raise ValueError(f"{len(labels)} values and {len(names)} groups for {len(committee_log_k)} crystals")
        self.target.check(labels)
        core, fractions, spreads, usable = self._inputs(
            committee_log_k, mlip_moduli, volumes, compositions, committee_std
        )
        rows = np.flatnonzero(usable)
        if len(rows) < calibration.ENOUGH or len(set(names[rows])) < INNER_FOLDS:
            raise ValueError(
                f"{len(rows)} crystals of {len(set(names[rows]))} groups have a modulus of the potential; "
                f"give at least {calibration.ENOUGH} crystals of {INNER_FOLDS} groups"
            )
        core, fractions, spreads, labels = core[rows], fractions[rows], spreads[rows], labels[rows]
        committee = core[:, 1]
        residuals = np.log10(labels) - committee
        folds = grouped_folds(names[rows].tolist(), INNER_FOLDS)

        def out_of_fold(weight: float, penalty: float) -> np.ndarray:
            inputs, found = _columns(core, fractions, weight), np.empty(len(rows))
            for train, test in folds:
                coefficients = _huber(inputs[train], residuals[train], penalty)
                found[test] = inputs[test] @ coefficients[:-1] + coefficients[-1]
            return found

        corrections = {choice: out_of_fold(*choice) for choice in product(COMPOSITION_WEIGHTS, PENALTIES)}
        errors = {choice: float(np.abs(found - residuals).mean()) for choice, found in corrections.items()}
        best = min(errors, key=lambda choice: errors[choice])
        self.composition_weight, self.penalty = best
        self.coefficients = _huber(_columns(core, fractions, self.composition_weight), residuals, self.penalty)
        stacked = committee + corrections[best]
        self.validation = Validation.of(
            self.target,
            labels,
            stacked,
            spreads,
            parts=[test for _, test in folds],
            scale=self.scale,
            origin=f"{INNER_FOLDS} folds, groups kept together",
        )
        self.scale = calibration.scale_factor(stacked - np.log10(labels), spreads)
        self.metrics = {
            "n_train": float(len(rows)),
            "std_scale": self.scale,
            "composition_weight": self.composition_weight,
            "penalty": self.penalty,
            "committee_mae_log10": float(np.abs(residuals).mean()),
            "mlip_mae_log10": float(np.abs(np.log10(np.asarray(mlip_moduli, dtype=float)[rows] / labels)).mean()),
            **self.validation.metrics(),
        }
        return dict(self.metrics)

    def predict(
        self,
        committee_log_k: Sequence[float] | np.ndarray,
        mlip_moduli: Sequence[float] | np.ndarray,
        volumes: Sequence[float] | np.ndarray,
        compositions: Sequence[Composition],
        *,
        committee_std: Sequence[float] | np.ndarray | None = None,
    ) -> Prediction:
        """Return the corrected predictions; parameters as in :meth:`fit`.

        A crystal without a usable modulus of the potential becomes NaN with its error: the committee's own prediction
        is another record, by another model.

        Raises
        ------
        RuntimeError
            If the predictor is not fitted.
        ValueError
            If lengths differ.
        """
        if self.coefficients is None:
            raise RuntimeError("the stacked predictor is not fitted; call fit, or load a model file")
        core, fractions, spreads, usable = self._inputs(
            committee_log_k, mlip_moduli, volumes, compositions, committee_std
        )
        inputs = _columns(core, fractions, self.composition_weight)
        encoded = core[:, 1] + inputs @ self.coefficients[:-1] + self.coefficients[-1]
        values = np.where(usable, self.target.decode(encoded), np.nan)
        std = np.where(usable, self.target.deviation(encoded, self.scale * spreads), np.nan)
        errors = [
            None if good else f"committee {10.0**c:.4g} GPa, potential {k!r} GPa, volume {v!r} Å^3: not all positive"
            for good, c, k, v in zip(usable, committee_log_k, mlip_moduli, volumes, strict=True)
        ]
        return Prediction(values=values, std=std, unit=self.unit, property=self.property, errors=errors)

    def to_bytes(self) -> bytes:
        """Return the model as one safetensors blob with its configuration, metrics and validation.

        Raises
        ------
        RuntimeError
            If the predictor is not fitted.
        """
        if self.coefficients is None or self.validation is None:
            raise RuntimeError("the stacked predictor is not fitted; there is nothing to write")
        config = {
            "kind": self.name,
            "property": self.property,
            "unit": self.unit,
            "target": self.target.as_config(),
            "settings": {"mlip": self.mlip, "floor": self.floor, "scale": self.scale},
            "composition_weight": self.composition_weight,
            "penalty": self.penalty,
            "metrics": self.metrics,
            "validation": {"origin": self.validation.origin},
        }
        return pack({"coefficients": self.coefficients, TENSOR: self.validation.as_tensor()}, config)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the model of a blob written by :meth:`to_bytes`.

        Raises
        ------
        ValueError
            If the blob is of another kind or damaged.
        """
        tensors, config = unpack(blob)
        if config.get("kind") != cls.name:
            raise ValueError(f"a model file of kind {config.get('kind')!r}, not {cls.name!r}: another predictor's")
        try:
            predictor = cls(Target.from_config(config), **config["settings"])
            predictor.coefficients = tensors["coefficients"]
            predictor.composition_weight, predictor.penalty = config["composition_weight"], config["penalty"]
            predictor.metrics = dict(config["metrics"])
            predictor.validation = Validation.from_file(tensors, config, predictor.target)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the stacked model file does not fit its configuration: {error}") from error
        return predictor

    def _inputs(
        self,
        committee_log_k: Sequence[float] | np.ndarray,
        mlip_moduli: Sequence[float] | np.ndarray,
        volumes: Sequence[float] | np.ndarray,
        compositions: Sequence[Composition],
        committee_std: Sequence[float] | np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return (core inputs (n, 4), element fractions (n, 101), raw uncertainty (n,), usable (n,))."""
        committee = np.asarray(committee_log_k, dtype=float)
        potential, volume = np.asarray(mlip_moduli, dtype=float), np.asarray(volumes, dtype=float)
        own = np.zeros(len(committee)) if committee_std is None else np.asarray(committee_std, dtype=float)
        lengths = {len(committee), len(potential), len(volume), len(compositions), len(own)}
        if len(lengths) != 1:
            raise ValueError(
                f"{len(committee)} committee values, {len(own)} std, {len(potential)} moduli of the potential, "
                f"{len(volume)} volumes and {len(compositions)} compositions; give equal numbers"
            )
        usable = np.isfinite(committee) & np.isfinite(own)
        usable &= np.isfinite(potential) & (potential > 0) & np.isfinite(volume) & (volume > 0)
        committee, own = np.where(usable, committee, 0.0), np.where(usable, own, 0.0)
        log_potential = np.log10(np.where(usable, potential, 1.0))
        log_volume = np.log(np.where(usable, volume, 1.0))
        disagreement = np.clip(log_potential - committee, -DISAGREEMENT, DISAGREEMENT)
        core = np.stack([disagreement, committee, log_volume, log_potential * log_volume], axis=1)
        spreads = np.sqrt(own**2 + (disagreement / 4.0) ** 2 + self.floor**2)
        return core, _fractions(compositions), spreads, usable


def _fractions(compositions: Sequence[Composition]) -> np.ndarray:
    """Return element fractions (n, 101) by atomic number."""
    fractions = np.zeros((len(compositions), MAX_Z + 1))
    for row, composition in enumerate(compositions):
        for element, amount in composition.fractional_composition.items():
            fractions[row, min(element.Z, MAX_Z)] += amount
    return fractions


def _columns(core: np.ndarray, fractions: np.ndarray, weight: float) -> np.ndarray:
    """Return the inputs (n, 4 + 101) of the linear model; the penalty acts on the weighted columns."""
    return np.hstack([core, weight * fractions])


def _huber(inputs: np.ndarray, residuals: np.ndarray, penalty: float) -> np.ndarray:
    """Return coefficients (f + 1), the intercept last, of Huber regression (Huber, Ann. Math. Stat. 35, 73 (1964)).

    The columns are centred and the residuals scaled to a mean size of 1, which makes the optimiser quick.
    """
    from sklearn.linear_model import HuberRegressor

    present = inputs.std(axis=0) > 0
    centre, unit = inputs[:, present].mean(axis=0), max(float(np.abs(residuals).mean()), 1e-6)
    model = HuberRegressor(epsilon=HUBER, alpha=penalty, max_iter=500, tol=1e-4)
    model.fit(inputs[:, present] - centre, residuals / unit)
    coefficients = np.zeros(inputs.shape[1] + 1)
    coefficients[:-1][present] = unit * model.coef_
    coefficients[-1] = unit * (model.intercept_ - model.coef_ @ centre)
    return coefficients
