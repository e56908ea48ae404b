"""Close: judge the round's generator at several targets, then build the derived collections once more."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from fireworks import explicit_serialize

from fireworks_specs.checkpoints import checkpointed
from fireworks_specs.firetasks.base import CampaignTask
from fireworks_specs.firetasks.fine_tune import judge_as_before
from fireworks_specs.firetasks.generate import campaign_condition, configured_generator
from fireworks_specs.progress import report
from fireworks_specs.seeds import derive_seed
from inv_design import __version__
from inv_design.checkpoint import Checkpoint, State

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from stores.claims import Claims


@explicit_serialize
class CloseTask(CampaignTask):
    """Insert the evaluations of a round; with none configured, one empty evaluation marks the round as closed.

    The judge is the stage-II potential's E(V) after relaxation, which never guided the generator.
    """

    def work(self) -> None:
        """Evaluate every target that lacks an evaluation, then build; wait if another worker is at it."""
        from builders.run import build_campaign
        from stores.claims import Claims

        name, number = self["campaign"], self["round"]
        judge_as_before(self)
        with Claims(campaign=name, stage="close") as claims:
            key = f"close/{name}/{number}"
            for _ in claims.shares([key], key=str, lacking=lambda keys: keys if self._missing_targets() else []):
                self._evaluate(self._missing_targets(), key, claims)
        build_campaign(name)

    def _missing_targets(self) -> list[float]:
        """Return the targets that lack an evaluation; 0 stands for the empty one of a campaign that has no targets."""
        from fireworks_specs.steps import missing_targets

        targets = [t for t in self.config.evaluation.targets if t > 0] or [0.0]
        return missing_targets(self["campaign"], self["round"], targets)

    def _evaluate(self, targets: list[float], key: str, claims: Claims) -> None:
        from fireworks_specs.steps import model_of_round
        from stores.protocol import content_id
        from stores.records import insert_documents

        model = model_of_round(self["campaign"], self["round"], "generator")
        config = self.config.model_dump(mode="json")
        samples = {t: self._sample(model.model_id, t) if t else [] for t in targets}
        # on another machine, or with another version of torch, the same seed may sample other crystals
        crystals = [[t, *map(_crystal_id, found)] for t, found in samples.items()]
        made_of = {"version": __version__, "model": model.model_id, "crystals": crystals, "config": config}
        identity = content_id("k", made_of)
        with checkpointed(key, identity, claims) as checkpoint:
            judged = self._judge([(t, s) for t, found in samples.items() for s in found], checkpoint)
            documents = [self._evaluation(model.model_id, t, judged.get(t, []), len(samples[t])) for t in targets]
            insert_documents("evaluations", documents)

    def _sample(self, model_id: str, target: float) -> list[Any]:
        config = self.config
        generator = configured_generator(model_id, config)
        seed = derive_seed(config.seed, self["round"], "evaluate", f"{target:g}")
        found = generator.sample(config.evaluation.samples, campaign_condition(config, target), seed=seed)
        report(f"round {self['round']}: evaluation, sampled at {target:g} GPa", 1, 1)
        return [s.structure for s in found]

    def _judge(self, work: list[tuple[float, Any]], checkpoint: Checkpoint) -> dict[float, list[float]]:
        from fireworks_specs.pool import map_structures
        from inv_design.mechanics.stages import measure_equations_of_state

        config, saved = self.config, checkpoint.resume()
        values: list[float | None] = [None] * len(work) if saved is None else saved.values["values"]
        left = list(range(len(work))) if saved is None else saved.values["left"]
        records = map_structures(
            measure_equations_of_state,
            [work[index][1] for index in left],
            calculator=config.stages.mlip.calculator,
            strain=config.stages.dft.strain,
        )
        order = tuple(left)
        for place, record in records:
            if record["state"] == "completed":
                values[order[place]] = record["results"]["bulk_modulus_vrh"]
            left.remove(order[place])
            report(f"round {self['round']}: evaluation, judge", len(work) - len(left), len(work))
            checkpoint.offer(lambda: State(values={"values": values, "left": left}))
        judged: dict[float, list[float]] = {}
        for (target, _), value in zip(work, values, strict=True):
            if value is not None:
                judged.setdefault(target, []).append(value)
        return judged

    def _evaluation(self, model_id: str, target: float, values: list[float], sampled: int) -> dict[str, Any]:
        from statistics import fmean, median

        from inv_design.calculators.registry import calculator_protocol
        from stores.protocol import protocol_id

        name, number, stage = self["campaign"], self["round"], self.config.stages.mlip
        key = hashlib.sha256(f"{name}/{number}/{target:g}".encode()).hexdigest()[:20]
        protocol = {"stage": "evaluation", "calculator": calculator_protocol(stage.calculator)} if values else {}
        return {
            "evaluation_id": f"e-{key}",
            "campaign": name,
            "round": number,
            "generator_model_id": model_id,
            "property": "bulk_modulus_vrh",
            "target": target,
            "judge": f"E(V) by {stage.calculator}",
            "judge_protocol_id": protocol_id(protocol),
            "unit": "GPa",
            "n": len(values),
            "values": values,
            "median": median(values) if values else None,
            "mean_relative_error": fmean(abs(v - target) / target for v in values) if values else None,
            "statistics": {"sampled": sampled},
            "provenance": self.provenance([model_id]),
        }


def _crystal_id(structure: Structure) -> str:
    """Return a crystal's id; of one whose cell is degenerate, which no judge can measure, its formula."""
    from inv_design.structures.identity import structure_id

    try:
        return structure_id(structure)
    except ValueError:
        return str(structure.composition.formula)
