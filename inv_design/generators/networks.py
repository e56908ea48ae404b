"""The networks of the Con-CDVAE: encoder, condition, heads, predictor, denoising decoder and latent prior."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inv_design.generators.conditions import GROUPS, feature_owners, feature_size
from inv_design.generators.crystals import ELEMENTS
from inv_design.generators.diffusion import score_norm, sigma_of, wrapped_score

IMAGES = torch.tensor([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)], dtype=torch.float32)
DISTANCE_CENTRES = torch.linspace(0.2, 2.4, 16)
LATTICE_SIZE = 6


@dataclass(frozen=True)
class Shapes:
    """Sizes of the networks (about 0.5 M parameters with the defaults)."""

    max_sites: int = 20
    latent: int = 64
    condition: int = 64
    encoder_width: int = 64
    encoder_layers: int = 2
    anchor_width: int = 128
    anchor_layers: int = 3
    decoder_width: int = 64
    decoder_layers: int = 3
    head_width: int = 160
    prior_latent: int = 64
    prior_width: int = 144
    prior_further: int = 0
    element_features: int = 10


def mlp(sizes: list[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Return linear layers of the given sizes with SiLU (and dropout) between them."""
    layers: list[nn.Module] = []
    for index, (first, second) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(first, second))
        if index < len(sizes) - 2:
            layers.append(nn.SiLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def waves(x: Tensor, count: int) -> Tensor:
    """Return sin and cos of 2 pi k x for k = 1 .. count: shape (..., d) to (..., 2 d count)."""
    angles = 2 * math.pi * x[..., None] * torch.arange(1, count + 1, dtype=x.dtype)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def level_waves(level: Tensor, size: int = 32) -> Tensor:
    """Return a sinusoidal embedding (b, size) of noise levels or times in [0, 1]."""
    frequencies = torch.exp(torch.linspace(0.0, math.log(200.0), size // 2))
    angles = level[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class ElementEmbedding(nn.Module):
    """Physical features of an element, mapped, plus a small learned vector; row 0 is padding."""

    features: Tensor

    def __init__(self, features: Tensor, size: int) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.mapped = mlp([features.shape[1], 48, size])
        self.learned = nn.Embedding(ELEMENTS + 1, size, padding_idx=0)
        nn.init.normal_(self.learned.weight, std=0.1)

    def table(self) -> Tensor:
        """Return the embeddings (95, size) of all elements."""
        return self.mapped(self.features) + self.learned.weight

    def forward(self, numbers: Tensor) -> Tensor:
        """Return embeddings (..., size) of atomic numbers (...)."""
        return self.table().index_select(0, numbers.flatten()).view(*numbers.shape, -1)


class Condition(nn.Module):
    """Gaussian basis of the scaled log10 of the property, then an MLP; a learned vector where it is dropped."""

    centres: Tensor

    def __init__(self, size: int, centres: int = 20) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-2.5, 2.5, centres))
        self.map = mlp([centres, size, size])
        self.absent = nn.Parameter(torch.zeros(size))

    def forward(self, value: Tensor, present: Tensor) -> Tensor:
        """Return (b, size) for standardised values (b,) and a mask (b,) of those that are given."""
        width = 5.0 / (len(self.centres) - 1)
        basis = torch.exp(-((value[:, None] - self.centres) ** 2) / (2 * width**2))
        return torch.where(present[:, None], self.map(basis), self.absent)


class PeriodicLayer(nn.Module):
    """Message passing over all pairs of sites of a cell; the first edge layer is split to avoid a concatenation."""

    def __init__(self, width: int, edge: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.receiver = nn.Linear(width, width, bias=False)
        self.sender = nn.Linear(width, width, bias=False)
        self.edge = nn.Linear(edge, width)
        self.message = nn.Linear(width, width)
        self.update = mlp([2 * width, width, width])

    def forward(self, h: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        """Return new states for h (b, n, width), edges (b, n, n, edge) and the mask of pairs (b, n, n, 1)."""
        x = self.norm(h)
        m = self.receiver(x)[:, :, None, :] + self.sender(x)[:, None, :, :] + self.edge(edges)
        m = nn.functional.silu(self.message(nn.functional.silu(m))) * pairs
        pooled = m.sum(2) / pairs.sum(2).clamp_min(1.0)
        return h + self.update(torch.cat([x, pooled], -1))


@dataclass
class Cells:
    """A padded batch of crystals.

    Attributes
    ----------
    numbers, mask
        Atomic numbers (b, n), 0 pads; True at sites.
    lattice
        Scaled lattice (b, 6).
    metric
        Lattice vectors (b, 3, 3) in units of the mean atomic diameter, (sum of atomic volumes / n)^(1/3).
    radii
        Atomic radii (b, n) in the same unit (half the cube root of the atomic volume).
    """

    numbers: Tensor
    mask: Tensor
    lattice: Tensor
    metric: Tensor
    radii: Tensor

    def rows(self, index: Tensor | slice) -> Cells:
        """Return the chosen crystals of the batch."""
        return Cells(*(getattr(self, name)[index] for name in ("numbers", "mask", "lattice", "metric", "radii")))


def edge_features(coords: Tensor, cells: Cells, count: int = 3) -> Tensor:
    """Return pair features (b, n, n, 6 count + 16): waves of the fractional difference, shortest distance basis.

    The distance of the nearest image is divided by the sum of the two atomic radii, so that 1 is contact.
    """
    delta = coords[:, None, :, :] - coords[:, :, None, :]
    nearest = delta - delta.round()
    images = torch.einsum("kc,bcd->bkd", IMAGES.to(coords.dtype), cells.metric)
    cartesian = torch.einsum("bijc,bcd->bijd", nearest, cells.metric)
    square = (cartesian[:, :, :, None, :] + images[:, None, None, :, :]).square().sum(-1)
    itself = torch.eye(coords.shape[1], dtype=torch.bool)[None, :, :, None] & (IMAGES == 0).all(-1)
    distance = square.masked_fill(itself, 1e6).amin(-1).clamp_min(1e-8).sqrt()
    contact = distance / (cells.radii[:, :, None] + cells.radii[:, None, :]).clamp_min(1e-3)
    basis = torch.exp(-((contact[..., None] - DISTANCE_CENTRES) ** 2) / (2 * 0.12**2))
    return torch.cat([waves(delta, count), basis], -1)


EDGE_SIZE = 6 * 3 + len(DISTANCE_CENTRES)
ABSOLUTE_WAVES = 4
SITE_SIZE = 32 + 32 + 16 + 16 + 1


class Sites(nn.Module):
    """What is known of a site before its coordinates: species, slot, places to the end, length of the first run."""

    def __init__(self, shapes: Shapes, features: Tensor) -> None:
        super().__init__()
        self.species = ElementEmbedding(features, 32)
        self.slot = nn.Embedding(shapes.max_sites, 32)
        self.from_end = nn.Embedding(shapes.max_sites + 1, 16)
        self.leading = nn.Embedding(shapes.max_sites + 1, 16)

    def forward(self, cells: Cells) -> Tensor:
        """Return (b, n, 97)."""
        b, n = cells.numbers.shape
        slots = torch.arange(n).expand(b, n)
        first = (cells.numbers == cells.numbers[:, :1]) & cells.mask
        leading = first.sum(1, keepdim=True).expand(b, n)
        remaining = (cells.mask.sum(1, keepdim=True) - slots).clamp_min(0)
        x = [self.species(cells.numbers), self.slot(slots), self.from_end(remaining), self.leading(leading)]
        return torch.cat([*x, first.to(x[0].dtype)[..., None]], -1)


class CrystalNetwork(nn.Module):
    """States of the sites of a crystal from sites, absolute coordinates, lattice, and a context per site."""

    def __init__(self, shapes: Shapes, features: Tensor, width: int, layers: int, context: int) -> None:
        super().__init__()
        self.sites = Sites(shapes, features)
        self.enter = mlp([SITE_SIZE + 6 * ABSOLUTE_WAVES + LATTICE_SIZE + context, 2 * width, width])
        self.layers = nn.ModuleList(PeriodicLayer(width, EDGE_SIZE) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, coords: Tensor, cells: Cells, context: Tensor) -> Tensor:
        """Return site states (b, n, width) for coordinates (b, n, 3) and contexts (b, n, context)."""
        n = cells.numbers.shape[1]
        lattice = cells.lattice[:, None, :].expand(-1, n, -1)
        h = self.enter(torch.cat([self.sites(cells), waves(coords, ABSOLUTE_WAVES), lattice, context], -1))
        edges = edge_features(coords, cells)
        pairs = (cells.mask[:, :, None] & cells.mask[:, None, :]).to(coords.dtype)[..., None]
        for layer in self.layers:
            h = layer(h, edges, pairs)
        return self.norm(h)


class Encoder(nn.Module):
    """A crystal to the mean and the log variance of its latent vector."""

    def __init__(self, shapes: Shapes, features: Tensor) -> None:
        super().__init__()
        self.network = CrystalNetwork(shapes, features, shapes.encoder_width, shapes.encoder_layers, 0)
        self.mean = nn.Linear(shapes.encoder_width, shapes.latent)
        self.log_variance = nn.Linear(shapes.encoder_width, shapes.latent)

    def forward(self, coords: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, both (b, latent)."""
        h = self.network(coords, cells, coords.new_zeros(*coords.shape[:2], 0))
        mask = cells.mask[..., None].to(h.dtype)
        pooled = torch.tanh((h * mask).sum(1) / mask.sum(1))
        return self.mean(pooled), self.log_variance(pooled).clamp(-10.0, 4.0)


class Heads(nn.Module):
    """Number of atoms, composition atom by atom, and lattice from a latent vector and the condition."""

    def __init__(self, shapes: Shapes, features: Tensor, dropout: float = 0.1) -> None:
        super().__init__()
        width = shapes.head_width
        self.max_sites = shapes.max_sites
        self.condition = Condition(shapes.condition)
        self.join = mlp([shapes.latent + shapes.condition, width, shapes.latent], dropout=dropout)
        self.species = ElementEmbedding(features, 48)
        self.sites = nn.Embedding(shapes.max_sites + 1, 16)
        self.natoms = mlp([shapes.latent, width, shapes.max_sites], dropout=dropout)
        self.atom = mlp([shapes.latent + 2 * 48 + 2 * 16 + 1, width, width, 48], dropout=dropout)
        self.bias = nn.Parameter(torch.zeros(ELEMENTS + 1))
        self.lattice = mlp([shapes.latent + 2 * 48 + 2 * 16, width, width, LATTICE_SIZE], dropout=dropout)

    def latent(self, z: Tensor, value: Tensor, present: Tensor) -> Tensor:
        """Return the conditioned latent vector (b, latent)."""
        return self.join(torch.cat([z, self.condition(value, present)], -1))

    def natoms_logits(self, zc: Tensor) -> Tensor:
        """Return logits (b, max_sites) of the number of atoms minus one."""
        return self.natoms(zc)

    def atom_logits(self, zc: Tensor, previous: Tensor, position: Tensor, natoms: Tensor) -> Tensor:
        """Return logits (b, 95) of the next atom's species.

        Parameters
        ----------
        previous
            Atomic numbers (b, n) before it in canonical order, 0 pads.
        position, natoms
            Its position and the number of atoms (b,).
        """
        embedded = self.species(previous) * (previous > 0)[..., None]
        total = embedded.sum(1) / natoms[:, None]
        last = previous.gather(1, (position - 1).clamp_min(0)[:, None])[:, 0]
        last_embedded = self.species(last) * (position > 0)[:, None]
        run = ((previous == last[:, None]) & (previous > 0)).sum(1)
        x = [zc, total, last_embedded, self.sites(natoms), self.sites(natoms - position), (run / natoms)[:, None]]
        return self.atom(torch.cat(x, -1)) @ self.species.table().T / 48**0.5 + self.bias

    def lattice_values(self, zc: Tensor, numbers: Tensor) -> Tensor:
        """Return the scaled lattice (b, 6) for compositions (b, n) in canonical order, 0 pads."""
        mask = numbers > 0
        natoms = mask.sum(1)
        first = numbers[:, 0]
        leading = ((numbers == first[:, None]) & mask).sum(1)
        mean = (self.species(numbers) * mask[..., None]).sum(1) / natoms[:, None]
        return self.lattice(torch.cat([zc, mean, self.species(first), self.sites(natoms), self.sites(leading)], -1))


class Anchor(nn.Module):
    """A first guess of every coordinate from the latent vector, the composition and the lattice alone.

    In a canonical cell, origin and site order most coordinates follow from these; what remains open shows as a short
    vector. Works on sites that see the mean of all, without pairs, so that it costs little.
    """

    def __init__(self, shapes: Shapes, features: Tensor) -> None:
        super().__init__()
        width = shapes.anchor_width
        self.sites = Sites(shapes, features)
        self.enter = nn.Linear(SITE_SIZE + LATTICE_SIZE + shapes.latent, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(shapes.anchor_layers))
        self.blocks = nn.ModuleList(mlp([2 * width, width, width]) for _ in range(shapes.anchor_layers))
        self.leave = nn.Linear(width, 6)

    def forward(self, cells: Cells, zc: Tensor) -> Tensor:
        """Return (b, n, 3, 2): cos and sin of 2 pi x, shorter than 1 where the coordinate is uncertain."""
        b, n = cells.numbers.shape
        whole = torch.cat([cells.lattice, zc], -1)[:, None, :].expand(b, n, -1)
        h = self.enter(torch.cat([self.sites(cells), whole], -1))
        mask = cells.mask[..., None].to(h.dtype)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = norm(h)
            pooled = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
            h = h + block(torch.cat([x, pooled.expand_as(x)], -1))
        return self.leave(h).view(b, n, 3, 2)


class Decoder(nn.Module):
    """Denoises fractional coordinates and species of a crystal of given lattice and composition."""

    def __init__(self, shapes: Shapes, features: Tensor) -> None:
        super().__init__()
        width = shapes.decoder_width
        self.join = mlp([shapes.latent, 64, 32])
        self.network = CrystalNetwork(shapes, features, width, shapes.decoder_layers, 32 + 32 + 6 + 6 + 3)
        self.score = mlp([width, width, 6])
        self.types = mlp([width, width, ELEMENTS + 1])

    def forward(self, coords: Tensor, cells: Cells, z: Tensor, level: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised scores (b, n, 3) and species logits (b, n, 95).

        Parameters
        ----------
        level
            Noise levels (b,) in [0, 1].
        anchor
            First guess of the coordinates (b, n, 3, 2) from :class:`Anchor`; the score towards it is gated and added.
        """
        n = coords.shape[1]
        delta = coords - anchor_coordinates(anchor)
        sigma = sigma_of(level)[:, None, None]
        toward = (wrapped_score(delta, sigma.expand_as(delta)) / score_norm(level)[:, None, None]).clamp(-4.0, 4.0)
        whole = torch.cat([self.join(z), level_waves(level)], -1)[:, None, :].expand(-1, n, -1)
        h = self.network(coords, cells, torch.cat([whole, anchor.flatten(-2), waves(delta, 1), toward], -1))
        free, gate = self.score(h).chunk(2, -1)
        return free + torch.sigmoid(gate) * toward, self.types(h)


def anchor_coordinates(anchor: Tensor) -> Tensor:
    """Return fractional coordinates (..., 3) in [0, 1) of first guesses (..., 3, 2)."""
    return (torch.atan2(anchor[..., 1], anchor[..., 0]) / (2 * math.pi)) % 1.0


class FurtherCondition(nn.Module):
    """Further conditions of a prior, any subset of them; starts without effect."""

    owners: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("owners", torch.as_tensor(feature_owners()))
        self.map = mlp([feature_size() + len(GROUPS), 2 * size, size])
        last = self.map[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, shown: Tensor) -> Tensor:
        """Return (b, size) for features (b, feature_size()) and a mask (b, groups) of the groups that are shown."""
        mask = shown.to(features.dtype)
        mapped = self.map(torch.cat([features * mask[:, self.owners], mask], -1))
        return mapped * shown.any(-1, keepdim=True)


class Prior(nn.Module):
    """Noise in the active part of a latent vector, given time and conditions (the second training step)."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        width = shapes.prior_width
        self.condition = Condition(shapes.condition)
        self.further = FurtherCondition(shapes.condition) if shapes.prior_further else None
        self.enter = nn.Linear(shapes.prior_latent, width)
        self.context = nn.ModuleList(nn.Linear(32 + shapes.condition, width) for _ in range(3))
        self.blocks = nn.ModuleList(mlp([width, width, width]) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.leave = nn.Linear(width, shapes.prior_latent)

    def forward(
        self, z: Tensor, time: Tensor, value: Tensor, present: Tensor, further: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return the predicted noise (b, prior_latent) for times (b,) in [0, 1].

        ``further`` are the features and the mask of :class:`FurtherCondition`; without them none is shown.
        """
        condition = self.condition(value, present)
        if self.further is not None and further is not None:
            condition = condition + self.further(*further)
        context = torch.cat([level_waves(time), condition], -1)
        h = self.enter(z)
        for norm, block, project in zip(self.norms, self.blocks, self.context, strict=True):
            h = h + block(norm(h) + project(context))
        return self.leave(h)


class Networks(nn.Module):
    """All networks of one generator."""

    def __init__(self, shapes: Shapes, features: Tensor) -> None:
        super().__init__()
        self.shapes = shapes
        self.encoder = Encoder(shapes, features)
        self.heads = Heads(shapes, features)
        self.predictor = mlp([shapes.latent, 128, 128, 1], dropout=0.1)
        self.anchor = Anchor(shapes, features)
        self.decoder = Decoder(shapes, features)
        self.prior = Prior(shapes)
