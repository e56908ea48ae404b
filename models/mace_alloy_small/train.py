"""Train mace-alloy-small on the labels of label.py: one core, plain torch on MACE's modules.

A run has one cosine schedule. In its last part (--bend-from) the labels are bent towards PBE moduli (bend.py); a run
with --start goes on from another run's weights.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bend import bend_shears, bend_volumes

from inv_design.calculators.mace_model import (
    KIND,
    Graph,
    build_graph,
    build_network,
    collate,
    load_network,
    network_tensors,
)
from inv_design.mechanics.evaluate import GPA_PER_EV_A3
from inv_design.weights import pack, unpack

ENERGY_WEIGHT, FORCE_WEIGHT, STRESS_WEIGHT = 10.0, 1.0, 80.0
HUBER_DELTA = 0.01
CLIP, EMA_DECAY = 10.0, 0.998
ARCHITECTURE: dict[str, Any] = {
    "r_max": 5.0,
    "num_bessel": 8,
    "num_polynomial_cutoff": 5,
    "max_ell": 2,
    "num_interactions": 2,
    "hidden_irreps": "32x0e",
    "MLP_irreps": "16x0e",
    "correlation": 2,
    "radial_MLP": [64, 64, 64],
    "pair_repulsion": True,
}


class Dataset:
    """Labelled configurations as graphs; energies per atom in eV, forces in eV/Å, stresses in eV/Å^3."""

    def __init__(self, folder: Path) -> None:
        self.numbers, self.positions, self.cells = [], [], []
        self.forces, energies, stresses, groups, kinds = [], [], [], [], []
        for path in sorted(folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as data:
                arrays = {key: data[key] for key in data.files}
            for start, stop in zip(arrays["offsets"][:-1], arrays["offsets"][1:], strict=True):
                self.numbers.append(arrays["numbers"][start:stop].astype(int))
                self.positions.append(arrays["positions"][start:stop])
                self.forces.append(arrays["forces"][start:stop])
            self.cells += list(arrays["cell"])
            energies.append(arrays["energy"])
            stresses.append(arrays["stress"])
            groups.append(arrays["group"])
            kinds.append(arrays["kind"])
        self.sizes = np.array([len(numbers) for numbers in self.numbers])
        self.energies = np.concatenate(energies) / self.sizes
        self.stresses = np.concatenate(stresses)
        self.groups = np.concatenate(groups)
        self.kinds = np.concatenate(kinds)
        self.volumes = np.abs(np.linalg.det(np.array(self.cells))) / self.sizes
        self.atomic_numbers = sorted({int(z) for numbers in self.numbers for z in numbers})

    def __len__(self) -> int:
        return len(self.numbers)

    def graphs(self) -> list[Graph]:
        """Return the graph of every configuration."""
        index = {z: i for i, z in enumerate(self.atomic_numbers)}
        return [
            build_graph(np.array([index[z] for z in numbers]), positions, cell, ARCHITECTURE["r_max"])
            for numbers, positions, cell in zip(self.numbers, self.positions, self.cells, strict=True)
        ]

    def atomic_energies(self) -> np.ndarray:
        """Return reference energies by ridge-stabilised least squares on the composition, eV."""
        counts = np.array([[np.mean(numbers == z) for z in self.atomic_numbers] for numbers in self.numbers])
        gram = counts.T @ counts + 1e-3 * np.eye(counts.shape[1])
        return np.linalg.solve(gram, counts.T @ self.energies)

    def members(self) -> dict[str, np.ndarray]:
        """Return the isotropic configurations of each group (one crystal at several volumes)."""
        order = np.flatnonzero(self.kinds == "isotropic")
        order = order[np.argsort(self.groups[order], kind="stable")]
        names, starts = np.unique(self.groups[order], return_index=True)
        return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))

    def bulk_moduli(self) -> dict[str, float]:
        """Return K in GPa of each group, from the slope of its pressure over ln V, at least 1 GPa."""
        moduli = {}
        for name, rows in self.members().items():
            pressure = -np.trace(self.stresses[rows], axis1=1, axis2=2) / 3 * GPA_PER_EV_A3
            modulus = -np.polyfit(np.log(self.volumes[rows]), pressure, 1)[0] if len(rows) > 1 else 100.0
            moduli[name] = float(max(modulus, 1.0))
        return moduli

    def stress_weights(self) -> np.ndarray:
        """Return (100 GPa / K)^0.7 of each configuration's group, clipped to 0.5-4."""
        weights = {name: float(np.clip((100 / k) ** 0.7, 0.5, 4.0)) for name, k in self.bulk_moduli().items()}
        return np.array([weights.get(group, 1.0) for group in self.groups.tolist()])


def huber(error: torch.Tensor) -> torch.Tensor:
    """Return the Huber loss of each entry (quadratic below HUBER_DELTA)."""
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=HUBER_DELTA, reduction="none")


class Average:
    """Exponential moving average of the parameters."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.values = [parameter.detach().clone() for parameter in network.parameters()]

    def update(self, network: torch.nn.Module, step: int) -> None:
        """Move towards the network's parameters (a shorter memory in the first steps)."""
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in network.parameters()], 1 - decay)

    def swap(self, network: torch.nn.Module) -> None:
        """Exchange the averages with the network's parameters."""
        with torch.no_grad():
            for value, parameter in zip(self.values, network.parameters(), strict=True):
                held = parameter.detach().clone()
                parameter.copy_(value)
                value.copy_(held)


class Trainer:
    """One training run: the network, its average, the schedule, and the labels in use."""

    def __init__(self, dataset: Dataset, arguments: argparse.Namespace) -> None:
        self.dataset, self.arguments = dataset, arguments
        self.rng = np.random.default_rng(arguments.seed)
        self.graphs = dataset.graphs()
        self.weights = dataset.stress_weights()
        self.energies, self.stresses = dataset.energies, dataset.stresses
        torch.manual_seed(arguments.seed)
        if arguments.start is None:
            self.config = self._configuration()
            self.network = build_network(self.config, "float32")
        else:
            tensors, self.config = unpack(arguments.start.read_bytes())
            self.network = load_network(tensors, self.config, "float32").train().requires_grad_(True)
            if self.config["atomic_numbers"] != dataset.atomic_numbers:
                raise ValueError(f"{str(arguments.start)!r} knows other elements than the labels")
        of_element = dict(zip(self.config["atomic_numbers"], self.config["atomic_energies"], strict=True))
        self.reference = np.array([np.mean([of_element[z] for z in row]) for row in dataset.numbers])
        self.average = Average(self.network)
        # a random 1 % of the groups (crystals, not chemical systems) only monitors; the held-out systems are in no file
        names = np.unique(dataset.groups)
        watched = np.isin(dataset.groups, self.rng.choice(names, max(1, len(names) // 100), replace=False))
        self.train_rows, self.watched_rows = np.flatnonzero(~watched), np.flatnonzero(watched)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=arguments.rate, weight_decay=1e-6, amsgrad=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.queue: np.ndarray = np.array([], dtype=int)
        self.losses: list[float] = []
        self.start = time.time()

    def _configuration(self) -> dict[str, Any]:
        """Return the network's configuration: the architecture, and what follows from the labels."""
        forces_rms = float(np.sqrt(np.mean(np.concatenate(self.dataset.forces) ** 2)))
        neighbors = np.mean([graph.edges.shape[1] / len(graph.species) for graph in self.graphs])
        return {
            "kind": KIND,
            "name": "mace-alloy-small",
            "atomic_numbers": self.dataset.atomic_numbers,
            "atomic_energies": [round(float(energy), 6) for energy in self.dataset.atomic_energies()],
            "scale": round(max(forces_rms, 0.3), 6),
            "shift": 0.0,
            "avg_num_neighbors": round(float(neighbors), 4),
            **ARCHITECTURE,
        }

    def _rate(self, step: int) -> float:
        """Return the learning rate relative to its maximum: 200 steps of warm-up, then half a cosine down to 1 %."""
        return min(1.0, (step + 1) / 200) * (0.01 + 0.495 * (1 + np.cos(np.pi * step / self.arguments.steps)))

    def run(self) -> None:
        """Take all steps, bend the labels on the way, and save every so often."""
        steps = self.arguments.steps
        for step in range(1, steps + 1):
            if step == max(1, int(self.arguments.bend_from * steps)):
                self._bend()
            self._step(step)
            if step % self.arguments.save_every == 0 or step in (300, steps):
                self._save(step)

    def _bend(self) -> None:
        self.energies, self.stresses, count = bend_volumes(self.dataset)
        print(f"the equations of state of {count} alloys bent towards PBE", flush=True)
        if (self.dataset.kinds == "shear").any():
            self.energies, self.stresses, share = bend_shears(self.dataset, self.energies, self.stresses)
            print(f"shear moduli bent towards PBE: by {share:.3f} K for the median alloy", flush=True)

    def _evaluate(self, rows: np.ndarray, *, training: bool) -> dict[str, torch.Tensor]:
        """Return MACE's energies (eV), forces (eV/Å) and stresses (eV/Å^3) of some configurations."""
        data = collate([self.graphs[i] for i in rows], len(self.dataset.atomic_numbers), torch.float32)
        return self.network(data, training=training, compute_force=True, compute_stress=True)

    def _step(self, step: int) -> None:
        if len(self.queue) < self.arguments.batch:
            self.queue = np.concatenate([self.queue, self.rng.permutation(self.train_rows)])
        rows, self.queue = self.queue[: self.arguments.batch], self.queue[self.arguments.batch :]
        out = self._evaluate(rows, training=True)
        sizes = torch.from_numpy(self.dataset.sizes[rows]).float()
        # the reference energies are constants of the network: compare interaction energies, which float32 resolves
        target = torch.from_numpy(self.energies[rows] - self.reference[rows]).float()
        forces = torch.from_numpy(np.concatenate([self.dataset.forces[i] for i in rows])).float()
        stress = torch.from_numpy(self.stresses[rows]).float()
        factor = torch.from_numpy(self.weights[rows]).float()
        loss = (
            ENERGY_WEIGHT * huber(out["interaction_energy"] / sizes - target).mean()
            + FORCE_WEIGHT * huber(out["forces"] - forces).mean()
            + STRESS_WEIGHT * (factor[:, None, None] * huber(out["stress"] - stress)).mean()
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if torch.isfinite(torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)):
            self.optimizer.step()
        self.schedule.step()
        self.average.update(self.network, step)
        self.losses.append(float(loss.detach()))

    def _watched_errors(self) -> dict[str, float]:
        """Return root mean square errors on the watched configurations: meV/atom, meV/Å, meV/Å^3."""
        errors: dict[str, list[np.ndarray]] = {"energy": [], "forces": [], "stress": []}
        for rows in np.array_split(self.watched_rows, max(1, len(self.watched_rows) // 64)):
            out = {
                key: value.detach().numpy()
                for key, value in self._evaluate(rows, training=False).items()
                if key in errors
            }
            errors["energy"].append(out["energy"] / self.dataset.sizes[rows] - self.energies[rows])
            errors["forces"].append(out["forces"] - np.concatenate([self.dataset.forces[i] for i in rows]))
            errors["stress"].append(out["stress"] - self.stresses[rows])
        return {
            key: 1000 * float(np.sqrt(np.mean(np.concatenate([e.ravel() for e in parts]) ** 2)))
            for key, parts in errors.items()
        }

    def _save(self, step: int) -> None:
        """Write the averaged weights in one move, so that a reader never sees half a file."""
        minutes = (time.time() - self.start) / 60
        training = {
            "steps": step,
            "planned_steps": self.arguments.steps,
            "batch": self.arguments.batch,
            "seed": self.arguments.seed,
            "configurations": len(self.train_rows),
            "bend_from": self.arguments.bend_from,
            "rate": self.arguments.rate,
            "start": self.config.get("training") if self.arguments.start else None,
            "minutes": round(minutes, 1),
        }
        output: Path = self.arguments.output
        output.parent.mkdir(parents=True, exist_ok=True)
        self.average.swap(self.network)
        partial = output.with_suffix(".partial")
        partial.write_bytes(pack(network_tensors(self.network), {**self.config, "training": training}))
        partial.replace(output)
        errors = self._watched_errors()
        self.average.swap(self.network)
        print(
            f"step {step} {minutes:.1f} min loss {np.mean(self.losses[-500:]):.5f} watched E {errors['energy']:.1f}"
            f" meV/atom F {errors['forces']:.0f} meV/Å S {errors['stress']:.1f} meV/Å^3",
            flush=True,
        )


def main() -> None:
    """Train, and write the averaged weights every --save-every steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, help="folder written by label.py")
    parser.add_argument("output", type=Path, help="model.safetensors to write")
    parser.add_argument("--steps", type=int, default=24000)
    parser.add_argument("--start", type=Path, default=None, help="weights of an earlier run to go on from")
    parser.add_argument("--rate", type=float, default=0.01, help="largest learning rate")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--bend-from", type=float, default=0.65, help="fraction of steps after which labels are bent")
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trainer = Trainer(Dataset(arguments.labels), arguments)
    print(json.dumps({**trainer.config, "parameters": sum(p.numel() for p in trainer.network.parameters())}))
    print(f"{len(trainer.train_rows)} configurations to train, {len(trainer.watched_rows)} to watch", flush=True)
    trainer.run()


if __name__ == "__main__":
    main()
