"""MACE networks as plain tensors: built from a JSON configuration, loaded from safetensors, evaluated in batches."""

from __future__ import annotations

import contextlib
import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.calculators.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    import torch

KIND = "mace-scale-shift"
INTERACTION = "RealAgnosticResidualInteractionBlock"
CONTACT = 2.8  # Å, contact distance of a typical metal; scaled distances are contact distances times this
UNSAFE_LOAD = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
MAX_PAIRS = {"cpu": 3000, "cuda": 200_000}
"""Device -> neighbour pairs in a pass: enough for its overhead to vanish, few enough for a core's caches."""


@contextlib.contextmanager
def unsafe_load_confined() -> Iterator[None]:
    """Restore the process-wide switch to unsafe unpickling that ``import mace`` sets, once this block ends."""
    before = os.environ.get(UNSAFE_LOAD)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(UNSAFE_LOAD, None)
        else:
            os.environ[UNSAFE_LOAD] = before


def import_mace(name: str = "mace.modules") -> ModuleType:
    """Import a module of MACE without leaving unsafe unpickling on.

    e3nn reads a file of its own with ``torch.load`` while it is imported, and only after ``import mace`` may it do so.

    Raises
    ------
    ImportError
        If mace-torch is not installed.
    """
    with unsafe_load_confined(), quiet():
        try:
            importlib.import_module("mace")
        except ImportError as error:
            raise ImportError(f"MACE cannot be imported ({error}); pip install mace-torch") from error
        os.environ.setdefault(UNSAFE_LOAD, "1")  # mace sets it only on its first import
        return importlib.import_module(name)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build modules in ``dtype`` and leave torch's default as it was."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_network(config: Mapping[str, Any], dtype: str = "float64") -> torch.nn.Module:
    """Return an untrained ScaleShiftMACE (Batatia et al., NeurIPS 2022) in ``dtype`` on the CPU.

    ``config`` holds: atomic_numbers, atomic_energies (eV, one per atomic number), scale (eV), shift (eV),
    avg_num_neighbors, r_max (Å), num_bessel, num_polynomial_cutoff, max_ell, num_interactions, hidden_irreps,
    MLP_irreps, correlation, radial_MLP, pair_repulsion; and where they differ from the defaults interaction,
    interaction_first and distance_transform. With ``radii`` (Å, one per atomic number) and ``reach``, distances are
    scaled, see :func:`scaled_radial_embedding`, and r_max is the largest of the pairs' cutoffs.
    """
    import torch

    radii = config.get("radii")

    modules = import_mace()
    irreps = import_mace("e3nn.o3").Irreps
    with default_dtype(getattr(torch, dtype)), quiet():  # TorchScript warns of e3nn's annotations
        network = modules.ScaleShiftMACE(
            atomic_inter_scale=config["scale"],
            atomic_inter_shift=config["shift"],
            r_max=config["r_max"] if radii is None else config["reach"] * CONTACT,
            num_bessel=config["num_bessel"],
            num_polynomial_cutoff=config["num_polynomial_cutoff"],
            max_ell=config["max_ell"],
            interaction_cls=modules.interaction_classes[config.get("interaction", INTERACTION)],
            interaction_cls_first=modules.interaction_classes[config.get("interaction_first", INTERACTION)],
            num_interactions=config["num_interactions"],
            num_elements=len(config["atomic_numbers"]),
            hidden_irreps=irreps(config["hidden_irreps"]),
            MLP_irreps=irreps(config["MLP_irreps"]),
            atomic_energies=np.array(config["atomic_energies"], dtype=float),
            avg_num_neighbors=config["avg_num_neighbors"],
            atomic_numbers=list(config["atomic_numbers"]),
            correlation=config["correlation"],
            gate=torch.nn.functional.silu,
            radial_MLP=list(config["radial_MLP"]),
            pair_repulsion=config["pair_repulsion"],
            distance_transform=config.get("distance_transform", "None"),
        )
        if radii is not None:
            network.radial_embedding = scaled_radial_embedding(network.radial_embedding, radii)
        return network


def scaled_radial_embedding(inner: torch.nn.Module, radii: Sequence[float]) -> torch.nn.Module:
    """Return MACE's radial embedding of distances in units of the two atoms' contact distance (times CONTACT Å).

    The cutoff of a pair is then a multiple of its contact distance: potassium has as many neighbours as nickel, and
    one radial function serves shells of the same kind in all metals. ``radii`` in Å, one per species.
    """
    import torch

    class ScaledRadialEmbedding(torch.nn.Module):
        radii: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner
            self.register_buffer("radii", torch.tensor(radii, dtype=torch.get_default_dtype()), persistent=False)

        def forward(
            self, lengths: torch.Tensor, attributes: torch.Tensor, edges: torch.Tensor, numbers: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            radius = attributes @ self.radii  # attributes are one-hot
            contact = (radius[edges[0]] + radius[edges[1]]).unsqueeze(-1)
            return self.inner(lengths * (CONTACT / contact), attributes, edges, numbers)

    return ScaledRadialEmbedding()


def cutoffs(config: Mapping[str, Any]) -> float | np.ndarray:
    """Return what :func:`build_graph` takes for a network of ``config``: one cutoff, or each species' sphere, Å."""
    return config["r_max"] if config.get("radii") is None else config["reach"] * np.array(config["radii"])


def network_tensors(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the learned parameters; everything else in the network follows from the configuration."""
    return {name: parameter.detach().cpu().numpy() for name, parameter in network.named_parameters()}


def load_network(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], dtype: str = "float64"
) -> torch.nn.Module:
    """Return the network of ``config`` with the parameters of ``tensors``.

    Raises
    ------
    ValueError
        If a parameter is missing, unknown, or of another shape.
    """
    import torch

    if config.get("kind") != KIND:
        raise ValueError(f"a model of kind {config.get('kind')!r} is no MACE network; expected kind {KIND!r}")
    network = build_network(config, dtype)
    parameters = dict(network.named_parameters())
    if wrong := sorted(parameters.keys() ^ tensors.keys()):
        raise ValueError(
            f"the weights do not fit their configuration: {len(wrong)} parameters differ, first {wrong[0]!r}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tuple(parameter.shape) != tensors[name].shape:
                raise ValueError(
                    f"parameter {name!r} has shape {tensors[name].shape}, not the {tuple(parameter.shape)} "
                    "of its configuration"
                )
            parameter.copy_(torch.from_numpy(np.array(tensors[name])))
            parameter.requires_grad_(False)
    return network.eval()


@dataclass(frozen=True)
class Graph:
    """One periodic configuration with its neighbours, as arrays.

    Attributes
    ----------
    species
        Index of each atom into the network's atomic numbers, (n,).
    positions, cell
        Å, (n, 3) and (3, 3).
    edges
        Sender and receiver of each directed pair, (2, m).
    shifts
        Lattice translation of each pair in units of the cell vectors, (m, 3).
    """

    species: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    edges: np.ndarray
    shifts: np.ndarray


def build_graph(species: np.ndarray, positions: np.ndarray, cell: np.ndarray, r_max: float | np.ndarray) -> Graph:
    """Return the graph of all pairs within ``r_max`` Å of a fully periodic configuration.

    With an array of ``r_max``, one radius per species, it is the graph of the pairs whose spheres overlap.
    """
    from matscipy.neighbours import neighbour_list

    cutoff = float(r_max) if np.ndim(r_max) == 0 else np.asarray(r_max, float)[species]
    senders, receivers, shifts = neighbour_list(
        "ijS", cutoff=cutoff, positions=np.asarray(positions, float), cell=np.asarray(cell, float), pbc=[True] * 3
    )
    return Graph(np.asarray(species), positions, cell, np.stack([senders, receivers]).astype(np.int32), shifts)


def collate(graphs: Sequence[Graph], n_species: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return one disjoint graph of several configurations, as the dictionary of tensors that MACE takes."""
    import torch

    sizes = np.array([len(graph.species) for graph in graphs])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    pairs = [graph.edges.shape[1] for graph in graphs]
    cells = np.stack([graph.cell for graph in graphs])
    unit_shifts = np.concatenate([graph.shifts for graph in graphs]).astype(float)
    owner = np.repeat(np.arange(len(graphs)), pairs)
    edges = np.concatenate([graph.edges for graph in graphs], axis=1) + starts[:-1][owner]
    species = torch.from_numpy(np.concatenate([graph.species for graph in graphs]).astype(np.int64))
    return {
        "positions": torch.from_numpy(np.concatenate([graph.positions for graph in graphs])).to(dtype),
        "cell": torch.from_numpy(cells.reshape(-1, 3)).to(dtype),
        "node_attrs": torch.nn.functional.one_hot(species, n_species).to(dtype),
        "edge_index": torch.from_numpy(edges.astype(np.int64)),
        "unit_shifts": torch.from_numpy(unit_shifts).to(dtype),
        "shifts": torch.from_numpy(np.einsum("mi,mij->mj", unit_shifts, cells[owner])).to(dtype),
        "batch": torch.from_numpy(np.repeat(np.arange(len(graphs)), sizes)),
        "ptr": torch.from_numpy(starts),
        "head": torch.zeros(len(graphs), dtype=torch.long),
    }


class MaceEvaluator:
    """A MACE network that evaluates many configurations in one pass, in the network's own precision."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        buffers = dict(network.named_buffers())
        self.atomic_numbers: list[int] = buffers["atomic_numbers"].tolist()
        self.r_max: float | np.ndarray = float(buffers["r_max"])
        if (radii := buffers.get("radial_embedding.radii")) is not None:
            self.r_max = self.r_max / CONTACT * radii.double().cpu().numpy()
        parameter = next(network.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self._index = {z: i for i, z in enumerate(self.atomic_numbers)}

    def species(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the index of each atom into the network's atomic numbers.

        Raises
        ------
        ValueError
            If the network was not trained on one of the elements.
        """
        try:
            return np.array([self._index[int(z)] for z in numbers])
        except KeyError as error:
            from ase.data import chemical_symbols

            symbol = chemical_symbols[error.args[0]]
            known = " ".join(sorted(chemical_symbols[z] for z in self.atomic_numbers))
            raise ValueError(f"the calculator does not know the element {symbol}; it knows {known}") from None

    def evaluate(
        self, configurations: Sequence[tuple[Sequence[int], np.ndarray, np.ndarray]], max_pairs: int | None = None
    ) -> list[tuple[float, np.ndarray, np.ndarray]]:
        """Return (energy eV, forces (n, 3) eV/Å, stress (3, 3) eV/Å^3) of (numbers, positions Å, cell Å) triples.

        Passes hold about ``max_pairs`` neighbour pairs at most, by default :data:`MAX_PAIRS` of the network's device.
        """
        max_pairs = max_pairs or MAX_PAIRS[self.device.type]
        graphs = [
            build_graph(self.species(numbers), np.asarray(positions, float), np.asarray(cell, float), self.r_max)
            for numbers, positions, cell in configurations
        ]
        results: list[tuple[float, np.ndarray, np.ndarray]] = []
        start = 0
        while start < len(graphs):
            stop, pairs = start + 1, graphs[start].edges.shape[1]
            while stop < len(graphs) and pairs + graphs[stop].edges.shape[1] <= max_pairs:
                pairs += graphs[stop].edges.shape[1]
                stop += 1
            results += self._evaluate(graphs[start:stop])
            start = stop
        return results

    def _evaluate(self, graphs: Sequence[Graph]) -> list[tuple[float, np.ndarray, np.ndarray]]:
        data = collate(graphs, len(self.atomic_numbers), self.dtype)
        data = {name: tensor.to(self.device) for name, tensor in data.items()}
        with default_dtype(self.dtype):
            out = self.network(data, training=False, compute_force=True, compute_stress=True)
        energies, all_forces, stresses = (
            out[name].detach().cpu().numpy().astype(float) for name in ("energy", "forces", "stress")
        )
        forces = np.split(all_forces, np.cumsum([len(graph.species) for graph in graphs])[:-1])
        return [(float(energies[i]), forces[i], stresses[i]) for i in range(len(graphs))]
