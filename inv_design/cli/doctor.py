"""`inv-design doctor`: fireworks that have lost their worker or their job, why, and the cure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed
from inv_design.cli.options import Settings, campaign_options, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fireworks_specs.doctor import Case, Doctor

COLUMNS = ("fw_id", "name", "state", "verdict", "job", "host", "since", "why")


@click.command()
@click.option("--fix", is_flag=True, help="Rerun what is lost, each firework once.")
@click.option("--again", is_flag=True, help="With --fix: rerun also what was lost again after the doctor's rerun.")
@click.option(
    "--queue",
    type=click.Choice(["auto", "slurm", "pbs", "none"]),
    default="auto",
    show_default=True,
    help="Whom to ask about jobs; auto: by the commands on PATH.",
)
@campaign_options
@json_option
@click.pass_obj
def doctor(settings: Settings, fix: bool, again: bool, queue: Literal["auto", "slurm", "pbs", "none"]) -> None:
    """Find fireworks that are lost, say why, and rerun them.

    Joins the running and reserved fireworks of all campaigns, or of one, with the jobs of Slurm or PBS, and with the
    processes and claims of their workers. Exit code 1 if lost ones are left.
    """
    from fireworks_specs.doctor import Doctor
    from fireworks_specs.schedulers import find_scheduler
    from inv_design.cli.database import campaign_name, open_database

    if again and not fix:
        raise click.UsageError("--again is only for --fix")
    with open_database(settings, read_only=not fix) as connection:
        campaign = campaign_name(settings) if settings.campaign else None
        found = Doctor(connection, campaign=campaign, scheduler=find_scheduler(queue))
        cases = found.examine()
        if fix:
            cases = [found.cure(case, again=again) for case in cases]
    left = [case for case in cases if case.lost and case.action not in ("rerun", "refresh")]
    if settings.as_json:
        render.json_document(record(found, cases))
    else:
        show(found, cases, verbose=settings.verbose)
    if left:
        cure = "see why above" if fix else "`inv-design doctor --fix` reruns them"
        raise CommandFailed(f"{len(left)} of {len(cases)} fireworks are lost; {cure}")


def record(doctor: Doctor, cases: Sequence[Case]) -> dict[str, Any]:
    """Return what ``--json`` writes."""
    return {
        "scheduler": doctor.scheduler.name if doctor.scheduler else None,
        "cluster": doctor.queue.cluster or None if doctor.queue else None,
        "warnings": doctor.warnings,
        "counts": dict(Counter(case.verdict for case in cases)),
        "lost": sum(case.lost for case in cases),
        "fireworks": [case.record() for case in cases],
    }


def show(doctor: Doctor, cases: Sequence[Case], *, verbose: int) -> None:
    """Print the lost and the unknown, with ``verbose`` all, and the counts of the rest."""
    for warning in doctor.warnings:
        render.say(f"warning: {warning}")
    shown = [case for case in cases if verbose or case.verdict not in ("running", "waiting")]
    if shown:
        rows = [[*(_cell(case, column) for column in COLUMNS), case.action or "-"] for case in shown]
        render.table(rows, (*COLUMNS, "action"), right=("fw_id",), cut="why")
    rest = Counter(case.verdict for case in cases if case not in shown)
    fine = ", ".join(f"{n} {verdict}" for verdict, n in sorted(rest.items()))
    lost = sum(case.lost for case in cases)
    asked = doctor.scheduler.name if doctor.scheduler else "no scheduler here"
    render.say(f"{lost} lost{f', {fine}' if fine else ''} ({asked})")


def _cell(case: Case, column: str) -> Any:
    value = getattr(case, column)
    return f"{value:%m-%d %H:%M}" if column == "since" and value else value or "-"
