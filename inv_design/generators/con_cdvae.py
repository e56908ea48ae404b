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
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from inv_design.checkpoint import State, load_tensors, named_arrays
from inv_design.generators.conditions import (
    DERIVED,
    LINEAR,
    SUPPLIED,
    Conditions,
    crystal_system,
    feature_size,
)
from inv_design.generators.crystals import (
    CanonicalCrystal,
    canonical_crystal,
    element_features,
    fit_atomic_volumes,
    padded_numbers,
)
from inv_design.generators.diffusion import LatentDiffusion, sample_coordinates, score_norm
from inv_design.generators.drafts import Drafting, Drafts, atomic_radii
from inv_design.generators.forms import Form, SeenForms, forms_of
from inv_design.generators.known_crystals import KnownCrystals, plain_crystal
from inv_design.generators.networks import Networks, Prior, Shapes
from inv_design.generators.phases import Phases
from inv_design.generators.property_model import PropertyModel, count_elements
from inv_design.generators.protocol import Capabilities, Condition, Sample, SavedAsBytes
from inv_design.generators.repair import contact_ratios, push_apart, symmetrised
from inv_design.generators.settings import ConCDVAESettings
from inv_design.generators.training import (
    LatentBasis,
    Latents,
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
from inv_design.structures.validity import geometry_reasons

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pymatgen.core import Structure
    from torch import Tensor

    from inv_design.checkpoint import Checkpoint
    from inv_design.generators.protocol import Progress

MIN_LABELS = 30  # crystals that must have a property before a sample can be asked for it
MIN_VALUE = 1.0  # GPa


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
        self.conditions: Conditions | None = None
        self.models: dict[str, PropertyModel] = {}
        self.remembered: dict[str, dict[float, float]] = {}
        self.avoided = 0

    # ---- training ----

    def fit(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        property: str = "bulk_modulus_vrh",
        further: Mapping[str, Sequence[float]] | None = None,
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, float]:
        """Train from scratch (see :class:`~inv_design.generators.protocol.Generator`).

        Crystals with more than ``max_sites`` sites in the primitive cell are left out. ``further`` maps the names of
        :data:`~inv_design.generators.conditions.SUPPLIED` to one value per crystal, NaN where unknown; the prior learns
        them as conditions, beside those that follow from the crystals. ``checkpoint`` is offered the state after each
        step; the same call goes on from it.
        """
        crystals, targets, further = self._canonical(structures, values, further)
        settings, scale = self.settings, 1.0 if budget is None else budget
        self._fitted, self.remembered = False, {}
        held = held_out(len(crystals), settings.validation, seed)
        trained = np.setdiff1d(np.arange(len(crystals)), held)
        volumes = fit_atomic_volumes(crystals)
        self.property = property
        self.scaling = Scaling.fit(crystals, targets, volumes)
        self._describe(crystals, targets)
        self.conditions = Conditions.of(crystals, further)
        torch.manual_seed(seed)
        features = torch.tensor(element_features(), dtype=torch.float32)
        self.networks = Networks(Shapes(max_sites=settings.max_sites, element_features=features.shape[1]), features)
        parts = make_parts([crystals[i] for i in trained], targets[trained], self.scaling)
        tests = make_parts([crystals[i] for i in held], targets[held], self.scaling)
        steps = tuple(
            max(1, round(scale * n)) for n in (settings.joint_steps, settings.decoder_steps, settings.prior_steps)
        )
        metrics = self._train(
            parts, tests, steps, rate=settings.rate, seed=seed, ticker=_Ticker(sum(steps), progress),
            phases=Phases(self.networks, checkpoint),
        )  # fmt: skip
        counts = count_elements(padded_numbers(crystals))
        self.property_model = PropertyModel.fit(counts, volumes_of(crystals), targets, volumes, seed=seed)
        self._fit_models(seed)
        self._fitted = True
        return metrics | {"crystals": float(len(crystals)), "parameters": float(self.parameter_count())}

    def finetune(
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        *,
        replay_structures: Sequence[Structure] = (),
        replay_values: Sequence[float] = (),
        further: Mapping[str, Sequence[float]] | None = None,
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> dict[str, float]:
        """Continue training in place (see :class:`~inv_design.generators.protocol.Generator`).

        The new crystals make up ``finetune_share`` of the draws at most; the learning rate is a tenth of that of
        ``fit``; scaling and validation are those of ``fit``; the property model is conditioned on all data. ``further``
        are values of the new crystals as in ``fit``; those of a replay are taken from the crystals carried.
        ``checkpoint`` is as in ``fit``; to go on from it, begin with the generator as it was before.
        """
        if not self._fitted:
            raise RuntimeError("this Con-CDVAE is not trained; call fit or load a file before finetune")
        settings, scale = self.settings, 1.0 if budget is None else budget
        new, new_values, further = self._canonical(structures, values, further)
        old, old_values, conditions = self.crystals, self.values, self.conditions
        if len(replay_structures):
            old, old_values, _ = self._canonical(replay_structures, replay_values)
            if conditions is not None:
                conditions = conditions.rows(np.zeros(0, dtype=int)).extended(old, self._carried(old))
        crystals, targets = [*old, *new], np.concatenate([old_values, new_values])
        share = min(settings.finetune_share, settings.finetune_boost * len(new) / len(crystals))
        weights = np.concatenate(
            [np.full(len(old), (1 - share) / len(old)), np.full(len(new), share / len(new))]
        ) * len(crystals)
        self.conditions = None if conditions is None else conditions.extended(new, further)
        steps = tuple(max(1, round(scale * settings.finetune_steps * n)) for n in (1.0, 0.6, 1.6))
        parts = make_parts(crystals, targets, self.scaling, weights)
        torch.manual_seed(seed)  # dropout draws from the global generator
        metrics = self._train(
            parts, [], steps, rate=settings.rate / 10, seed=seed, ticker=_Ticker(sum(steps), progress),
            phases=Phases(self.networks, checkpoint),
        )  # fmt: skip
        self.property_model = self.property_model.extended(
            count_elements(padded_numbers(crystals)), volumes_of(crystals), targets
        )
        self.models = self.models | {self.property: self.property_model}
        before = self.known.crystals if len(replay_structures) else []
        self._describe(crystals, targets)
        for crystal in before:  # perhaps not replayed, but still not new
            self.known.add(crystal)
        self.remembered = {}
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
        phases: Phases,
    ) -> dict[str, float]:
        networks, settings = self.networks, self.settings
        generator = torch.Generator().manual_seed(seed)
        joint, alone, prior = steps
        swaps = Substitutions.of(self.crystals, self.scaling, settings.substitution)
        metrics = phases.metrics
        if not phases.is_over("joint"):
            self._train_jointly(parts, tests, joint, rate=rate, swaps=swaps, generator=generator, ticker=ticker,
                                phases=phases)  # fmt: skip
        networks.eval()
        parts = [part.encoded(networks) for part in parts]
        self.latents = Latents.of(parts)
        if not phases.is_over("decoder"):
            metrics["decoder_loss"] = train_steps(
                self._frozen_loss(swaps, generator), [networks.decoder], parts, steps=alone, batch=settings.batch,
                rate=rate, generator=generator, average=0.998, after=lambda step: ticker(joint + step, "decoder"),
                checkpoint=phases.checkpoint("decoder"),
            )  # fmt: skip
        if not self._fitted:
            self.basis = phases.basis() or LatentBasis.fit(self.latents.mean)
            self._new_prior()
        phases.fill_prior()
        basis = {"basis.origin": self.basis.origin.numpy(), "basis.directions": self.basis.directions.numpy()}
        metrics["prior_loss"] = self._train_prior(
            prior,
            rate,
            generator,
            lambda step: ticker(joint + alone + step, "prior"),
            phases.checkpoint("prior", lambda: State(basis)),
        )
        self._round()
        return metrics

    def _train_jointly(
        self,
        parts: list[Part],
        tests: list[Part],
        steps: int,
        *,
        rate: float,
        swaps: Substitutions,
        generator: torch.Generator,
        ticker: _Ticker,
        phases: Phases,
    ) -> None:
        """Train encoder, heads, predictor and anchor, and keep those of the best validation."""
        networks, settings, weights = self.networks, self.settings, self.settings.loss_weights()
        modules = [networks.encoder, networks.heads, networks.predictor, networks.anchor]
        best = _Best(modules)
        if phases.resumes("joint"):
            best.fill(phases.saved)

        def stop_early(step: int) -> None:
            ticker(step, "encoder and heads")
            if tests and (step % max(20, steps // 20) == 0 or step == steps):
                best.offer(*validate_heads(networks, tests, weights), step)
                networks.train()

        phases.metrics["joint_loss"] = train_steps(
            lambda batch: joint_loss(
                networks, batch, weights, generator, substitutions=swaps, dropout=settings.condition_dropout
            ),
            modules, parts, steps=steps, batch=settings.batch, rate=rate, decay=0.01, generator=generator,
            after=stop_early, checkpoint=phases.checkpoint("joint", best.state),
        )  # fmt: skip
        best.restore()
        phases.metrics |= best.metrics

    def learn_conditions(
        self,
        further: Mapping[str, Sequence[float]] | None = None,
        *,
        seed: int = 0,
        budget: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Train a new prior under further conditions of the crystals it carries; all other networks stay.

        ``further`` has one value per crystal carried (``self.crystals``), as in :meth:`fit`.

        Raises
        ------
        RuntimeError
            If the generator was not fitted before.
        """
        if not self._fitted:
            raise RuntimeError("this Con-CDVAE is not trained; call fit or load a file before learn_conditions")
        self.conditions = Conditions.of(self.crystals, further)
        torch.manual_seed(seed)
        self._new_prior()
        parts = make_parts(self.crystals, self.values, self.scaling)
        self.latents = Latents.of([part.encoded(self.networks) for part in parts])
        steps = max(1, round((1.0 if budget is None else budget) * self.settings.prior_steps))
        ticker = _Ticker(steps, progress)
        generator = torch.Generator().manual_seed(seed)
        loss = self._train_prior(steps, self.settings.rate, generator, lambda step: ticker(step, "prior"))
        self._round()
        self._fit_models(seed)
        self.remembered = {}
        return {"prior_loss": loss, "crystals": float(len(self.crystals))}

    def _carried(self, crystals: Sequence[CanonicalCrystal]) -> dict[str, list[float]]:
        """Return the supplied values of crystals as far as they are among those carried, NaN for the others."""
        assert self.conditions is not None
        rows = {_crystal_key(crystal): i for i, crystal in enumerate(self.crystals)}
        index = [rows.get(_crystal_key(crystal), -1) for crystal in crystals]  # -1 is the NaN behind the last
        return {name: np.append(self.conditions.value_of(name), np.nan)[index].tolist() for name in SUPPLIED}

    def _new_prior(self) -> None:
        further = 0 if self.conditions is None else feature_size()
        shapes = replace(self.networks.shapes, prior_latent=len(self.basis.directions), prior_further=further)
        self.networks.shapes = shapes
        self.networks.prior = Prior(shapes)

    def _train_prior(
        self,
        steps: int,
        rate: float,
        generator: torch.Generator,
        after: Callable[[int], None],
        checkpoint: Checkpoint | None = None,
    ) -> float:
        further = None
        if self.conditions is not None and self.networks.prior.further is not None:
            rows = self.conditions.rows(self.latents.index.numpy())
            further = torch.as_tensor(rows.features(), dtype=torch.float32), torch.as_tensor(rows.known())
        return train_prior(
            self.networks, self.latents, self.diffusion, self.basis, steps=steps, batch=256, rate=rate,
            condition_dropout=self.settings.condition_dropout, condition_noise=0.05, generator=generator,
            further=further, after=after, checkpoint=checkpoint,
        )  # fmt: skip

    def _fit_models(self, seed: int) -> None:
        """Fit a property model to each supplied property that enough crystals have, and keep the main one with them."""
        self.models = {self.property: self.property_model}
        if self.conditions is None:
            return
        counts, volumes = count_elements(padded_numbers(self.crystals)), volumes_of(self.crystals)
        for name in SUPPLIED:
            values = self.conditions.value_of(name)
            rows = np.flatnonzero(values > MIN_VALUE)  # a modulus near zero is an instability, not a stiffness
            if name != self.property and name not in LINEAR and len(rows) >= MIN_LABELS:
                self.models[name] = PropertyModel.fit(
                    counts[rows], volumes[rows], values[rows], self.property_model.volumes, seed=seed
                )

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
        self,
        structures: Sequence[Structure],
        values: Sequence[float],
        further: Mapping[str, Sequence[float]] | None = None,
    ) -> tuple[list[CanonicalCrystal], np.ndarray, dict[str, list[float]]]:
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
        chosen = {name: [float(column[i]) for i in kept] for name, column in (further or {}).items()}
        return [crystals[i] for i in kept], targets[kept], chosen

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
        if not self._fitted:
            raise RuntimeError("this Con-CDVAE is not trained; call fit or load a file")
        drafting = Drafting(self, condition)
        settings, started = self.settings, time.perf_counter()
        self.networks.eval()
        generator = torch.Generator().manual_seed(seed)
        accepted: list[Sample] = []
        found = KnownCrystals()
        rejected: Counter[str] = Counter()
        forms = self._known_forms() if settings.novel else []
        seen = SeenForms(forms, settings, avoided=forms[len(forms) - self.avoided :])
        draws, heat = 0, 1.0
        while len(accepted) < n and draws < settings.attempts * n:
            success = len(accepted) / draws if draws else (0.65 if settings.latent_filter == 1 else 0.85)
            wanted = min(256, math.ceil(1.1 * (n - len(accepted)) / max(success, 0.2)) + 4)
            seen.strict = settings.latent_filter == 1 and draws < settings.attempts * n / 2
            source = drafting if heat == 1.0 else Drafting(self._heated(heat), condition)
            drafts = source.draw(wanted, generator=generator, seen=seen)
            before, draws = len(accepted), draws + wanted
            rejected["draft"] += wanted - len(drafts)
            for structure, value, deviation, facts in self._place(drafts, generator):
                if len(accepted) == n:
                    break
                form = facts.pop("form")
                reason = self._refuse(structure, found, condition)
                if reason is not None:
                    rejected[reason] += 1
                    seen.refuse(form, reason)
                    continue
                if settings.unique:
                    found.add(plain_crystal(structure), structure)
                facts |= {"predicted_log_std": deviation, "generator": self.name}
                score = value if drafting.aims else None
                accepted.append(Sample(structure, len(accepted), condition.to_dict(), seed, score, facts))
                if progress is not None:
                    progress(len(accepted), n, "sampling")
            if len(accepted) - before < (0.25 if settings.latent_filter > 1 else 0.15) * wanted:
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
        """Return a generator that draws more widely: where new crystals become scarce, the condition must yield.

        Unless the settings fix it, one species more than in training is allowed too: most new crystals are there.
        """
        settings = self.settings
        return self.with_settings(
            lookahead=None if settings.lookahead is None else settings.lookahead * heat,
            shape_temperature=min(settings.shape_temperature * heat, 1.0),
            species_temperature=settings.species_temperature * heat**0.5,
            max_species=settings.max_species or self.species_limits[1] + 1,
        )

    def _refuse(self, structure: Structure, found: KnownCrystals, condition: Condition) -> str | None:
        if geometry_reasons(structure, min_ratio=self.settings.min_ratio):
            return "geometry"
        wanted = condition.crystal_system
        if wanted is not None and crystal_system(plain_crystal(structure)) != wanted:
            return "crystal system"
        if self.settings.novel and self.known.contains(structure):
            return "known"
        if self.settings.unique and found.contains(structure):
            return "duplicate"
        return None

    def _known_forms(self) -> list[Form]:
        """Return the composition and rough cell of all known crystals."""
        crystals = self.known.crystals
        lengths = np.stack([crystal.lengths for crystal in crystals])
        return forms_of(padded_numbers(crystals), lengths, np.stack([crystal.angles for crystal in crystals]))

    def _place(
        self, drafts: Drafts, generator: torch.Generator
    ) -> list[tuple[Structure, float, float, dict[str, Any]]]:
        """Return the drafts as structures with coordinates, in their order."""
        placed: list[tuple[Structure, float, float, dict[str, Any]] | None] = [None] * len(drafts)
        for rows, part in drafts.buckets():
            coords, moved = self._denoise(part, generator)
            forms = part.forms()
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

    def _denoise(self, part: Drafts, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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
        matrix, radii = lattice_matrix(part.lengths, part.angles), atomic_radii()[numbers]
        close = contact_ratios(coords, matrix, radii, cells.mask).flatten(1).amin(1) < 0.8
        if bool(close.any()):
            with torch.enable_grad():
                coords[close] = push_apart(coords[close], matrix[close], radii[close], cells.mask[close])
        return coords, close

    # ---- files ----

    def capabilities(self) -> Capabilities:
        """Return the conditions, ranges and elements of this generator."""
        return Capabilities(
            conditions=(self.property, *self.further_names()),
            trainable=True,
            ranges=self._ranges() if self._fitted else {},
            description="Conditional crystal diffusion VAE (after Con-CDVAE), compact enough for one CPU core",
            elements=self.elements,
        )

    def further_names(self) -> tuple[str, ...]:
        """Return the further properties that a condition may target: known of enough training crystals."""
        if self.conditions is None or self.networks.prior.further is None:
            return ()
        names = [n for n in (*SUPPLIED, *DERIVED) if n != self.property]
        return tuple(n for n in names if np.isfinite(self.conditions.value_of(n)).sum() >= MIN_LABELS)

    def _ranges(self) -> dict[str, tuple[float, float]]:
        ranges = {self.property: self.range}
        for name in self.further_names():
            assert self.conditions is not None
            values = self.conditions.value_of(name)
            ranges[name] = (float(np.nanmin(values)), float(np.nanmax(values)))
        return ranges

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
        further_models: dict[str, Any] = {}
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
            "models": further_models,
        }
        if self.conditions is not None:
            tensors |= self.conditions.to_tensors()
        for name, model in self.models.items():
            if name != self.property:
                arrays, further_models[name] = model.to_tensors()
                tensors |= {f"models.{name}.{key}": array for key, array in arrays.items()}
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
        made.models = {made.property: made.property_model}
        for name, numbers in config.get("models", {}).items():
            prefix = f"models.{name}."
            arrays = {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}
            made.models[name] = PropertyModel.from_tensors(arrays, numbers)
        if "conditions.scalars" in tensors:
            made.conditions = Conditions.from_tensors(tensors, made.crystals)
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

    @torch.no_grad()
    def reconstruct(
        self, structures: Sequence[Structure], values: Sequence[float], *, seed: int = 0
    ) -> list[Structure]:
        """Return each crystal decoded again from its latent vector, its own composition and its own lattice.

        ``values`` are the property (n,), which the latent vectors are conditioned on.

        Raises
        ------
        RuntimeError
            If the generator was not fitted before.
        """
        if not self._fitted:
            raise RuntimeError("this Con-CDVAE is not trained; call fit or load a file")
        crystals, targets, _ = self._canonical(structures, values)
        numbers = torch.as_tensor(padded_numbers(crystals))
        zc = torch.zeros(len(crystals), self.networks.shapes.latent)
        for part in make_parts(crystals, targets, self.scaling):
            mean, _ = self.networks.encoder(part.coords, part.cells)
            zc[part.index] = self.networks.heads.latent(mean, part.values, torch.ones(len(mean), dtype=torch.bool))
        drafts = Drafts(
            numbers=numbers,
            lengths=torch.tensor(np.stack([c.lengths for c in crystals]), dtype=torch.float32),
            angles=torch.tensor(np.stack([c.angles for c in crystals]), dtype=torch.float32),
            predicted=targets, deviation=np.zeros(len(crystals)), cost=np.zeros(len(crystals)), zc=zc,
        )  # fmt: skip
        return [structure for structure, *_ in self._place(drafts, torch.Generator().manual_seed(seed))]

    def avoiding(self, structures: Sequence[Structure]) -> ConCDVAE:
        """Return a generator that shares the trained parts and refuses these crystals too, as if they were known."""
        other = self.with_settings()
        other.known = self.known.joined(structures)
        other.avoided = self.avoided + len(structures)
        return other

    def with_settings(self, **changes: Any) -> ConCDVAE:
        """Return a generator that shares the trained parts but samples with other settings."""
        other = ConCDVAE.__new__(ConCDVAE)
        other.__dict__.update(self.__dict__)
        other.settings = replace(self.settings, **changes)
        other.last_statistics = {}
        return other


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

    def state(self) -> State:
        """Return the best so far for a checkpoint."""
        tensors: dict[str, np.ndarray] = {}
        for number, state in enumerate(self.states):
            tensors |= named_arrays(f"best.{number}", state)
        return State(tensors, {"best_loss": self.loss, "best_metrics": self.metrics})

    def fill(self, saved: State) -> None:
        """Go on with the best of a checkpoint."""
        self.loss, self.metrics = saved.values["best_loss"], dict(saved.values["best_metrics"])
        if self.metrics:
            self.states = [{k: v.clone() for k, v in module.state_dict().items()} for module in self.modules]
            for number, state in enumerate(self.states):
                load_tensors(f"best.{number}", state, saved.tensors)

    def restore(self) -> None:
        """Put the best parameters back, if there are any."""
        for module, state in zip(self.modules, self.states, strict=False):
            module.load_state_dict(state)


def _crystal_key(crystal: CanonicalCrystal) -> tuple[bytes, ...]:
    """Return what tells a crystal from others and survives a file's single precision."""
    arrays = ((crystal.lengths, 2), (crystal.angles, 1), (crystal.coords, 2))
    return (np.asarray(crystal.numbers, dtype=int).tobytes(), *((np.round(a, d) + 0.0).tobytes() for a, d in arrays))


def held_out(count: int, share: float, seed: int) -> np.ndarray:
    """Return the indices of the validation crystals; none below 40 crystals."""
    if count < 40:
        return np.zeros(0, dtype=int)
    return np.sort(np.random.default_rng(seed).permutation(count)[: round(share * count)])
