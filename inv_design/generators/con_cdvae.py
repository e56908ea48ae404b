"""Con-CDVAE, compact: a conditional crystal diffusion VAE that trains on one CPU core.

After Ye, Weng & Wu 2024 (Comput. Mater. Today 1, 100003) and Li et al. 2025. A first step trains the encoder, the heads
(number of atoms, composition, lattice), the property predictor and the denoising decoder; a second step the
conditional prior of the latent vectors. To sample, the prior proposes latent vectors, the best of N by predicted
property are kept, and the decoder places the atoms.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from inv_design.generators.crystals import (
    ELEMENTS,
    CanonicalCrystal,
    canonical_crystal,
    element_features,
    fit_atomic_volumes,
    padded_numbers,
    species_order,
)
from inv_design.generators.diffusion import LatentDiffusion, sample_coordinates, score_norm
from inv_design.generators.known_crystals import KnownCrystals, plain_crystal
from inv_design.generators.networks import Networks, Prior, Shapes, anchor_coordinates
from inv_design.generators.property_model import PropertyModel, count_elements
from inv_design.generators.protocol import Capabilities, Condition, Sample, SavedAsBytes
from inv_design.generators.repair import contact_ratios, push_apart, symmetrised
from inv_design.generators.training import (
    BUCKETS,
    LatentBasis,
    Latents,
    LossWeights,
    Part,
    Scaling,
    Substitutions,
    decoder_loss,
    joint_loss,
    keep_condition,
    lattice_matrix,
    make_parts,
    reparametrised,
    train_prior,
    train_steps,
    validate_heads,
    volumes_of,
)
from inv_design.structures.validity import geometry_reasons, metallic_radius

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pymatgen.core import Structure
    from torch import Tensor

    from inv_design.generators.protocol import Progress

RANKINGS = ("decoded", "latent")


@dataclass(frozen=True)
class ConCDVAESettings:
    """Settings of the generator.

    Attributes
    ----------
    latent_filter
        N of the N:1 filter: of N draws of the prior the one with the best predicted property is decoded; 1: no filter.
    rank_with
        What predicts: ``"decoded"`` the property model on the composition and lattice that the heads make of the latent
        vector; ``"latent"`` the predictor on the latent vector, as in the paper. The latter is fooled: at 20:1 it was
        measured to bring no gain, where the former cut the predicted error to a tenth (see the model card).
    guidance
        Classifier-free guidance of prior and composition: 1 follows the condition as trained, above 1 more strongly.
    decoder_calls
        Calls of the denoising decoder per crystal.
    prior_calls
        Calls of the prior per latent vector.
    temperature
        Factor on the noise that the coordinate sampler puts back.
    species_temperature
        Divides the logits of the species; below 1 the likeliest species of a latent vector prevail.
    shape_temperature
        The same for the number of atoms and the stoichiometry, which must agree with the latent vector's lattice.
    lookahead
        Width in ln of the property within which a new species must bring the crystal to the target; ``None`` leaves the
        species to the composition head alone.
    volume_correction
        Share of the volume (in logarithms) that comes from the property model's volume instead of the lattice head.
    caution
        Weight of the property model's standard deviation in the ranking.
    max_sites
        Largest number of sites in a cell.
    max_species
        Largest number of species in a sample; ``None`` takes the largest of the training set.
    symmetrise
        Whether the symmetry that a sample nearly has is made exact.
    unique
        Whether samples of one call must differ from each other.
    novel
        Whether training crystals are refused.
    min_ratio
        Smallest distance of a sample as a share of the sum of metallic radii.
    min_contact
        The same for the first guess of the coordinates, before any decoder call is spent on a crystal.
    attempts
        Draws allowed per wanted sample before ``sample`` gives up.
    patience
        Refusals of a composition in a rough cell (known, or drawn before) after which it is left out.
    variety
        Cost (in ln of the property) in the ranking of a composition for every time it was drawn or known before.
    finetune_steps
        Optimiser steps of the first step in ``finetune``; 0.6 times as many follow for the decoder, 1.6 for the prior.
    finetune_share, finetune_boost
        Largest share of new crystals among the draws of ``finetune``, and how much oftener than an old one a new one is
        drawn below that.
    joint_steps, decoder_steps, prior_steps
        Optimiser steps of the first step, of the decoder alone with the encoder frozen, and of the prior.
    batch, rate
        Crystals per step and the highest learning rate.
    condition_dropout
        Share of crystals trained without their condition (for guidance).
    substitution
        Share of training crystals whose lattice and coordinates are learned with other elements of like size.
    validation
        Share of crystals held out to stop the heads early.
    natoms_weight ... kl_weight
        Weights of the losses (Li et al. 2025).
    """

    latent_filter: int = 20
    rank_with: str = "decoded"
    guidance: float = 1.5
    decoder_calls: int = 30
    prior_calls: int = 25
    temperature: float = 1.0
    species_temperature: float = 1.0
    shape_temperature: float = 0.3
    lookahead: float | None = 0.03
    volume_correction: float = 0.8
    caution: float = 1.0
    max_sites: int = 20
    max_species: int | None = None
    symmetrise: bool = True
    unique: bool = True
    novel: bool = True
    min_ratio: float = 0.75
    min_contact: float = 0.8
    attempts: int = 30
    patience: int = 2
    variety: float = 0.01
    joint_steps: int = 1600
    decoder_steps: int = 1800
    prior_steps: int = 8000
    finetune_steps: int = 250
    finetune_share: float = 0.3
    finetune_boost: float = 4.0
    batch: int = 96
    rate: float = 2e-3
    condition_dropout: float = 0.2
    substitution: float = 0.5
    validation: float = 0.08
    natoms_weight: float = 1.0
    coords_weight: float = 10.0
    species_weight: float = 1.0
    lattice_weight: float = 10.0
    composition_weight: float = 1.0
    property_weight: float = 3.0
    kl_weight: float = 0.02

    def __post_init__(self) -> None:
        if self.rank_with not in RANKINGS:
            raise ValueError(f"rank_with is {self.rank_with!r}; it must be one of {', '.join(RANKINGS)}")
        if self.latent_filter < 1 or self.decoder_calls < 1 or self.prior_calls < 1:
            raise ValueError(
                "latent_filter, decoder_calls and prior_calls must be at least 1, not "
                f"{self.latent_filter}, {self.decoder_calls} and {self.prior_calls}"
            )

    def loss_weights(self) -> LossWeights:
        """Return the weights of the losses."""
        return LossWeights(
            natoms=self.natoms_weight,
            coords=self.coords_weight,
            species=self.species_weight,
            lattice=self.lattice_weight,
            composition=self.composition_weight,
            property=self.property_weight,
            kl=self.kl_weight,
        )


@dataclass
class _Drafts:
    """Decoded compositions and lattices: numbers (m, n), lengths and angles (m, 3), property, spread, conditioned z."""

    numbers: Tensor
    lengths: Tensor
    angles: Tensor
    predicted: np.ndarray
    deviation: np.ndarray
    zc: Tensor

    def rows(self, index: np.ndarray) -> _Drafts:
        i = torch.as_tensor(index, dtype=torch.long)
        return _Drafts(
            self.numbers[i], self.lengths[i], self.angles[i], self.predicted[index], self.deviation[index], self.zc[i]
        )

    def __len__(self) -> int:
        return len(self.numbers)


class ConCDVAE(SavedAsBytes):
    """A conditional crystal diffusion VAE behind the :class:`~inv_design.generators.protocol.Generator` protocol.

    Keyword arguments are the fields of :class:`ConCDVAESettings`.
    """

    name = "con_cdvae"

    def __init__(self, **settings: Any) -> None:
        self.settings = ConCDVAESettings(**settings)
        self.last_statistics: dict[str, Any] = {}
        self.diffusion = LatentDiffusion()
        self.property = "bulk_modulus_vrh"
        self.range = (math.nan, math.nan)
        self.elements: tuple[str, ...] = ()
        self.species_limits = (1, 2)
        self._fitted = False
        self._remembered: dict[float, float] = {}

    # ---- training ----

    def fit(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        property: str = "bulk_modulus_vrh",
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Train from scratch (see :class:`~inv_design.generators.protocol.Generator`).

        Crystals with more than ``max_sites`` sites in the primitive cell are left out.
        """
        crystals, targets = self._canonical(structures, values)
        settings, scale = self.settings, 1.0 if budget is None else budget
        self._fitted, self._remembered = False, {}
        held = _held_out(len(crystals), settings.validation, seed)
        trained = np.setdiff1d(np.arange(len(crystals)), held)
        volumes = fit_atomic_volumes(crystals)
        self.property = property
        self.scaling = Scaling.fit(crystals, targets, volumes)
        self._describe(crystals, targets)
        torch.manual_seed(seed)
        features = torch.tensor(element_features(), dtype=torch.float32)
        self.networks = Networks(Shapes(max_sites=settings.max_sites, element_features=features.shape[1]), features)
        parts = make_parts([crystals[i] for i in trained], targets[trained], self.scaling)
        tests = make_parts([crystals[i] for i in held], targets[held], self.scaling)
        steps = tuple(
            max(1, round(scale * n)) for n in (settings.joint_steps, settings.decoder_steps, settings.prior_steps)
        )
        metrics = self._train(parts, tests, steps, rate=settings.rate, seed=seed, ticker=_Ticker(sum(steps), progress))
        counts = count_elements(padded_numbers(crystals))
        self.property_model = PropertyModel.fit(counts, volumes_of(crystals), targets, volumes, seed=seed)
        self._fitted = True
        return metrics | {"crystals": float(len(crystals)), "parameters": float(self.parameter_count())}

    def finetune(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        replay_structures: Sequence[Structure] = (),
        replay_values: Sequence[float] = (),
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Continue training in place (see :class:`~inv_design.generators.protocol.Generator`).

        The new crystals make up ``finetune_share`` of the draws at most; the learning rate is a tenth of that of
        ``fit``; scaling and validation are those of ``fit``; the property model is conditioned on all data.
        """
        if not self._fitted:
            raise RuntimeError("this Con-CDVAE is not trained; call fit or load a file before finetune")
        settings, scale = self.settings, 1.0 if budget is None else budget
        new, new_values = self._canonical(structures, values)
        old, old_values = self.crystals, self.values
        if len(replay_structures):
            old, old_values = self._canonical(replay_structures, replay_values)
        crystals, targets = [*old, *new], np.concatenate([old_values, new_values])
        share = min(settings.finetune_share, settings.finetune_boost * len(new) / len(crystals))
        weights = np.concatenate(
            [np.full(len(old), (1 - share) / len(old)), np.full(len(new), share / len(new))]
        ) * len(crystals)
        steps = tuple(max(1, round(scale * settings.finetune_steps * n)) for n in (1.0, 0.6, 1.6))
        parts = make_parts(crystals, targets, self.scaling, weights)
        metrics = self._train(
            parts, [], steps, rate=settings.rate / 10, seed=seed, ticker=_Ticker(sum(steps), progress)
        )
        self.property_model = self.property_model.extended(
            count_elements(padded_numbers(crystals)), volumes_of(crystals), targets
        )
        before = self.known.crystals if len(replay_structures) else []
        self._describe(crystals, targets)
        for crystal in before:  # perhaps not replayed, but still not new
            self.known.add(crystal)
        self._remembered = {}
        return metrics | {"crystals": float(len(crystals)), "new_share": share}

    def _train(
        self,
        parts: list[Part],
        tests: list[Part],
        steps: tuple[int, ...],
        *,
        rate: float,
        seed: int,
        ticker: _Ticker,
    ) -> dict[str, float]:
        networks, settings, weights = self.networks, self.settings, self.settings.loss_weights()
        generator = torch.Generator().manual_seed(seed)
        joint, alone, prior = steps
        swaps = Substitutions.of(self.crystals, self.scaling, settings.substitution)
        best = _Best([networks.encoder, networks.heads, networks.predictor, networks.anchor])

        def stop_early(step: int) -> None:
            ticker(step, "encoder and heads")
            if tests and (step % max(20, joint // 20) == 0 or step == joint):
                best.offer(*validate_heads(networks, tests, weights), step)
                networks.train()

        metrics = {
            "joint_loss": train_steps(
                lambda batch: joint_loss(
                    networks, batch, weights, generator, substitutions=swaps, dropout=settings.condition_dropout
                ),
                [networks.encoder, networks.heads, networks.predictor, networks.anchor],
                parts, steps=joint, batch=settings.batch, rate=rate, decay=0.01, generator=generator, after=stop_early,
            )
        }  # fmt: skip
        best.restore()
        metrics |= best.metrics
        networks.eval()
        parts = [part.encoded(networks) for part in parts]
        self.latents = Latents.of(parts)
        metrics["decoder_loss"] = train_steps(
            self._frozen_loss(swaps, generator), [networks.decoder], parts, steps=alone, batch=settings.batch,
            rate=rate, generator=generator, average=0.998, after=lambda step: ticker(joint + step, "decoder"),
        )  # fmt: skip
        if not self._fitted:
            self.basis = LatentBasis.fit(self.latents.mean)
            networks.shapes = replace(networks.shapes, prior_latent=len(self.basis.directions))
            networks.prior = Prior(networks.shapes)
        metrics["prior_loss"] = train_prior(
            networks, self.latents, self.diffusion, self.basis, steps=prior, batch=256, rate=rate,
            condition_dropout=settings.condition_dropout, condition_noise=0.05, generator=generator,
            after=lambda step: ticker(joint + alone + step, "prior"),
        )  # fmt: skip
        self._round()
        return metrics

    def _frozen_loss(self, swaps: Substitutions, generator: torch.Generator) -> Callable[[list[Part]], Tensor]:
        networks, settings, weights = self.networks, self.settings, self.settings.loss_weights()

        def loss_of(batch: list[Part]) -> Tensor:
            total, count = torch.zeros(()), 0
            for part in batch:
                with torch.no_grad():
                    assert part.latent is not None
                    z = reparametrised(part.latent[:, 0], part.latent[:, 1], generator)
                    shown = keep_condition(len(z), settings.condition_dropout, generator)
                    zc = networks.heads.latent(z, part.values, shown)
                shape = swaps.apply(part.cells, generator)
                total = total + decoder_loss(networks, part, zc, weights, generator, cells=shape).sum()
                count += len(zc)
            return total / count

        return loss_of

    def _canonical(
        self, structures: Sequence[Structure], values: Sequence[float]
    ) -> tuple[list[CanonicalCrystal], np.ndarray]:
        if len(structures) != len(values):
            raise ValueError(f"{len(structures)} structures but {len(values)} values; one value each is needed")
        targets = np.array(values, dtype=float)
        if not (np.isfinite(targets) & (targets > 0)).all():
            bad = targets[~(np.isfinite(targets) & (targets > 0))][0]
            raise ValueError(f"the value {bad} is not positive; the generator learns the logarithm of the property")
        crystals = [canonical_crystal(structure) for structure in structures]
        kept = [i for i, crystal in enumerate(crystals) if len(crystal.numbers) <= self.settings.max_sites]
        if not kept:
            raise ValueError(
                f"none of {len(structures)} crystals has at most max_sites = {self.settings.max_sites} sites; "
                "raise max_sites or give smaller crystals"
            )
        return [crystals[i] for i in kept], targets[kept]

    def _describe(self, crystals: Sequence[CanonicalCrystal], targets: np.ndarray) -> None:
        from pymatgen.core import Element

        self.crystals, self.values = list(crystals), targets
        self.known = KnownCrystals(crystals)
        self.range = (float(targets.min()), float(targets.max()))
        present = sorted({int(z) for crystal in crystals for z in crystal.numbers})
        self.elements = tuple(sorted(Element.from_Z(z).symbol for z in present))
        kinds = [len(set(crystal.numbers.tolist())) for crystal in crystals]
        self.species_limits = (min(kinds), max(kinds))

    def _round(self) -> None:
        """Round the parameters to half precision, so that the file holds exactly what samples."""
        with torch.no_grad():
            for parameter in self.networks.parameters():
                parameter.copy_(parameter.half().float())

    def parameter_count(self) -> int:
        """Return the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.networks.parameters())

    # ---- sampling ----

    @torch.no_grad()
    def sample(self, n: int, condition: Condition, *, seed: int = 0, progress: Progress | None = None) -> list[Sample]:
        """Return ``n`` crystals under the condition (see :class:`~inv_design.generators.protocol.Generator`)."""
        target, allowed = self._check(condition)
        settings, started = self.settings, time.perf_counter()
        self.networks.eval()
        generator = torch.Generator().manual_seed(seed)
        accepted: list[Sample] = []
        found = KnownCrystals()
        rejected: Counter[str] = Counter()
        seen = _Seen(self._training_forms() if settings.novel else [], settings)
        draws, heat = 0, 1.0
        while len(accepted) < n and draws < settings.attempts * n:
            success = len(accepted) / draws if draws else (0.65 if settings.latent_filter == 1 else 0.85)
            wanted = min(256, math.ceil(1.1 * (n - len(accepted)) / max(success, 0.2)) + 4)
            seen.strict = settings.latent_filter == 1 and draws < settings.attempts * n / 2
            source = self if heat == 1.0 else self._heated(heat)
            drafts = source._drafts(wanted, target, condition, allowed, generator=generator, seen=seen)
            before, draws = len(accepted), draws + wanted
            rejected["draft"] += wanted - len(drafts)
            for structure, value, deviation, facts in self._place(drafts, generator):
                if len(accepted) == n:
                    break
                form = facts.pop("form")
                reason = self._refuse(structure, found)
                if reason is not None:
                    rejected[reason] += 1
                    seen.refuse(form, reason)
                    continue
                if settings.unique:
                    found.add(plain_crystal(structure), structure)
                facts |= {"predicted_log_std": deviation, "generator": self.name}
                accepted.append(Sample(structure, len(accepted), condition.to_dict(), seed, value, facts))
                if progress is not None:
                    progress(len(accepted), n, "sampling")
            if len(accepted) - before < 0.25 * (wanted if settings.latent_filter > 1 else len(drafts)):
                heat = min(1.3 * heat, 4.0)
        self.last_statistics = {
            "wanted": n,
            "accepted": len(accepted),
            "draws": draws,
            "heat": heat,
            "rejected": {name: count for name, count in sorted(rejected.items()) if count},
            "seconds": time.perf_counter() - started,
        }
        return accepted

    def _heated(self, heat: float) -> ConCDVAE:
        """Return a generator that draws more widely: where new crystals become scarce, the condition must yield."""
        settings = self.settings
        return self.with_settings(
            lookahead=None if settings.lookahead is None else settings.lookahead * heat,
            shape_temperature=min(settings.shape_temperature * heat, 1.0),
            species_temperature=settings.species_temperature * heat**0.5,
        )

    def _check(self, condition: Condition) -> tuple[float, Tensor]:
        from pymatgen.core import Element

        if not self._fitted:
            raise RuntimeError("this Con-CDVAE is not trained; call fit or load a file")
        if set(condition.targets) != {self.property}:
            raise ValueError(
                f"the condition targets {sorted(condition.targets)}; this generator knows {self.property!r}"
            )
        target = float(condition.targets[self.property])
        if not target > 0:
            raise ValueError(f"the target {self.property} = {target} is not positive")
        allowed = torch.zeros(ELEMENTS + 1, dtype=torch.bool)
        for symbol in self.elements:
            allowed[Element(symbol).Z] = condition.allows({symbol})
        if int(allowed.sum()) < self.species_limits[0]:
            raise ValueError(
                f"the condition leaves {int(allowed.sum())} of the {len(self.elements)} elements the generator knows; "
                f"it needs at least {self.species_limits[0]}"
            )
        return target, allowed

    def _refuse(self, structure: Structure, found: KnownCrystals) -> str | None:
        if geometry_reasons(structure, min_ratio=self.settings.min_ratio):
            return "geometry"
        if self.settings.novel and self.known.contains(structure):
            return "known"
        if self.settings.unique and found.contains(structure):
            return "duplicate"
        return None

    def _drafts(
        self,
        count: int,
        target: float,
        condition: Condition,
        allowed: Tensor,
        *,
        generator: torch.Generator,
        seen: _Seen | None = None,
    ) -> _Drafts:
        """Return up to ``count`` compositions and lattices, the best of ``latent_filter`` each, seen ones last."""
        ratio, settings = self.settings.latent_filter, self.settings
        z = self._latents(count * ratio, target, generator)
        scaled = self.scaling.value(np.array([target]))
        if settings.rank_with == "latent" and ratio > 1:
            error = (self.networks.predictor(z)[:, 0] - scaled).abs().view(count, ratio)
            z = z.view(count, ratio, -1)[torch.arange(count), error.argmin(1)]
            ratio = 1
        drafts = self._decode_heads(z, scaled, condition, allowed, generator)
        cost = np.abs(np.log(drafts.predicted / target)) + settings.caution * drafts.deviation
        # a first guess that overlaps will hardly become a crystal: decoding it is refused before it costs anything
        cost = np.where(self._guessed_contacts(drafts) >= settings.min_contact, cost, np.inf)
        keys = _forms(drafts.numbers.numpy(), drafts.lengths.numpy(), drafts.angles.numpy())
        seen = _Seen([], settings) if seen is None else seen
        chosen: list[int] = []
        for group in np.arange(count * ratio).reshape(count, ratio).tolist():
            best = min(group, key=lambda i: cost[i] + seen.penalty(keys[i]))
            if np.isfinite(cost[best]) and np.isfinite(seen.penalty(keys[best])):
                chosen.append(best)
                seen.choose(keys[best])
        return drafts.rows(np.array(chosen, dtype=int))

    def _training_forms(self) -> list[_Form]:
        """Return the composition and rough cell of all training crystals."""
        crystals = self.known.crystals
        lengths = np.stack([crystal.lengths for crystal in crystals])
        return _forms(padded_numbers(crystals), lengths, np.stack([crystal.angles for crystal in crystals]))

    def _guessed_contacts(self, drafts: _Drafts) -> np.ndarray:
        """Return the smallest d_ij / (r_i + r_j) (m,) of the first guesses of the coordinates."""
        contacts = np.zeros(len(drafts))
        for rows, part in _buckets(drafts):
            cells = self.scaling.cells(part.numbers, part.lengths, part.angles)
            coords = anchor_coordinates(self.networks.anchor(cells, part.zc))
            matrix = lattice_matrix(part.lengths, part.angles)
            for chunk in np.array_split(np.arange(len(rows)), 1 + len(rows) * part.numbers.shape[1] ** 2 // 20_000):
                i = torch.as_tensor(chunk)
                ratios = contact_ratios(coords[i], matrix[i], _radii()[part.numbers[i]], cells.mask[i])
                contacts[rows[chunk]] = ratios.flatten(1).amin(1).numpy()
        return contacts

    def _latents(self, count: int, target: float, generator: torch.Generator) -> Tensor:
        """Draw latent vectors (count, latent) from the guided prior."""
        value = self.scaling.value(np.array([target])).expand(count)
        shown, hidden = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        guidance, prior = self.settings.guidance, self.networks.prior

        def noise_of(z: Tensor, at: Tensor) -> Tensor:
            conditioned = prior(z, at, value, shown)
            if guidance == 1.0:
                return conditioned
            free = prior(z, at, value, hidden)
            return free + guidance * (conditioned - free)

        start = torch.randn((count, len(self.basis.directions)), generator=generator)
        z = self.diffusion.sample(noise_of, start, self.settings.prior_calls, generator)
        return self.basis.lift(z)

    def _decode_heads(
        self, z: Tensor, scaled: Tensor, condition: Condition, allowed: Tensor, generator: torch.Generator
    ) -> _Drafts:
        """Return the composition and lattice of every latent vector; impossible ones have an infinite prediction."""
        heads, guidance = self.networks.heads, self.settings.guidance
        count = len(z)
        value = scaled.expand(count)
        zc = heads.latent(z, value, torch.ones(count, dtype=torch.bool))
        free = heads.latent(z, value, torch.zeros(count, dtype=torch.bool))

        def guided(logits_of: Callable[[Tensor], Tensor]) -> Tensor:
            conditioned = logits_of(zc).log_softmax(-1)
            if guidance == 1.0:
                return conditioned
            unconditioned = logits_of(free).log_softmax(-1)
            return unconditioned + guidance * (conditioned - unconditioned)

        logits = guided(heads.natoms_logits)
        largest = min(self.settings.max_sites, condition.max_sites or self.settings.max_sites)
        sizes = torch.arange(1, logits.shape[1] + 1)
        possible = (sizes <= largest) & (sizes >= self.species_limits[0])
        if not bool(possible.any()):
            raise ValueError(f"max_sites = {condition.max_sites} leaves no crystal; it must be at least 2")
        natoms = _draw(logits.masked_fill(~possible, -torch.inf) / self.settings.shape_temperature, generator) + 1
        numbers = torch.zeros((count, int(natoms.max())), dtype=torch.long)
        for index in range(numbers.shape[1]):
            position = torch.full((count,), index)
            logits = guided(
                partial(heads.atom_logits, previous=numbers, position=position, natoms=natoms.clamp_min(index + 1))
            )
            logits = logits.masked_fill(self._forbidden(numbers, index, natoms, allowed), -torch.inf)
            logits = logits / self.settings.species_temperature
            if index:
                logits = _sharper_end(logits, numbers[:, index - 1], self.settings.shape_temperature)
            drawn = _draw(logits, generator)
            if index and self.settings.lookahead is not None:
                switch = torch.nonzero((index < natoms) & (drawn != numbers[:, index - 1]))[:, 0]
                drawn[switch] = self._look_ahead(
                    logits[switch],
                    numbers[switch],
                    index,
                    natoms=natoms[switch],
                    scaled=float(scaled),
                    width=self.settings.lookahead,
                    generator=generator,
                )
            numbers[:, index] = torch.where(index < natoms, drawn, 0)
        numbers = _ordered(numbers)
        lengths, angles = self.scaling.unscale(heads.lattice_values(zc, numbers), numbers)
        return self._judge(numbers, lengths, angles, zc)

    def _look_ahead(
        self,
        logits: Tensor,
        numbers: Tensor,
        index: int,
        *,
        natoms: Tensor,
        scaled: float,
        width: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw the species of a new run, its probability times how well the crystal would meet the target with it.

        The rest of the cell is taken to be of the new species, which is exact for the last run; the property comes from
        the property model at the volume it expects.
        """
        target = scaled * self.scaling.value_std + self.scaling.value_mean
        before = numbers.clone()
        before[:, index:] = 0
        counts = count_elements(before.numpy())
        possible = torch.isfinite(logits)
        possible[torch.arange(len(logits)), numbers[:, index - 1]] = False
        row, species = np.nonzero(possible.numpy())
        completed = counts[row]
        completed[np.arange(len(row)), species] += (natoms.numpy() - index)[row]
        misfit = (self._expected_log(completed) - target) / width
        tilt = np.full(logits.shape, -np.inf)
        tilt[row, species] = -0.5 * misfit**2
        tilted = logits + torch.as_tensor(tilt, dtype=logits.dtype)
        return _draw(tilted - tilted.amax(1, keepdim=True), generator)

    def _expected_log(self, counts: np.ndarray) -> np.ndarray:
        """Return ln of the expected property of compositions (n, 95) at their expected volume, remembering them."""
        keys, rows, inverse = np.unique(_composition_keys(counts), return_index=True, return_inverse=True)
        names = keys.tolist()
        new = [i for i, key in enumerate(names) if key not in self._remembered]
        if new:
            unseen = counts[rows[new]]
            values = self.property_model.predict_expected(unseen)
            self._remembered.update(zip([names[i] for i in new], np.log(values).tolist(), strict=True))
        return np.array([self._remembered[key] for key in names])[inverse]

    def _forbidden(self, numbers: Tensor, index: int, natoms: Tensor, allowed: Tensor) -> Tensor:
        """Return the species (b, 95) that may not come next: sorted runs, and as many species as in training."""
        used = torch.zeros((len(numbers), ELEMENTS + 1), dtype=torch.bool)
        used.scatter_(1, numbers[:, :index], True)
        used[:, 0] = False
        kinds = used.sum(1)
        last = torch.zeros_like(used)
        if index:
            last.scatter_(1, numbers[:, index - 1 : index], True)
        least, most = self.species_limits
        most = self.settings.max_species or most
        forbidden = ~allowed.expand_as(used) | (used & ~last)
        full = kinds >= max(most, 1)
        forbidden = forbidden | (full[:, None] & ~last)
        missing = (least - kinds).clamp_min(0) >= (natoms - index)
        forbidden = forbidden | (missing[:, None] & last)
        forbidden[:, 0] = True
        stuck = forbidden.all(1)
        return torch.where(stuck[:, None], ~allowed.expand_as(used), forbidden)

    def _judge(self, numbers: Tensor, lengths: Tensor, angles: Tensor, zc: Tensor) -> _Drafts:
        """Correct the volume and predict the property of decoded compositions and lattices."""
        share = self.settings.volume_correction
        volume = torch.linalg.det(lattice_matrix(lengths, angles)).numpy().astype(float)
        counts = count_elements(numbers.numpy())
        # one evaluation per distinct composition: the draws repeat themselves
        _, rows, inverse = np.unique(_composition_keys(counts), return_index=True, return_inverse=True)
        atomic = self.property_model.predict_volume(counts[rows]) / counts[rows].sum(1)
        expected = atomic[inverse] * counts.sum(1)
        usable = np.isfinite(volume) & (volume > 0.2 * expected) & (volume < 5.0 * expected)
        volume = np.where(usable, volume, expected)
        corrected = np.exp((1 - share) * np.log(volume) + share * np.log(expected))
        lengths = lengths * torch.tensor((corrected / volume) ** (1 / 3), dtype=lengths.dtype)[:, None]
        predicted, deviation = self.property_model.predict(counts, corrected)
        return _Drafts(numbers, lengths, angles, np.where(usable, predicted, np.inf), deviation, zc)

    def _place(
        self, drafts: _Drafts, generator: torch.Generator
    ) -> list[tuple[Structure, float, float, dict[str, Any]]]:
        """Return the drafts as structures with coordinates, in their order."""
        placed: list[tuple[Structure, float, float, dict[str, Any]] | None] = [None] * len(drafts)
        for rows, part in _buckets(drafts):
            coords, moved = self._denoise(part, generator)
            forms = _forms(part.numbers.numpy(), part.lengths.numpy(), part.angles.numpy())
            for slot, row in enumerate(rows):
                size = int((part.numbers[slot] > 0).sum())
                crystal = CanonicalCrystal(
                    numbers=part.numbers[slot, :size].numpy(),
                    coords=coords[slot, :size].numpy().astype(float),
                    lengths=part.lengths[slot].numpy().astype(float),
                    angles=part.angles[slot].numpy().astype(float),
                )
                structure, tolerance = crystal.to_structure(), 0.0
                if self.settings.symmetrise:
                    structure, tolerance = symmetrised(structure)
                facts = {
                    "repaired": bool(moved[slot]),
                    "symmetry_tolerance": tolerance,
                    "form": forms[slot],
                }
                placed[row] = (structure, float(part.predicted[slot]), float(part.deviation[slot]), facts)
        return [item for item in placed if item is not None]

    def _denoise(self, part: _Drafts, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return coordinates (b, n, 3) and a mask (b,) of the crystals that the soft spheres had to push apart."""
        numbers = part.numbers
        cells = self.scaling.cells(numbers, part.lengths, part.angles)
        decoder, anchor = self.networks.decoder, self.networks.anchor(cells, part.zc)

        def score(x: Tensor, level: Tensor) -> Tensor:
            normalised, _ = decoder(x, cells, part.zc, level, anchor)
            return normalised * score_norm(level)[:, None, None]

        start = torch.rand((*numbers.shape, 3), generator=generator)
        coords = sample_coordinates(
            score, start, self.settings.decoder_calls, generator, temperature=self.settings.temperature
        )
        matrix, radii = lattice_matrix(part.lengths, part.angles), _radii()[numbers]
        close = contact_ratios(coords, matrix, radii, cells.mask).flatten(1).amin(1) < 0.8
        if bool(close.any()):
            with torch.enable_grad():
                coords[close] = push_apart(coords[close], matrix[close], radii[close], cells.mask[close])
        return coords, close

    # ---- files ----

    def capabilities(self) -> Capabilities:
        """Return the conditions, ranges and elements of this generator."""
        return Capabilities(
            conditions=(self.property,),
            trainable=True,
            ranges={self.property: self.range} if self._fitted else {},
            description="Conditional crystal diffusion VAE (after Con-CDVAE), compact enough for one CPU core",
            elements=self.elements,
        )

    def to_bytes(self) -> bytes:
        """Return the fitted generator as one safetensors blob, weights in half precision."""
        from inv_design.weights import pack

        if not self._fitted:
            raise RuntimeError("this Con-CDVAE is not trained; there is nothing to save")
        model_arrays, model_config = self.property_model.to_tensors()
        tensors = {
            "basis.origin": self.basis.origin.numpy(),
            "basis.directions": self.basis.directions.numpy(),
            "lattice_mean": self.scaling.lattice_mean.numpy(),
            "lattice_std": self.scaling.lattice_std.numpy(),
            "volumes": self.scaling.volumes.numpy(),
            "features": self.networks.encoder.network.sites.species.features.numpy(),
            "values": self.values,
        }
        tensors |= {
            f"net.{name}": p.detach().numpy().astype(np.float16) for name, p in self.networks.named_parameters()
        }
        config = {
            "generator": self.name,
            "settings": asdict(self.settings),
            "shapes": asdict(self.networks.shapes),
            "property": self.property,
            "range": list(self.range),
            "elements": list(self.elements),
            "species_limits": list(self.species_limits),
            "value_mean": self.scaling.value_mean,
            "value_std": self.scaling.value_std,
            "property_model": model_config,
        }
        return pack(tensors | model_arrays | self.known.to_tensors(), config)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Self:
        """Return the generator of a blob.

        Raises
        ------
        ValueError
            If the blob is not a Con-CDVAE.
        """
        from inv_design.weights import unpack

        tensors, config = unpack(blob)
        if config.get("generator") != cls.name:
            raise ValueError(f"the model file holds a {config.get('generator')!r}, not a {cls.name!r}")
        made = cls(**config["settings"])
        made.property, made.range = config["property"], tuple(config["range"])
        made.elements, made.species_limits = tuple(config["elements"]), tuple(config["species_limits"])
        made.scaling = Scaling(
            volumes=torch.tensor(tensors["volumes"]),
            lattice_mean=torch.tensor(tensors["lattice_mean"]),
            lattice_std=torch.tensor(tensors["lattice_std"]),
            value_mean=config["value_mean"],
            value_std=config["value_std"],
        )
        made.basis = LatentBasis(torch.tensor(tensors["basis.origin"]), torch.tensor(tensors["basis.directions"]))
        made.values = tensors["values"]
        made.networks = Networks(Shapes(**config["shapes"]), torch.tensor(tensors["features"]))
        with torch.no_grad():
            for name, parameter in made.networks.named_parameters():
                parameter.copy_(torch.tensor(tensors[f"net.{name}"].astype(np.float32)))
        made.networks.eval()
        made.property_model = PropertyModel.from_tensors(tensors, config["property_model"])
        made.known = KnownCrystals.from_tensors(tensors)
        made.crystals = made.known.crystals[: len(made.values)]
        made._fitted = True
        return made

    def encode(self, structures: Sequence[Structure]) -> np.ndarray:
        """Return the mean latent vector of each crystal, (n, latent); rows of NaN where a crystal cannot be encoded.

        Raises
        ------
        RuntimeError
            If the generator was not fitted before.
        """
        if not self._fitted:
            raise RuntimeError("the generator is not fitted; call fit or load first")
        vectors: list[np.ndarray | None] = []
        for structure in structures:
            try:
                (part,) = make_parts([canonical_crystal(structure)], np.full(1, 100.0), self.scaling)
                latent = part.encoded(self.networks).latent
                vectors.append(None if latent is None else latent[0, 0].numpy())
            except (ValueError, KeyError, IndexError, RuntimeError):  # an unknown element, a cell that is too large
                vectors.append(None)
        width = next((len(v) for v in vectors if v is not None), 0)
        return np.array([np.full(width, np.nan) if v is None else v for v in vectors])

    def avoiding(self, structures: Sequence[Structure]) -> ConCDVAE:
        """Return a generator that shares the trained parts and refuses these crystals too, as if they were known."""
        other = self.with_settings()
        other.known = self.known.joined(structures)
        return other

    def with_settings(self, **changes: Any) -> ConCDVAE:
        """Return a generator that shares the trained parts but samples with other settings."""
        other = ConCDVAE.__new__(ConCDVAE)
        other.__dict__.update(self.__dict__)
        other.settings = replace(self.settings, **changes)
        other.last_statistics = {}
        return other


_Form = tuple[float, tuple[int, ...]]
"""A composition key, and number of sites, angles and cell shape on a coarse grid: what likely is the same crystal."""


class _Seen:
    """Forms that a ``sample`` call passes over or puts last: of training crystals, and drawn before.

    They would cost a decoder call each and mostly give a known crystal again.
    """

    def __init__(self, known: list[_Form], settings: ConCDVAESettings) -> None:
        self.settings = settings
        self.forms = Counter(dict.fromkeys(known, 1))
        self.compositions = Counter({form[0]: 1 for form in known})
        self.refused: Counter[_Form] = Counter()
        self.strict = False

    def penalty(self, form: _Form) -> float:
        """Return what is added to the cost of a draft: infinite if it is passed over."""
        if self.refused[form] >= self.settings.patience or (self.strict and self.forms[form]):
            return math.inf
        return self.settings.variety * (3 * self.forms[form] + self.compositions[form[0]])

    def choose(self, form: _Form) -> None:
        """Note that a draft of this form is decoded."""
        self.forms[form] += self.settings.unique
        self.compositions[form[0]] += self.settings.unique

    def refuse(self, form: _Form, reason: str) -> None:
        """Note that a decoded crystal was refused."""
        self.refused[form] += reason in ("known", "duplicate")


class _Ticker:
    """Reports progress every two per cent."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.every = total, progress, max(1, total // 50)

    def __call__(self, done: int, part: str) -> None:
        if self.progress is not None and (done % self.every == 0 or done == self.total):
            self.progress(done, self.total, part)


class _Best:
    """The parameters of modules at the best validation so far."""

    def __init__(self, modules: list[torch.nn.Module]) -> None:
        self.modules, self.loss = modules, math.inf
        self.states: list[dict[str, Tensor]] = []
        self.metrics: dict[str, float] = {}

    def offer(self, loss: float, shares: dict[str, float], step: int) -> None:
        """Keep the present parameters if ``loss`` is the lowest so far."""
        if loss < self.loss:
            self.loss = loss
            self.states = [{k: v.clone() for k, v in module.state_dict().items()} for module in self.modules]
            self.metrics = {"validation_loss": loss, "best_step": float(step)}
            self.metrics |= {f"validation_{name}": value for name, value in shares.items()}

    def restore(self) -> None:
        """Put the best parameters back, if there are any."""
        for module, state in zip(self.modules, self.states, strict=False):
            module.load_state_dict(state)


def _buckets(drafts: _Drafts) -> Iterator[tuple[np.ndarray, _Drafts]]:
    """Yield (rows, drafts of like size with their padding cut)."""
    natoms = (drafts.numbers > 0).sum(1).numpy()
    for low, high in zip((0, *BUCKETS[:-1]), BUCKETS, strict=True):
        rows = np.flatnonzero((natoms > low) & (natoms <= high))
        if len(rows):
            part = drafts.rows(rows)
            yield rows, replace(part, numbers=part.numbers[:, : int(natoms[rows].max())])


def _held_out(count: int, share: float, seed: int) -> np.ndarray:
    """Return the indices of the validation crystals; none below 40 crystals."""
    if count < 40:
        return np.zeros(0, dtype=int)
    return np.sort(np.random.default_rng(seed).permutation(count)[: round(share * count)])


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _composition_keys(counts: np.ndarray) -> np.ndarray:
    """Return one number (n,) per composition, the same for the same fractions: a projection on irrational weights."""
    weights = np.sqrt(np.arange(counts.shape[1]) + 0.5) % 1.0
    return np.round(counts @ weights / counts.sum(1), 10)


def _forms(numbers: np.ndarray, lengths: np.ndarray, angles: np.ndarray) -> list[_Form]:
    """Return the forms of crystals: numbers (n, sites) padded with 0, lengths (n, 3) and angles (n, 3)."""
    keys = _composition_keys(count_elements(numbers)).tolist()
    shape = np.log(lengths / lengths.prod(1, keepdims=True) ** (1 / 3)) / 0.1
    cells = np.column_stack([(numbers > 0).sum(1), np.rint(angles / 8.0), np.rint(shape)]).astype(int)
    return [(key, tuple(cell)) for key, cell in zip(keys, cells.tolist(), strict=True)]


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


def _radii() -> Tensor:
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
