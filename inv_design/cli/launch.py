"""`inv-design launch`: put a campaign's workflows on the launchpad and leave them to the workers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from inv_design.cli.launch_calculations import calculation_command
from inv_design.cli.options import Settings, database_options, json_option
from inv_design.cli.render import json_document, say
from inv_design.cli.run import RunDisplay
from inv_design.cli.status import finished_words

if TYPE_CHECKING:
    from collections.abc import Sequence


class Launch(click.Group):
    """`launch` itself puts a campaign's work on the launchpad; a misspelt calculation is answered with the nearest."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that ``args`` name."""
        from inv_design.cli.errors import nearest

        if args and args[0] not in self.commands:
            known: Sequence[str] = list(self.commands)
            raise click.UsageError(f"no calculation {args[0]!r}{nearest(args[0], list(known))}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Launch, invoke_without_command=True)
@click.option("--rounds", type=click.IntRange(min=0), help="Rounds after the initial one.  [default: the campaign's]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the workflows to a YAML file for `lpad add` instead of adding them.",
)
@database_options
@json_option
@click.pass_context
def launch(ctx: click.Context, rounds: int | None, output: Path | None) -> None:
    """Put the workflows of a round on the launchpad, and leave them to the workers.

    Each step's workflows put the next step's on the launchpad when they are done, so that `rlaunch` or `qlaunch`
    workers carry the campaign to its end. With relax, elastic or eos: calculations of any crystals, in no campaign.
    """
    if ctx.invoked_subcommand is not None:
        if rounds is not None or output is not None:
            raise click.UsageError(f"--rounds and --output are for a campaign, not for {ctx.invoked_subcommand}", ctx)
        return
    from fireworks_specs import execution
    from inv_design.cli.database import open_database

    settings: Settings = ctx.obj
    config = settings.load_config()
    last = config.rounds if rounds is None else rounds
    with open_database(settings) as connection, closing(RunDisplay()) as display:

        def ingesting(done: int, total: int, _: str = "") -> None:
            display.report("Ingest reference data", done, total)

        if output is not None:
            count = execution.write_workflows(config, output, rounds=last, progress=ingesting)
        else:
            count = execution.launch(connection, config, rounds=last, progress=ingesting)
        busy = not count and execution.has_active_work(connection.launchpad(), config.name)
    if settings.as_json:
        json_document({"campaign": config.name, "workflows": count, "output": str(output) if output else None})
    elif busy:
        say("nothing added: the campaign has work on the launchpad; workers take it with rlaunch or qlaunch")
    elif not count:
        finished = "the campaign is finished: " if last >= config.rounds else ""
        say(f"nothing added: {finished}{finished_words(last)}")
    elif output is not None:
        say(f"{count} workflows written to {output}; add them with: inv-design lpad add {output}")
    else:
        say(f"{count} workflows added; workers take them with rlaunch or qlaunch, this process would with `run`")


launch.add_command(calculation_command("relax", "Relax positions and cells of crystals with a potential."))
launch.add_command(calculation_command("elastic", "Relax crystals and compute their elastic tensors with a potential."))
launch.add_command(calculation_command("eos", "Relax crystals and fit their E(V) with a potential."))
