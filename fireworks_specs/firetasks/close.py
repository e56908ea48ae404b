"""Close: judge the round's generator at several targets, then build the derived collections once more."""

from __future__ import annotations

import hashlib
from typing import Any

from fireworks import explicit_serialize

from fireworks_specs.firetasks.base import CampaignTask
from fireworks_specs.firetasks.generate import campaign_condition, configured_generator
from fireworks_specs.progress import report
from fireworks_specs.seeds import derive_seed


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
        with Claims(campaign=name, stage="close") as claims:
            key = f"close/{name}/{number}"
            for _ in claims.shares([key], key=str, lacking=lambda keys: keys if self._missing_targets() else []):
                self._evaluate(self._missing_targets())
        build_campaign(name)

    def _missing_targets(self) -> list[float]:
        """Return the targets that lack an evaluation; 0 stands for the empty one of a campaign that has no targets."""
        from stores.documents.evaluation import Evaluation

        known = set(Evaluation.objects(campaign=self["campaign"], round=self["round"]).scalar("target"))
        targets = [t for t in self.config.evaluation.targets if t > 0] or [0.0]
        return [t for t in targets if t not in known]

    def _evaluate(self, targets: list[float]) -> None:
        from fireworks_specs.steps import model_of_round
        from stores.records import insert_documents

        model = model_of_round(self["campaign"], self["round"], "generator")
        samples = {t: self._sample(model.model_id, t) if t else [] for t in targets}
        judged = self._judge([(t, s) for t, found in samples.items() for s in found])
        # the last target is inserted last: a round counts as closed only when every evaluation is there
        documents = [self._evaluation(model.model_id, t, judged.get(t, []), len(samples[t])) for t in targets]
        insert_documents("evaluations", documents)

    def _sample(self, model_id: str, target: float) -> list[Any]:
        config = self.config
        generator = configured_generator(model_id, config)
        seed = derive_seed(config.seed, self["round"], "evaluate", f"{target:g}")
        found = generator.sample(config.evaluation.samples, campaign_condition(config, target), seed=seed)
        report(f"round {self['round']}: evaluation, sampled at {target:g} GPa", 1, 1)
        return [s.structure for s in found]

    def _judge(self, work: list[tuple[float, Any]]) -> dict[float, list[float]]:
        from fireworks_specs.pool import map_structures
        from inv_design.mechanics.stages import measure_equations_of_state

        config = self.config
        values: dict[int, float] = {}
        records = map_structures(
            measure_equations_of_state,
            [s for _, s in work],
            calculator=config.stages.mlip.calculator,
            strain=config.stages.dft.strain,
        )
        for done, (index, record) in enumerate(records, start=1):
            if record["state"] == "completed":
                values[index] = record["results"]["bulk_modulus_vrh"]
            report(f"round {self['round']}: evaluation, judge", done, len(work))
        judged: dict[float, list[float]] = {}
        for index in sorted(values):
            judged.setdefault(work[index][0], []).append(values[index])
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
