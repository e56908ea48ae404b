"""Train mace-alloy-small on the labels of label.py, bent towards PBE: one core, plain torch on MACE's modules.

One run, one cosine schedule. The validation systems (holdout.py) stay out of training and of the bending; their alloys'
K and V against PBE are printed with every save. A run with --start goes on from another run's weights.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bend import bend
from evaluate import errors
from holdout import held_out_systems, validation_systems
from pymatgen.core import Element

from inv_design.calculators.mace_calculator import MaceNetworkCalculator
from inv_design.calculators.mace_model import (
    KIND,
    Graph,
    MaceEvaluator,
    build_graph,
    build_network,
    collate,
    cutoffs,
    load_network,
    network_tensors,
)
from inv_design.datasets.mp_binaries import load_alloys
from inv_design.mechanics.eos import equation_of_state
from inv_design.mechanics.evaluate import GPA_PER_EV_A3
from inv_design.structures.elements import METALLIC_RADII
from inv_design.weights import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inv_design.datasets.mp_binaries import LabelledStructure

ENERGY_WEIGHT, FORCE_WEIGHT, STRESS_WEIGHT = 10.0, 1.0, 80.0
HUBER_DELTA = 0.01
CLIP, EMA_DECAY = 10.0, 0.998
ARCHITECTURE: dict[str, Any] = {
    "reach": 1.85,  # of the neighbours, in contact distances: between the third and the fourth shell of fcc
    "num_bessel": 8,
    "num_polynomial_cutoff": 5,
    "max_ell": 2,
    "num_interactions": 2,
    "hidden_irreps": "48x0e",
    "MLP_irreps": "16x0e",
    "correlation": 2,
    "radial_MLP": [32, 32],
    "pair_repulsion": True,
}


class Dataset:
    """Labelled configurations outside ``without``: energies per atom in eV, forces in eV/Å, stresses in eV/Å^3.

    ``without`` holds binary chemical systems; a crystal of three elements is left out if it contains one.
    """

    def __init__(self, folder: Path, without: frozenset[str] = frozenset()) -> None:
        systems = [[Element(symbol).Z for symbol in system.split("-")] for system in without]
        excluded = {frozenset(pair) for pair in systems}
        self.numbers, self.positions, self.cells = [], [], []
        self.forces, energies, stresses, groups, kinds = [], [], [], [], []
        for path in sorted(folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as data:
                arrays = {key: data[key] for key in data.files}
            keep = []
            for start, stop in zip(arrays["offsets"][:-1], arrays["offsets"][1:], strict=True):
                numbers = arrays["numbers"][start:stop].astype(int)
                pairs = combinations(sorted(set(numbers.tolist())), 2)
                keep.append(not any(frozenset(pair) in excluded for pair in pairs))
                if keep[-1]:
                    self.numbers.append(numbers)
                    self.positions.append(arrays["positions"][start:stop])
                    self.forces.append(arrays["forces"][start:stop])
            self.cells += list(arrays["cell"][keep])
            energies.append(arrays["energy"][keep])
            stresses.append(arrays["stress"][keep])
            groups.append(arrays["group"][keep])
            kinds.append(arrays["kind"][keep])
        self.sizes = np.array([len(numbers) for numbers in self.numbers])
        self.energies = np.concatenate(energies) / self.sizes
        self.stresses = np.concatenate(stresses)
        self.groups = np.concatenate(groups)
        self.kinds = np.concatenate(kinds)
        self.volumes = np.abs(np.linalg.det(np.array(self.cells))) / self.sizes
        self.atomic_numbers = sorted({int(z) for numbers in self.numbers for z in numbers})

    def __len__(self) -> int:
        return len(self.numbers)

    def graphs(self, r_max: float | np.ndarray) -> list[Graph]:
        """Return the graph of every configuration; ``r_max`` as for ``build_graph``."""
        index = {z: i for i, z in enumerate(self.atomic_numbers)}
        return [
            build_graph(np.array([index[z] for z in numbers]), positions, cell, r_max)
            for numbers, positions, cell in zip(self.numbers, self.positions, self.cells, strict=True)
        ]

    def atomic_energies(self) -> np.ndarray:
        """Return reference energies by ridge-stabilised least squares on the composition, eV."""
        counts = np.array([[np.mean(numbers == z) for z in self.atomic_numbers] for numbers in self.numbers])
        gram = counts.T @ counts + 1e-3 * np.eye(counts.shape[1])
        return np.linalg.solve(gram, counts.T @ self.energies)

    def members(self) -> dict[str, np.ndarray]:
        """Return the isotropic configurations of each group (one crystal at several volumes)."""
        return self._isotropic

    def rows_of_groups(self) -> dict[str, np.ndarray]:
        """Return all configurations of each group."""
        return self._all

    @cached_property
    def _isotropic(self) -> dict[str, np.ndarray]:
        return self._grouped(np.flatnonzero(self.kinds == "isotropic"))

    @cached_property
    def _all(self) -> dict[str, np.ndarray]:
        return self._grouped(np.arange(len(self)))

    def _grouped(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        rows = rows[np.argsort(self.groups[rows], kind="stable")]
        names, starts = np.unique(self.groups[rows], return_index=True)
        return dict(zip(names.tolist(), np.split(rows, starts[1:]), strict=True))

    def bulk_moduli(self) -> dict[str, float]:
        """Return K in GPa of each group, from the slope of its pressure over ln V, at least 1 GPa."""
        moduli = {}
        for name, rows in self.members().items():
            pressure = -np.trace(self.stresses[rows], axis1=1, axis2=2) / 3 * GPA_PER_EV_A3
            modulus = -np.polyfit(np.log(self.volumes[rows]), pressure, 1)[0] if len(rows) > 1 else 100.0
            moduli[name] = float(max(modulus, 1.0))
        return moduli

    def stress_weights(self) -> np.ndarray:
        """Return (100 GPa / K)^0.7 of each configuration's group, clipped to 0.5-8."""
        weights = {name: float(np.clip((100 / k) ** 0.7, 0.5, 8.0)) for name, k in self.bulk_moduli().items()}
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
    """One training run: the network, its average, the schedule, and the bent labels."""

    def __init__(
        self, dataset: Dataset, arguments: argparse.Namespace, validation: Sequence[LabelledStructure]
    ) -> None:
        self.dataset, self.arguments, self.validation = dataset, arguments, validation
        self.rng = np.random.default_rng(arguments.seed)
        self.weights = dataset.stress_weights()
        bent = bend(dataset)
        print(bent.summary, flush=True)
        self.energies, self.stresses = bent.energies, bent.stresses
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
        self.graphs = dataset.graphs(cutoffs(self.config))
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
        radii = [METALLIC_RADII[Element.from_Z(z).symbol] for z in self.dataset.atomic_numbers]
        some = self.dataset.graphs(ARCHITECTURE["reach"] * np.array(radii))[::10]
        neighbors = np.mean([graph.edges.shape[1] / len(graph.species) for graph in some])
        return {
            "kind": KIND,
            "name": "mace-alloy-small",
            "atomic_numbers": self.dataset.atomic_numbers,
            "atomic_energies": [round(float(energy), 6) for energy in self.dataset.atomic_energies()],
            "scale": round(max(forces_rms, 0.3), 6),
            "shift": 0.0,
            "avg_num_neighbors": round(float(neighbors), 4),
            "radii": radii,
            "r_max": round(2 * ARCHITECTURE["reach"] * max(radii), 6),
            **ARCHITECTURE,
        }

    def _rate(self, step: int) -> float:
        """Return the learning rate relative to its maximum: 200 steps of warm-up, then half a cosine down to 1 %."""
        return min(1.0, (step + 1) / 200) * (0.01 + 0.495 * (1 + np.cos(np.pi * step / self.arguments.steps)))

    def run(self) -> None:
        """Take all steps, and save every so often."""
        steps = self.arguments.steps
        for step in range(1, steps + 1):
            self._step(step)
            if step % self.arguments.save_every == 0 or step in (300, steps):
                self._save(step)

    def _step(self, step: int) -> None:
        if len(self.queue) < self.arguments.batch:
            self.queue = np.concatenate([self.queue, self.rng.permutation(len(self.dataset))])
        rows, self.queue = self.queue[: self.arguments.batch], self.queue[self.arguments.batch :]
        data = collate([self.graphs[i] for i in rows], len(self.dataset.atomic_numbers), torch.float32)
        out = self.network(data, training=True, compute_force=True, compute_stress=True)
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

    def _validate(self) -> str:
        """Return the errors of K and V, from E(V) about the PBE cells of the validation alloys."""
        calculator = MaceNetworkCalculator(MaceEvaluator(self.network))
        fits = [equation_of_state(alloy.structure.get_primitive_structure(), calculator) for alloy in self.validation]
        good = [(fit, alloy) for fit, alloy in zip(fits, self.validation, strict=True) if fit.error is None]
        if not good:
            return "validation: no equation of state"
        k = errors([f.bulk_modulus for f, _ in good], [a.labels["bulk_modulus_vrh"] for _, a in good])
        v = errors([f.v0 for f, _ in good], [a.structure.volume / len(a.structure) for _, a in good])
        return (
            f"validation ({len(good)} of {len(fits)}): K {k['mean_percent']:.1f} / {k['median_percent']:.1f} %"
            f" log10 {k['log10']:.4f} V {v['mean_percent']:.2f} / {v['median_percent']:.2f} %"
        )

    def _save(self, step: int) -> None:
        """Write the averaged weights in one move, so that a reader never sees half a file."""
        minutes = (time.time() - self.start) / 60
        training = {
            "steps": step,
            "planned_steps": self.arguments.steps,
            "batch": self.arguments.batch,
            "seed": self.arguments.seed,
            "configurations": len(self.dataset),
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
        report = self._validate()
        self.average.swap(self.network)
        print(f"step {step} {minutes:.1f} min loss {np.mean(self.losses[-500:]):.5f} {report}", flush=True)


def main() -> None:
    """Train, and write the averaged weights every --save-every steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, help="folder written by label.py")
    parser.add_argument("output", type=Path, help="model.safetensors to write")
    parser.add_argument("--steps", type=int, default=24000)
    parser.add_argument("--start", type=Path, default=None, help="weights of an earlier run to go on from")
    parser.add_argument("--rate", type=float, default=0.01, help="largest learning rate")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    alloys = load_alloys()
    chemsyses = [alloy.chemsys for alloy in alloys]
    systems = validation_systems(chemsyses)
    dataset = Dataset(arguments.labels, frozenset(systems | held_out_systems(chemsyses)))
    trainer = Trainer(dataset, arguments, [alloy for alloy in alloys if alloy.chemsys in systems])
    print(json.dumps({**trainer.config, "parameters": sum(p.numel() for p in trainer.network.parameters())}))
    print(f"{len(dataset)} configurations to train", flush=True)
    trainer.run()


if __name__ == "__main__":
    main()
