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
) -> CGCNN:
    """Return a network trained on standardised ``target`` (n,) by the weighted mean absolute error.

    ``validation`` (n,) marks crystals that are not trained on but stop the training (:class:`TrainingConfig`).
    ``start`` gives the weights to continue from; ``on_epoch`` is called with (epoch, epochs, mean loss of the epoch),
    and once with (epochs, epochs, loss) when the training stops early.
    """
    aside = np.zeros(len(graphs), dtype=bool) if validation is None else validation
    train, judge = torch.from_numpy(np.flatnonzero(~aside)), torch.from_numpy(np.flatnonzero(aside))
    epochs = training.epochs if start is None else training.warm_epochs
    rate = training.learning_rate * (1.0 if start is None else training.warm_rate)
    with reproducible(seed) as generator:
        model = CGCNN(network) if start is None else copy.deepcopy(start)
        model.train()
        averaged = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=training.weight_decay)
        steps = epochs * math.ceil(len(train) / training.batch_size)
        warm_up = min(WARM_UP_STEPS, 1 + steps // 10)
        step, began = 0, time.monotonic()
        best, best_error, best_epoch = averaged, math.inf, 0
        for epoch in range(epochs):
            losses = []
            for order in torch.randperm(len(train), generator=generator).split(training.batch_size):
                index = train[order]
                done = step / steps
                if training.time_budget:
                    done = max(done, (time.monotonic() - began) / training.time_budget)
                if done >= 1.0:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = rate * min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * done))
                batch = graphs.batch(index, strain=training.strain, rattle=training.rattle, generator=generator)
                loss = (weights[index] * (model(batch) - target[index]).abs()).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
                optimizer.step()
                step += 1
                _average(averaged, model, min(training.average, step / (step + 10.0)))
                losses.append(float(loss.detach()))
            if not losses:
                break
            loss_of_epoch = sum(losses) / len(losses)
            if on_epoch is not None:
                on_epoch(epoch + 1, epochs, loss_of_epoch)
            if not len(judge):
                continue
            if (error := _error(averaged, graphs, target, judge)) < best_error:
                best, best_error, best_epoch = copy.deepcopy(averaged), error, epoch
            elif epoch - best_epoch >= training.patience:
                if on_epoch is not None:
                    on_epoch(epochs, epochs, loss_of_epoch)
                break
    return best.eval()


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
