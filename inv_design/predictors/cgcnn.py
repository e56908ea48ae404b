"""The crystal graph convolutional network in plain torch: dense neighbour tables, no scatter package.

Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018): gated convolutions over the 12 nearest neighbours, distances in
41 Gaussians, mean pooling. Three additions pay on a few thousand crystals: elements enter by their tabulated properties
beside a learned vector, each neighbour's distance also enters relative to the two metallic radii, and the pooled
vector is joined by the volume per atom and the mean and spread of the element properties over the crystal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from inv_design.predictors.element_properties import METALLIC_RADIUS, MOLAR_VOLUME, element_properties

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inv_design.predictors.graph import CrystalGraph

VOLUME_BOUND = 10.0


@dataclass(frozen=True)
class CGCNNConfig:
    """The shape of the network.

    Attributes
    ----------
    hidden, convolutions, head
        Width of the atom vectors, number of convolutions, width of the output layer.
    neighbours, radius
        The graph: nearest neighbours per atom, within ``radius`` in Å.
    gaussians
        Number of distance Gaussians from 0 to ``radius``; 41 gives the 0.2 Å spacing of the paper.
    relative_gaussians
        Number of Gaussians of distance / (sum of metallic radii) from 0.6 to 1.6; 0 turns them off.
    dropout
        Dropout before the output layer.
    """

    hidden: int = 32
    convolutions: int = 3
    head: int = 64
    neighbours: int = 12
    radius: float = 8.0
    gaussians: int = 41
    relative_gaussians: int = 16
    dropout: float = 0.0


@dataclass
class Batch:
    """Graphs of n crystals with A atoms in all, as one disconnected graph.

    Attributes
    ----------
    numbers, crystal
        Atomic number and index of the crystal of each atom (A,).
    neighbours, distances
        Row of each neighbour in the batch (A, M) and its distance (A, M) in Å.
    volume_per_atom
        Of each crystal (n,) in Å^3.
    """

    numbers: torch.Tensor
    crystal: torch.Tensor
    neighbours: torch.Tensor
    distances: torch.Tensor
    volume_per_atom: torch.Tensor


class PackedGraphs:
    """All graphs of a data set in flat tensors, from which batches are cut by indexing."""

    def __init__(self, graphs: Sequence[CrystalGraph]) -> None:
        sizes = np.array([len(g.numbers) for g in graphs])
        self.sizes = torch.from_numpy(sizes)
        self.starts = torch.from_numpy(np.cumsum(sizes) - sizes)
        self.numbers = torch.from_numpy(np.concatenate([g.numbers for g in graphs]))
        self.neighbours = torch.from_numpy(np.concatenate([g.neighbours for g in graphs]).astype(np.int64))
        self.vectors = torch.from_numpy(np.concatenate([g.vectors for g in graphs]).astype(np.float32))
        self.volumes = torch.tensor([g.volume for g in graphs], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.sizes)

    def batch(
        self,
        index: torch.Tensor,
        *,
        strain: float = 0.0,
        rattle: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Batch:
        """Return the crystals of ``index`` (n,), each distorted at random if asked.

        ``strain`` is the standard deviation of the relative volume change, ``rattle`` that of each displacement
        component in Å. The neighbour table is kept: a small distortion moves the neighbours but does not rename them.
        """
        sizes = self.sizes[index]
        first = torch.cumsum(sizes, 0) - sizes
        crystal = torch.repeat_interleave(torch.arange(len(index)), sizes)
        within = torch.arange(len(crystal)) - first[crystal]
        rows = self.starts[index][crystal] + within
        neighbours = self.neighbours[rows] + first[crystal][:, None]
        vectors = self.vectors[rows]
        volumes = self.volumes[index] / sizes
        if rattle > 0.0:
            scale = rattle * torch.rand(len(index), generator=generator)[crystal, None]
            shift = scale * torch.randn(len(rows), 3, generator=generator)
            vectors = vectors + shift[neighbours] - shift[:, None, :]
        distances = torch.linalg.vector_norm(vectors, dim=2)
        if strain > 0.0:
            stretch = 1.0 + strain * torch.randn(len(index), generator=generator).clamp_(-2.5, 2.5)
            volumes = volumes * stretch
            distances = distances * stretch.pow(1.0 / 3.0)[crystal, None]
        return Batch(self.numbers[rows], crystal, neighbours, distances, volumes)


class Convolution(nn.Module):
    """One gated convolution (equation 5 of the paper).

    The first layer acts on [atom; neighbour; edge]; being linear it is applied to the three parts separately, so that
    the atom part costs one product per atom instead of one per edge.
    """

    def __init__(self, hidden: int, edge: int) -> None:
        super().__init__()
        self.centre = nn.Linear(hidden, 2 * hidden)
        self.neighbour = nn.Linear(hidden, 2 * hidden, bias=False)
        self.edge = nn.Linear(edge, 2 * hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, atoms: torch.Tensor, edges: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """Return new atom vectors (A, F) from atoms (A, F), edges (A, M, E) and the neighbour table (A, M)."""
        gate = self.edge(edges)
        gate = gate + self.neighbour(atoms)[neighbours] + self.centre(atoms)[:, None, :]
        filters, core = gate.chunk(2, dim=2)
        message = (torch.sigmoid(filters) * functional.silu(core)).mean(dim=1)
        return functional.silu(atoms + self.norm(message))


class CGCNN(nn.Module):
    """The network: a batch of crystals in, one standardised number per crystal out."""

    elements: torch.Tensor
    radii: torch.Tensor
    log_volumes: torch.Tensor
    centres: torch.Tensor
    relative: torch.Tensor

    def __init__(self, config: CGCNNConfig | None = None) -> None:
        super().__init__()
        self.config = config or CGCNNConfig()
        c = self.config
        table = element_properties()
        standard = (table - table[1:].mean(axis=0)) / table[1:].std(axis=0)
        self.register_buffer("elements", torch.tensor(standard, dtype=torch.float32))
        self.register_buffer("radii", torch.tensor(table[:, METALLIC_RADIUS], dtype=torch.float32))
        self.register_buffer("log_volumes", torch.tensor(table[:, MOLAR_VOLUME], dtype=torch.float32))
        self.register_buffer("centres", torch.linspace(0.0, c.radius, c.gaussians), persistent=False)
        self.register_buffer("relative", torch.linspace(0.6, 1.6, max(c.relative_gaussians, 1)), persistent=False)
        n_properties = table.shape[1]
        self.embed = nn.Linear(n_properties, c.hidden)
        self.learned = nn.Embedding(len(table), c.hidden)
        nn.init.zeros_(self.learned.weight)
        edge = c.gaussians + c.relative_gaussians
        self.convolutions = nn.ModuleList(Convolution(c.hidden, edge) for _ in range(c.convolutions))
        state = 2 * n_properties + 3
        self.norm = nn.LayerNorm(c.hidden)
        self.first = nn.Linear(c.hidden + state, c.head)
        self.dropout = nn.Dropout(c.dropout)
        self.last = nn.Linear(c.head, 1)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the standardised property (n,) of the crystals of a batch."""
        properties = self.elements[batch.numbers]
        atoms = self.embed(properties) + self.learned(batch.numbers)
        edges = self._edges(batch)
        for convolution in self.convolutions:
            atoms = convolution(atoms, edges, batch.neighbours)
        pooled = self.norm(self._mean(atoms, batch))
        hidden = functional.silu(self.first(torch.cat([pooled, self._state(properties, batch)], dim=1)))
        return self.last(self.dropout(hidden)).squeeze(1)

    def _edges(self, batch: Batch) -> torch.Tensor:
        """Return edge features (A, M, E): Gaussians of the distance, absolute and relative to the metallic radii."""
        width = self.config.radius / (self.config.gaussians - 1)
        parts = [torch.exp(-(((batch.distances[..., None] - self.centres) / width) ** 2))]
        if self.config.relative_gaussians:
            radii = self.radii[batch.numbers]
            ratio = batch.distances / (radii[:, None] + radii[batch.neighbours])
            width = 1.0 / (self.config.relative_gaussians - 1)
            parts.append(torch.exp(-(((ratio[..., None] - self.relative) / width) ** 2)))
        return torch.cat(parts, dim=2)

    def _state(self, properties: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return crystal features (n, 2P + 3): mean and spread of element properties, volume, packing."""
        mean = self._mean(properties, batch)
        spread = (self._mean(properties**2, batch) - mean**2).clamp_min(0.0).add(1e-6).sqrt()
        log_volume = batch.volume_per_atom.log()
        vegard = self._mean(self.log_volumes[batch.numbers][:, None].exp(), batch)[:, 0].log()
        spheres = self._mean((4.18879 * self.radii[batch.numbers] ** 3)[:, None], batch)[:, 0]
        # log volumes vary by about 0.4 over the alloys and 0.1 against Vegard's law
        volume = torch.stack(
            [(log_volume - 3.0) / 0.4, (log_volume - vegard) / 0.1, (spheres.log() - log_volume + 0.3) / 0.15], dim=1
        )
        # an absurd cell must not drive the answer to infinity; no packaged alloy lies outside
        return torch.cat([mean, spread, volume.clamp(-VOLUME_BOUND, VOLUME_BOUND)], dim=1)

    @staticmethod
    def _mean(values: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean (n, F) over the atoms of each crystal."""
        n = len(batch.volume_per_atom)
        total = values.new_zeros(n, values.shape[1]).index_add(0, batch.crystal, values)
        count = torch.bincount(batch.crystal, minlength=n).to(values.dtype)
        return total / count[:, None]
