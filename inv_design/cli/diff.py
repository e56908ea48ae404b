"""`diff`: what differs between two campaigns, or two rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, campaign_options, json_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Record = dict[str, Any]

STAGES = ("predictor", "mlip", "dft")
COUNTS = ("in", "passed", "rejected", "failed", "waiting")
ERRORS = ("n", "mean_relative_error")
SHOWN = 10
CHEAP = 300
"""Crystals of formulas that both sides have; up to so many are compared without being asked for."""


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--alike/--no-alike",
    default=None,
    help=f"Match crystals of the same formula too.  [default: where there are at most {CHEAP}]",
)
@json_option
@campaign_options
@click.pass_obj
def diff(settings: Settings, *, first: str, second: str, alike: bool | None) -> None:
    """Compare two campaigns or two rounds.

    A and B are each NAME or NAME:ROUND, or :ROUND of this campaign. Settings that differ, the funnels, hits, target
    errors and models side by side, and the candidates that both have, by structure and, where that is cheap, by
    likeness.
    """
    from inv_design.cli.database import open_database

    open_database(settings, read_only=True)
    record = compare(side(first, settings), side(second, settings), alike=alike)
    if settings.as_json:
        render.json_document(record)
    else:
        show(record, verbose=settings.verbose)


def side(text: str, settings: Settings) -> tuple[str, int | None]:
    """Return (campaign, round) of ``NAME``, ``NAME:ROUND`` or ``:ROUND``.

    Raises
    ------
    click.BadParameter
        If the round is no whole number.
    LookupError
        If the database has no such campaign or the campaign no such round.
    """
    from dataclasses import replace

    from inv_design.cli.database import campaign_name
    from stores.connection import current

    name, sign, number = text.rpartition(":")
    if not sign:
        name, number = text, ""
    if sign and not number.isdecimal():
        raise click.BadParameter(f"{text!r} is neither NAME nor NAME:ROUND; the round is a whole number")
    known = campaign_name(replace(settings, campaign=name) if name else settings)
    round_ = int(number) if number else None
    if round_ is not None:
        rounds = sorted(m["round"] for m in current().db["campaign_metrics"].find({"campaign": known}, {"round": 1}))
        if round_ not in rounds:
            held = f"; it has {', '.join(map(str, rounds))}" if rounds else "; it has none yet"
            raise LookupError(f"campaign {known!r} has no round {round_}{held}")
    return known, round_


def compare(a: tuple[str, int | None], b: tuple[str, int | None], *, alike: bool | None = None) -> Record:
    """Return what differs between two sides, plain records; numbers side by side as ``[a, b]``."""
    sides = [collect(*a), collect(*b)]
    return {
        "a": {"campaign": a[0], "round": a[1]},
        "b": {"campaign": b[0], "round": b[1]},
        "settings": differing(sides[0]["config"], sides[1]["config"]),
        "funnel": {
            stage: {name: beside(*(s["funnel"][stage][name] for s in sides)) for name in COUNTS} for stage in STAGES
        },
        "reasons": {
            stage: {
                rule: beside(*(s["funnel"][stage]["reasons"].get(rule, 0) for s in sides))
                for rule in dict.fromkeys(rule for s in sides for rule in s["funnel"][stage]["reasons"])
            }
            for stage in STAGES
        },
        "hit_rate": {name: beside(*(s["hit_rate"][name] for s in sides)) for name in sides[0]["hit_rate"]},
        "target_error": {
            stage: {name: beside(*(s["target_error"][stage][name] for s in sides)) for name in ERRORS}
            for stage in STAGES
        },
        "models": models(sides[0]["models"], sides[1]["models"]),
        "candidates": shared_candidates(a, b, alike=alike),
    }  # fmt: skip


def collect(name: str, round_: int | None) -> Record:
    """Return a side's settings, and its metrics added up over its rounds."""
    from stores.connection import current

    database = current().db
    place = {"campaign": name} if round_ is None else {"campaign": name, "round": round_}
    metrics = list(database["campaign_metrics"].find(place, {"_id": 0}).sort("round", 1))
    campaign = database["campaigns"].find_one({"name": name}, {"config": 1}) or {}
    hits = {k: sum((m.get("hit_rate") or {}).get(k) or 0 for m in metrics) for k in ("hits", "labelled", "generated")}
    return {
        "config": campaign.get("config") or {},
        "funnel": {stage: added(stage, metrics) for stage in STAGES},
        "hit_rate": {
            **hits,
            "per_label": hits["hits"] / hits["labelled"] if hits["labelled"] else None,
            "per_candidate": hits["hits"] / hits["generated"] if hits["generated"] else None,
        },
        "target_error": {stage: mean_error(stage, metrics) for stage in STAGES},
        "models": [{**model, "round": m["round"]} for m in metrics for model in m.get("models") or []],
    }


def added(stage: str, metrics: Iterable[Mapping[str, Any]]) -> Record:
    """Return a stage's counts and reasons, added up over rounds."""
    total: Record = dict.fromkeys(COUNTS, 0)
    reasons: dict[str, int] = {}
    for item in metrics:
        counts = (item.get("funnel") or {}).get(stage) or {}
        for name in COUNTS:
            total[name] += counts.get(name) or 0
        for rule, n in (counts.get("reasons") or {}).items():
            reasons[rule] = reasons.get(rule, 0) + n
    return {**total, "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))}


def mean_error(stage: str, metrics: Iterable[Mapping[str, Any]]) -> Record:
    """Return the number of judged candidates and their mean relative error over rounds."""
    found = [e for m in metrics if (e := (m.get("target_error") or {}).get(stage)) and e.get("n")]
    n = sum(e["n"] for e in found)
    return {"n": n, "mean_relative_error": sum(e["n"] * e["mean_relative_error"] for e in found) / n if n else None}


def beside(a: float | None, b: float | None) -> Record:
    """Return two numbers with their difference, where both are there."""
    return {"a": a, "b": b, "difference": None if a is None or b is None else b - a}


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Record]:
    """Return the dotted keys whose values differ between two configurations; a missing key is ``None``."""
    flat = [dict(leaves(config)) for config in (a, b)]
    keys = [key for key in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(key) != flat[1].get(key)]
    return [{"key": key, "a": flat[0].get(key), "b": flat[1].get(key)} for key in keys]


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in a configuration that is no section."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def models(a: Sequence[Record], b: Sequence[Record]) -> Record:
    """Return the models that only one side has, and those of both."""
    ids = [{m["model_id"] for m in side_models} for side_models in (a, b)]
    short = lambda m: {k: m.get(k) for k in ("model_id", "kind", "name", "round")}  # noqa: E731
    return {
        "only_a": [short(m) for m in a if m["model_id"] not in ids[1]],
        "only_b": [short(m) for m in b if m["model_id"] not in ids[0]],
        "both": [short(m) for m in a if m["model_id"] in ids[1]],
    }


def shared_candidates(a: tuple[str, int | None], b: tuple[str, int | None], *, alike: bool | None) -> Record:
    """Return how many structures each side has alone, and those that both have, with what became of them in each."""
    own = [structures(*a), structures(*b)]
    both = sorted(own[0].keys() & own[1].keys())
    only = [{k: v for k, v in s.items() if k not in both} for s in own] if both else own
    shown = ("candidate_id", "stage", "status", "bulk_modulus_vrh")
    pairs, left = like_pairs(only[0], only[1], alike=alike)
    return {
        "a": len(own[0]),
        "b": len(own[1]),
        "both": len(both),
        "only_a": len(only[0]),
        "only_b": len(only[1]),
        "shared": [
            {
                "structure_id": identity, "formula": own[0][identity].get("formula"),
                "a": {k: own[0][identity].get(k) for k in shown}, "b": {k: own[1][identity].get(k) for k in shown},
            }
            for identity in both
        ],
        "alike": pairs,
        "not_compared": left,
    }  # fmt: skip


def structures(name: str, round_: int | None) -> dict[str, Record]:
    """Return structure id -> the summary of the candidate that has it; of several, the one that came furthest."""
    from stores.connection import current
    from stores.documents.candidate_summary import STAGES

    place = {"campaign": name} if round_ is None else {"campaign": name, "round": round_}
    fields = ("candidate_id", "structure_id", "formula", "stage", "status", "bulk_modulus_vrh")
    found = current().db["candidate_summaries"].find(place, {"_id": 0, **dict.fromkeys(fields, 1)})

    def came(summary: Record) -> tuple[int, bool, str]:
        stage = summary.get("stage")
        reached = STAGES.index(stage) if stage in STAGES else -1
        return (reached, summary.get("status") == "passed", str(summary["candidate_id"]))

    return {summary["structure_id"]: summary for summary in sorted(found, key=came)}


def like_pairs(
    a: Mapping[str, Record], b: Mapping[str, Record], *, alike: bool | None
) -> tuple[list[Record] | None, int]:
    """Return the pairs of crystals that match though their ids differ, and how many were left uncompared.

    Only crystals of formulas that both sides have can match. The first match of each in ``a`` is told.
    """
    formulas = {s.get("formula") for s in a.values()} & {s.get("formula") for s in b.values()} - {None}
    chosen = [{k: s for k, s in own.items() if s.get("formula") in formulas} for own in (a, b)]
    wanted = sum(map(len, chosen))
    if alike is False or (alike is None and wanted > CHEAP):
        return None, wanted
    if not wanted:
        return [], 0
    from inv_design.structures.matching import StructureIndex
    from stores.queries import structures_by_id

    index = StructureIndex()
    for identity, crystal in structures_by_id(sorted(chosen[0])).items():
        index.add(identity, crystal)
    pairs = []
    for identity, crystal in structures_by_id(sorted(chosen[1])).items():
        if (match := index.find(crystal)) is not None:
            pairs.append({"formula": b[identity].get("formula"), "a": match, "b": identity})
    return pairs, 0


def show(record: Record, *, verbose: int) -> None:
    """Print the comparison."""
    from rich.text import Text

    out = render.console()
    names = [title(record[key]) for key in ("a", "b")]
    out.print(Text(f"a: {names[0]}\nb: {names[1]}", "bold"))
    same = record["a"]["campaign"] == record["b"]["campaign"]
    if record["settings"]:
        click.echo()
        settings = [(s["key"], short(s["a"]), short(s["b"])) for s in record["settings"]]
        render.table(settings, ("setting", "a", "b"))
    elif not same:
        click.echo("\nthe settings are the same")
    click.echo()
    rows: list[tuple[str, ...]] = [
        (stage, *(pair(record["funnel"][stage][name]) for name in COUNTS), reasons(record["reasons"][stage]))
        for stage in STAGES
    ]
    render.table(rows, ("stage (a, b)", *COUNTS, "why not (a, b)"), right=COUNTS)
    click.echo()
    hits, errors = record["hit_rate"], record["target_error"]
    rows = [
        ("hits", *numbers(hits["hits"])),
        ("labelled", *numbers(hits["labelled"])),
        ("generated", *numbers(hits["generated"])),
        ("hits per label (%)", *numbers(hits["per_label"], 100)),
        ("hits per candidate (%)", *numbers(hits["per_candidate"], 100)),
        *((f"off the target by {s} (%)", *numbers(errors[s]["mean_relative_error"], 100)) for s in STAGES),
    ]
    render.table(rows, ("", "a", "b", "difference"), right=("a", "b", "difference"))
    click.echo()
    for key, text in (("only_a", "only in a"), ("only_b", "only in b"), ("both", "in both")):
        for model in record["models"][key]:
            click.echo(f"model {text}: {model['kind']} {model['name']} {model['model_id']}, round {model['round']}")
    show_candidates(record["candidates"], verbose=verbose)


def show_candidates(found: Record, *, verbose: int) -> None:
    """Print how many structures both sides have, and the first of those."""
    click.echo(f"structures: {found['a']} in a, {found['b']} in b, {found['both']} in both")
    if found["shared"]:
        most = None if verbose else SHOWN
        rows = [
            (s["structure_id"], s["formula"], *(outcome(s[key]) for key in ("a", "b"))) for s in found["shared"][:most]
        ]
        render.table(rows, ("structure", "formula", "in a", "in b"))
        if most and len(found["shared"]) > most:
            click.echo(f"and {len(found['shared']) - most} more; -v lists them")
    if found["alike"] is None:
        click.echo(f"alike: not compared, {found['not_compared']} crystals of formulas that both have; --alike does it")
        return
    click.echo(f"alike though not the same: {len(found['alike'])}")
    for item in found["alike"][: None if verbose else SHOWN]:
        click.echo(f"  {item['formula']}  {item['a']} in a, {item['b']} in b")


def title(item: Mapping[str, Any]) -> str:
    """Return the name of a side."""
    return str(item["campaign"]) if item["round"] is None else f"{item['campaign']}, round {item['round']}"


def outcome(item: Mapping[str, Any]) -> str:
    """Return what became of a candidate on one side."""
    modulus = item.get("bulk_modulus_vrh")
    return f"{item['stage']} {item['status']}{'' if modulus is None else f', K = {modulus:.1f}'}"


def pair(item: Mapping[str, Any]) -> str:
    """Return two counts as one cell."""
    return f"{item['a']}, {item['b']}"


def numbers(item: Mapping[str, Any], factor: float = 1) -> tuple[str, str, str]:
    """Return the cells of two numbers and their difference."""
    a, b, difference = (None if item[k] is None else item[k] * factor for k in ("a", "b", "difference"))
    sign = "-" if difference is None else f"{difference:+.4g}"
    return ("-" if a is None else f"{a:.4g}", "-" if b is None else f"{b:.4g}", sign)


def reasons(items: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the first rules broken with their two counts."""
    return "; ".join(f"{rule} {pair(counts)}" for rule, counts in items.items()) or "-"


def short(value: Any) -> str:
    """Return a setting's value in one cell."""
    text = "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
