"""Tree ensembles on composition, volume and density: the baselines, stored as plain arrays instead of pickles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from inv_design.predictors import calibration
from inv_design.predictors.descriptors import descriptor_names, descriptors
from inv_design.predictors.folds import held_out
from inv_design.predictors.protocol import UNITS, Prediction, check_training_set
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
    """Predicts the logarithm of a positive property by the mean over trees; their spread is the uncertainty.

    Parameters
    ----------
    property
        Such as ``"bulk_modulus_vrh"``.
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
        property: str = "bulk_modulus_vrh",
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
        self.property = property
        self.unit = UNITS.get(property, "")
        self.settings: dict[str, Any] = {
            "trees": trees,
            "max_features": max_features,
            "min_samples_leaf": min_samples_leaf,
            "holdout": holdout,
            "floor": floor,
        }
        self.scale = scale
        self.forest: TreeArrays | None = None
        self.metrics: dict[str, float] = {}

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
    ) -> dict[str, float]:
        """Grow the trees; see :meth:`Predictor.fit`.

        ``warm_start`` must be of the same kind; it changes nothing, because trees are grown anew in seconds.
        """
        if warm_start is not None and not isinstance(warm_start, type(self)):
            raise ValueError(f"cannot continue from {warm_start!r}; give a {self.name} predictor")
        target, names, scales = check_training_set(structures, values, groups, weights)
        features, logs = descriptors(structures), np.log10(target)
        test = held_out(names, float(self.settings["holdout"]))
        model = self._estimator(seed)
        model.fit(features[~test], logs[~test], sample_weight=scales[~test])
        self.forest = TreeArrays.from_sklearn(model.estimators_)
        if progress is not None:
            progress(1, 1, f"{self.settings['trees']} trees grown on {int((~test).sum())} crystals")
        self.metrics = self._measure(features[test], logs[test]) | {"n_train": float((~test).sum())}
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
        values[rows] = 10.0**mean
        std[rows] = calibration.half_width(mean, self.scale * calibration.spread(trees, self.settings["floor"]))
        return Prediction(values=values, std=std, unit=self.unit, property=self.property, errors=errors)

    def predict_log10(self, features: np.ndarray) -> np.ndarray:
        """Return log10 of the property (n,) for descriptors (n, f), bit for bit what scikit-learn returns."""
        return self._mean(self._trees(features))

    def to_bytes(self) -> bytes:
        """Return the trees as one safetensors blob with their configuration and metrics.

        Raises
        ------
        RuntimeError
            If the trees are not grown.
        """
        if self.forest is None:
            raise RuntimeError(f"the {self.name} predictor is not fitted; there is nothing to write")
        config = {
            "kind": self.name,
            "property": self.property,
            "unit": self.unit,
            "settings": {**self.settings, "scale": self.scale},
            "descriptors": descriptor_names(),
            "metrics": self.metrics,
        }
        return pack(self.forest.arrays, config)

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
            predictor = cls(config["property"], **config["settings"])
            predictor.unit, predictor.metrics = config["unit"], dict(config["metrics"])
            predictor.forest = TreeArrays(arrays)
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

    def _measure(self, features: np.ndarray, logs: np.ndarray) -> dict[str, float]:
        if not len(logs):
            return {"std_scale": self.scale}
        trees = self._trees(features)
        errors = self._mean(trees) - logs
        if len(logs) >= calibration.ENOUGH:
            self.scale = calibration.scale_factor(errors, calibration.spread(trees, self.settings["floor"]))
        return {
            "n_holdout": float(len(logs)),
            "mae_log10": float(np.abs(errors).mean()),
            "rmse_log10": float(np.sqrt((errors**2).mean())),
            "std_scale": self.scale,
        }


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
