"""Fine-tuning of a MACE network on labelled frames, with replay of what its parent knows and a checked log.

Energies of another code or potential have other zeros: per-element shifts, fitted by ridge regression for each level
of labels, bring them onto the parent's scale, so that only relative energies teach.

Frames of other crystals, labelled by the parent itself, are learned beside the new ones (:mod:`.replay`).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.calculators.frame_errors import errors_of
from inv_design.calculators.frames import Frame, frames_digest
from inv_design.calculators.replay import Replay, replay_frames
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
from inv_design.mechanics.evaluate import GPA_PER_EV_A3

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from inv_design.calculators.frame_errors import Errors
    from inv_design.calculators.mace_model import MaceEvaluator

    Log = Callable[[dict[str, Any]], None]

HUBER_DELTA = 0.01
GRADIENT_NORM = 10.0
WEIGHT_DECAY = 1e-6
AVERAGE = 0.98
"""Decay of the moving average of the weights, which is what is kept."""
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""
VALIDATIONS = 12
"""How often a run is validated at most: the loss on what is learned, what is set aside, and what is replayed.

A validation is better if their sum is: what is gained on the labelled crystals outweighs what is lost on others.
"""
FITTED = 200
"""New frames that a validation takes at most."""
VALIDATION_BATCH = 32
VALIDATION, HELD_OUT = 0.1, 0.1
"""Shares of the chemical systems that decide when to stop, and that nothing is learned or decided from."""
RIDGE = 1e-6


@dataclass(frozen=True)
class FinetuneSettings:
    """How a network is fine-tuned.

    Attributes
    ----------
    steps
        Optimiser steps at most (AdamW, Loshchilov and Hutter, ICLR 2019); validation may stop earlier.
    rate
        Largest learning rate; it rises in the first steps and falls along half a cosine.
    batch
        New frames per step; as many replayed ones are added.
    replay
        Frames of other crystals that the parent labels; 0 learns the new frames alone.
    replay_weight
        Weight of the replayed frames' loss relative to the new ones'.
    energy_weight, force_weight, stress_weight
        Weights of the Huber losses in eV/atom, eV/Å and eV/Å^3.
    patience
        Validations without a better one after which training stops.
    seed
        Of every draw.
    dtype
        Precision of the training, ``float32`` or ``float64``.
    """

    steps: int = 300
    rate: float = 1e-3
    batch: int = 8
    replay: int = 200
    replay_weight: float = 1.0
    energy_weight: float = 10.0
    force_weight: float = 1.0
    stress_weight: float = 80.0
    patience: int = 4
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give at least 1")
        if not self.rate > 0:
            raise ValueError(f"rate is {self.rate!r}; give a positive number")
        if self.replay < 0 or self.replay_weight < 0:
            raise ValueError(f"replay {self.replay!r} and replay_weight {self.replay_weight!r} must not be negative")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"unknown dtype {self.dtype!r}; use 'float32' or 'float64'")


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned network, and the record of how it came about.

    Attributes
    ----------
    blob
        The weights, readable by :func:`inv_design.calculators.registry.get_calculator` once in a file.
    asked, done
        What was asked for and what ran, each measured where it happens; :func:`check_log` has compared them.
    errors
        ``{"before" | "after": {"train" | "held_out" | "replay": errors}}``; see :func:`errors_of`.
    left_out
        Frames that were not used, and why.
    splits
        ``{"train" | "validation" | "held_out": chemical systems}``.
    """

    blob: bytes
    asked: dict[str, Any]
    done: dict[str, Any]
    errors: dict[str, dict[str, Errors]]
    left_out: list[str]
    splits: dict[str, list[str]]


def finetune(
    frames: Sequence[Frame],
    parent: bytes,
    settings: FinetuneSettings | None = None,
    *,
    name: str = "mace-finetuned",
    progress: Callable[[int, int, str], None] | None = None,
    log: Log | None = None,
    checkpoint: Checkpoint | None = None,
) -> Finetuned:
    """Return a network that continues ``parent`` on ``frames``, reproducible from the seed.

    Parameters
    ----------
    frames
        Labelled configurations; those with elements that the parent does not know are left out and named.
    parent
        A network as :func:`inv_design.calculators.registry.network_weights` returns it.
    name
        Kept in the weights' configuration.
    progress
        Called with (steps done, steps, text).
    log
        Called with one JSON-able entry per event: asked, frames, errors, validation, resumed, done.
    checkpoint
        Offered the state after each step; the same call goes on from it.

    Raises
    ------
    ValueError
        If no frame can be used, the steps do not reach every frame, or nothing learned is better than the parent.
    RuntimeError
        If what ran is not what was asked.
    """
    from inv_design.calculators.mace_model import MaceEvaluator, load_network
    from inv_design.weights import pack, sha256, unpack

    settings = settings or FinetuneSettings()
    log = log or (lambda _: None)
    tensors, config = unpack(parent)
    teacher = MaceEvaluator(load_network(tensors, config, "float64"))
    usable, left_out = usable_frames(frames, teacher)
    splits = split_systems({frame.chemsys for frame in usable})
    parts = {part: [f for f in usable if f.chemsys in systems] for part, systems in splits.items()}
    _require_steps(settings, len(parts["train"]))
    replay = replay_frames(teacher, settings.replay, seed=settings.seed, exclude={f.chemsys for f in usable})
    asked = {
        "parent_tensors": tensors_digest(tensors, settings.dtype),
        "seed": settings.seed,
        "dtype": settings.dtype,
        "rate": settings.rate,
        "steps": settings.steps,
        "train_frames": len(parts["train"]),
        "replay_frames": settings.replay,
        "elements": _elements(parts["train"]),
        "changed": True,
    }
    given = {"parent_sha256": sha256(parent), "frames_sha256": frames_digest(usable), "settings": asdict(settings)}
    log({"event": "asked", "name": name, **given, **asked})
    log({"event": "frames", "left_out": left_out, "systems": splits} | {k: len(v) for k, v in parts.items()})
    judged = {"train": parts["train"], "held_out": parts["held_out"], "replay": replay.curves}
    before = {part: errors_of(teacher, members) for part, members in judged.items()}
    log({"event": "errors", "when": "before", **before})

    shifts = energy_shifts(parts["train"], teacher)
    learn = [shifted(frame, shifts) for frame in parts["train"]]
    # the zero of energy is not known for elements that are not trained on: forces and pressures decide
    stop = [
        replace(f, energy=None) for f in parts["validation"] if f.forces is not None or f.known_pressure is not None
    ]
    run = _Run(tensors, config, settings, frames=learn, validation=stop, replay=replay)
    learned, done = run.train(progress or (lambda *_: None), log, checkpoint or Checkpoint())
    training = {
        "finetuned_from_sha256": given["parent_sha256"],
        "steps": done["best_step"],
        "parent": config.get("training"),
    }
    blob = pack(learned, {**config, "name": name, "training": training})
    stored, stored_config = unpack(blob)  # judged as it will be read, in the precision of calculations
    student = MaceEvaluator(load_network(stored, stored_config, "float64"))
    after = {part: errors_of(student, members) for part, members in judged.items()}
    log({"event": "errors", "when": "after", **after})
    log({"event": "done", "sha256": sha256(blob), **done})
    check_log(asked, done)
    return Finetuned(blob, {**given, **asked}, done, {"before": before, "after": after}, left_out, splits)


def check_log(asked: Mapping[str, Any], done: Mapping[str, Any]) -> None:
    """Compare what was asked with what ran, key by key.

    Raises
    ------
    RuntimeError
        If anything differs, or was not recorded; it names each.
    """
    wrong = [f"{key}: asked {asked[key]!r}, ran {done.get(key)!r}" for key in asked if asked[key] != done.get(key)]
    if wrong:
        raise RuntimeError(f"what ran is not what was asked ({'; '.join(wrong)}); the weights are not kept")


# -- what is learned --------------------------------------------------------------------------------------------------


def usable_frames(frames: Sequence[Frame], teacher: MaceEvaluator) -> tuple[list[Frame], list[str]]:
    """Return (frames of known elements in an order of their own content, one line for each other).

    Raises
    ------
    ValueError
        If none is left.
    """
    known, usable, left_out = set(teacher.atomic_numbers), [], []
    for frame in frames:
        if unknown := sorted({e.symbol for e in frame.structure.composition.elements if e.Z not in known}):
            left_out.append(f"{frame.group or frame.formula}: the parent does not know {', '.join(unknown)}")
        else:
            usable.append(frame)
    if not usable:
        raise ValueError(f"none of {len(frames)} frames can be learned: {'; '.join(left_out[:3]) or 'there is none'}")
    unique = {frame.digest: frame for frame in usable}
    left_out += [f"{len(usable) - len(unique)} frames are there twice"] if len(unique) < len(usable) else []
    return [unique[digest] for digest in sorted(unique)], left_out


def split_systems(systems: set[str]) -> dict[str, list[str]]:
    """Return the chemical systems to train on, to stop by, and to hold out; ordered by a hash of their names.

    A system with a hash below the share is held out whatever the others are; of four systems or more at least one is
    held out and one validates.
    """

    def share(system: str) -> float:
        return int.from_bytes(hashlib.sha256(system.encode()).digest()[:8], "big") / 2**64

    ranked = sorted(systems, key=share)
    least = 1 if len(ranked) >= 4 else 0
    held = max(least, sum(share(s) < HELD_OUT for s in ranked)) if least else 0
    validating = max(least, sum(share(s) < HELD_OUT + VALIDATION for s in ranked) - held) if least else 0
    return {
        "train": sorted(ranked[held + validating :]),
        "validation": sorted(ranked[held : held + validating]),
        "held_out": sorted(ranked[:held]),
    }


def energy_shifts(frames: Sequence[Frame], teacher: MaceEvaluator) -> dict[str, dict[int, float]]:
    """Return level -> atomic number -> eV to take off the labels' energies, so that they lie on the teacher's scale.

    One equation per crystal (its mean difference to the teacher, on its mean composition), solved by ridge regression.
    """
    rows: dict[str, dict[str, list[tuple[np.ndarray, float]]]] = defaultdict(lambda: defaultdict(list))
    index = {z: i for i, z in enumerate(teacher.atomic_numbers)}
    with_energy = [frame for frame in frames if frame.energy is not None]
    for frame, (energy, _, _) in zip(with_energy, teacher.evaluate([f.triple for f in with_energy]), strict=True):
        fractions = np.bincount([index[int(z)] for z in frame.numbers], minlength=len(index)) / len(frame.numbers)
        assert frame.energy is not None
        rows[frame.level][frame.group].append((fractions, (frame.energy - energy) / len(frame.numbers)))
    shifts = {}
    for level, groups in rows.items():
        x = np.array([np.mean([fractions for fractions, _ in group], axis=0) for group in groups.values()])
        y = np.array([np.mean([difference for _, difference in group]) for group in groups.values()])
        solution = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
        shifts[level] = dict(zip(teacher.atomic_numbers, solution.tolist(), strict=True))
    return shifts


def shifted(frame: Frame, shifts: Mapping[str, Mapping[int, float]]) -> Frame:
    """Return the frame with its energy on the parent's scale."""
    if frame.energy is None:
        return frame
    return replace(
        frame, energy=frame.energy - sum(shifts.get(frame.level, {}).get(int(z), 0.0) for z in frame.numbers)
    )


# -- the run ----------------------------------------------------------------------------------------------------------


def _require_steps(settings: FinetuneSettings, n_train: int) -> None:
    """Raise ValueError if the steps do not reach every frame at least once."""
    if not n_train:
        raise ValueError("every frame is held out; give frames of more chemical systems")
    needed = math.ceil(max(n_train, settings.replay) / settings.batch)
    if settings.steps < needed:
        raise ValueError(
            f"{settings.steps} steps of {settings.batch} frames do not reach all {n_train} frames and "
            f"{settings.replay} replayed ones; use at least {needed} steps"
        )


class _Batches:
    """Frames as graphs and targets, and an endless shuffled stream of them which remembers what it gave."""

    def __init__(self, frames: Sequence[Frame], config: Mapping[str, Any], seed: Sequence[int]) -> None:
        from inv_design.calculators.mace_model import build_graph, cutoffs

        self.frames = frames
        self.rng = np.random.default_rng(seed)
        index = {z: i for i, z in enumerate(config["atomic_numbers"])}
        energies = np.array(config["atomic_energies"], float)
        species = [np.array([index[int(z)] for z in frame.numbers]) for frame in frames]
        self.n_species = len(index)
        self.graphs = [
            build_graph(row, frame.structure.cart_coords, frame.structure.lattice.matrix, cutoffs(config))
            for frame, row in zip(frames, species, strict=True)
        ]
        # the reference energies are constants of the network: interaction energies are what float32 resolves
        self.targets = [_target(f, float(energies[row].sum())) for f, row in zip(frames, species, strict=True)]
        self.queue = np.array([], dtype=int)
        self.given: set[int] = set()

    def next(self, size: int) -> list[int]:
        """Return the rows of the next batch; every row comes once before any comes again."""
        size = min(size, len(self.frames))
        if len(self.queue) < size:
            self.queue = np.concatenate([self.queue, self.rng.permutation(len(self.frames))])
        rows, self.queue = self.queue[:size].tolist(), self.queue[size:]
        self.given.update(rows)
        return rows

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, JSON-able."""
        return {"rng": self.rng.bit_generator.state, "queue": self.queue.tolist(), "given": sorted(self.given)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.rng.bit_generator.state = state["rng"]
        self.queue, self.given = np.array(state["queue"], dtype=int), set(state["given"])

    def inputs(
        self, rows: Sequence[int], dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return (the network's input, the labels) of some rows."""
        import torch

        from inv_design.calculators.mace_model import collate

        chosen = [self.targets[i] for i in rows]
        labels = {key: np.stack([target[key] for target in chosen]) for key in ("energy", "stress", "shear")}
        labels["forces"] = np.concatenate([target["forces"] for target in chosen])
        data = collate([self.graphs[i] for i in rows], self.n_species, dtype)
        return data, {key: torch.from_numpy(value).to(dtype) for key, value in labels.items()}


def _target(frame: Frame, atoms: float) -> dict[str, np.ndarray]:
    """Return the labels in eV and Å: interaction energy per atom, forces, stress; what is unknown is NaN.

    Where only the pressure is known, the stress is isotropic and ``shear`` is 0: the loss sees its trace alone.
    """
    n = len(frame.numbers)
    stress = np.full((3, 3), np.nan)
    if frame.stress is not None:
        stress = frame.stress / GPA_PER_EV_A3
    elif frame.pressure is not None:
        stress = -frame.pressure / GPA_PER_EV_A3 * np.eye(3)
    return {
        "energy": np.array(np.nan if frame.energy is None else (frame.energy - atoms) / n),
        "forces": np.full((n, 3), np.nan) if frame.forces is None else np.asarray(frame.forces, float),
        "stress": stress,
        "shear": np.array(float(frame.stress is not None)),
    }


class _Run:
    """One training run: the network, the moving average of its weights, the best of it so far."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        config: Mapping[str, Any],
        settings: FinetuneSettings,
        *,
        frames: Sequence[Frame],
        validation: Sequence[Frame],
        replay: Replay,
    ) -> None:
        import torch

        from inv_design.calculators.mace_model import load_network, network_tensors

        s = self.settings = settings
        self.dtype: torch.dtype = getattr(torch, s.dtype)
        self.network = load_network(tensors, config, s.dtype).train().requires_grad_(True)
        self.start = tensors_digest(network_tensors(self.network), s.dtype)
        self.new = _Batches(frames, config, [s.seed, 2])
        self.old = _Batches(replay.train, config, [s.seed, 3])
        judged = [(frames[:: 1 + len(frames) // FITTED], 1.0), (validation, 1.0), (replay.validation, s.replay_weight)]
        self.judged = [(_Batches(part, config, [s.seed]), weight) for part, weight in judged if part]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=s.rate, weight_decay=WEIGHT_DECAY, amsgrad=True
        )
        self.average = [parameter.detach().clone() for parameter in self.network.parameters()]
        self.best = [value.clone() for value in self.average]
        self.best_step = self.taken = self.done = self.waited = 0
        self.first: list[float] = []
        self.lowest: list[float] = []
        self.rates: list[float] = []

    def train(
        self, progress: Callable[[int, int, str], None], log: Log, checkpoint: Checkpoint
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (the best averaged weights, what ran), each number of it counted where it happens.

        Raises
        ------
        ValueError
            If no validation is better than the parent's.
        """
        import torch

        from inv_design.calculators.mace_model import default_dtype, network_tensors
        from inv_design.predictors.training import reproducible

        s = self.settings
        every = max(5, s.steps // VALIDATIONS)
        with reproducible(s.seed), default_dtype(self.dtype):
            seed = torch.initial_seed()
            if (saved := checkpoint.resume()) is not None:
                self._restore(saved)
                log({"event": "resumed", "step": self.done, "best_step": self.best_step})
            else:
                self.first = self.lowest = self._validated()
                log({"event": "step", "step": 0, "validation": self.first})
            while self.done < s.steps and self.waited < s.patience:
                loss = self._step(self.done + 1)
                self.done += 1
                progress(self.done, s.steps, f"loss {loss:.4f}")
                if self.done % every == 0 or self.done == s.steps:
                    self._judge(loss, log)
                checkpoint.offer(self._state)
        if self.best_step == 0:
            raise ValueError(
                f"no validation was better than the parent's ({sum(self.first):.5f}) in {self.done} steps: give more "
                f"frames, a smaller learning rate than {s.rate:g}, or keep the parent"
            )
        self._exchange(self.best)
        learned = network_tensors(self.network)
        saved_steps = s.steps - self.done
        return learned, {
            "parent_tensors": self.start,
            "seed": seed,
            "dtype": str(next(self.network.parameters()).dtype).removeprefix("torch."),
            "rate": max(self.rates),
            "steps": self.taken + saved_steps,
            "steps_taken": self.taken,
            "steps_saved_by_validation": saved_steps,
            "best_step": self.best_step,
            "train_frames": len(self.new.given),
            "replay_frames": len(self.old.given),
            "elements": _elements([self.new.frames[i] for i in self.new.given]),
            "changed": tensors_digest(learned, s.dtype) != self.start,
            "validation_loss": {"before": self.first, "after": self.lowest},
        }

    def _judge(self, loss: float, log: Log) -> None:
        """Validate the averaged weights and keep them if they are the best so far."""
        s = self.settings
        every_frame = math.ceil(max(len(self.new.frames), len(self.old.frames)) / s.batch)
        least = max(every_frame, s.steps // 3)  # the rate and the average rise slowly
        current = self._validated()
        log({"event": "step", "step": self.done, "rate": self.rates[-1], "loss": loss, "validation": current})
        if sum(current) < sum(self.lowest):
            self.lowest, self.best_step, self.waited = current, self.done, 0
            self.best = [value.clone() for value in self.average]
        elif self.done > least:
            self.waited += 1

    def _state(self) -> State:
        """Return everything that the rest of the run depends on."""
        return State(
            {
                **named_arrays("network", dict(self.network.named_parameters())),
                **named_arrays("average", _numbered(self.average)),
                **named_arrays("best", _numbered(self.best)),
                **optimizer_arrays("optimizer", self.optimizer),
                **random_arrays(),
                "rates": np.array(self.rates),
            },
            {
                **{name: getattr(self, name) for name in ("done", "taken", "waited", "best_step", "first", "lowest")},
                "new": self.new.state(),
                "old": self.old.state(),
            },
        )

    def _restore(self, state: State) -> None:
        """Go on from a state."""
        arrays, values = state.tensors, state.values
        load_tensors("network", dict(self.network.named_parameters()), arrays)
        load_tensors("average", _numbered(self.average), arrays)
        load_tensors("best", _numbered(self.best), arrays)
        load_optimizer("optimizer", self.optimizer, arrays)
        load_random(arrays)
        self.rates = arrays["rates"].tolist()
        for name in ("done", "taken", "waited", "best_step", "first", "lowest"):
            setattr(self, name, values[name])
        self.new.restore(values["new"])
        self.old.restore(values["old"])

    def _step(self, step: int) -> float:
        """Take one step on new frames and as many replayed ones; return the loss."""
        import torch

        s = self.settings
        self.rates.append(s.rate * _relative_rate(step, s.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[-1]
        loss = self._loss(self.new, self.new.next(s.batch), training=True)
        if self.old.frames:
            loss = loss + s.replay_weight * self._loss(self.old, self.old.next(s.batch), training=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(self.network.parameters())
        if torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)):
            self.optimizer.step()
            self.taken += 1
        torch._foreach_lerp_(self.average, [p.detach() for p in parameters], 1 - min(AVERAGE, step / (step + 10)))
        return float(loss.detach())

    def _loss(self, batches: _Batches, rows: Sequence[int], *, training: bool) -> torch.Tensor:
        """Return the weighted Huber loss of some frames."""
        import torch

        data, label = batches.inputs(rows, self.dtype)
        out = self.network(data, training=training, compute_force=True, compute_stress=True)
        sizes = (data["ptr"][1:] - data["ptr"][:-1]).to(self.dtype)
        stress = out["stress"] - label["stress"]
        trace = torch.diagonal(stress, dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(3, dtype=self.dtype)
        stress = torch.where(label["shear"][:, None, None] > 0, stress, trace)
        s = self.settings
        return (
            s.energy_weight * _huber(out["interaction_energy"] / sizes - label["energy"], label["energy"])
            + s.force_weight * _huber(out["forces"] - label["forces"], label["forces"])
            + s.stress_weight * _huber(stress, label["stress"])
        )

    def _validated(self) -> list[float]:
        """Return the averaged weights' losses on the labelled frames, on validation's and on replay's, as weighted."""
        held = self._exchange(self.average)
        losses = []
        for batches, weight in self.judged:
            n = len(batches.frames)
            parts = [range(start, min(start + VALIDATION_BATCH, n)) for start in range(0, n, VALIDATION_BATCH)]
            losses.append(
                weight * sum(len(p) / n * float(self._loss(batches, p, training=False).detach()) for p in parts)
            )
        self._exchange(held)
        return losses

    def _exchange(self, values: list[torch.Tensor]) -> list[torch.Tensor]:
        """Put values into the network; return what it held."""
        import torch

        held = [parameter.detach().clone() for parameter in self.network.parameters()]
        with torch.no_grad():
            for parameter, value in zip(self.network.parameters(), values, strict=True):
                parameter.copy_(value)
        return held


def _numbered(tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(number): tensor for number, tensor in enumerate(tensors)}


def _relative_rate(step: int, steps: int) -> float:
    """Return the learning rate relative to its maximum, which is reached at the end of the warm-up."""
    warm_up = max(1, round(WARM_UP * steps))
    if step <= warm_up:
        return step / warm_up
    return 0.01 + 0.495 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def _huber(error: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the mean Huber loss over the entries whose label is known (not NaN)."""
    import torch

    known = error[~torch.isnan(label)]
    if not len(known):
        return error.new_zeros(())
    return torch.nn.functional.huber_loss(known, torch.zeros_like(known), delta=HUBER_DELTA)


def _elements(frames: Sequence[Frame]) -> list[str]:
    return sorted({element.symbol for frame in frames for element in frame.structure.composition.elements})


def tensors_digest(tensors: Mapping[str, np.ndarray], dtype: str) -> str:
    """Return the SHA-256 of named tensors in a precision."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name].astype(dtype)).tobytes())
    return digest.hexdigest()
