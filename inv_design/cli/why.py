"""`why`: why a candidate is where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGES = ("predictor", "mlip", "dft")
TITLES = {"predictor": "I   predictor", "mlip": "II  MLIP", "dft": "III label"}
MARKS = {"passed": ("✓", "green"), "rejected": ("✗", "red"), "failed": ("!", "red"), "waiting": ("…", "yellow")}


@click.command()
@click.argument("id_", metavar="ID")
@json_option
@database_options
@click.pass_obj
def why(settings: Settings, id_: str) -> None:
    """Say why a candidate is where it is.

    The first stage that it did not pass, with the rule, the value, the threshold and the protocol behind the value; of
    one that waits, its place in the queue, or that the budget of its round does not reach it.
    """
    from inv_design.cli.database import open_database
    from inv_design.cli.records import candidate_of

    open_database(settings, read_only=True)
    answer = explain(candidate_of(id_))
    if settings.as_json:
        render.json_document(answer)
        return
    from rich.text import Text

    out = render.console()
    out.print(
        Text(f"{answer['candidate_id']}  {answer['formula']}, round {answer['round']} of {answer['campaign']}", "bold")
    )
    for stage in answer["stages"]:
        mark, colour = MARKS.get(stage["status"], ("·", "dim"))
        said = answer["beyond_budget"] if stage["status"] == "waiting" else None
        line = Text.assemble(
            (mark, colour), f" {TITLES[stage['stage']]:<14} {stage['status']:<9} ", said or _value(stage)
        )
        out.print(line)
        for reason in stage["reasons"]:
            out.print(Text(f"    {reason['rule']}: {reason['message']}"))
            out.print(Text(f"      value {_short(reason['value'])}, threshold {_short(reason['threshold'])}", "dim"))
        if stage.get("protocol_id"):
            out.print(Text(f"      protocol {stage['protocol_id']}{_by(stage)}", "dim"))
    out.print(Text(answer["verdict"], "bold"))
    if failure := answer["first_failure"]:
        rule = f"rule {failure['rule']}, " if failure["rule"] else ""
        numbers = f"value {_short(failure['value'])}, threshold {_short(failure['threshold'])}"
        out.print(Text(f"first failed stage: {failure['stage']}; {rule}{numbers}, protocol {failure['protocol_id']}"))
    if place := answer["queue"]:
        out.print(Text(f"place {place['position']} of {place['of']} in the queue"))


def explain(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the stages that a candidate entered with their verdicts, and the deciding one in a sentence."""
    from inv_design.cli.budgets import beyond_budget, spent_budgets
    from stores.connection import current

    waits = summary.get("status") == "waiting"
    beyond = beyond_budget(summary, spent_budgets(current().db, [summary["campaign"]])) if waits else ""
    reasons = [r for r in summary.get("reasons") or [] if isinstance(r, dict)]
    stages = []
    for name in STAGES:
        record = (summary.get("stages") or {}).get(name)
        if record is None:
            continue
        stages.append(
            {
                "stage": name,
                "status": record.get("status"),
                "value": record.get("value"),
                "std": record.get("std"),
                "unit": "GPa",
                "method": record.get("method"),
                "model_id": record.get("model_id"),
                "calculation_id": record.get("calculation_id"),
                "protocol_id": record.get("protocol_id"),
                "flags": record.get("flags") or [],
                "error": record.get("error"),
                "reasons": [{k: v for k, v in r.items() if k != "stage"} for r in reasons if r.get("stage") == name],
            }
        )
    failure = first_failure(stages)
    return {
        **{
            k: summary.get(k)
            for k in ("candidate_id", "structure_id", "formula", "campaign", "round", "stage", "status")
        },
        "verdict": verdict(summary, beyond),
        "first_failed_stage": summary.get("stage") if summary.get("status") in ("rejected", "failed") else None,
        "first_failure": failure,
        "queue": place_in_queue(summary) if waits and not beyond else None,
        "beyond_budget": beyond or None,
        "stages": stages,
    }


def first_failure(stages: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first stage that was not passed: its first reason with rule, value, threshold, and the protocol."""
    for stage in stages:
        if stage["status"] in ("rejected", "failed"):
            reason = (
                stage["reasons"] or [{"rule": None, "value": None, "threshold": None, "message": stage["error"]}]
            )[0]
            return {
                "stage": stage["stage"],
                "status": stage["status"],
                **{name: reason.get(name) for name in ("rule", "value", "threshold", "message")},
                **{name: stage[name] for name in ("protocol_id", "model_id", "calculation_id", "error")},
            }
    return None


def place_in_queue(summary: dict[str, Any]) -> dict[str, int] | None:
    """Return a waiting candidate's place in the queue of its round and stage, 1 the next; ``None`` if it is in none."""
    from stores.queries import queue

    waiting = [item["candidate_id"] for item in queue(summary["campaign"], summary["round"], summary["stage"])]
    if summary["candidate_id"] not in waiting:
        return None
    return {"position": waiting.index(summary["candidate_id"]) + 1, "of": len(waiting)}


def verdict(summary: dict[str, Any], beyond: str = "") -> str:
    """Return one sentence: where the candidate stands and the first reason, or that it is ``beyond`` the budget."""
    stage, status, reason = summary.get("stage"), summary.get("status"), summary.get("reason")
    sentences = {
        "passed": f"passed stage {stage}",
        "rejected": f"rejected at stage {stage}: {reason}",
        "failed": f"failed at stage {stage}: {reason}",
        "waiting": f"no result of stage {stage}: {beyond}" if beyond else f"waits for stage {stage}",
    }
    return sentences.get(str(status), f"{stage}: {status}")


def _value(stage: dict[str, Any]) -> str:
    if stage["value"] is None:
        return stage["error"] or "no value"
    std = f" ± {stage['std']:.0f}" if stage.get("std") is not None else ""
    return f"K = {stage['value']:.1f}{std} GPa"


def _by(stage: dict[str, Any]) -> str:
    parts = [p for p in (stage.get("method"), stage.get("model_id"), stage.get("calculation_id")) if p]
    return f" ({', '.join(parts)})" if parts else ""


def _short(value: Any) -> str:
    text = render.number(value) if not isinstance(value, dict | list) else str(render.plain(value))
    return text if len(text) <= 100 else f"{text[:97]}..."
