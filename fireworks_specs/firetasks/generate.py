"""Generate: one chunk of crystals under the campaign's condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fireworks import explicit_serialize

from fireworks_specs.firetasks.base import CampaignTask, load_generator_model
from fireworks_specs.progress import report
from fireworks_specs.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inv_design.config import CampaignConfig
    from inv_design.generators.protocol import Condition, Generator


@explicit_serialize
class GenerateTask(CampaignTask):
    """Sample chunk number ``chunk`` and insert its crystals as candidates; the seed follows from round and chunk."""

    required_params = ("campaign", "round", "chunk")

    def work(self) -> None:
        """Insert the structures and candidates of the chunk unless it is finished; wait if another worker is at it."""
        from fireworks_specs.steps import chunk_key
        from stores.claims import Claims
        from stores.steps import step_exists

        key = chunk_key(self["campaign"], self["round"], self["chunk"])
        with Claims(campaign=self["campaign"], stage="generate") as claims:
            for keys in claims.shares([key], key=str, lacking=lambda some: [k for k in some if not step_exists(k)]):
                self._generate(keys[0])

    def _generate(self, key: str) -> None:
        """Sample the chunk, insert its crystals, and record under ``key`` that it is finished."""
        from fireworks_specs.steps import model_of_round
        from stores.records import insert_candidates, insert_structures
        from stores.steps import claim_step

        name, number, chunk = self["campaign"], self["round"], self["chunk"]
        config = self.config
        section = config.generator
        wanted = min(section.chunk, section.samples_per_round - chunk * section.chunk)
        model = model_of_round(name, number, "generator")
        generator = avoiding_earlier(configured_generator(model.model_id, config), name, number)
        seed = derive_seed(config.seed, number, "generate", chunk)
        condition = campaign_condition(config, conditions=generator.capabilities().conditions)

        def progress(done: int, *_: object) -> None:
            report(f"round {number}: generate", chunk * section.chunk + done, section.samples_per_round)

        samples = generator.sample(wanted, condition, seed=seed, progress=progress)
        provenance = self.provenance([model.model_id])
        source = {"kind": "generated", "id": model.model_id}
        ids = insert_structures([s.structure for s in samples], [source] * len(samples), provenance)
        insert_candidates(
            [
                {
                    "campaign": name,
                    "structure_id": structure_id,
                    "round": number,
                    "generator_model_id": model.model_id,
                    "condition": condition.to_dict(),
                    "seed": seed,
                    "index": chunk * section.chunk + sample.index,
                    "score": sample.score,
                    "provenance": provenance,
                }
                for structure_id, sample in zip(ids, samples, strict=True)
            ]
        )
        statistics = {"wanted": wanted, "delivered": len(samples), **getattr(generator, "last_statistics", {})}
        claim_step(key, {"campaign": name, "statistics": statistics})


def avoiding_earlier(generator: Generator, campaign: str, number: int) -> Generator:
    """Return a generator that refuses the candidates of earlier rounds, if it can: they are duplicates in this one.

    Never those of the same round: a chunk must not depend on which others were finished before it.
    """
    from stores.documents.candidate import Candidate
    from stores.queries import structures_by_id

    avoiding = getattr(generator, "avoiding", None)
    if avoiding is None or number == 0:
        return generator
    ids = sorted(set(Candidate.objects(campaign=campaign, round__lt=number).scalar("structure_id")))
    known = structures_by_id(ids)
    avoided: Generator = avoiding([known[i] for i in ids if i in known])
    return avoided


def campaign_condition(
    config: CampaignConfig, target: float | None = None, conditions: Sequence[str] = ()
) -> Condition:
    """Return the sampling condition of a campaign, at its own bulk modulus or at ``target`` (GPa).

    ``conditions`` are the properties that the generator can be asked for; the campaign's other values among them are
    asked for too. At another ``target`` than the campaign's they would contradict it and are left out.
    """
    from inv_design.generators.protocol import Condition
    from inv_design.structures.elements import expand_elements

    section = config.generator
    targets = {"bulk_modulus_vrh": config.target if target is None else target}
    if target is None:
        wanted = {o.name: o.value for o in config.objectives if o.kind == "value" and o.value is not None}
        targets = {name: value for name, value in wanted.items() if name in conditions} | targets
    return Condition(
        targets=targets,
        exclude_elements=expand_elements(config.chemistry.exclude),
        max_sites=section.max_sites,
        sites=section.sites,
        composition=section.composition,
        crystal_system=section.crystal_system,
    )


def configured_generator(model_id: str, config: CampaignConfig) -> Generator:
    """Return a generator with the campaign's sampling settings (latent filter, guidance)."""
    generator = load_generator_model(model_id)
    with_settings = getattr(generator, "with_settings", None)
    if with_settings is None:
        return generator
    section = config.generator
    configured: Generator = with_settings(latent_filter=section.latent_filter, guidance=section.guidance)
    return configured
