"""What a candidate's summary says: verdict by verdict, from plain records."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inv_design.config import CampaignConfig
    from inv_design.screening.verdict import Verdict

    Document = dict[str, Any]

PROPERTY = "bulk_modulus_vrh"
MLIP_NUMBERS = (
    "bulk_modulus_vrh", "shear_modulus_vrh", "born_stable", "volume_change", "structure_matched", "rms", "relaxed",
    "energy_per_atom", "volume_per_atom",
)  # fmt: skip
DFT_NUMBERS = ("bulk_modulus_vrh", "shear_modulus_vrh", "energy_per_atom", "volume_per_atom", "fit_residual")


def summarise_candidate(item: Mapping[str, Any]) -> Document:
    """Return the summary of a candidate from its records: verdict by verdict until a stage is not passed.

    Parameters
    ----------
    item
        ``candidate``, ``structure``, ``predictions``, ``mlip``, ``dft``, ``duplicate_of`` and ``config`` as records;
        ``attempts``: stage -> all attempts at its result.

    Raises
    ------
    ValueError
        If the structure is missing or cannot be read.
    """
    from inv_design.screening.dft import screen_dft
    from inv_design.screening.mlip import screen_mlip
    from inv_design.screening.predictor import screen_predictor
    from inv_design.screening.quality import mlip_dft_difference
    from inv_design.structures.elements import expand_elements
    from inv_design.structures.files import structure_from_dict

    candidate, record = item["candidate"], item["structure"]
    if record is None:
        raise ValueError(f"structure {candidate['structure_id']} is not in the database; import it again")
    config = _configuration(json.dumps(item["config"], sort_keys=True))
    objectives = config.objectives
    attempts = item.get("attempts") or {}
    structure = structure_from_dict(record["structure"])
    generated = generated_properties(record, config)
    cost = {"cost": generated["cost"]} if "cost" in generated else {}
    verdicts = [
        screen_predictor(
            structure,
            item["predictions"],
            targets=objectives,
            config=config.stages.predictor,
            known=cost,
            exclude=expand_elements(config.chemistry.exclude),
            duplicate_of=item["duplicate_of"],
            hit_tolerance=config.stages.dft.tolerance,
        )
    ]
    stages: Document = {"predictor": _predictor_stage(verdicts[0], item["predictions"])}
    if verdicts[-1].status == "passed":
        relaxed = {**cost, **relaxed_density(generated, item["mlip"])}
        tried = attempts.get("mlip", ())
        verdicts.append(
            screen_mlip(item["mlip"], targets=objectives, config=config.stages.mlip, known=relaxed, attempts=tried)
        )
        stages["mlip"] = _calculation_stage(verdicts[-1], item["mlip"], MLIP_NUMBERS, tried)
        if verdicts[-1].status == "passed":
            relaxed = {**cost, **relaxed_density(generated, item["dft"])}
            tried = attempts.get("dft", ())
            verdicts.append(
                screen_dft(item["dft"], targets=objectives, config=config.stages.dft, known=relaxed, attempts=tried)
            )
            stages["dft"] = _calculation_stage(verdicts[-1], item["dft"], DFT_NUMBERS, tried)
    audit = {}
    if config.stages.dft.audit_per_round and verdicts[-1].stage == "mlip" and verdicts[-1].status == "rejected":
        audit = _audit(item, config, {**cost, **relaxed_density(generated, item["dft"])})
    last = verdicts[-1]
    value, method = best_value(stages)
    judged = [item[stage] for stage in ("mlip", "dft") if stage in stages]
    entered = {s: item[s] or {} if s in stages else {} for s in ("mlip", "dft")}
    dft = {} if entered["dft"].get("method") == "surrogate" else entered["dft"]  # a rehearsal is no DFT
    difference, doubts = mlip_dft_difference(entered["mlip"].get("results"), dft.get("results"))
    properties, methods = best_properties(generated, item["predictions"], judged, wanted=wanted_properties(config))
    return {
        **{k: record[k] for k in ("formula", "chemsys", "elements", "nsites", "spacegroup")},
        **{k: properties.get(k) for k in ("density", "volume_per_atom", "cost", "shear_modulus_vrh")},
        "properties": {name: properties.get(name) for name in wanted_properties(config)},
        "property_methods": methods,
        "stage": last.stage,
        "status": last.status,
        "state": "successful",
        "hit": last.status == "passed" if last.stage == "dft" and last.status in ("passed", "rejected") else None,
        "reason": last.headline,
        "reasons": [reason for verdict in verdicts for reason in verdict.records()],
        "stages": stages,
        **audit,
        PROPERTY: value,
        "bulk_modulus_method": method,
        "born_stable": (stages.get("mlip") or {}).get("born_stable"),
        "target": config.target,
        "target_error": None if value is None else objectives[0].deviation(value),
        "mlip_dft_difference": difference,
        "flags": [*(f for s in ("mlip", "dft") for f in (stages.get(s) or {}).get("flags", [])), *doubts],
        "model_id": stages["predictor"].get("model_id"),
        "duplicate_of": item["duplicate_of"],
        "duplicate_key": item["duplicate_key"],
        "input_hash": item["input_hash"],
    }


def _audit(item: Mapping[str, Any], config: CampaignConfig, known: Mapping[str, float]) -> Document:
    """Return ``{"audit": label}`` of a candidate that stage II rejected, if it was labelled all the same."""
    from inv_design.screening.dft import screen_dft

    if item["dft"] is None:
        return {}
    tried = (item.get("attempts") or {}).get("dft", ())
    verdict = screen_dft(item["dft"], targets=config.objectives, config=config.stages.dft, known=known, attempts=tried)
    return {"audit": _calculation_stage(verdict, item["dft"], DFT_NUMBERS, tried)}


def best_value(stages: Mapping[str, Mapping[str, Any]]) -> tuple[float | None, str | None]:
    """Return (bulk modulus in GPa, whose it is) from the costliest stage that has one."""
    for stage in ("dft", "mlip", "predictor"):
        record = stages.get(stage) or {}
        if record.get("value") is not None:
            return float(record["value"]), record.get("method") or stage
    return None, None


def place_of(candidate: Mapping[str, Any]) -> Document:
    """Return a candidate's place in its campaign; a round that is no number is none."""
    fields = ("candidate_id", "campaign", "round", "structure_id", "generator_model_id", "condition", "seed", "index")
    place = {name: candidate.get(name) for name in (*fields, "score")}
    return place if isinstance(place["round"], int) else {**place, "round": None}


def generated_properties(record: Mapping[str, Any], config: CampaignConfig) -> dict[str, float]:
    """Return density (g/cm^3), volume per atom (Å^3) and cost of a crystal as it was generated."""
    from inv_design.metrics.elements import composition_cost

    found = {
        "density": float(record["density"]), "volume_per_atom": float(record["volume"]) / record["nsites"],
    }  # fmt: skip
    if config.chemistry.cost:
        sites = [species["element"] for site in record["structure"]["sites"] for species in site["species"]]
        found["cost"] = composition_cost(Counter(sites), config.chemistry.cost, by=config.chemistry.cost_by)
    return found


def relaxed_density(generated: Mapping[str, float], calculation: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the density (g/cm^3) and volume per atom (Å^3) after a calculation's relaxation, where it says so."""
    volume = ((calculation or {}).get("results") or {}).get("volume_per_atom")
    if not volume:
        return {}
    return {
        "density": generated["density"] * generated["volume_per_atom"] / float(volume),
        "volume_per_atom": float(volume),
    }


def wanted_properties(config: CampaignConfig) -> list[str]:
    """Return the properties that a summary names: the moduli, the campaign's objectives and its own properties."""
    names = [PROPERTY, "shear_modulus_vrh", *(o.name for o in config.objectives), *config.properties]
    return list(dict.fromkeys(names))


def best_properties(
    generated: Mapping[str, float],
    predictions: Iterable[Mapping[str, Any]],
    calculations: Iterable[Mapping[str, Any] | None],
    *,
    wanted: Iterable[str],
) -> tuple[dict[str, float], dict[str, str]]:
    """Return (property -> number in its unit, property -> whose it is) from the costliest source that has one.

    Parameters
    ----------
    generated
        Properties of the crystal itself.
    predictions
        One prediction record per property.
    calculations
        The calculations of the stages that it entered, in order of rising cost.
    """
    from inv_design.screening.mlip import numbers

    names = set(wanted)
    values = dict(generated)
    methods = dict.fromkeys(generated, "structure")
    for prediction in predictions:
        if prediction["property"] in names and prediction.get("value") is not None and not prediction.get("error"):
            values[prediction["property"]] = float(prediction["value"])
            methods[prediction["property"]] = "predictor"
    for calculation in calculations:
        if calculation is None or calculation.get("state") != "completed":
            continue
        results = {k: v for k, v in numbers(calculation.get("results") or {}).items() if k in names}
        results |= relaxed_density(generated, calculation)
        values |= results
        methods |= dict.fromkeys(results, calculation["method"])
    return values, methods


def _predictor_stage(verdict: Verdict, predictions: Sequence[Mapping[str, Any]]) -> Document:
    own = next((p for p in predictions if p["property"] == PROPERTY), {})
    return {
        "status": verdict.status,
        **{k: own.get(k) for k in ("value", "std", "unit", "model_id", "protocol_id", "error")},
        **({"properties": {p["property"]: p.get("value") for p in predictions}} if len(predictions) > 1 else {}),
    }


def _calculation_stage(
    verdict: Verdict,
    calculation: Mapping[str, Any] | None,
    numbers: Sequence[str],
    attempts: Sequence[Mapping[str, Any]] = (),
) -> Document:
    if calculation is None:
        return {"status": verdict.status}
    results = calculation.get("results") or {}
    stage: Document = {
        "status": verdict.status,
        "value": results.get(PROPERTY),
        **{name: results.get(name) for name in numbers if name in results},
        **{k: calculation.get(k) for k in ("calculation_id", "protocol_id", "method", "error", "output_structure_id")},
        "flags": list(calculation.get("flags") or []),
    }
    if calculation.get("state") == "failed" or len(attempts) > 1:
        stage |= {"failure": calculation.get("reason"), "attempts": max(len(attempts), 1)}
    if verdict.stage == "dft":
        stage["hit"] = verdict.status == "passed" if verdict.status in ("passed", "rejected") else None
    return stage


def summary_settings(config: CampaignConfig) -> Document:
    """Return the settings that a summary depends on."""
    dump = config.model_dump(mode="json")
    return {k: dump[k] for k in ("targets", "properties", "stages", "chemistry")}


@lru_cache(maxsize=8)
def _configuration(text: str) -> CampaignConfig:
    """Return the configuration that a JSON text holds: the same for thousands of candidates."""
    from inv_design.config import CampaignConfig

    return CampaignConfig.model_validate(json.loads(text))
