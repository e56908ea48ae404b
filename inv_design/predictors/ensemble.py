"""A committee of crystal graph networks: their mean is the value, their calibrated spread the uncertainty."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from inv_design.checkpoint import Checkpoint, State, Within, load_tensors, named_arrays
from inv_design.predictors import calibration
from inv_design.predictors.cgcnn import CGCNN, CGCNNConfig, PackedGraphs
from inv_design.predictors.element_properties import MAX_Z
from inv_design.predictors.folds import held_out, held_out_parts
from inv_design.predictors.graph import CrystalGraph, build_graph
from inv_design.predictors.protocol import Prediction, check_training_set
from inv_design.predictors.target import Target
from inv_design.predictors.training import TrainingConfig, reproducible, train_network
from inv_design.predictors.validation import TENSOR, Validation
from inv_design.weights import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

    from inv_design.predictors.protocol import Predictor, Progress

DEFAULT_SCALE = 2.0  # used where too few crystals are held out; close to what cross-validation gives on the alloys
PREDICT_BATCH = 128
SEED_STRIDE = 1000


class CGCNNEnsemble:
    """Predicts a scalar property by ``committee`` networks that differ in their seeds.

    Parameters
    ----------
    property
        Such as ``"bulk_modulus_vrh"``, or a :class:`Target` that also says its unit, scale and bounds.
    committee
        Number of networks.
    holdout
        Fraction of the groups kept out of training to measure the error and to calibrate the uncertainty; 0 trains on
        everything and takes ``scale`` on trust.
    floor, scale
        The uncertainty is ``scale * sqrt(spread^2 + floor^2)``, in log10 on the log scale and in standard deviations of
        the training labels on the linear one; ``scale`` is fitted on the held-out groups.
    settings
        Fields of :class:`CGCNNConfig` and :class:`TrainingConfig`.
    """

    name = "cgcnn"

    def __init__(
        self,
        property: str | Target = "bulk_modulus_vrh",
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
        self.target = property if isinstance(property, Target) else Target.of(property)
        self.property, self.unit = self.target.property, self.target.unit
        self.committee = committee
        self.holdout = holdout
        self.floor = floor
        self.scale = scale
        self._shape = {k: v for k, v in settings.items() if k in network_names}  # what a warm start must agree with
        self.network = CGCNNConfig(**self._shape)
        self.training = TrainingConfig(**{k: v for k, v in settings.items() if k in training_names})
        self.mean, self.deviation = 0.0, 1.0  # of the training labels, on the scale of the target
        self.members: list[CGCNN] = []
        self.metrics: dict[str, Any] = {}
        self.validation: Validation | None = None
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
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, Any]:
        """Train the committee; see :meth:`Predictor.fit`.

        ``warm_start`` continues a fitted committee: pass the old data along with the new, at a reduced learning rate it
        is the replay that keeps the networks from forgetting. Its networks' shape and its scaling of the target are
        kept; a larger committee continues some networks twice, in another order of the data. A model that was trained
        on everything has seen what would be held out, and errors on it would be too good to be true: then nothing is
        held out, every label trains, and its uncertainty scale is kept.

        ``checkpoint`` is offered the finished networks and the state of the one in training after each epoch; the same
        call goes on from it.

        Returns
        -------
        dict
            ``n_train``, ``train_mae_log10``, ``std_scale`` and, for held-out groups, ``n_holdout``, ``mae_log10``,
            ``rmse_log10`` and, where they are enough, ``coverage_68`` and ``reliability`` (:class:`Validation`). On the
            linear scale errors are ``train_mae``, ``mae`` and ``rmse``.
        """
        previous = self._check_warm_start(warm_start)
        target = self.target if previous is None else previous.target
        self.target, labels, names, scales = check_training_set(structures, values, groups, weights, target=target)
        self.unit = self.target.unit
        graphs = self._graphs_or_raise(structures)
        encoded = self.target.encode(labels)
        self.held_out_fraction = self.holdout
        if previous is not None and previous.held_out_fraction < self.holdout:
            self.held_out_fraction = 0.0
        test = held_out(names, self.held_out_fraction)
        train = np.flatnonzero(~test)
        if previous is None:
            self.mean = float(encoded[train].mean())
            self.deviation = float(encoded[train].std()) or 1.0
            if self.target.logarithmic:
                self.deviation = max(self.deviation, 1e-3)
        else:
            self.mean, self.deviation = previous.mean, previous.deviation
        packed = PackedGraphs([graphs[i] for i in train])
        standard = torch.tensor((encoded[train] - self.mean) / self.deviation, dtype=torch.float32)
        batch_weights = torch.tensor(scales[train], dtype=torch.float32)
        members, unfinished = self._resumed(checkpoint)
        for number in range(len(members), self.committee):
            members.append(
                train_network(
                    packed,
                    standard,
                    batch_weights,
                    network=self.network,
                    training=self.training,
                    seed=SEED_STRIDE * seed + number,
                    validation=held_out([f"{seed}/{number}/{names[i]}" for i in train], self.training.validation),
                    start=None if previous is None else previous.members[number % previous.committee],
                    on_epoch=self._reporter(progress, number),
                    checkpoint=Within(checkpoint or Checkpoint(), lambda: _finished(members), unfinished),
                )
            )
            unfinished = None
        self.members = members
        self._measure(graphs, labels, names, test, previous)
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
        mean = members.mean(axis=0)
        values[rows] = self.target.decode(mean)
        std[rows] = self.target.deviation(mean, self.scale * self.spread(members))
        return Prediction(values=values, std=std, unit=self.unit, property=self.property, errors=errors)

    @torch.no_grad()
    def predict_members(self, graphs: Sequence[CrystalGraph]) -> np.ndarray:
        """Return the learned number, such as log10 K, by each member (committee, n) for :func:`build_graph` graphs."""
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

    def spread(self, members: np.ndarray) -> np.ndarray:
        """Return the raw uncertainty (n,) of the members' learned numbers (committee, n), before its ``scale``."""
        return calibration.spread(members, self.floor * (1.0 if self.target.logarithmic else self.deviation))

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
        if self.validation is not None:
            tensors[TENSOR] = self.validation.as_tensor()
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
            predictor = cls(Target.from_config(config), **config["settings"])
            predictor.mean, predictor.deviation = config["mean"], config["deviation"]
            predictor.metrics = dict(config["metrics"])
            predictor.held_out_fraction = config["held_out_fraction"]
            predictor.validation = Validation.from_file(tensors, config, predictor.target)
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
        config: dict[str, Any] = {
            "kind": self.name,
            "property": self.property,
            "unit": self.unit,
            "target": self.target.as_config(),
            "settings": self.settings,
            "mean": self.mean,
            "deviation": self.deviation,
            "held_out_fraction": self.held_out_fraction,
            "metrics": self.metrics,
        }
        if self.validation is not None:
            config["validation"] = {"origin": self.validation.origin}
        return config

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
        if warm_start.property != self.property:
            raise ValueError(
                f"cannot continue a predictor of {warm_start.property!r} with labels of {self.property!r}; "
                "train without warm_start"
            )
        wrong = [name for name, value in self._shape.items() if getattr(warm_start.network, name) != value]
        if wrong:
            kept = getattr(warm_start.network, wrong[0])
            raise ValueError(
                f"{wrong[0]}={self._shape[wrong[0]]!r} cannot continue networks of {wrong[0]}={kept!r}; "
                "leave it out or train without warm_start"
            )
        self.network = warm_start.network
        return warm_start

    def _resumed(self, checkpoint: Checkpoint | None) -> tuple[list[CGCNN], State | None]:
        """Return (the networks that are finished, the state of the one in training)."""
        saved = None if checkpoint is None else checkpoint.resume()
        if saved is None:
            return [], None
        rest, unfinished = Within.split(saved)
        members = [CGCNN(self.network) for _ in range(rest.values["members"])]
        for number, member in enumerate(members):
            load_tensors(f"members.{number}", member.state_dict(), rest.tensors)
        return [member.eval() for member in members], unfinished

    def _reporter(self, progress: Progress | None, number: int) -> Any:
        if progress is None:
            return None

        def report(epoch: int, epochs: int, loss: float) -> None:
            message = f"network {number + 1}/{self.committee} epoch {epoch}/{epochs} error {loss * self.deviation:.4f}"
            progress(number * epochs + epoch, self.committee * epochs, f"{message} {self.target.encoded_unit}".strip())

        return report

    def _measure(
        self,
        graphs: list[CrystalGraph],
        labels: np.ndarray,
        names: list[str],
        test: np.ndarray,
        previous: CGCNNEnsemble | None,
    ) -> None:
        """Measure the errors, fit the scale of the uncertainty on held-out crystals, keep metrics and validation."""
        members = self.predict_members(graphs)
        mean, raw = members.mean(axis=0), self.spread(members)
        errors = mean - self.target.encode(labels)
        metric = self.target.metric
        if previous is not None:
            self.scale = previous.scale
        self.metrics = {"n_train": float((~test).sum()), metric("train_mae"): float(np.abs(errors[~test]).mean())}
        self.validation = None
        if test.any():
            self.metrics |= {
                "n_holdout": float(test.sum()),
                metric("mae"): float(np.abs(errors[test]).mean()),
                metric("rmse"): float(np.sqrt((errors[test] ** 2).mean())),
            }
        if test.sum() >= calibration.ENOUGH:
            self.validation = Validation.of(
                self.target,
                labels[test],
                mean[test],
                raw[test],
                parts=held_out_parts([name for name, out in zip(names, test, strict=True) if out]),
                scale=self.scale,
                origin="held-out groups",
            )
            self.metrics |= self.validation.metrics()
            self.scale = calibration.scale_factor(errors[test], raw[test])
        self.metrics["std_scale"] = self.scale


def _finished(members: Sequence[CGCNN]) -> State:
    """Return the state of finished networks."""
    tensors: dict[str, np.ndarray] = {}
    for number, member in enumerate(members):
        tensors |= named_arrays(f"members.{number}", member.state_dict())
    return State(tensors, {"members": len(members)})
