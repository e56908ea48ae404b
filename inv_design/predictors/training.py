"""Training of one crystal graph network: AdamW, cosine learning rate, distorted inputs, averaged weights."""

from __future__ import annotations

import copy
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from inv_design.checkpoint import (
    Checkpoint,
    State,
    load_optimizer,
    load_random,
    load_tensors,
    named_arrays,
    optimizer_arrays,
    random_arrays,
)
from inv_design.predictors.cgcnn import CGCNN, CGCNNConfig, PackedGraphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM_UP_STEPS = 50
GRADIENT_NORM = 5.0
JUDGE_BATCH = 256


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes
    ----------
    epochs, warm_epochs
        Passes over the data from scratch, and when earlier weights are continued.
    batch_size, learning_rate, weight_decay
        Of AdamW (Loshchilov and Hutter, ICLR 2019); the rate follows half a cosine down to zero.
    warm_rate
        Factor on the learning rate when earlier weights are continued.
    strain, rattle
        Distortion of every training input, label kept: standard deviation of the relative volume change, and the
        largest standard deviation of a displacement component in Å. A generated crystal is not at the minimum of its
        energy; its label is that of the relaxed one.
    average
        Decay of the exponential moving average of the weights, which is the model that is kept.
    validation, patience
        Early stopping, off by default: each network keeps this fraction of the groups, another for each seed, out of
        its training, stops when its error there has not fallen for ``patience`` epochs, and keeps its best weights.
        For data unlike the packaged ones, whose right number of epochs is not known.
    time_budget
        Wall time in seconds after which a network must be done; the schedule is shortened to fit. ``None``: epochs
        decide (and only then is the result reproducible).
    """

    epochs: int = 40
    warm_epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 6e-3
    weight_decay: float = 0.2
    warm_rate: float = 0.3
    strain: float = 0.03
    rattle: float = 0.05
    average: float = 0.99
    validation: float = 0.0
    patience: int = 10
    time_budget: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "warm_epochs", "batch_size", "learning_rate", "warm_rate", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a positive number")
        if not 0.0 <= self.validation < 1.0:
            raise ValueError(f"validation is {self.validation!r}; give a fraction from 0 to below 1")


@contextmanager
def reproducible(seed: int) -> Iterator[torch.Generator]:
    """Give one thread, seeded global draws and a seeded generator; the state before is restored afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(threads)


def train_network(
    graphs: PackedGraphs,
    target: torch.Tensor,
    weights: torch.Tensor,
    *,
    network: CGCNNConfig,
    training: TrainingConfig,
    seed: int,
    validation: np.ndarray | None = None,
    start: CGCNN | None = None,
    on_epoch: Callable[[int, int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> CGCNN:
    """Return a network trained on standardised ``target`` (n,) by the weighted mean absolute error.

    ``validation`` (n,) marks crystals that are not trained on but stop the training (:class:`TrainingConfig`).
    ``start`` gives the weights to continue from; ``on_epoch`` is called with (epoch, epochs, mean loss of the epoch),
    and once with (epochs, epochs, loss) when the training stops early. ``checkpoint`` is offered the state after each
    epoch; a training that goes on from it ends in the same weights, bit for bit on the same kind of processor.
    """
    aside = np.zeros(len(graphs), dtype=bool) if validation is None else validation
    judge = torch.from_numpy(np.flatnonzero(aside))
    checkpoint = checkpoint or Checkpoint()
    on_epoch = on_epoch or (lambda *_: None)
    with reproducible(seed) as generator:
        model = CGCNN(network) if start is None else copy.deepcopy(start)
        run = _Run(model, training, torch.from_numpy(np.flatnonzero(~aside)), generator, warm=start is not None)
        if (saved := checkpoint.resume()) is not None:
            run.restore(saved)
        while run.epoch < run.epochs:
            loss = run.train_epoch(graphs, target, weights)
            if loss is None:
                break
            on_epoch(run.epoch, run.epochs, loss)
            if len(judge) and not run.improves(_error(run.averaged, graphs, target, judge)):
                on_epoch(run.epochs, run.epochs, loss)
                break
            if run.epoch < run.epochs:
                checkpoint.offer(run.state)
    return run.best.eval()


class _Run:
    """One training: the network, the moving average of its weights, the best of it, and where the loop stands."""

    def __init__(
        self, model: CGCNN, training: TrainingConfig, train: torch.Tensor, generator: torch.Generator, *, warm: bool
    ) -> None:
        self.model, self.training, self.train, self.generator = model, training, train, generator
        self.model.train()
        self.averaged = copy.deepcopy(model)
        self.epochs = training.warm_epochs if warm else training.epochs
        self.rate = training.learning_rate * (training.warm_rate if warm else 1.0)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=training.weight_decay)
        self.steps = self.epochs * math.ceil(len(train) / training.batch_size)
        self.warm_up = min(WARM_UP_STEPS, 1 + self.steps // 10)
        self.step, self.epoch, self.began = 0, 0, time.monotonic()
        self.best, self.best_error, self.best_epoch = self.averaged, math.inf, 0

    def train_epoch(self, graphs: PackedGraphs, target: torch.Tensor, weights: torch.Tensor) -> float | None:
        """Train for one epoch and return its mean loss, ``None`` if the time is over."""
        losses = []
        for order in torch.randperm(len(self.train), generator=self.generator).split(self.training.batch_size):
            index = self.train[order]
            done = self.step / self.steps
            if self.training.time_budget:
                done = max(done, (time.monotonic() - self.began) / self.training.time_budget)
            if done >= 1.0:
                break
            for group in self.optimizer.param_groups:
                rise = min(1.0, (self.step + 1) / self.warm_up)
                group["lr"] = self.rate * rise * 0.5 * (1.0 + math.cos(math.pi * done))
            strain, rattle = self.training.strain, self.training.rattle
            batch = graphs.batch(index, strain=strain, rattle=rattle, generator=self.generator)
            loss = (weights[index] * (self.model(batch) - target[index]).abs()).mean()
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
            self.optimizer.step()
            self.step += 1
            _average(self.averaged, self.model, min(self.training.average, self.step / (self.step + 10.0)))
            losses.append(float(loss.detach()))
        if not losses:
            return None
        self.epoch += 1
        return sum(losses) / len(losses)

    def improves(self, error: float) -> bool:
        """Keep the averaged weights if their error is the least; return whether that was not too long ago."""
        if error < self.best_error:
            self.best, self.best_error, self.best_epoch = copy.deepcopy(self.averaged), error, self.epoch
        return self.epoch - self.best_epoch < self.training.patience

    def state(self) -> State:
        """Return everything that the rest of the training depends on."""
        best = {} if self.best is self.averaged else named_arrays("best", self.best.state_dict())
        return State(
            {
                **named_arrays("model", self.model.state_dict()),
                **named_arrays("averaged", self.averaged.state_dict()),
                **best,
                **optimizer_arrays("optimizer", self.optimizer),
                **random_arrays(self.generator),
            },
            {
                "epoch": self.epoch,
                "step": self.step,
                "best": bool(best),
                "best_error": self.best_error,
                "best_epoch": self.best_epoch,
                "seconds": time.monotonic() - self.began,
            },
        )

    def restore(self, state: State) -> None:
        """Go on from a state."""
        arrays, values = state.tensors, state.values
        load_tensors("model", self.model.state_dict(), arrays)
        load_tensors("averaged", self.averaged.state_dict(), arrays)
        if values["best"]:
            self.best = copy.deepcopy(self.averaged)
            load_tensors("best", self.best.state_dict(), arrays)
        load_optimizer("optimizer", self.optimizer, arrays)
        load_random(arrays, self.generator)
        self.epoch, self.step = values["epoch"], values["step"]
        self.best_error, self.best_epoch = values["best_error"], values["best_epoch"]
        self.began = time.monotonic() - values["seconds"]


@torch.no_grad()
def _error(model: CGCNN, graphs: PackedGraphs, target: torch.Tensor, judge: torch.Tensor) -> float:
    """Return the mean absolute error of the crystals at ``judge``, undistorted."""
    model.eval()
    errors = [(model(graphs.batch(index)) - target[index]).abs().sum() for index in judge.split(JUDGE_BATCH)]
    return float(sum(errors) / len(judge))


@torch.no_grad()
def _average(averaged: CGCNN, model: CGCNN, decay: float) -> None:
    for kept, new in zip(averaged.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1.0 - decay)
