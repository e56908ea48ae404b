"""`status`: the funnel of a campaign, its models and its launchpad."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, campaign_options, json_option
from inv_design.metrics.elements import warning_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stores.connection import Connection

STAGES = ("predictor", "mlip", "dft")
COUNTS = ("in", "passed", "rejected", "failed", "waiting")
FAILED_SHOWN = 5
ACTIVE = ("READY", "WAITING", "RESERVED", "RUNNING")
FIREWORK_STATES = (
    "READY", "WAITING", "RESERVED", "RUNNING", "COMPLETED", "FIZZLED", "ARCHIVED", "DEFUSED", "PAUSED",
)  # fmt: skip


@click.command()
@json_option
@campaign_options
@click.pass_obj
def status(settings: Settings) -> None:
    """Show the funnel: how many candidates passed, failed or wait, and why.

    Per round and stage, with the models and training sets of each round, and the states of the launchpad. The counts
    are those that the campaign's last step made; what was recorded since is said.
    """
    from inv_design.cli.database import campaign_name, open_database

    connection = open_database(settings, read_only=True)
    record = collect(connection, campaign_name(settings))
    if settings.as_json:
        render.json_document(record)
    else:
        show(record, verbose=settings.verbose)


def collect(connection: Connection, name: str) -> dict[str, Any]:
    """Return what there is to say about a campaign; plain records, counts of candidates, moduli in GPa."""
    from fireworks_specs.steps import round_closed

    database = connection.db
    campaign = database["campaigns"].find_one({"name": name}) or {}
    hidden = {"_id": 0, "input_hash": 0, "builder_version": 0, "provenance": 0, "campaign": 0}
    rounds = list(database["campaign_metrics"].find({"campaign": name}, hidden).sort("round", 1))
    fresh = freshness(name, [item.get("last_updated") for item in rounds])
    if not rounds and (rounds := derived_rounds(name)):  # counted now
        fresh |= {"counted_at": datetime.now(UTC).replace(tzinfo=None), "uncounted_candidates": 0}
    closed = {
        number for number in database["evaluations"].distinct("round", {"campaign": name}) if round_closed(name, number)
    }
    for item in rounds:
        item["closed"] = item["round"] in closed
    planned = rounds_planned(connection, campaign, rounds)
    return {
        "campaign": name,
        "targets": campaign.get("targets", {}),
        "objectives": objective_records(campaign),
        "unit": "GPa",
        "chemistry": (campaign.get("config") or {}).get("chemistry") or {},
        "database": connection.uri_redacted,
        "rounds_planned": planned,
        "finished": planned is not None and set(range(planned + 1)) <= closed,
        "rounds": rounds,
        "freshness": fresh,
        "launchpad": launchpad_record(connection, name),
    }


def rounds_planned(connection: Connection, campaign: dict[str, Any], rounds: Iterable[dict[str, Any]]) -> int | None:
    """Return how many rounds after round 0 a campaign is for: its own number, or more if `run` or `launch` was told so.

    That is what the workflows say that were added last; once they have left the launchpad, the rounds that there are.
    """
    own = (campaign.get("config") or {}).get("rounds")
    last = connection.db["fireworks"].find_one(
        {"spec.campaign": campaign.get("name"), "spec.role": "advance"}, {"spec._tasks": 1}, sort=[("fw_id", -1)]
    )
    told = last["spec"]["_tasks"][0].get("rounds", 0) if last else 0
    return None if own is None else max([own, told, *(item["round"] for item in rounds)])


def derived_rounds(name: str) -> list[dict[str, Any]]:
    """Return the counts of each round from the candidates' summaries: slower, for a campaign without metrics."""
    from inv_design.metrics.campaign import funnel, hit_rate
    from stores.connection import current

    shown = {"_id": 0, "round": 1, "stages.predictor.status": 1, "stages.mlip.status": 1, "stages.dft.status": 1}
    fields = {**shown, "reasons.stage": 1, "reasons.rule": 1, "hit": 1, "duplicate_of": 1}
    rounds: dict[int, list[dict[str, Any]]] = {}
    for summary in current().db["candidate_summaries"].find({"campaign": name}, fields):
        rounds.setdefault(summary["round"], []).append(summary)
    return [
        {
            "round": number,
            "generated": len(summaries),
            "duplicates": sum(s.get("duplicate_of") is not None for s in summaries),
            "funnel": funnel(summaries),
            "hit_rate": hit_rate(summaries),
        }
        for number, summaries in sorted(rounds.items())
    ]


def freshness(name: str, built: Iterable[datetime | None]) -> dict[str, Any]:
    """Return when the counts were made, and what of the campaign was recorded since.

    Returns
    -------
    dict
        ``counted_at`` (UTC), ``records_since`` (candidates, predictions and calculations; ``None`` where the server has
        no way to find them but to read all) and ``uncounted_candidates``, which are in no round's counts yet.
    """
    from stores.queries import records_since, uncounted_candidates

    counted_at = max((when for when in built if when is not None), default=None)
    return {
        "counted_at": counted_at,
        "records_since": records_since(name, counted_at) if counted_at is not None else None,
        "uncounted_candidates": uncounted_candidates(name),
    }


def objective_records(campaign: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a campaign wants, one record per property with its unit and a ``text`` for people."""
    from inv_design.objective import objectives_of

    own = (campaign.get("config") or {}).get("properties") or {}
    return [{**o.record(), "text": o.text} for o in objectives_of(campaign.get("targets", {}), own=own)]


def launchpad_record(connection: Connection, name: str) -> dict[str, Any]:
    """Return the campaign's fireworks by state, and those that failed with their error."""
    database = connection.db
    # the workflows know their fireworks' states, are few, and have an index on the campaign
    shown = {"_id": 0, "fw_states": 1, "state": 1}
    workflows = database["workflows"].find({"metadata.campaign": name}, shown)
    counts = Counter(state for workflow in workflows for state in firework_states(workflow))
    states = {state: counts[state] for state in FIREWORK_STATES if counts[state]}
    failed = []
    wanted = {"spec.campaign": name, "state": "FIZZLED"}
    fizzled = database["fireworks"].find(wanted, {"fw_id": 1, "name": 1, "launches": 1})
    for firework in fizzled.sort("fw_id", -1):
        launch = database["launches"].find_one(
            {"launch_id": {"$in": firework.get("launches") or []}, "state": "FIZZLED"}
        )
        stored = ((launch or {}).get("action") or {}).get("stored_data") or {}
        trace = str((stored.get("_exception") or {}).get("_stacktrace") or "").strip()
        failed.append(
            {
                "fw_id": firework["fw_id"],
                "name": firework.get("name"),
                "error": trace.splitlines()[-1] if trace else None,
            }
        )
    archived = database["archived_fireworks"].count_documents({"campaign": name})
    return {
        "fireworks": states,
        "waits": waiting_work(connection, name, states),
        "silent": silent_workers(connection, name) if states.get("RUNNING") else None,
        "failed": failed,
        "archived": archived,
    }


def waiting_work(connection: Connection, name: str, states: dict[str, int]) -> dict[str, Any] | None:
    """Return ``round`` and ``step`` of what waits for workers; ``None`` while one is at work, or nothing is ready."""
    if not states.get("READY") or states.get("RUNNING") or states.get("RESERVED"):
        return None
    ready = {"spec.campaign": name, "state": "READY"}
    first = connection.db["fireworks"].find_one(ready, {"spec.round": 1, "spec.step": 1}, sort=[("fw_id", 1)])
    return {key: first["spec"].get(key) for key in ("round", "step")} if first else None


def silent_workers(connection: Connection, name: str) -> dict[str, Any] | None:
    """Return how many ``fireworks`` run by workers whose claims ended, the first ``seconds`` ago; ``None`` for none."""
    from fireworks_specs.steps import firework_key

    running = {"spec.campaign": name, "state": "RUNNING"}
    found = connection.db["fireworks"].find(running, {"fw_id": 1, "launches": 1})
    keys = [firework_key(d["fw_id"], d["launches"][-1]) for d in found if d.get("launches")]
    now = connection.now()
    ended = connection.db["claims"].find({"key": {"$in": keys}, "expires_at": {"$lte": now}}, {"expires_at": 1})
    seconds = [(now - claim["expires_at"]).total_seconds() for claim in ended]
    return {"fireworks": len(seconds), "seconds": round(max(seconds))} if seconds else None


def firework_states(workflow: dict[str, Any]) -> list[str]:
    """Return the states of a workflow's fireworks; of one that was given up, only what had been completed is not."""
    states = list(workflow["fw_states"].values())
    if workflow.get("state") != "ARCHIVED":
        return states
    return [state if state in ("COMPLETED", "DEFUSED", "PAUSED") else "ARCHIVED" for state in states]


def show(record: dict[str, Any], *, verbose: int) -> None:
    """Print the record of a campaign."""
    from rich.text import Text

    out = render.console()
    targets = ", ".join(f"{o['property']} {o['text']}" for o in record["objectives"])
    planned = record["rounds_planned"]
    out.print(Text.assemble((record["campaign"], "bold"), f"  {targets}  {record['database']}"))
    if verbose and (line := chemistry_line(record["chemistry"])):
        out.print(Text(line))
    active = any(record["launchpad"]["fireworks"].get(state) for state in ACTIVE)
    if record["finished"]:
        out.print(f"finished: {finished_words(planned)}")
    elif not record["rounds"]:
        out.print(
            "no round is counted yet" if active else "no round yet; `inv-design run` or `launch` starts the first"
        )
    if line := freshness_line(record["freshness"], active=active):
        out.print(Text(line, "yellow"))
    for item in record["rounds"]:
        last = f" of {planned}" if planned else ""
        state = "closed" if item["closed"] else "open"
        out.print()
        out.print(Text.assemble((f"round {item['round']}{last}", "bold"), f"  {state}  {headline(item)}"))
        if item.get("error"):
            out.print(Text(f"  the metrics of this round failed: {item['error']}", "red"))
            continue
        render.table(funnel_rows(item), ("stage", *COUNTS, "why not"), right=COUNTS)
        for line in notes(item, verbose=verbose):
            out.print(Text(f"  {line}"))
        for line in warning_lines(item.get("warnings") or []) if verbose else ():
            out.print(Text(f"  warning: {line}", "yellow"))
    show_launchpad(record["launchpad"])


def finished_words(planned: int) -> str:
    """Return that all rounds are closed, and how there come to be more."""
    closed = f"all rounds, 0 to {planned}, are closed" if planned else "round 0 is closed"
    return f"{closed}; more with `--rounds {planned + 1}` of run or launch"


def freshness_line(fresh: dict[str, Any], *, active: bool = False) -> str:
    """Return the line that says that records came after the counts were made; ``""`` if none did.

    ``active`` says that work is on the launchpad, whose workers will count them.
    """
    if fresh["uncounted_candidates"]:
        later = plural(fresh["uncounted_candidates"], "candidate")
    elif fresh["records_since"]:
        from stores.queries import RECORDS_COUNTED

        most = fresh["records_since"] >= RECORDS_COUNTED
        later = f"{'at least ' if most else ''}{plural(fresh['records_since'], 'record')}"
    else:
        return ""
    when = (
        f"the counts are of {fresh['counted_at']:%Y-%m-%d %H:%M} UTC" if fresh["counted_at"] else "nothing is counted"
    )
    how = "" if active else " (`inv-design run` or `launch`)"
    return f"{when}; {later} came since, which the campaign's next step counts{how}"


def plural(n: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def headline(item: dict[str, Any]) -> str:
    """Return what a round made and learned from, on one line."""
    parts = [f"{item.get('generated', 0)} candidates"]
    if item.get("duplicates"):
        parts.append(f"{item['duplicates']} duplicates")
    training_set = item.get("training_set") or {}
    if training_set:
        labels = ", ".join(f"{n} {method}" for method, n in (training_set.get("labels_by_method") or {}).items())
        parts.append(f"training set of {training_set['size']} crystals (labels: {labels})")
    return ", ".join(parts)


def funnel_rows(item: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return a row per stage: the counts and the first rule broken with its count."""
    rows = []
    for stage in STAGES:
        counts = (item.get("funnel") or {}).get(stage) or {}
        why = ", ".join(f"{rule} {n}" for rule, n in (counts.get("reasons") or {}).items())
        if counts.get("over_budget"):
            why = f"{why}{', ' if why else ''}{counts['over_budget']} waiting beyond the budget"
        rows.append((stage, *(counts.get(name, 0) for name in COUNTS), why or "-"))
    return rows


def notes(item: dict[str, Any], *, verbose: int) -> list[str]:
    """Return lines on hits, models and, with ``verbose``, on judges and evaluations."""
    lines = []
    hits = item.get("hit_rate") or {}
    if hits.get("labelled"):
        lines.append(f"hits: {hits['hits']} of {hits['labelled']} labelled ({100 * hits['per_label']:.0f} %)")
    lines += [f"{model['kind']}: {model['name']} {model['model_id']}" for model in item.get("models") or []]
    if verbose:
        excluded = (item.get("training_set") or {}).get("excluded_reasons") or {}
        if excluded:
            reasons = ", ".join(f"{reason} {n}" for reason, n in excluded.items())
            lines.append(f"labels that the training set leaves out: {sum(excluded.values())} ({reasons})")
        for judge, error in (item.get("target_error") or {}).items():
            if error.get("n"):
                off = 100 * error["mean_relative_error"]
                lines.append(f"{judge}: mean {error['mean']:.0f} GPa, {off:.0f} % off the target (n = {error['n']})")
        for e in item.get("evaluations") or []:
            if e.get("mean_relative_error") is not None:
                off = 100 * e["mean_relative_error"]
                judged = f"{e['judge']}, n = {e['n']}"
                lines.append(f"generator at {e['target']:g} GPa: median {e['median']:.0f}, {off:.0f} % off ({judged})")
    return lines


def chemistry_line(chemistry: dict[str, Any]) -> str:
    """Return what a campaign says of elements: those excluded, and the costs."""
    parts = []
    if chemistry.get("exclude"):
        parts.append(f"excluded: {', '.join(chemistry['exclude'])}")
    if chemistry.get("cost"):
        costs = ", ".join(f"{symbol} {value:g}" for symbol, value in sorted(chemistry["cost"].items()))
        parts.append(f"cost by {chemistry.get('cost_by', 'atoms')}: {costs}")
    return "; ".join(parts)


def show_launchpad(launchpad: dict[str, Any]) -> None:
    """Print the states of the fireworks and the failed ones."""
    states = ", ".join(f"{n} {state}" for state, n in launchpad["fireworks"].items())
    archived = f"; {launchpad['archived']} archived" if launchpad["archived"] else ""
    click.echo(f"\nlaunchpad: {states or 'empty'}{archived}")
    if waits := launchpad["waits"]:
        click.echo(f"  round {waits['round']}: {waits['step']} waits for workers (rlaunch or qlaunch)")
    if silent := launchpad["silent"]:
        whose = (
            "1 firework's worker has"
            if silent["fireworks"] == 1
            else f"the workers of {silent['fireworks']} fireworks have"
        )
        click.echo(f"  {whose} not been heard of for more than {silent['seconds']} s: see `inv-design doctor`")
    for item in launchpad["failed"][:FAILED_SHOWN]:
        click.echo(f"  failed: firework {item['fw_id']} {item['name']}: {item['error'] or 'no error recorded'}")
    more = len(launchpad["failed"]) - FAILED_SHOWN
    if more > 0:
        click.echo(f"  and {more} more; `inv-design lpad get_fws -s FIZZLED` lists them")
