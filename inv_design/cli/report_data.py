"""From a campaign's records to ReportData: the one place where the report meets the database."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.cli.budgets import beyond_budget, spent_budgets
from inv_design.cli.crystals import crystal_text, load_crystals, with_crystals
from inv_design.cli.report_provenance import provenance
from inv_design.cli.trust_data import collect_trust, label_name
from inv_design.metrics.elements import STAGE_NAMES, warning_lines
from inv_design.report.data import (
    BestCandidate,
    Distribution,
    ElementStage,
    Evaluation,
    LatentMap,
    ParetoPoint,
    Parity,
    Reliability,
    ReportData,
    RoundData,
    StageCount,
    StageNumber,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from inv_design.config import CampaignConfig
    from inv_design.objective import Objective
    from stores.connection import Connection

    Record = dict[str, Any]

PROPERTY = "bulk_modulus_vrh"
BEST = 10
MAX_LATENT = 1500
MAX_PARITY = 400
MIN_RELIABILITY = 5
"""Labels below which a share of them says nothing."""
LEVELS = (0.10, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.90, 0.95)
"""Central intervals whose coverage is shown."""
SUMMARY = (
    "campaign", "candidate_id", "structure_id", "round", "formula", "elements", "spacegroup", "stage", "status",
    "stages", "flags", "target_error", "born_stable", "bulk_modulus_vrh", "properties", "duplicate_of", "hit", "audit",
)  # fmt: skip


def collect(connection: Connection, name: str, *, progress: Callable[[str], None] = lambda _: None) -> ReportData:
    """Return what the report shows of a campaign.

    Parameters
    ----------
    progress
        Told what is being read.

    Raises
    ------
    LookupError
        If the campaign is not in the database.
    """
    from inv_design.config import CampaignConfig

    database = connection.db
    campaign = database["campaigns"].find_one({"name": name})
    if campaign is None:
        raise LookupError(f"the database holds no campaign {name!r}; `inv-design run` starts one")
    config = CampaignConfig.model_validate(campaign["config"])
    progress("candidates")
    metrics = list(database["campaign_metrics"].find({"campaign": name}).sort("round", 1))
    summaries = list(database["candidate_summaries"].find({"campaign": name}, dict.fromkeys(SUMMARY, 1)))
    models = list(database["models"].find({"campaign": name}))
    progress("training sets")
    members = training_members(models)
    methods = judge_names(config, summaries)
    progress("parity")
    predictor = last_predictor(models)
    parities = [*held_out_parity(predictor, members), *label_parities(summaries, methods)]
    progress("latent space")
    latent = latent_space(models, members)
    progress("best candidates")
    return ReportData(
        campaign=name,
        target=config.target,
        tolerance=hit_window(config),
        rounds=[round_data(item, methods) for item in metrics if item.get("funnel")],
        created_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        label_method=methods["dft"],
        training_values={number: [label_value(m) for m in found] for number, found in members.items() if found},
        distributions=distributions(summaries, methods),
        evaluations=evaluations(database["evaluations"].find({"campaign": name, "target": {"$gt": 0}})),
        parities=parities,
        latent=latent,
        element_sets=element_sets(summaries),
        element_stages=element_stages(metrics),
        warnings={item["round"]: warning_lines(item.get("warnings") or []) for item in metrics},
        objectives=config.objectives,
        pareto=pareto_points(summaries, config.objectives),
        reliability=reliabilities(predictor, summaries),
        trust=collect_trust(database, config, tolerance=hit_window(config)),
        best=best_candidates(summaries, methods, spent_budgets(database, [name])),
        provenance=provenance(connection, campaign, config, models),
    )


def judge_names(config: CampaignConfig, summaries: Iterable[Record] = ()) -> dict[str, str]:
    """Return stage -> the name of what judges there, of labels as the candidates' summaries have it."""
    stage = config.stages
    potential = stage.mlip.calculator + (", fine-tuned" if stage.mlip.fine_tune.enabled else "")
    return {"predictor": stage.predictor.model, "mlip": potential, "dft": label_name(summaries, config)}


def hit_window(config: CampaignConfig) -> float:
    """Return the relative deviation from the campaign's target within which a label is a hit."""
    low, high = config.objectives[0].bounds(config.stages.dft.tolerance)
    return (high - low) / 2 / config.target


def round_data(item: Record, methods: dict[str, str]) -> RoundData:
    """Return one round's counts from its metrics."""
    funnel = item["funnel"]
    stages = [
        StageCount(
            stage,
            entered=counts["in"],
            passed=counts["passed"],
            rejected=counts["rejected"],
            failed=counts["failed"],
            waiting=counts["waiting"],
            over_budget=counts.get("over_budget") or 0,
            method=methods[stage],
            reasons={
                rule: n
                for rule, n in counts["reasons"].items()
                if rule.split(":")[0] not in ("calculation", "prediction", "summary")
            },
        )
        for stage in methods
        if (counts := funnel.get(stage)) is not None
    ]
    generator = next((m["name"] for m in item.get("models") or [] if m["kind"] == "generator"), "")
    size = (item.get("training_set") or {}).get("size")
    return RoundData(
        item["round"], item.get("generated", 0), stages, generator, item.get("training_set_id") or "", size
    )


def training_members(models: Iterable[Record]) -> dict[int, list[Record]]:
    """Return round -> members with a bulk modulus of the training set that the round's generator learned from."""
    from stores.documents import TrainingSet

    loaded: dict[str, list[Record]] = {}
    found: dict[int, list[Record]] = {}
    for model in sorted(models, key=lambda m: m["model_id"]):
        identity = model.get("training_set_id")
        if model["kind"] != "generator" or identity is None or model.get("round") is None:
            continue
        if identity not in loaded:
            document = TrainingSet.objects(training_set_id=identity).first()
            loaded[identity] = [] if document is None else document.load_members()
        found[model["round"]] = [m for m in loaded[identity] if PROPERTY in m.get("labels", {})]
    return dict(sorted(found.items()))


def label_value(member: Record) -> float:
    """Return a training-set member's bulk modulus in GPa."""
    return float(member["labels"][PROPERTY]["value"])


def distributions(summaries: Iterable[Record], methods: dict[str, str]) -> list[Distribution]:
    """Return the bulk moduli in GPa by stage and round."""
    titles = {
        "predictor": f"predictor ({methods['predictor']})",
        "mlip": f"MLIP ({methods['mlip']})",
        "dft": f"label: {methods['dft']}",
    }
    grouped: dict[tuple[str, int], list[float]] = defaultdict(list)
    doubtful: Counter[tuple[str, int]] = Counter()
    for summary in summaries:
        for stage in titles:
            value = stage_value(summary, stage)
            if value is not None:
                grouped[stage, summary["round"]].append(value)
            elif stage_value(summary, stage, trusted=False) is not None:
                doubtful[stage, summary["round"]] += 1
    return [
        Distribution(number, stage, titles[stage], sorted(values), doubtful[stage, number])
        for (stage, number), values in sorted(grouped.items())
    ]


def stage_value(summary: Record, stage: str, *, trusted: bool = True) -> float | None:
    """Return the bulk modulus in GPa that a stage gave a candidate, ``None`` if none.

    With ``trusted`` a value that quality flags put in doubt counts as none.
    """
    from inv_design.screening.quality import distrusted

    record = (summary.get("stages") or {}).get(stage) or {}
    value = record.get("value")
    return None if value is None or (trusted and distrusted(record.get("flags") or ())) else float(value)


def evaluations(documents: Iterable[Record]) -> list[Evaluation]:
    """Return the generators' evaluations that judged at least one crystal."""
    return [
        Evaluation(
            d["round"],
            d["target"],
            d["judge"],
            d["n"],
            d["mean_relative_error"],
            d.get("median"),
            d.get("values") or [],
        )
        for d in documents
        if d["n"] and d.get("mean_relative_error") is not None
    ]


def last_predictor(models: Sequence[Record]) -> tuple[Record, Any] | None:
    """Return the record and the model of the campaign's last predictor; ``None`` if none can be loaded."""
    from inv_design.predictors.registry import load_predictor

    predictors = [m for m in models if m["kind"] == "predictor" and m.get("round") is not None]
    if not predictors:
        return None
    last = max(predictors, key=lambda m: (m["round"], m["model_id"]))
    try:
        return last, load_predictor(model_blob(last))
    except (ValueError, KeyError):  # its plugin is not installed here, or its weights were not imported
        return None


def held_out_parity(found: tuple[Record, Any] | None, members: dict[int, list[Record]]) -> list[Parity]:
    """Return the last predictor's values for crystals whose labels it had not seen, against these labels.

    What its training kept of them is taken where it did; else it predicts the chemical systems that it held out.
    """
    from inv_design.predictors.folds import held_out

    if found is None:
        return []
    last, predictor = found
    validation = getattr(predictor, "validation", None)
    if validation is not None:
        step = -(-len(validation) // MAX_PARITY)
        return [
            Parity(
                title=f"Held out: {validation.origin}",
                predicted=validation.predictions[::step].tolist(),
                reference=validation.values[::step].tolist(),
                predicted_by=f"{last['name']}, round {last['round']}",
                reference_by="reference label" if last["round"] == 0 else "label of the training set",
                std=validation.std[::step].tolist(),
            )
        ]
    if last["round"] not in members:
        return []
    fraction = getattr(predictor, "held_out_fraction", None)
    if fraction is None:
        fraction = (getattr(predictor, "settings", None) or {}).get("holdout", 0.0)
    known = members[last["round"]]
    mask = held_out([m["chemsys"] for m in known], float(fraction))
    # one method only: labels of different origin in one picture would mislead
    chosen = [m for m, out in zip(known, mask, strict=True) if out and m["labels"][PROPERTY]["method"] == "reference"]
    chosen = chosen[:MAX_PARITY]
    crystals = load_crystals([m["structure_id"] for m in chosen])
    chosen = [m for m in chosen if m["structure_id"] in crystals]
    if len(chosen) < 2:
        return []
    prediction = predictor.predict([crystals[m["structure_id"]] for m in chosen])
    return [
        Parity(
            title="Held-out systems",
            predicted=prediction.values.tolist(),
            reference=[label_value(m) for m in chosen],
            predicted_by=f"{last['name']}, round {last['round']}",
            reference_by="reference label",
            std=prediction.std.tolist(),
        )
    ]


def reliabilities(found: tuple[Record, Any] | None, summaries: Iterable[Record]) -> list[Reliability]:
    """Return how often labels lie in the predictor's intervals: of held-out crystals, and of candidates.

    A candidate's prediction is by its round's predictor and was made before its label existed.
    """
    from inv_design.predictors.target import Target
    from inv_design.predictors.validation import Validation

    curves = []
    validation = getattr(found[1], "validation", None) if found is not None else None
    if validation is not None and len(validation) >= MIN_RELIABILITY:
        curves.append(Reliability("held-out crystals", **validation.reliability(LEVELS), n=len(validation)))
    rows = []
    for summary in summaries:
        record = (summary.get("stages") or {}).get("predictor") or {}
        value, std, label = record.get("value"), record.get("std"), stage_value(summary, "dft")
        if label is not None and label > 0 and value and std:
            rows.append((label, float(value), float(std)))
    if len(rows) >= MIN_RELIABILITY:
        labels, values, stds = (np.array(column) for column in zip(*rows, strict=True))
        judged = Validation(Target.of(PROPERTY), labels, values, stds, "candidates")
        curves.append(Reliability("labelled candidates", **judged.reliability(LEVELS), n=len(rows)))
    return curves


def pareto_points(summaries: Iterable[Record], objectives: Sequence[Objective]) -> list[ParetoPoint]:
    """Return the candidates that have a value of every objective; none for a campaign with a single one."""
    from inv_design.metrics.pareto import pareto_front

    if len(objectives) < 2:
        return []
    points = []
    for summary in sorted(summaries, key=lambda s: s["candidate_id"]):
        values = {o.name: (summary.get("properties") or {}).get(o.name) for o in objectives}
        if summary.get("duplicate_of") is None and all(v is not None for v in values.values()):
            out = summary.get("status") in ("rejected", "failed")
            state = "hit" if summary.get("hit") else "out" if out else "open"
            points.append(
                ParetoPoint(summary["candidate_id"], summary["formula"], values, state, summary["round"])  # type: ignore[arg-type]
            )
    open_ones = [p for p in points if p.state != "out"]
    for i in pareto_front([[o.badness(p.values[o.name]) for o in objectives] for p in open_ones]):
        open_ones[i].front = True
    return points


def element_stages(metrics: Iterable[Record]) -> dict[int, list[ElementStage]]:
    """Return round -> the element shares of its stages, for the rounds that have candidates."""
    return {
        item["round"]: [
            ElementStage(stage, record["n"], record["shares"], record["enrichment"])
            for stage in STAGE_NAMES
            if (record := item["elements"].get(stage)) is not None
        ]
        for item in metrics
        if "generated" in (item.get("elements") or {})
    }


def label_parities(summaries: Iterable[Record], methods: dict[str, str]) -> list[Parity]:
    """Return predictor and MLIP against the labels of candidates; each value was made before its label existed."""
    labelled = [s for s in summaries if stage_value(s, "dft") is not None]
    found = []
    for stage, title in (("predictor", "Predictor against labels"), ("mlip", "MLIP against labels")):
        used = [s for s in labelled if stage_value(s, stage) is not None]
        if len(used) < 2:
            continue
        std = [(s["stages"][stage] or {}).get("std") for s in used]
        found.append(
            Parity(
                title=title,
                predicted=[stage_value(s, stage) or 0.0 for s in used],
                reference=[stage_value(s, "dft") or 0.0 for s in used],
                predicted_by=methods[stage],
                reference_by=methods["dft"],
                std=[float(x) for x in std if x is not None] if all(x is not None for x in std) else None,
                rounds=[s["round"] for s in used],
            )
        )
    return found


def latent_space(models: Sequence[Record], members: dict[int, list[Record]]) -> LatentMap | None:
    """Return the last generator's latent vectors of its training set; ``None`` if it has no latent space."""
    from inv_design.generators.registry import load_generator

    generators = [m for m in models if m["kind"] == "generator" and m.get("round") in members]
    if not generators:
        return None
    last = max(generators, key=lambda m: (m["round"], m["model_id"]))
    try:
        generator = load_generator(model_blob(last))
    except (ValueError, KeyError):  # its plugin is not installed here, or its weights were not imported
        return None
    encode = getattr(generator, "encode", None)
    if encode is None:
        return None
    added: dict[str, int] = {}
    for number in sorted(members):
        for member in members[number]:
            added.setdefault(member["structure_id"], number)
    first = min(members)
    chosen = members[last["round"]]
    new = [m for m in chosen if added[m["structure_id"]] > first]
    old = [m for m in chosen if added[m["structure_id"]] == first]
    step = max(1, -(-len(old) // MAX_LATENT))
    chosen = [*old[::step], *new]
    crystals = load_crystals([m["structure_id"] for m in chosen])
    chosen = [m for m in chosen if m["structure_id"] in crystals]
    if not chosen:
        return None
    vectors = encode([crystals[m["structure_id"]] for m in chosen])
    known = [i for i, vector in enumerate(vectors) if all(map(math.isfinite, vector))]
    vectors, chosen = vectors[known], [chosen[i] for i in known]
    rounds = [added[m["structure_id"]] - first for m in chosen]
    return LatentMap(vectors, [label_value(m) for m in chosen], rounds, f"{last['name']}, round {last['round']}")


def model_blob(model: Record) -> bytes:
    """Return a model's weights."""
    from stores.artifacts import get

    return get(model["sha256"])


def element_sets(summaries: Iterable[Record]) -> dict[int, list[list[str]]]:
    """Return round -> the elements of each candidate that passed stage I."""
    found: dict[int, list[list[str]]] = defaultdict(list)
    for summary in summaries:
        stage = (summary.get("stages") or {}).get("predictor") or {}
        if stage.get("status") == "passed" and summary.get("elements"):
            found[summary["round"]].append(list(summary["elements"]))
    return dict(sorted(found.items()))


def best_candidates(
    summaries: Iterable[Record], methods: dict[str, str], spent: Collection[tuple[str, int, str]] = ()
) -> list[BestCandidate]:
    """Return the candidates nearest to the target: hits first, then those that no stage has rejected.

    Parameters
    ----------
    spent
        The budgets that are used up.
    """
    rank = {("dft", "passed"): 0, ("dft", "waiting"): 1, ("mlip", "waiting"): 2}
    open_ones = [
        s for s in summaries if (s.get("stage"), s.get("status")) in rank and s.get("target_error") is not None
    ]
    ordered = sorted(open_ones, key=lambda s: (rank[s["stage"], s["status"]], s["target_error"], s["candidate_id"]))
    distinct: dict[str, Record] = {}
    for summary in ordered:
        distinct.setdefault(summary["structure_id"], summary)
    chosen = with_crystals(list(distinct.values())[:BEST])
    crystals = load_crystals([s["crystal_structure_id"] for s in chosen])
    found = []
    for summary in chosen:
        group = summary.get("crystal_spacegroup") or {}
        found.append(
            BestCandidate(
                id=summary["candidate_id"],
                formula=summary["formula"],
                structure=crystals.get(summary["crystal_structure_id"]),
                numbers=stage_numbers(summary, methods),
                round=summary["round"],
                spacegroup=f"{group['symbol']} ({group['number']})" if group else "",
                crystal=crystal_text(summary),
                waits_for={summary["stage"]: beyond_budget(summary, spent) or "waiting"}
                if summary["status"] == "waiting"
                else {},
                born_stable=summary.get("born_stable"),
                flags=list(summary.get("flags") or []),
            )
        )
    return found


def stage_numbers(summary: Record, methods: dict[str, str]) -> list[StageNumber]:
    """Return the bulk modulus of each stage, and the shear modulus of stage II, in GPa."""
    numbers = []
    for stage, method in methods.items():
        record = (summary.get("stages") or {}).get(stage) or {}
        if record.get("value") is not None:
            numbers.append(StageNumber(stage, method, float(record["value"]), record.get("std")))
        if stage == "mlip" and record.get("shear_modulus_vrh") is not None:
            numbers.append(StageNumber(stage, method, float(record["shear_modulus_vrh"]), None, "shear_modulus_vrh"))
    return numbers
