"""Tree ensembles on composition, volume and density: the baselines, stored as plain arrays instead of pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from inv_design.predictors import calibration
from inv_design.predictors.descriptors import descriptor_names, descriptors
from inv_design.predictors.folds import held_out, held_out_parts
from inv_design.predictors.protocol import Prediction, check_training_set
from inv_design.predictors.target import Target
from inv_design.predictors.validation import TENSOR, Validation
from inv_design.weights import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

    from inv_design.predictors.protocol import Predictor, Progress

DEFAULT_SCALE = 1.0


class TreeArrays:
    """Regression trees in flat arrays; node 0 of each tree is at ``roots``, and a leaf is its own child."""

    FIELDS = ("roots", "left", "right", "feature", "threshold", "value")

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = {name: arrays[name] for name in self.FIELDS}
        size = len(self.arrays["left"])
        if any(len(self.arrays[name]) != size for name in self.FIELDS[1:]):
            raise ValueError(f"tree arrays of {size} nodes differ in length; the model file is damaged")
        links = np.concatenate([self.arrays[name] for name in ("roots", "left", "right")])
        if links.size == 0 or links.min() < 0 or links.max() >= size:
            raise ValueError(f"tree arrays of {size} nodes point outside themselves; the model file is damaged")

    @classmethod
    def from_sklearn(cls, estimators: Sequence[Any]) -> Self:
        """Return the arrays of fitted scikit-learn ``DecisionTreeRegressor`` objects."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in cls.FIELDS}
        start = 0
        for estimator in estimators:
            tree = estimator.tree_
            own = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            parts["roots"].append(np.array([start]))
            parts["left"].append(np.where(leaf, own, tree.children_left) + start)
            parts["right"].append(np.where(leaf, own, tree.children_right) + start)
            parts["feature"].append(np.where(leaf, 0, tree.feature))
            parts["threshold"].append(tree.threshold)
            parts["value"].append(tree.value[:, 0, 0])
            start += tree.node_count
        kinds = {"roots": "i4", "left": "i4", "right": "i4", "feature": "i2", "threshold": "f8", "value": "f8"}
        return cls({name: np.concatenate(parts[name]).astype(kinds[name]) for name in cls.FIELDS})

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the value of every tree (trees, n) for ``features`` (n, f).

        Features are compared in single precision, as scikit-learn does, so that the leaves are the same.
        """
        x = np.asarray(features, dtype=np.float32)
        a = self.arrays
        columns = np.arange(len(x))[None, :]
        node = np.repeat(a["roots"][:, None], len(x), axis=1)
        while True:
            go_left = x[columns, a["feature"][node]] <= a["threshold"][node]
            following = np.where(go_left, a["left"][node], a["right"][node])
            if np.array_equal(following, node):
                return a["value"][node]
            node = following


class TreeEnsemble:
    """Predicts a scalar property by the mean over trees; their spread is the uncertainty.

    Parameters
    ----------
    property
        Such as ``"bulk_modulus_vrh"``, or a :class:`Target` that also says its unit, scale and bounds.
    trees
        Number of trees.
    max_features
        Fraction of the descriptors tried at each split.
    min_samples_leaf
        Fewest crystals in a leaf.
    holdout, floor, scale
        As in :class:`inv_design.predictors.ensemble.CGCNNEnsemble`.
    """

    name: ClassVar[str]

    def __init__(
        self,
        property: str | Target = "bulk_modulus_vrh",
        *,
        trees: int = 200,
        max_features: float = 0.5,
        min_samples_leaf: int = 1,
        holdout: float = 0.1,
        floor: float = 0.01,
        scale: float = DEFAULT_SCALE,
    ) -> None:
        if trees < 1 or not 0.0 <= holdout < 1.0:
            raise ValueError(f"trees={trees!r}, holdout={holdout!r}: give trees >= 1 and 0 <= holdout < 1")
        self.target = property if isinstance(property, Target) else Target.of(property)
        self.property, self.unit = self.target.property, self.target.unit
        self.settings: dict[str, Any] = {
            "trees": trees,
            "max_features": max_features,
            "min_samples_leaf": min_samples_leaf,
            "holdout": holdout,
            "floor": floor,
        }
        self.scale = scale
        self.forest: TreeArrays | None = None
        self.deviation = 1.0  # of the training labels, on the scale of the target
        self.metrics: dict[str, Any] = {}
        self.validation: Validation | None = None

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
        """Grow the trees; see :meth:`Predictor.fit`.

        ``warm_start`` must be of the same kind; it changes nothing, because trees are grown anew in seconds.
        """
        if warm_start is not None and not isinstance(warm_start, type(self)):
            raise ValueError(f"cannot continue from {warm_start!r}; give a {self.name} predictor")
        self.target, labels, names, scales = check_training_set(structures, values, groups, weights, target=self.target)
        features, encoded = descriptors(structures), self.target.encode(labels)
        test = held_out(names, float(self.settings["holdout"]))
        model = self._estimator(seed)
        model.fit(features[~test], encoded[~test], sample_weight=scales[~test])
        self.deviation = float(encoded[~test].std()) or 1.0
        self.forest = TreeArrays.from_sklearn(model.estimators_)
        if progress is not None:
            progress(1, 1, f"{self.settings['trees']} trees grown on {int((~test).sum())} crystals")
        self._measure(features[test], labels[test], [name for name, out in zip(names, test, strict=True) if out])
        self.metrics["n_train"] = float((~test).sum())
        return dict(self.metrics)

    def predict(self, structures: Sequence[Structure]) -> Prediction:
        """Return the prediction for each crystal; see :meth:`Predictor.predict`.

        Raises
        ------
        RuntimeError
            If the trees are not grown.
        """
        values = np.full(len(structures), np.nan)
        std = np.full(len(structures), np.nan)
        errors: list[str | None] = [None] * len(structures)
        rows, kept = [], []
        for row, structure in enumerate(structures):
            try:
                kept.append(descriptors([structure])[0])
                rows.append(row)
            except (ValueError, AttributeError, TypeError) as error:
                errors[row] = str(error).removeprefix("the structure at index 0 has no descriptors: ")
        trees = self._trees(np.array(kept).reshape(len(kept), len(descriptor_names())))
        mean = self._mean(trees)
        values[rows] = self.target.decode(mean)
        std[rows] = self.target.deviation(mean, self.scale * self.spread(trees))
        return Prediction(values=values, std=std, unit=self.unit, property=self.property, errors=errors)

    def spread(self, trees: np.ndarray) -> np.ndarray:
        """Return the raw uncertainty (n,) of the trees' learned numbers (trees, n), before its ``scale``."""
        unit = 1.0 if self.target.logarithmic else self.deviation
        return calibration.spread(trees, self.settings["floor"] * unit)

    def to_bytes(self) -> bytes:
        """Return the trees as one safetensors blob with their configuration and metrics.

        Raises
        ------
        RuntimeError
            If the trees are not grown.
        """
        if self.forest is None:
            raise RuntimeError(f"the {self.name} predictor is not fitted; there is nothing to write")
        config: dict[str, Any] = {
            "kind": self.name,
            "property": self.property,
            "unit": self.unit,
            "target": self.target.as_config(),
            "settings": {**self.settings, "scale": self.scale},
            "deviation": self.deviation,
            "descriptors": descriptor_names(),
            "metrics": self.metrics,
        }
        arrays = dict(self.forest.arrays)
        if self.validation is not None:
            arrays[TENSOR] = self.validation.as_tensor()
            config["validation"] = {"origin": self.validation.origin}
        return pack(arrays, config)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the trees of a blob written by :meth:`to_bytes`.

        Raises
        ------
        ValueError
            If the blob is of another kind, damaged, or made with other descriptors.
        """
        arrays, config = unpack(blob)
        if config.get("kind") != cls.name:
            raise ValueError(f"a model file of kind {config.get('kind')!r}, expected {cls.name!r}; use load_predictor")
        if config.get("descriptors") != descriptor_names():
            raise ValueError(f"the {cls.name} model file was made with other descriptors; train it again")
        try:
            predictor = cls(Target.from_config(config), **config["settings"])
            predictor.metrics = dict(config["metrics"])
            predictor.deviation = float(config.get("deviation", 1.0))
            predictor.forest = TreeArrays(arrays)
            predictor.validation = Validation.from_file(arrays, config, predictor.target)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the {cls.name} model file does not fit its configuration: {error}") from error
        return predictor

    def _estimator(self, seed: int) -> Any:
        raise NotImplementedError

    def _sklearn_settings(self, seed: int) -> dict[str, Any]:
        return {
            "n_estimators": self.settings["trees"],
            "max_features": self.settings["max_features"],
            "min_samples_leaf": self.settings["min_samples_leaf"],
            "random_state": seed,
            "n_jobs": 1,
        }

    def _trees(self, features: np.ndarray) -> np.ndarray:
        if self.forest is None:
            raise RuntimeError(f"the {self.name} predictor is not fitted; call fit, or load a model file")
        return self.forest.predict(features)

    @staticmethod
    def _mean(trees: np.ndarray) -> np.ndarray:
        """Return the mean (n,) over trees (t, n), summed in order as scikit-learn sums."""
        total = np.zeros(trees.shape[1])
        for tree in trees:
            total += tree
        return total / len(trees)

    def _measure(self, features: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
        """Measure the errors of held-out crystals, fit the scale of the uncertainty, keep metrics and validation."""
        self.metrics, self.validation = {}, None
        if len(labels):
            trees = self._trees(features)
            mean, raw = self._mean(trees), self.spread(trees)
            errors = mean - self.target.encode(labels)
            self.metrics |= {
                "n_holdout": float(len(labels)),
                self.target.metric("mae"): float(np.abs(errors).mean()),
                self.target.metric("rmse"): float(np.sqrt((errors**2).mean())),
            }
            if len(labels) >= calibration.ENOUGH:
                parts = held_out_parts(names)
                self.validation = Validation.of(
                    self.target, labels, mean, raw, parts=parts, scale=self.scale, origin="held-out groups"
                )
                self.metrics |= self.validation.metrics()
                self.scale = calibration.scale_factor(errors, raw)
        self.metrics["std_scale"] = self.scale


class ExtraTrees(TreeEnsemble):
    """Extremely randomised trees (Geurts, Ernst and Wehenkel, Mach. Learn. 63, 3 (2006))."""

    name = "extra_trees"

    def _estimator(self, seed: int) -> Any:
        from sklearn.ensemble import ExtraTreesRegressor

        return ExtraTreesRegressor(**self._sklearn_settings(seed))


class RandomForest(TreeEnsemble):
    """A random forest (Breiman, Mach. Learn. 45, 5 (2001))."""

    name = "forest"

    def _estimator(self, seed: int) -> Any:
        from sklearn.ensemble import RandomForestRegressor

        return RandomForestRegressor(**self._sklearn_settings(seed))
