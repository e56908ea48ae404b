"""A committee of crystal graph networks: their mean is the value, their calibrated spread the uncertainty."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from inv_design.predictors import calibration
from inv_design.predictors.cgcnn import CGCNN, CGCNNConfig, PackedGraphs
from inv_design.predictors.element_properties import MAX_Z
from inv_design.predictors.folds import held_out
from inv_design.predictors.graph import CrystalGraph, build_graph
from inv_design.predictors.protocol import UNITS, Prediction, check_training_set
from inv_design.predictors.training import TrainingConfig, reproducible, train_network
from inv_design.weights import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

    from inv_design.predictors.protocol import Predictor, Progress

DEFAULT_SCALE = 2.0  # used where too few crystals are held out; close to what cross-validation gives on the alloys
PREDICT_BATCH = 128
SEED_STRIDE = 1000


class CGCNNEnsemble:
    """Predicts the logarithm of a positive property by ``committee`` networks that differ in their seeds.

    Parameters
    ----------
    property
        Such as ``"bulk_modulus_vrh"``.
    committee
        Number of networks.
    holdout
        Fraction of the groups kept out of training to measure the error and to calibrate the uncertainty; 0 trains on
        everything and takes ``scale`` on trust.
    floor, scale
        The uncertainty in log10 is ``scale * sqrt(spread^2 + floor^2)``; ``scale`` is fitted on the held-out groups.
    settings
        Fields of :class:`CGCNNConfig` and :class:`TrainingConfig`.
    """

    name = "cgcnn"

    def __init__(
        self,
        property: str = "bulk_modulus_vrh",
        *,
        committee: int = 4,
        holdout: float = 0.1,
        floor: float = 0.01,
        scale: float = DEFAULT_SCALE,
        **settings: Any,
    ) -> None:
        if committee < 1 or not 0.0 <= holdout < 1.0:
            raise ValueError(
                f"committee={committee!r}, holdout={holdout!r}: give a committee >= 1 and 0 <= holdout < 1"
            )
        network_names = {f.name for f in fields(CGCNNConfig)}
        training_names = {f.name for f in fields(TrainingConfig)}
        unknown = sorted(set(settings) - network_names - training_names)
        if unknown:
            choices = ", ".join(sorted(network_names | training_names | {"committee", "holdout", "floor", "scale"}))
            raise ValueError(f"unknown setting {unknown[0]!r} of the cgcnn predictor; choose from {choices}")
        self.property = property
        self.unit = UNITS.get(property, "")
        self.committee = committee
        self.holdout = holdout
        self.floor = floor
        self.scale = scale
        self._shape = {k: v for k, v in settings.items() if k in network_names}  # what a warm start must agree with
        self.network = CGCNNConfig(**self._shape)
        self.training = TrainingConfig(**{k: v for k, v in settings.items() if k in training_names})
        self.mean, self.deviation = 0.0, 1.0  # of log10 of the training values
        self.members: list[CGCNN] = []
        self.metrics: dict[str, float] = {}
        self.held_out_fraction = holdout  # 0 once continued from a model that held out less

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
        """Train the committee; see :meth:`Predictor.fit`.

        ``warm_start`` continues a fitted committee: pass the old data along with the new, at a reduced learning rate it
        is the replay that keeps the networks from forgetting. Its networks' shape and its scaling of the target are
        kept; a larger committee continues some networks twice, in another order of the data. A model that was trained
        on everything has seen what would be held out, and errors on it would be too good to be true: then nothing is
        held out, every label trains, and its uncertainty scale is kept.

        Returns
        -------
        dict
            ``n_train``, ``train_mae_log10``, ``std_scale`` and, for held-out groups, ``n_holdout``, ``mae_log10`` and
            ``rmse_log10``.
        """
        target, names, scales = check_training_set(structures, values, groups, weights)
        previous = self._check_warm_start(warm_start)
        graphs = self._graphs_or_raise(structures)
        logs = np.log10(target)
        self.held_out_fraction = self.holdout
        if previous is not None and previous.held_out_fraction < self.holdout:
            self.held_out_fraction = 0.0
        test = held_out(names, self.held_out_fraction)
        train = np.flatnonzero(~test)
        if previous is None:
            self.mean, self.deviation = float(logs[train].mean()), float(max(logs[train].std(), 1e-3))
        else:
            self.mean, self.deviation = previous.mean, previous.deviation
        packed = PackedGraphs([graphs[i] for i in train])
        standard = torch.tensor((logs[train] - self.mean) / self.deviation, dtype=torch.float32)
        batch_weights = torch.tensor(scales[train], dtype=torch.float32)
        members = []
        for number in range(self.committee):
            members.append(
                train_network(
                    packed,
                    standard,
                    batch_weights,
                    network=self.network,
                    training=self.training,
                    seed=SEED_STRIDE * seed + number,
                    start=None if previous is None else previous.members[number % previous.committee],
                    on_epoch=self._reporter(progress, number),
                )
            )
        self.members = members
        self.metrics = self._measure(graphs, logs, test, previous)
        return dict(self.metrics)

    def predict(self, structures: Sequence[Structure]) -> Prediction:
        """Return the prediction for each crystal; see :meth:`Predictor.predict`.

        Raises
        ------
        RuntimeError
            If the committee is not fitted.
        """
        values = np.full(len(structures), np.nan)
        std = np.full(len(structures), np.nan)
        errors: list[str | None] = [None] * len(structures)
        graphs: list[CrystalGraph] = []
        rows: list[int] = []
        for row, structure in enumerate(structures):
            try:
                graphs.append(self._graph(structure))
                rows.append(row)
            except (ValueError, AttributeError, TypeError) as error:
                errors[row] = str(error).splitlines()[0] if str(error) else type(error).__name__
        members = self.predict_members(graphs)
        values[rows] = 10.0 ** members.mean(axis=0)
        std[rows] = calibration.half_width(members.mean(axis=0), self.scale * calibration.spread(members, self.floor))
        return Prediction(values=values, std=std, unit=self.unit, property=self.property, errors=errors)

    @torch.no_grad()
    def predict_members(self, graphs: Sequence[CrystalGraph]) -> np.ndarray:
        """Return log10 of the property by each member (committee, n) for graphs of :func:`build_graph`."""
        if not self.members:
            raise RuntimeError("the cgcnn predictor is not fitted; call fit, or load a model file")
        if not graphs:
            return np.empty((self.committee, 0))
        packed = PackedGraphs(graphs)
        # crystals of like size share a batch, and small batches stay in the processor's cache
        order = torch.argsort(packed.sizes, stable=True)
        result = np.empty((self.committee, len(graphs)))
        with reproducible(0):
            for index in order.split(PREDICT_BATCH):
                batch = packed.batch(index)
                for number, member in enumerate(self.members):
                    result[number, index.numpy()] = member(batch).numpy()
        return result * self.deviation + self.mean

    def to_bytes(self) -> bytes:
        """Return the committee as one safetensors blob with its configuration and metrics.

        Raises
        ------
        RuntimeError
            If the committee is not fitted.
        """
        if not self.members:
            raise RuntimeError("the cgcnn predictor is not fitted; there are no weights to write")
        tensors = {
            f"members.{number}.{name}": tensor.detach().numpy()
            for number, member in enumerate(self.members)
            for name, tensor in member.state_dict().items()
        }
        return pack(tensors, self._config())

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the committee of a blob written by :meth:`to_bytes`.

        Raises
        ------
        ValueError
            If the blob is of another kind or its tensors do not fit its configuration.
        """
        tensors, config = unpack(blob)
        if config.get("kind") != cls.name:
            raise ValueError(f"a model file of kind {config.get('kind')!r}, expected {cls.name!r}; use load_predictor")
        try:
            predictor = cls(config["property"], **config["settings"])
            predictor.unit = config["unit"]
            predictor.mean, predictor.deviation = config["mean"], config["deviation"]
            predictor.metrics = dict(config["metrics"])
            predictor.held_out_fraction = config["held_out_fraction"]
            for number in range(predictor.committee):
                prefix = f"members.{number}."
                state = {n[len(prefix) :]: torch.tensor(t) for n, t in tensors.items() if n.startswith(prefix)}
                member = CGCNN(predictor.network)
                member.load_state_dict(state)
                predictor.members.append(member.eval())
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).replace("\n", " ")
            raise ValueError(f"the cgcnn model file does not fit its configuration: {reason}") from error
        return predictor

    @property
    def settings(self) -> dict[str, Any]:
        """All settings, such that ``make_predictor("cgcnn", **settings)`` makes an unfitted copy."""
        committee = {name: getattr(self, name) for name in ("committee", "holdout", "floor", "scale")}
        return {**committee, **asdict(self.network), **asdict(self.training)}

    def _config(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "property": self.property,
            "unit": self.unit,
            "settings": self.settings,
            "mean": self.mean,
            "deviation": self.deviation,
            "held_out_fraction": self.held_out_fraction,
            "metrics": self.metrics,
        }

    def _graph(self, structure: Structure) -> CrystalGraph:
        graph = build_graph(structure, neighbours=self.network.neighbours, radius=self.network.radius)
        if graph.numbers.max() > MAX_Z:
            raise ValueError(f"atomic number {graph.numbers.max()} is beyond {MAX_Z}; leave that element out")
        return graph

    def _graphs_or_raise(self, structures: Sequence[Structure]) -> list[CrystalGraph]:
        graphs = []
        for index, structure in enumerate(structures):
            try:
                graphs.append(self._graph(structure))
            except ValueError as error:
                raise ValueError(f"the structure at index {index} has no graph: {error}") from error
        return graphs

    def _check_warm_start(self, warm_start: Predictor | None) -> CGCNNEnsemble | None:
        if warm_start is None:
            return None
        if not isinstance(warm_start, CGCNNEnsemble) or not warm_start.members:
            raise ValueError(f"cannot continue from {warm_start!r}; give a fitted cgcnn predictor")
        wrong = [name for name, value in self._shape.items() if getattr(warm_start.network, name) != value]
        if wrong:
            kept = getattr(warm_start.network, wrong[0])
            raise ValueError(
                f"{wrong[0]}={self._shape[wrong[0]]!r} cannot continue networks of {wrong[0]}={kept!r}; "
                "leave it out or train without warm_start"
            )
        self.network = warm_start.network
        return warm_start

    def _reporter(self, progress: Progress | None, number: int) -> Any:
        if progress is None:
            return None

        def report(epoch: int, epochs: int, loss: float) -> None:
            message = f"network {number + 1}/{self.committee} epoch {epoch}/{epochs} error {loss * self.deviation:.4f}"
            progress(number * epochs + epoch, self.committee * epochs, f"{message} log10({self.unit})")

        return report

    def _measure(
        self, graphs: list[CrystalGraph], logs: np.ndarray, test: np.ndarray, previous: CGCNNEnsemble | None
    ) -> dict[str, float]:
        """Measure the error, fit the scale of the uncertainty on held-out crystals, and return the metrics."""
        members = self.predict_members(graphs)
        errors = members.mean(axis=0) - logs
        metrics = {"n_train": float((~test).sum()), "train_mae_log10": float(np.abs(errors[~test]).mean())}
        if previous is not None:
            self.scale = previous.scale
        if test.any():
            raw = calibration.spread(members, self.floor)[test]
            if test.sum() >= calibration.ENOUGH:
                self.scale = calibration.scale_factor(errors[test], raw)
            metrics |= {
                "n_holdout": float(test.sum()),
                "mae_log10": float(np.abs(errors[test]).mean()),
                "rmse_log10": float(np.sqrt((errors[test] ** 2).mean())),
            }
        metrics["std_scale"] = self.scale
        return metrics
