"""Drafts: compositions and lattices decoded from latent vectors, ranked before any coordinate is decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from inv_design.generators.aims import Aim
from inv_design.generators.conditions import GROUPS, SYSTEMS, feature_owners
from inv_design.generators.crystals import ELEMENTS, padded_numbers, species_order
from inv_design.generators.forms import SeenForms, composition_keys, forms_of, system_keys
from inv_design.generators.networks import anchor_coordinates
from inv_design.generators.property_model import count_elements
from inv_design.generators.repair import contact_ratios
from inv_design.generators.training import BUCKETS, lattice_matrix
from inv_design.structures.validity import metallic_radius

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from inv_design.generators.con_cdvae import ConCDVAE
    from inv_design.generators.protocol import Condition

SLACK = 2.0  # a second property follows less well from composition and volume than the one trained for
SYSTEM_COST = 0.02  # ln of the property that e-fold odds of a new chemical system are worth in the ranking
FILL_WIDTH = 0.1  # ln of the property within which training crystals lend conditions that were not asked for


@dataclass
class Drafts:
    """Decoded compositions and lattices.

    Attributes
    ----------
    numbers, lengths, angles
        Atomic numbers (m, n), padded with 0; lengths (m, 3) in Å; angles (m, 3) in degrees.
    predicted, deviation
        First targeted property and the standard deviation of its logarithm, (m,).
    cost
        Sum of the relative deviations from the targets, ``caution`` times their uncertainty, and what a chemical system
        costs that is not new (m,).
    zc
        Conditioned latent vectors (m, latent).
    """

    numbers: Tensor
    lengths: Tensor
    angles: Tensor
    predicted: np.ndarray
    deviation: np.ndarray
    cost: np.ndarray
    zc: Tensor

    def rows(self, index: np.ndarray) -> Drafts:
        """Return the chosen drafts."""
        i = torch.as_tensor(index, dtype=torch.long)
        arrays = (self.predicted[index], self.deviation[index], self.cost[index])
        return Drafts(self.numbers[i], self.lengths[i], self.angles[i], *arrays, self.zc[i])

    def __len__(self) -> int:
        return len(self.numbers)

    def buckets(self) -> Iterator[tuple[np.ndarray, Drafts]]:
        """Yield (rows, drafts of like size with their padding cut)."""
        natoms = (self.numbers > 0).sum(1).numpy()
        for low, high in zip((0, *BUCKETS[:-1]), BUCKETS, strict=True):
            rows = np.flatnonzero((natoms > low) & (natoms <= high))
            if len(rows):
                part = self.rows(rows)
                yield rows, replace(part, numbers=part.numbers[:, : int(natoms[rows].max())])

    def forms(self) -> list[tuple[float, tuple[int, ...]]]:
        """Return the form of every draft."""
        return forms_of(self.numbers.numpy(), self.lengths.numpy(), self.angles.numpy())


class Drafting:
    """Draws drafts from a trained Con-CDVAE under one condition.

    Raises
    ------
    ValueError
        If the condition targets what the generator does not know, or leaves no crystal.
    """

    def __init__(self, model: ConCDVAE, condition: Condition) -> None:
        self.model, self.condition, self.settings = model, condition, model.settings
        self.networks, self.scaling = model.networks, model.scaling
        self._check_targets()
        self.allowed = self._allowed_elements()
        self.formula = self._fixed_formula()
        self.aims = [
            Aim(
                name=name,
                target=condition.targets[name],
                model=model.models.get(name, model.property_model),
                slack=1.0 if name == model.property else SLACK,
                remembered=model.remembered.setdefault(name, {}),
            )
            for name in (model.property, *model.further_names())
            if name in condition.targets and (name in model.models or name in ("density", "volume_per_atom"))
        ]
        target = condition.targets.get(model.property)
        self.value = self.scaling.value(np.array([1.0 if target is None else target]))
        self.shown = target is not None
        self.wish = self._wish()
        self.known_systems = np.unique(system_keys(count_elements(padded_numbers(model.known.crystals))))

    # ---- the condition ----

    def _check_targets(self) -> None:
        model, targets = self.model, self.condition.targets
        known = model.capabilities().conditions
        for name, value in targets.items():
            if name not in known:
                raise ValueError(
                    f"the condition targets {sorted(targets)}; this generator knows {', '.join(map(repr, known))}"
                )
            if name != "formation_energy_per_atom" and not value > 0:
                raise ValueError(f"the target {name} = {value} is not positive")
        wishes = (self.condition.sites, self.condition.composition, self.condition.crystal_system)
        if not targets and not any(wishes):
            raise ValueError("the condition asks for nothing; give a target, sites, a composition or a crystal system")
        if self.condition.crystal_system not in (None, *SYSTEMS):
            raise ValueError(f"crystal system {self.condition.crystal_system!r} is not one of {', '.join(SYSTEMS)}")

    def _allowed_elements(self) -> Tensor:
        from pymatgen.core import Element

        model, condition = self.model, self.condition
        allowed = torch.zeros(ELEMENTS + 1, dtype=torch.bool)
        for symbol in model.elements:
            allowed[Element(symbol).Z] = condition.allows({symbol})
        if int(allowed.sum()) < model.species_limits[0]:
            raise ValueError(
                f"the condition leaves {int(allowed.sum())} of the {len(model.elements)} elements the generator knows; "
                f"it needs at least {model.species_limits[0]}"
            )
        return allowed

    def _fixed_formula(self) -> np.ndarray | None:
        """Return atoms of each element (95,) of the reduced formula that is asked for, or ``None``."""
        from pymatgen.core import Composition, Element

        if self.condition.composition is None:
            return None
        try:
            amounts = Composition(self.condition.composition).reduced_composition.get_el_amt_dict()
            counts = {Element(symbol).Z: amount for symbol, amount in amounts.items()}
        except ValueError:
            counts = {}
        if not counts or any(amount != round(amount) for amount in counts.values()):
            raise ValueError(f"composition {self.condition.composition!r} is not a formula such as 'Re3W'")
        for z in counts:
            if z > ELEMENTS or not bool(self.allowed[z]):
                raise ValueError(
                    f"composition {self.condition.composition!r} has {Element.from_Z(z).symbol}, which the generator "
                    "does not know or the condition excludes"
                )
        formula = np.zeros(ELEMENTS + 1)
        for z, amount in counts.items():
            formula[z] = amount
        return formula

    def _wish(self) -> tuple[Tensor, Tensor] | None:
        """Return features and mask (1, ...) of the further conditions asked for; ``None`` if there are none."""
        model, condition = self.model, self.condition
        if model.conditions is None:
            return None
        scalars = {name: value for name, value in condition.targets.items() if name != model.property}
        if condition.sites is not None:
            scalars["sites"] = float(condition.sites)
        fractions = None if self.formula is None else self.formula / self.formula.sum()
        row = model.conditions.wish(scalars, condition.crystal_system, fractions)
        return torch.as_tensor(row.features(), dtype=torch.float32), torch.as_tensor(row.known())

    def _further(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
        """Return features and mask (count, ...) of what the prior is shown besides the property."""
        if self.wish is None or self.model.conditions is None:
            return None
        features, shown = (tensor.expand(count, -1) for tensor in self.wish)
        if self.settings.conditioning == "given":
            return (features, shown) if bool(shown.any()) else None
        # what was not asked for comes from training crystals near the target (Con-CDVAE's strategy "less")
        distance = np.zeros(len(self.model.values))
        if self.shown:
            distance = (np.log(self.model.values) - np.log(self.condition.targets[self.model.property])) / FILL_WIDTH
        weights = torch.as_tensor(np.exp(-0.5 * np.minimum(np.abs(distance), 8.0) ** 2))
        rows = self.model.conditions.rows(torch.multinomial(weights, count, True, generator=generator).numpy())
        lent, known = torch.as_tensor(rows.features(), dtype=torch.float32), torch.as_tensor(rows.known())
        known[:, GROUPS.index("composition")] = False  # lending it would ask for the training crystals themselves
        owners = torch.as_tensor(feature_owners())
        return torch.where(shown[:, owners], features, lent), shown | known

    # ---- drawing ----

    def draw(self, count: int, *, generator: torch.Generator, seen: SeenForms) -> Drafts:
        """Return up to ``count`` drafts, the best of ``latent_filter`` each, seen ones last."""
        ratio, settings = self.settings.latent_filter, self.settings
        z = self._latents(count * ratio, generator)
        if settings.rank_with == "latent" and ratio > 1 and self.shown:
            error = (self.networks.predictor(z)[:, 0] - self.value).abs().view(count, ratio)
            z = z.view(count, ratio, -1)[torch.arange(count), error.argmin(1)]
            ratio = 1
        drafts = self._decode(z, generator)
        # a first guess that overlaps will hardly become a crystal: decoding it is refused before it costs anything
        cost = np.where(self._guessed_contacts(drafts) >= settings.min_contact, drafts.cost, np.inf)
        keys = drafts.forms()
        chosen: list[int] = []
        for group in np.arange(count * ratio).reshape(count, ratio).tolist():
            best = min(group, key=lambda i: cost[i] + seen.penalty(keys[i]))
            if np.isfinite(cost[best]) and np.isfinite(seen.penalty(keys[best])):
                chosen.append(best)
                seen.choose(keys[best])
        return drafts.rows(np.array(chosen, dtype=int))

    def _guessed_contacts(self, drafts: Drafts) -> np.ndarray:
        """Return the smallest d_ij / (r_i + r_j) (m,) of the first guesses of the coordinates."""
        contacts = np.zeros(len(drafts))
        for rows, part in drafts.buckets():
            cells = self.scaling.cells(part.numbers, part.lengths, part.angles)
            coords = anchor_coordinates(self.networks.anchor(cells, part.zc))
            matrix = lattice_matrix(part.lengths, part.angles)
            for chunk in np.array_split(np.arange(len(rows)), 1 + len(rows) * part.numbers.shape[1] ** 2 // 20_000):
                i = torch.as_tensor(chunk)
                ratios = contact_ratios(coords[i], matrix[i], atomic_radii()[part.numbers[i]], cells.mask[i])
                contacts[rows[chunk]] = ratios.flatten(1).amin(1).numpy()
        return contacts

    def _latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw latent vectors (count, latent) from the guided prior."""
        model, guidance, prior = self.model, self.settings.guidance, self.networks.prior
        value = self.value.expand(count)
        shown, hidden = torch.full((count,), self.shown), torch.zeros(count, dtype=torch.bool)
        further = self._further(count, generator)

        def noise_of(z: Tensor, at: Tensor) -> Tensor:
            conditioned = prior(z, at, value, shown, further)
            if guidance == 1.0:
                return conditioned
            free = prior(z, at, value, hidden)
            return free + guidance * (conditioned - free)

        start = torch.randn((count, len(model.basis.directions)), generator=generator)
        return model.basis.lift(model.diffusion.sample(noise_of, start, self.settings.prior_calls, generator))

    def _decode(self, z: Tensor, generator: torch.Generator) -> Drafts:
        """Return the composition and lattice of every latent vector; impossible ones have an infinite cost."""
        heads, guidance = self.networks.heads, self.settings.guidance
        count = len(z)
        value = self.value.expand(count)
        free = heads.latent(z, value, torch.zeros(count, dtype=torch.bool))
        zc = heads.latent(z, value, torch.ones(count, dtype=torch.bool)) if self.shown else free

        def guided(logits_of: Callable[[Tensor], Tensor]) -> Tensor:
            conditioned = logits_of(zc).log_softmax(-1)
            if guidance == 1.0 or not self.shown:
                return conditioned
            unconditioned = logits_of(free).log_softmax(-1)
            return unconditioned + guidance * (conditioned - unconditioned)

        logits = guided(heads.natoms_logits).masked_fill(~self._possible_sizes(), -torch.inf)
        natoms = _drawn(logits / self.settings.shape_temperature, generator) + 1
        if self.formula is not None:
            numbers = _multiples(self.formula, natoms)
        else:
            numbers = self._species(guided, natoms, generator)
        numbers = _ordered(numbers)
        lengths, angles = self.scaling.unscale(heads.lattice_values(zc, numbers), numbers)
        return self._judged(numbers, lengths, angles, zc)

    def _possible_sizes(self) -> Tensor:
        """Return a mask (max_sites,) of the numbers of sites that the condition allows."""
        condition = self.condition
        largest = min(self.settings.max_sites, condition.max_sites or self.settings.max_sites)
        sizes = torch.arange(1, self.networks.shapes.max_sites + 1)
        possible = (sizes <= largest) & (sizes >= self.model.species_limits[0])
        if condition.sites is not None:
            possible &= sizes == condition.sites
        if self.formula is not None:
            possible &= sizes % int(self.formula.sum()) == 0
        if not bool(possible.any()):
            raise ValueError(
                f"max_sites = {condition.max_sites}, sites = {condition.sites} and composition "
                f"{condition.composition!r} leave no crystal; it must have at least 2 and at most {largest} sites"
            )
        return possible

    def _species(
        self, guided: Callable[[Callable[[Tensor], Tensor]], Tensor], natoms: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw the species (count, n) atom by atom, looking ahead to the targets where a new one begins."""
        count, settings = len(natoms), self.settings
        numbers = torch.zeros((count, int(natoms.max())), dtype=torch.long)
        for index in range(numbers.shape[1]):
            position = torch.full((count,), index)
            logits_of = partial(
                self.networks.heads.atom_logits, previous=numbers, position=position, natoms=natoms.clamp_min(index + 1)
            )
            logits = guided(logits_of).masked_fill(self._forbidden(numbers, index, natoms), -torch.inf)
            logits = logits / settings.species_temperature
            if index:
                logits = _sharper_end(logits, numbers[:, index - 1], settings.shape_temperature)
            drawn = _drawn(logits, generator)
            if index and settings.lookahead is not None and self.aims:
                switch = torch.nonzero((index < natoms) & (drawn != numbers[:, index - 1]))[:, 0]
                drawn[switch] = self._look_ahead(logits[switch], numbers[switch], index, natoms[switch], generator)
            numbers[:, index] = torch.where(index < natoms, drawn, 0)
        return numbers

    def _look_ahead(
        self, logits: Tensor, numbers: Tensor, index: int, natoms: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw the species of a new run, its probability times how well the crystal would meet the targets with it.

        The rest of the cell is taken to be of the new species, which is exact for the last run; the properties come
        from the property models at the volume they expect.
        """
        width = self.settings.lookahead or 1.0
        before = numbers.clone()
        before[:, index:] = 0
        counts = count_elements(before.numpy())
        possible = torch.isfinite(logits)
        possible[torch.arange(len(logits)), numbers[:, index - 1]] = False
        row, species = np.nonzero(possible.numpy())
        completed = counts[row]
        completed[np.arange(len(row)), species] += (natoms.numpy() - index)[row]
        tilt = np.full(logits.shape, -np.inf)
        tilt[row, species] = 0.0
        for aim in self.aims:
            misfit = (aim.expected_log(completed) - np.log(aim.target)) / (width * aim.slack)
            tilt[row, species] -= 0.5 * misfit**2
        tilt[row, species] -= np.log(self.settings.new_systems) * self._familiar(completed)
        tilted = logits + torch.as_tensor(tilt, dtype=logits.dtype)
        return _drawn(tilted - tilted.amax(1, keepdim=True), generator)

    def _familiar(self, counts: np.ndarray) -> np.ndarray:
        """Return a mask (n,) of the compositions (n, 95) whose chemical system some known crystal has."""
        return np.isin(system_keys(counts), self.known_systems)

    def _forbidden(self, numbers: Tensor, index: int, natoms: Tensor) -> Tensor:
        """Return the species (b, 95) that may not come next: sorted runs, and as many species as in training."""
        used = torch.zeros((len(numbers), ELEMENTS + 1), dtype=torch.bool)
        used.scatter_(1, numbers[:, :index], True)
        used[:, 0] = False
        kinds = used.sum(1)
        last = torch.zeros_like(used)
        if index:
            last.scatter_(1, numbers[:, index - 1 : index], True)
        least, most = self.model.species_limits
        most = self.settings.max_species or most
        forbidden = ~self.allowed.expand_as(used) | (used & ~last)
        full = kinds >= max(most, 1)
        forbidden = forbidden | (full[:, None] & ~last)
        missing = (least - kinds).clamp_min(0) >= (natoms - index)
        forbidden = forbidden | (missing[:, None] & last)
        forbidden[:, 0] = True
        stuck = forbidden.all(1)
        return torch.where(stuck[:, None], ~self.allowed.expand_as(used), forbidden)

    def _judged(self, numbers: Tensor, lengths: Tensor, angles: Tensor, zc: Tensor) -> Drafts:
        """Correct the volume and predict the properties of decoded compositions and lattices."""
        share, model = self.settings.volume_correction, self.model.property_model
        volume = torch.linalg.det(lattice_matrix(lengths, angles)).numpy().astype(float)
        counts = count_elements(numbers.numpy())
        # one evaluation per distinct composition: the draws repeat themselves
        _, rows, inverse = np.unique(composition_keys(counts), return_index=True, return_inverse=True)
        atomic = model.predict_volume(counts[rows]) / counts[rows].sum(1)
        expected = atomic[inverse] * counts.sum(1)
        usable = np.isfinite(volume) & (volume > 0.2 * expected) & (volume < 5.0 * expected)
        volume = np.where(usable, volume, expected)
        corrected = np.exp((1 - share) * np.log(volume) + share * np.log(expected))
        lengths = lengths * torch.tensor((corrected / volume) ** (1 / 3), dtype=lengths.dtype)[:, None]
        cost = np.where(usable, SYSTEM_COST * np.log(self.settings.new_systems) * self._familiar(counts), np.inf)
        predicted = deviation = np.full(len(counts), np.nan)
        for number, aim in enumerate(self.aims):
            values, spread = aim.predict(counts, corrected)
            cost = cost + np.abs(np.log(values / aim.target)) / aim.slack + self.settings.caution * spread
            if number == 0:
                predicted, deviation = values, spread
        return Drafts(numbers, lengths, angles, predicted, deviation, cost, zc)


def atomic_radii() -> Tensor:
    """Return metallic radii (95,) in Å by atomic number; 1.5 Å where there is none."""
    from pymatgen.core import Element

    global _RADII  # noqa: PLW0603
    if _RADII is None:
        values = [0.0]
        for z in range(1, ELEMENTS + 1):
            try:
                values.append(metallic_radius(Element.from_Z(z).symbol))
            except ValueError:
                values.append(1.5)
        _RADII = torch.tensor(values, dtype=torch.float32)
    return _RADII


_RADII: Tensor | None = None


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _multiples(formula: np.ndarray, natoms: Tensor) -> Tensor:
    """Return compositions (b, n) of ``natoms`` (b,) sites, whole multiples of a formula (95,)."""
    numbers = torch.zeros((len(natoms), int(natoms.max())), dtype=torch.long)
    species = np.repeat(np.arange(len(formula)), formula.astype(int))
    for row, size in enumerate(natoms.tolist()):
        numbers[row, :size] = torch.as_tensor(np.repeat(species, size // len(species)))
    return numbers


def _sharper_end(logits: Tensor, last: Tensor, temperature: float) -> Tensor:
    """Return log probabilities (b, s) with the odds of going on with the species ``last`` (b,) sharpened."""
    logs = logits.log_softmax(-1)
    rows = torch.arange(len(logs))
    on = logs[rows, last]
    others = logs.clone()
    others[rows, last] = -torch.inf
    off = others.logsumexp(-1)
    both = torch.stack([on, off], -1) / temperature
    both = torch.where(torch.isfinite(both).all(-1, keepdim=True), both.log_softmax(-1), torch.stack([on, off], -1))
    sharp = others + (both[:, 1] - off).nan_to_num(0.0)[:, None]
    sharp[rows, last] = both[:, 0]
    return sharp


def _ordered(numbers: Tensor) -> Tensor:
    """Return compositions (b, n) in canonical order, padding last."""
    rows = numbers.numpy().copy()
    for row in rows:
        atoms = row[row > 0]
        order = species_order(atoms)
        row[: len(atoms)] = sorted(atoms, key=order.index)
    return torch.as_tensor(rows)
