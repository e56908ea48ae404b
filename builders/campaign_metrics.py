"""CampaignMetricsBuilder: one document per campaign and round, the numbers of its funnel, hits, errors and elements."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from builders.base import CampaignBuilder, one_line
from builders.training_members import training_set_ids
from inv_design.metrics.campaign import element_enrichment, element_shares, funnel, hit_rate, target_errors
from inv_design.metrics.elements import STAGE_NAMES, bias_warnings, stage_shares
from stores.protocol import content_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Document = dict[str, Any]

FIELDS = [
    "candidate_id", "input_hash", "round", "structure_id", "stage", "status", "stages", "reasons", "elements", "hit",
    "duplicate_of", "formula",
]  # fmt: skip

_backgrounds: dict[str, list[dict[str, float]]] = {}
"""Training set id -> element -> atoms of each of its crystals: content, read once in a process."""


class CampaignMetricsBuilder(CampaignBuilder):
    """Derives ``campaign_metrics`` from the candidate summaries, training sets, models and evaluations."""

    version = "3"

    @classmethod
    def source_keys(cls) -> dict[str, str]:
        """Return the collections that are read -> their key."""
        return {
            "campaigns": "name", "candidate_summaries": "candidate_id", "training_sets": "training_set_id",
            "structures": "structure_id", "models": "model_id", "evaluations": "evaluation_id",
        }  # fmt: skip

    @classmethod
    def target_key(cls) -> tuple[str, str]:
        """Return (collection that is written, its key)."""
        return "campaign_metrics", "campaign"

    def items(self) -> Iterator[Document]:
        """Yield what the metrics of each round are made of, for those that are not up to date."""
        for name, config in self.campaigns():
            rounds: dict[int, list[Document]] = defaultdict(list)
            light = ["candidate_id", "input_hash", "round"]
            found = self.read["candidate_summaries"].query({"campaign": name}, properties=light)
            for summary in self.legible(found, "candidate_id"):
                self.counts.read += 1
                if summary.get("round") is not None:
                    rounds[summary["round"]].append(summary)
            models = self._grouped("models", name, ["round", "model_id", "kind", "name", "metrics", "training_set_id"])
            evaluations = self._grouped(
                "evaluations", name, ["round", "target", "judge", "n", "median", "mean_relative_error", "evaluation_id"]
            )
            sets = training_set_ids(self.read["training_sets"], self.read["models"], name)
            done = {} if self.from_scratch else self._hashes(name)
            for number in sorted(set(rounds) | set(models) | set(sets)):
                item: Document = {
                    "campaign": name,
                    "round": number,
                    "target": config.target,
                    "budget": config.stages.dft.budget_per_round,
                    "mlip_budget": config.stages.mlip.budget_per_round,
                    "summaries": sorted(rounds.get(number, []), key=lambda s: s["candidate_id"]),
                    "models": sorted(models.get(number, []), key=lambda m: m["model_id"]),
                    "evaluations": sorted(evaluations.get(number, []), key=_evaluation_order),
                    "training_set_id": sets[number][-1] if sets.get(number) else None,
                }
                item["input_hash"] = input_hash(item, self.version)
                if done.get(number) != item["input_hash"]:
                    found = self.read["candidate_summaries"].query(
                        {"campaign": name, "round": number}, properties=FIELDS
                    )
                    item["summaries"] = sorted(self.legible(found, "candidate_id"), key=lambda s: s["candidate_id"])
                    item["input_hash"] = input_hash(item, self.version)  # of what was read in the end
                    try:
                        training_set, complete = self._training_set(item["training_set_id"])
                    except (KeyError, TypeError, AttributeError) as error:  # somebody changed it
                        self.logger.error("training set %s is left out: %s", item["training_set_id"], one_line(error))
                        training_set, complete = None, False
                    if not complete:
                        item["input_hash"] = None  # what is missing may come: the round is built again
                    yield {**item, "training_set": training_set}

    def _hashes(self, name: str) -> dict[int, Any]:
        found = list(self.target.query({"campaign": name}, properties=["round", "input_hash"]))
        return {metrics["round"]: metrics.get("input_hash") for metrics in self.legible(found, own=True)}

    def process_item(self, item: Document) -> Document:
        """Return the metrics of one round; what cannot be computed is a failed document with its error."""
        place = {"campaign": item["campaign"], "round": item["round"]}
        try:
            metrics = {**round_metrics(item), "state": "successful", "input_hash": item["input_hash"]}
        except Exception as error:  # the other rounds are still built
            metrics = {"state": "failed", "error": one_line(error), "input_hash": None}
        inputs = [item["training_set_id"], *(m["model_id"] for m in item["models"])]
        return {**place, **metrics, **self.stamp(inputs)}

    def write(self, items: list[Document]) -> int:
        """Write the metrics, one document per campaign and round."""
        self.counts.failed += sum(item["state"] == "failed" for item in items)
        self.upsert(items, ["campaign", "round"])
        return len(items)

    def _grouped(self, collection: str, name: str, fields: list[str]) -> dict[int, list[Document]]:
        grouped: dict[int, list[Document]] = defaultdict(list)
        found = self.read[collection].query({"campaign": name}, properties=fields)
        for document in self.legible(found, f"{collection.removesuffix('s')}_id"):
            if document.get("round") is not None:
                grouped[document["round"]].append({k: v for k, v in document.items() if k != "_id"})
        return grouped

    def _training_set(self, identity: str | None) -> tuple[Document | None, bool]:
        """Return (a training set's size, labels by method, splits, elements; whether all of it was there)."""
        document = next(self.fetch("training_sets", "training_set_id", [identity] if identity else []), None)
        if document is None:
            return None, identity is None
        members = document.get("members", [])
        formulas, complete = self._formulas(str(identity), [m["structure_id"] for m in members])
        return {
            "training_set_id": identity,
            "size": document["size"],
            "labels_by_method": document.get("labels_by_method", {}),
            "splits": dict(Counter(m["split"] for m in members)),
            "excluded": len(document.get("excluded", [])),
            "excluded_reasons": dict(Counter(reason_kind(e["reason"]) for e in document.get("excluded", []))),
            "elements": [m["chemsys"].split("-") for m in members],
            "formulas": formulas,
        }, complete

    def _formulas(self, identity: str, members: list[str]) -> tuple[list[dict[str, float]], bool]:
        """Return (atoms by element of each crystal that is there, whether all are)."""
        if identity not in _backgrounds:
            found = self.fetch("structures", "structure_id", members, properties={"structure_id": 1, "formula": 1})
            formulas = {s["structure_id"]: amounts(s["formula"]) for s in found if s.get("formula")}
            if len(formulas) < len(set(members)):
                return [formulas[i] for i in sorted(formulas)], False
            _backgrounds[identity] = [formulas[i] for i in sorted(formulas)]
        return _backgrounds[identity], True


def _evaluation_order(evaluation: Mapping[str, Any]) -> tuple[float, str]:
    target = evaluation.get("target")
    return (target if isinstance(target, int | float) else math.inf, evaluation["evaluation_id"])


def input_hash(item: Mapping[str, Any], version: str) -> str:
    """Return the hash of everything that the metrics of a round are made of."""
    summaries = [[s["candidate_id"], s.get("input_hash")] for s in item["summaries"]]
    models = [m["model_id"] for m in item["models"]]
    evaluations = [e["evaluation_id"] for e in item["evaluations"]]
    settings = [version, item["target"], item["budget"], item["mlip_budget"], item["training_set_id"]]
    return content_id("h", [settings, summaries, models, evaluations])


def amounts(formula: str) -> dict[str, float]:
    """Return element -> number of atoms of a formula."""
    from pymatgen.core import Composition

    return {str(symbol): float(n) for symbol, n in Composition(formula).get_el_amt_dict().items()}


def reason_kind(reason: str) -> str:
    """Return a reason of exclusion without its details, to be counted."""
    return "label out of range" if reason.startswith("label ") else reason.split(":", maxsplit=1)[0]


def crystals_by_stage(summaries: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Return stage -> element -> atoms, of the candidates that were generated, passed each stage, were labelled, hit.

    A duplicate counts where it was generated, as it tells what the generator makes.
    """
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in STAGE_NAMES if name != "training_set"}
    for summary in summaries:
        if not summary.get("formula"):
            continue
        formula = amounts(summary["formula"])
        stages["generated"].append(formula)
        for stage in ("predictor", "mlip"):
            if ((summary.get("stages") or {}).get(stage) or {}).get("status") == "passed":
                stages[stage].append(formula)
        if summary.get("hit") is not None:
            stages["labelled"].append(formula)
        if summary.get("hit"):
            stages["hits"].append(formula)
    return stages


def round_metrics(item: Mapping[str, Any]) -> Document:
    """Return the metrics of one round from its summaries, models, evaluations and training set (plain records).

    Shares and errors are relative, moduli in GPa. ``element_enrichment`` compares the candidates that passed the last
    stage with results against the training set, by crystals that contain an element; ``elements`` compares every stage,
    by atoms, and ``warnings`` says which elements are too many or too enriched (:mod:`inv_design.metrics.elements`).
    """
    summaries, training_set = item["summaries"], item["training_set"]
    known = [s["elements"] for s in summaries if s.get("elements")]
    background = (training_set or {}).get("elements", [])
    stage, chosen = _last_passed(summaries)
    elements = stage_shares(crystals_by_stage(summaries), (training_set or {}).get("formulas", []))
    return {
        "target": item["target"],
        "generated": len(summaries),
        "distinct_structures": len({s["structure_id"] for s in summaries}),
        "duplicates": sum(s.get("duplicate_of") is not None for s in summaries),
        "funnel": funnel(summaries, budget=item["budget"], mlip_budget=item["mlip_budget"]),
        "hit_rate": hit_rate(summaries),
        "target_error": target_errors(summaries, item["target"]),
        "element_shares": element_shares(known) if known else {},
        "element_enrichment": element_enrichment(chosen, background) if chosen else {},
        "enriched_stage": stage,
        "elements": elements,
        "warnings": bias_warnings(elements),
        "training_set_id": item["training_set_id"],
        "training_set": {k: v for k, v in (training_set or {}).items() if k not in ("elements", "formulas")} or None,
        "models": [{k: m.get(k) for k in ("model_id", "kind", "name", "metrics")} for m in item["models"]],
        "evaluations": [
            {k: e.get(k) for k in ("target", "judge", "n", "median", "mean_relative_error")}
            for e in item["evaluations"]
            if e["target"] > 0
        ],
    }


def _last_passed(summaries: list[Document]) -> tuple[str | None, list[list[str]]]:
    """Return the last stage that candidates passed, and their elements."""
    for stage in ("dft", "mlip", "predictor"):
        chosen = [s["elements"] for s in summaries if (s.get("stages") or {}).get(stage, {}).get("status") == "passed"]
        if chosen:
            return stage, chosen
    return None, []
