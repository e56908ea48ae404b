"""`inv-design launch`: put a campaign's workflows on the launchpad and leave them to the workers."""

from __future__ import annotations

from pathlib import Path

import click

from inv_design.cli.options import Settings, database_options, json_option
from inv_design.cli.render import json_document, say


@click.command()
@click.option("--rounds", type=click.IntRange(min=0), help="Rounds after the initial one.  [default: the campaign's]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the workflows to a YAML file for `lpad add` instead of adding them.",
)
@database_options
@json_option
@click.pass_obj
def launch(settings: Settings, rounds: int | None, output: Path | None) -> None:
    """Put the workflows of a round on the launchpad, and leave them to the workers.

    Each step's workflows put the next step's on the launchpad when they are done, so that `rlaunch` or `qlaunch`
    workers carry the campaign to its end.
    """
    from fireworks_specs import execution
    from inv_design.cli.database import open_database

    config = settings.load_config()
    with open_database(settings) as connection:
        if output is not None:
            count = execution.write_workflows(config, output, rounds=rounds)
        else:
            count = execution.launch(connection, config, rounds=rounds)
    if settings.as_json:
        json_document({"campaign": config.name, "workflows": count, "output": str(output) if output else None})
    elif output is not None:
        say(f"{count} workflows written to {output}; add them with: inv-design lpad add {output}")
    elif count:
        say(f"{count} workflows added; workers take them with rlaunch or qlaunch, this process would with `run`")
    else:
        say("nothing added: the campaign has work on the launchpad, or all its rounds are closed")
