"""`inv-design run`: plan and execute the rounds of a campaign in this process."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli.options import Settings, database_options, json_option
from inv_design.cli.render import duration, json_document, progress, say

if TYPE_CHECKING:
    from inv_design.cli.render import Bar


class RunDisplay:
    """Shows what the fireworks report: one progress bar per piece of work, one after the other."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._text: str | None = None
        self._bar: Bar | None = None

    def report(self, text: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` units of ``text`` are finished."""
        if text != self._text or self._bar is None:
            self.close()
            self._text = text
            self._bar = self._stack.enter_context(progress(text, total))
        self._bar.update(done, total=total)

    def close(self) -> None:
        """Finish the bar that is shown."""
        self._stack.close()
        self._text = self._bar = None


@click.command()
@click.option("--rounds", type=click.IntRange(min=0), help="Rounds after the initial one.  [default: the campaign's]")
@database_options
@json_option
@click.pass_obj
def run(settings: Settings, rounds: int | None) -> None:
    """Plan and execute the rounds of a campaign in this process, from wherever it stands.

    Interrupt it at any moment and call it again: nothing finished is repeated. On a cluster, `inv-design launch` and
    FireWorks' rlaunch or qlaunch do the same work.
    """
    import os
    import warnings

    # torch on shared cores: one thread per process (ten times slower without); the worker processes do the same
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    warnings.filterwarnings("ignore")
    from fireworks_specs import execution, pool
    from fireworks_specs.calculations import run_calculations
    from fireworks_specs.progress import set_reporter
    from inv_design.cli.database import open_database

    config = settings.load_config()
    started = time.monotonic()
    display = RunDisplay()
    set_reporter(display.report)
    try:
        with open_database(settings) as connection:
            summary = execution.run(connection, config, rounds=rounds)
            further, broken = run_calculations(connection)  # what `launch relax|elastic|eos` left here
            display.close()
            result = summary_of(config.name) | {
                "seconds": round(time.monotonic() - started, 1),
                "fireworks_run": summary.fireworks_run + further,
                "fireworks_failed": summary.fireworks_failed + broken,
            }
    finally:
        display.close()
        set_reporter(None)
        pool.close()
    if settings.as_json:
        json_document(result)
        return
    for line in summary_lines(result):
        say(line)


def summary_of(campaign: str) -> dict[str, Any]:
    """Return the figures of a campaign's rounds."""
    from stores.documents.campaign_metrics import CampaignMetrics

    rows = CampaignMetrics.objects(campaign=campaign).order_by("round")
    return {"campaign": campaign, "rounds": [r.to_mongo().to_dict() | {"_id": str(r.id)} for r in rows]}


def summary_lines(result: dict[str, Any]) -> list[str]:
    """Return what `run` says at its end."""
    head = (
        f"campaign {result['campaign']}: {len(result['rounds'])} rounds done, {result['fireworks_run']} fireworks "
        f"in {duration(result['seconds'])}"
    )
    failed = f"{result['fireworks_failed']} fireworks failed; `inv-design status` says which"
    return [head, *([failed] if result["fireworks_failed"] else []), "next: inv-design status, query, report"]
