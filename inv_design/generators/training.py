"""Training of the Con-CDVAE networks: the tensors, the losses, and the steps in their order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

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
from inv_design.generators.crystals import ELEMENTS, cell_volume, electronegativities
from inv_design.generators.diffusion import LatentDiffusion, score_norm, sigma_of, wrap, wrapped_score
from inv_design.generators.networks import Cells, Networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from inv_design.generators.crystals import CanonicalCrystal

BUCKETS = (4, 8, 14, 20, 40, 80)
"""Cells of similar size share a padded tensor; a step takes crystals of all of them."""

ANGLE_UNIT = 30.0


@dataclass
class Scaling:
    """What turns lattices and property values into numbers of order one.

    Attributes
    ----------
    volumes
        Atomic volumes (95,) in Å^3 by atomic number.
    lattice_mean, lattice_std
        Mean and standard deviation (6,) of (log lengths over the atomic scale, angles).
    value_mean, value_std
        Mean and standard deviation of the natural logarithm of the property.
    """

    volumes: Tensor
    lattice_mean: Tensor
    lattice_std: Tensor
    value_mean: float
    value_std: float

    @classmethod
    def fit(cls, crystals: Sequence[CanonicalCrystal], values: np.ndarray, volumes: np.ndarray) -> Scaling:
        """Return the scaling of a training set."""
        raw = np.stack([_raw_lattice(crystal, volumes) for crystal in crystals])
        logs = np.log(values)
        return cls(
            volumes=torch.tensor(volumes, dtype=torch.float32),
            lattice_mean=torch.tensor(raw.mean(0), dtype=torch.float32),
            lattice_std=torch.tensor(np.maximum(raw.std(0), 0.05), dtype=torch.float32),
            value_mean=float(logs.mean()),
            value_std=float(max(logs.std(), 0.05)),
        )

    def value(self, values: np.ndarray) -> Tensor:
        """Return scaled logarithms of property values."""
        return torch.tensor((np.log(values) - self.value_mean) / self.value_std, dtype=torch.float32)

    def unscale(self, lattice: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return lengths (b, 3) in Å and angles (b, 3) in degrees of scaled lattices (b, 6)."""
        raw = lattice * self.lattice_std + self.lattice_mean
        total = self.volumes[numbers].sum(1, keepdim=True)
        return raw[:, :3].exp() * total ** (1 / 3), (raw[:, 3:] * ANGLE_UNIT + 90.0).clamp(20.0, 160.0)

    def rescale(self, lengths: Tensor, angles: Tensor, numbers: Tensor) -> Tensor:
        """Return the scaled lattice (b, 6) of lengths (b, 3) in Å and angles (b, 3) in degrees."""
        total = self.volumes[numbers].sum(1, keepdim=True)
        raw = torch.cat([(lengths / total ** (1 / 3)).log(), (angles - 90.0) / ANGLE_UNIT], -1)
        return (raw - self.lattice_mean) / self.lattice_std

    def cells(self, numbers: Tensor, lengths: Tensor, angles: Tensor) -> Cells:
        """Return the padded batch for atomic numbers (b, n) and cells."""
        mask = numbers > 0
        volumes = self.volumes[numbers] * mask
        unit = (volumes.sum(1) / mask.sum(1)) ** (1 / 3)
        return Cells(
            numbers=numbers,
            mask=mask,
            lattice=self.rescale(lengths, angles, numbers),
            metric=lattice_matrix(lengths, angles) / unit[:, None, None],
            radii=0.5 * volumes ** (1 / 3) / unit[:, None],
        )


def _raw_lattice(crystal: CanonicalCrystal, volumes: np.ndarray) -> np.ndarray:
    scale = volumes[crystal.numbers].sum() ** (1 / 3)
    return np.concatenate([np.log(crystal.lengths / scale), (crystal.angles - 90.0) / ANGLE_UNIT])


def lattice_matrix(lengths: Tensor, angles: Tensor) -> Tensor:
    """Return lattice vectors (b, 3, 3) as rows for lengths (b, 3) and angles (b, 3) in degrees."""
    cos = torch.cos(torch.deg2rad(angles))
    sin_gamma = (1 - cos[:, 2] ** 2).clamp_min(1e-6).sqrt()
    cx, cy = cos[:, 1], (cos[:, 0] - cos[:, 1] * cos[:, 2]) / sin_gamma
    cz = (1 - cx**2 - cy**2).clamp_min(1e-4).sqrt()
    zero, one = torch.zeros_like(cx), torch.ones_like(cx)
    rows = [
        torch.stack([one, zero, zero], -1) * lengths[:, :1],
        torch.stack([cos[:, 2], sin_gamma, zero], -1) * lengths[:, 1:2],
        torch.stack([cx, cy, cz], -1) * lengths[:, 2:],
    ]
    return torch.stack(rows, 1)


@dataclass
class Part:
    """Crystals of one bucket.

    Attributes
    ----------
    cells, coords
        Cells and fractional coordinates (b, n, 3).
    values, weights
        Scaled property values and sampling weights, both (b,).
    index
        Places (b,) of the crystals in the list that the parts were made of.
    latent
        Latent means and log variances, stacked (b, 2, d), once the encoder is frozen.
    """

    cells: Cells
    coords: Tensor
    values: Tensor
    weights: Tensor
    index: Tensor
    latent: Tensor | None = None

    def rows(self, index: Tensor) -> Part:
        """Return the chosen crystals."""
        latent = None if self.latent is None else self.latent[index]
        cells, coords = self.cells.rows(index), self.coords[index]
        return Part(cells, coords, self.values[index], self.weights[index], self.index[index], latent)

    @torch.no_grad()
    def encoded(self, networks: Networks) -> Part:
        """Return the crystals with their latent vectors."""
        return replace(self, latent=torch.stack(networks.encoder(self.coords, self.cells), 1))


def make_parts(
    crystals: Sequence[CanonicalCrystal], values: np.ndarray, scaling: Scaling, weights: np.ndarray | None = None
) -> list[Part]:
    """Return the crystals as padded tensors, one part per bucket of cell sizes."""
    sizes = np.array([len(crystal.numbers) for crystal in crystals])
    weights = np.ones(len(crystals)) if weights is None else weights
    parts = []
    for low, high in zip((0, *BUCKETS[:-1]), BUCKETS, strict=True):
        rows = np.flatnonzero((sizes > low) & (sizes <= high)).tolist()
        if not rows:
            continue
        width = int(sizes[rows].max())
        numbers, coords = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width, 3))
        for row, index in enumerate(rows):
            numbers[row, : sizes[index]] = crystals[index].numbers
            coords[row, : sizes[index]] = crystals[index].coords
        lengths = torch.tensor(np.stack([crystals[i].lengths for i in rows]), dtype=torch.float32)
        angles = torch.tensor(np.stack([crystals[i].angles for i in rows]), dtype=torch.float32)
        parts.append(
            Part(
                cells=scaling.cells(torch.tensor(numbers), lengths, angles),
                coords=torch.tensor(coords, dtype=torch.float32),
                values=scaling.value(values[rows]),
                weights=torch.tensor(weights[rows], dtype=torch.float32),
                index=torch.tensor(rows),
            )
        )
    return parts


def batches(parts: list[Part], size: int, generator: torch.Generator) -> Iterator[list[Part]]:
    """Yield batches without end: about ``size`` crystals by weight, some of every bucket."""
    totals = torch.stack([part.weights.sum() for part in parts])
    while True:
        owners = torch.multinomial(totals, size, replacement=True, generator=generator)
        chosen = torch.bincount(owners, minlength=len(parts)).tolist()
        yield [
            part.rows(torch.multinomial(part.weights, count, replacement=True, generator=generator))
            for part, count in zip(parts, chosen, strict=True)
            if count
        ]


@dataclass
class Substitutions:
    """Other elements of like size in a training crystal, so that the shape does not hang on the elements alone.

    The composition that is decoded from a latent vector need not be the one it was encoded from; lattice and
    coordinates, relative to the atomic volumes, are taught to follow all the same.

    Attributes
    ----------
    table
        Weights (95, 95) of replacing one element by another.
    order
        Electronegativities (95,), which canonical order must keep.
    volumes
        Atomic volumes (95,) in Å^3.
    share
        Share of crystals that are changed.
    """

    table: Tensor
    order: Tensor
    volumes: Tensor
    share: float

    @classmethod
    def of(
        cls, crystals: Sequence[CanonicalCrystal], scaling: Scaling, share: float, width: float = 0.1
    ) -> Substitutions:
        """Return substitutions among the elements of the crystals, Gaussian of ``width`` in ln of the atomic volume."""
        present = torch.zeros(ELEMENTS + 1)
        for crystal in crystals:
            present[torch.as_tensor(crystal.numbers)] = 1.0
        logs = scaling.volumes.clamp_min(1e-3).log()
        table = torch.exp(-((logs[:, None] - logs[None, :]) ** 2) / (2 * width**2)) * present[None, :]
        table = table + 1e-6 * torch.eye(ELEMENTS + 1)
        return cls(table, torch.tensor(electronegativities(), dtype=torch.float32), scaling.volumes, share)

    def apply(self, cells: Cells, generator: torch.Generator) -> Cells:
        """Return the cells with elements replaced in some rows, relative shape as it was."""
        numbers, b = cells.numbers, len(cells.numbers)
        drawn = torch.multinomial(self.table, b, replacement=True, generator=generator).T  # (b, 95)
        replaced = drawn.gather(1, numbers) * cells.mask
        first, last = numbers[:, 0], numbers.gather(1, cells.mask.sum(1, keepdim=True) - 1)[:, 0]
        rows = torch.arange(b)
        new_first, new_last = drawn[rows, first], drawn[rows, last]
        kept_order = (self.order[new_first] <= self.order[new_last]) | (first == last)
        distinct = (first == last) | (new_first != new_last)
        wanted = torch.rand(b, generator=generator) < self.share
        binary = ((numbers == first[:, None]) | (numbers == last[:, None]) | ~cells.mask).all(1)
        use = wanted & kept_order & distinct & binary
        chosen = torch.where(use[:, None], replaced, numbers)
        volumes = self.volumes[chosen] * cells.mask
        unit = (volumes.sum(1) / cells.mask.sum(1)) ** (1 / 3)
        return replace(cells, numbers=chosen, radii=0.5 * volumes ** (1 / 3) / unit[:, None])


class Average:
    """An exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.count = module, decay, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    def update(self) -> None:
        """Take the present parameters in."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                self.values[name].lerp_(parameter, 1 - decay)

    def apply(self) -> None:
        """Put the average into the module."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(self.values[name])


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses in the first step (Li et al. 2025, section II B; KL of Xie et al. 2022)."""

    natoms: float = 1.0
    coords: float = 10.0
    species: float = 1.0
    lattice: float = 10.0
    composition: float = 1.0
    property: float = 3.0
    kl: float = 0.01


def reparametrised(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> Tensor:
    """Return mean + std * noise."""
    return mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)


def keep_condition(count: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Return a mask (count,) of the crystals whose condition is shown."""
    return torch.rand(count, generator=generator) >= dropout


def heads_loss(
    networks: Networks, part: Part, zc: Tensor, z: Tensor, weights: LossWeights, *, shape: Cells | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss per crystal (b,) of number of atoms, composition, lattice and property, and the parts.

    ``shape`` are the cells with elements replaced, if the lattice shall be learned from them.
    """
    cells = part.cells
    shape = cells if shape is None else shape
    natoms = cells.mask.sum(1)
    b, n = cells.numbers.shape
    count_loss = nn.functional.cross_entropy(networks.heads.natoms_logits(zc), natoms - 1, reduction="none")
    # every prefix of every composition as its own row: the autoregressive head in one call
    position = torch.arange(n).repeat(b)
    rows = torch.arange(b).repeat_interleave(n)
    real = cells.mask.flatten()
    rows, position = rows[real], position[real]
    previous = cells.numbers[rows] * (torch.arange(n)[None, :] < position[:, None])
    logits = networks.heads.atom_logits(zc[rows], previous, position, natoms[rows])
    atom_loss = nn.functional.cross_entropy(logits, cells.numbers.flatten()[real], reduction="none")
    composition_loss = torch.zeros(b).index_add(0, rows, atom_loss) / natoms**0.5
    lattice_loss = (networks.heads.lattice_values(zc, shape.numbers) - cells.lattice).square().mean(1)
    property_loss = (networks.predictor(z)[:, 0] - part.values).square()
    total = (
        weights.natoms * count_loss
        + weights.composition * composition_loss
        + weights.lattice * lattice_loss
        + weights.property * property_loss
    )
    shares = {
        "natoms_loss": float(count_loss.detach().sum()),
        "composition_loss": float(composition_loss.detach().sum()),
        "lattice_loss": float(lattice_loss.detach().sum()),
        "property_loss": float(property_loss.detach().sum()),
    }
    return total, shares


def decoder_loss(
    networks: Networks,
    part: Part,
    zc: Tensor,
    weights: LossWeights,
    generator: torch.Generator,
    *,
    cells: Cells | None = None,
    species_noise: float = 0.1,
    lattice_noise: float = 0.03,
) -> Tensor:
    """Return the denoising loss per crystal (b,): normalised score matching, and species from corrupted species."""
    cells = part.cells if cells is None else cells
    b, n = cells.numbers.shape
    level = torch.rand(b, generator=generator)
    sigma = sigma_of(level)[:, None, None]
    noise = sigma * torch.randn((b, n, 3), generator=generator)
    target = wrapped_score(wrap(noise), sigma.expand_as(noise)) / score_norm(level)[:, None, None]
    others = torch.randint(1, ELEMENTS + 1, (b, n), generator=generator)
    flip = (torch.rand((b, n), generator=generator) < species_noise * level[:, None]) & cells.mask
    noisy = Cells(
        numbers=torch.where(flip, others, cells.numbers),
        mask=cells.mask,
        lattice=cells.lattice + lattice_noise * torch.randn(cells.lattice.shape, generator=generator),
        metric=cells.metric,
        radii=cells.radii,
    )
    with torch.no_grad():
        anchor = networks.anchor(noisy, zc)
    score, types = networks.decoder((part.coords + noise) % 1.0, noisy, zc, level, anchor)
    natoms = cells.mask.sum(1)
    per_site = (score - target).square().mean(-1) * cells.mask
    type_loss = nn.functional.cross_entropy(types.transpose(1, 2), cells.numbers, reduction="none") * cells.mask
    return weights.coords * per_site.sum(1) / natoms + weights.species * type_loss.sum(1) / natoms


def train_steps(
    loss_of: Callable[[list[Part]], Tensor],
    modules: list[nn.Module],
    parts: list[Part],
    *,
    steps: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
    decay: float = 0.0,
    average: float | None = None,
    after: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> float:
    """Run AdamW steps with warm-up and cosine decay; return the mean loss of the last tenth.

    Parameters
    ----------
    loss_of
        Maps a batch to the mean loss per crystal.
    modules
        The modules that are trained.
    average
        Decay of the moving average that replaces the parameters at the end; ``None`` keeps the last ones.
    after
        Called with the number of steps done after each.
    checkpoint
        Offered the state of the loop after each step, but for the modules' parameters: who passes it keeps those, and
        puts them back before a call that goes on.
    """
    checkpoint = checkpoint or Checkpoint()
    parameters = [p for module in modules for p in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    averages = [] if average is None else [Average(module, average) for module in modules]
    warmup = max(1, min(50, steps // 10))
    losses: list[float] = []
    for module in modules:
        module.train()
    source = batches(parts, batch, generator)
    saved = checkpoint.resume()
    if saved is not None:
        for number, mean in enumerate(averages):
            load_tensors(f"average.{number}", mean.values, saved.tensors)
            mean.count = saved.values["averaged"]
        load_optimizer("optimizer", optimiser, saved.tensors)
        load_random(saved.tensors, generator)
        losses = saved.tensors["losses"].tolist()

    def state() -> State:
        tensors = optimizer_arrays("optimizer", optimiser) | random_arrays(generator)
        for number, mean in enumerate(averages):
            tensors |= named_arrays(f"average.{number}", mean.values)
        tensors["losses"] = np.array(losses)
        return State(tensors, {"step": len(losses), "averaged": averages[0].count if averages else 0})

    for step in range(len(losses), steps):
        progress = step / max(steps, 1)
        factor = min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        optimiser.zero_grad()
        loss = loss_of(next(source))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        for mean in averages:
            mean.update()
        losses.append(float(loss.detach()))
        if after is not None:
            after(step + 1)
        checkpoint.offer(state)
    for mean in averages:
        mean.apply()
    for module in modules:
        module.eval()
    return float(np.mean(losses[-max(1, steps // 10) :])) if losses else float("nan")


def anchor_loss(networks: Networks, part: Part, zc: Tensor, cells: Cells | None = None) -> Tensor:
    """Return the squared error per crystal (b,) of the first guess of the coordinates on the unit circle."""
    angle = 2 * np.pi * part.coords
    target = torch.stack([angle.cos(), angle.sin()], -1)
    error = (networks.anchor(part.cells if cells is None else cells, zc) - target).square().sum(-1).mean(
        -1
    ) * part.cells.mask
    return error.sum(1) / part.cells.mask.sum(1)


def joint_loss(
    networks: Networks,
    batch: list[Part],
    weights: LossWeights,
    generator: torch.Generator,
    *,
    substitutions: Substitutions,
    dropout: float,
) -> Tensor:
    """Return the mean loss of the first step per crystal: heads, predictor, first guess of coordinates and KL."""
    total, count = torch.zeros(()), 0
    for part in batch:
        mean, log_variance = networks.encoder(part.coords, part.cells)
        z = reparametrised(mean, log_variance, generator)
        zc = networks.heads.latent(z, part.values, keep_condition(len(z), dropout, generator))
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        shape = substitutions.apply(part.cells, generator)
        loss, _ = heads_loss(networks, part, zc, z, weights, shape=shape)
        loss = loss + weights.kl * kl + weights.coords * anchor_loss(networks, part, zc, shape)
        total, count = total + loss.sum(), count + len(z)
    return total / count


@torch.no_grad()
def validate_heads(networks: Networks, parts: list[Part], weights: LossWeights) -> tuple[float, dict[str, float]]:
    """Return (loss of the heads per crystal, its parts) with z at its mean and the condition shown."""
    networks.eval()
    total, count = 0.0, 0
    sums: dict[str, float] = {}
    for part in parts:
        mean, _ = networks.encoder(part.coords, part.cells)
        zc = networks.heads.latent(mean, part.values, torch.ones(len(mean), dtype=torch.bool))
        loss, shares = heads_loss(networks, part, zc, mean, weights)
        guess = anchor_loss(networks, part, zc)
        loss, shares = loss + guess, shares | {"anchor_loss": float(guess.sum())}
        total, count = total + float(loss.sum()), count + len(mean)
        for name, value in shares.items():
            sums[name] = sums.get(name, 0.0) + value
    return total / count, {name: value / count for name, value in sums.items()}


@dataclass
class Latents:
    """Latent means and log variances (m, d) of the training crystals, values, weights and places (m,) in their list."""

    mean: Tensor
    log_variance: Tensor
    values: Tensor
    weights: Tensor
    index: Tensor

    @classmethod
    def of(cls, parts: list[Part]) -> Latents:
        """Collect the latent vectors of encoded crystals."""
        latent = torch.cat([part.latent for part in parts if part.latent is not None])
        return cls(
            mean=latent[:, 0],
            log_variance=latent[:, 1],
            values=torch.cat([part.values for part in parts]),
            weights=torch.cat([part.weights for part in parts]),
            index=torch.cat([part.index for part in parts]),
        )


@dataclass
class LatentBasis:
    """The directions of latent space that carry information: principal components of the means that are not noise.

    The posterior of the other directions is the standard normal whatever the crystal, so the prior need not learn them.

    Attributes
    ----------
    origin, directions
        Mean (d,) and orthonormal rows (k, d).
    """

    origin: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, means: Tensor, threshold: float = 0.15) -> LatentBasis:
        """Return the components of means (m, d) with a standard deviation above ``threshold``, at least one."""
        origin = means.mean(0)
        _, widths, directions = torch.linalg.svd(means - origin, full_matrices=False)
        active = int((widths / len(means) ** 0.5 > threshold).sum())
        return cls(origin, directions[: max(active, 1)].clone(memory_format=torch.contiguous_format))

    def project(self, z: Tensor) -> Tensor:
        """Return components (b, k) of latent vectors (b, d)."""
        return (z - self.origin) @ self.directions.T

    def lift(self, components: Tensor) -> Tensor:
        """Return latent vectors (b, d) of components (b, k)."""
        return components @ self.directions + self.origin


def train_prior(
    networks: Networks,
    latents: Latents,
    diffusion: LatentDiffusion,
    basis: LatentBasis,
    *,
    steps: int,
    batch: int,
    rate: float,
    condition_dropout: float,
    condition_noise: float,
    generator: torch.Generator,
    further: tuple[Tensor, Tensor] | None = None,
    after: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> float:
    """Train the prior on noised latent means (the second step of Con-CDVAE); return the last mean loss.

    ``further`` are the features and the mask of what is known (m, ...) of the further conditions; half of the crystals
    are shown none of them, the others each with even odds.
    """
    means = basis.project(latents.mean)

    def loss_of(rows: list[Part]) -> Tensor:
        del rows
        index = torch.multinomial(latents.weights, batch, replacement=True, generator=generator)
        z = means[index]
        values = latents.values[index] + condition_noise * torch.randn(batch, generator=generator)
        step = torch.randint(1, diffusion.steps + 1, (batch,), generator=generator)
        noise = torch.randn(z.shape, generator=generator)
        present = keep_condition(batch, condition_dropout, generator)
        given = None
        if further is not None:
            features, known = further[0][index], further[1][index]
            some = torch.rand((batch, 1), generator=generator) < 0.5
            given = (features, known & some & (torch.rand(known.shape, generator=generator) < 0.5))
        predicted = networks.prior(diffusion.noised(z, step, noise), step / diffusion.steps, values, present, given)
        return (predicted - noise).square().mean()

    dummy = Part(_empty_cells(), torch.zeros(1, 1, 3), torch.zeros(1), torch.ones(1), torch.zeros(1, dtype=torch.long))
    return train_steps(
        loss_of, [networks.prior], [dummy], steps=steps, batch=1, rate=rate, generator=generator, average=0.995,
        after=after, checkpoint=checkpoint,
    )  # fmt: skip


def _empty_cells() -> Cells:
    zero = torch.zeros(1, 1)
    return Cells(torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), zero, zero, zero)


def volumes_of(crystals: Sequence[CanonicalCrystal]) -> np.ndarray:
    """Return cell volumes (m,) in Å^3."""
    return np.array([float(cell_volume(crystal.lengths, crystal.angles)) for crystal in crystals])
