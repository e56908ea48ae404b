"""From a campaign's records to the trust report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from inv_design.config import CampaignConfig
    from inv_design.metrics.trust import Judgement
    from inv_design.report.trust import Trust

    Record = dict[str, Any]

FIELDS = ("candidate_id", "structure_id", "round", "formula", "stage", "status", "stages", "audit", "duplicate_of")


def collect_trust(
    database: Any, config: CampaignConfig, *, label: str | None = None, tolerance: float, rounds: Collection[int] = ()
) -> Trust:
    """Return what the trust report of a campaign is made of.

    Parameters
    ----------
    label
        What the labels are by; else what they say themselves.
    tolerance
        Relative window around the target in which a label is a hit.
    rounds
        Only these; all if empty.
    """
    from builders.potentials import calculator_in, round_calculators
    from inv_design.metrics.trust import rows_of
    from inv_design.report.trust import Trust

    models = list(database["models"].find({"campaign": config.name, "kind": "mlip"}))
    calculators = round_calculators(models)
    wanted: Record = {"campaign": config.name} | ({"round": {"$in": sorted(rounds)}} if rounds else {})
    summaries = list(database["candidate_summaries"].find(wanted, dict.fromkeys(FIELDS, 1)))
    summaries = with_drawn_audits(summaries, config)
    tuned = {n: name for n, name in calculators.items() if name != config.stages.mlip.calculator}
    return Trust(
        campaign=config.name,
        rows=rows_of(
            summaries,
            predictor=config.stages.predictor.model,
            potential=lambda number: calculator_in(config, calculators, number),
        ),
        label=label or label_name(summaries, config),
        target=config.target,
        tolerance=tolerance,
        base=judged_by_configured(database, config, [s for s in summaries if s.get("round") in tuned]),
        learned=learned_from(database, tuned),
    )


def label_name(summaries: Iterable[Mapping[str, Any]], config: CampaignConfig) -> str:
    """Return what the labels are by as their records have it, or what the campaign is set to where there is none.

    A surrogate is called one, whatever the campaign is set to since.
    """
    stage = config.stages.dft
    records = [r for s in summaries for r in ((s.get("stages") or {}).get("dft"), s.get("audit")) if r]
    found = {str(r["method"]) for r in records if r.get("method") and r.get("value") is not None}
    names = {
        "surrogate": f"surrogate ({stage.calculator} E(V))" if stage.backend == "surrogate" else "surrogate (E(V))",
        "gpaw": "DFT (GPAW, PBE)",
        "vasp": "DFT (VASP, PBE)",
    }
    return " and ".join(names.get(method, method) for method in sorted(found or {stage.backend}))


def with_drawn_audits(summaries: Iterable[Record], config: CampaignConfig) -> list[Record]:
    """Return the summaries in their order, those of labelled rejects without the label unless they were drawn.

    Another campaign may have labelled a crystal that this one rejects, for reasons that are not chance.
    """
    from inv_design.screening.audit import drawn

    ordered = sorted(summaries, key=lambda s: (s.get("round") or 0, s["candidate_id"]))
    rounds = {s.get("round") for s in ordered}
    mine = {
        s["candidate_id"]
        for number in rounds
        for s in drawn(
            [s for s in ordered if s.get("round") == number], config.stages.dft.audit_per_round, seed=config.seed
        )
    }
    return [s if s["candidate_id"] in mine else {**s, "audit": None} for s in ordered]


def judged_by_configured(
    database: Any, config: CampaignConfig, summaries: Iterable[Mapping[str, Any]]
) -> dict[str, Judgement]:
    """Return structure id -> what the configured potential says of the candidates that another one judged."""
    from builders.potentials import is_of_stage
    from inv_design.metrics.trust import judgement

    stage = config.stages.mlip
    ids = list(dict.fromkeys(s["structure_id"] for s in summaries))
    found = {}
    for start in range(0, len(ids), 500):
        query = {"structure_id": {"$in": ids[start : start + 500]}, "kind": "elastic", "method": "mlip"}
        for record in database["calculations"].find(query | {"state": "completed"}).sort("_id", 1):
            if not is_of_stage(record.get("protocol"), stage.calculator, stage):
                continue
            said = {"value": (record.get("results") or {}).get("bulk_modulus_vrh"), "flags": record.get("flags")}
            if (judged := judgement(said, stage.calculator)) is not None:
                found[record["structure_id"]] = judged
    return found


def learned_from(database: Any, tuned: Mapping[int, str]) -> dict[int, frozenset[str]]:
    """Return round -> ids of the records that its fine-tuned potential learned from."""
    query = {"model_id": {"$in": sorted(set(tuned.values()))}}
    inputs = {
        m["model_id"]: frozenset((m.get("provenance") or {}).get("inputs") or ())
        for m in database["models"].find(query, {"model_id": 1, "provenance.inputs": 1})
    }
    return {
        number: frozenset(i for i in inputs.get(name, ()) if not i.startswith("m-")) for number, name in tuned.items()
    }
