"""`init`: a commented campaign.yaml in a new directory, and the files of a cluster's workers beside it."""

from __future__ import annotations

import os
import re
import sys
from importlib import resources
from pathlib import Path

import click

from fireworks_specs.worker_files import CLUSTERS, SECRET, worker_files
from inv_design.cli.errors import CommandFailed
from inv_design.cli.options import DATABASE_VARIABLE, common_options

TEMPLATES = ("default", "demo", "minimal")
PLACEHOLDER = "CAMPAIGN_NAME"
_USER_WITHOUT_PASSWORD = re.compile(r"host: '[^:]+://[^/:@]+@")


@click.command()
@click.argument("directory", type=click.Path(file_okay=True, path_type=Path))
@click.option(
    "-t", "--template", type=click.Choice(TEMPLATES), default="default", show_default=True, help="What to start from."
)
@click.option("--name", help="Name of the campaign.  [default: the directory's]")
@click.option("--database", metavar="URI", help="Database of the campaign, without password.  [default: embedded]")
@click.option(
    "--cluster",
    type=click.Choice(CLUSTERS),
    help="Write the files that workers need, too; also beside a campaign.yaml that is there.",
)
@common_options
def init(directory: Path, template: str, name: str | None, database: str | None, cluster: str | None) -> None:
    """Write a commented campaign.yaml into a new directory.

    Nothing that exists is overwritten (exit code 1).
    """
    path = directory / "campaign.yaml"
    kept = cluster is not None and path.is_file()
    files: dict[str, str] = {}
    if not kept:
        text = template_text(template).replace(PLACEHOLDER, quoted(name or default_name(directory)))
        text = text if database is None else with_database(text, database)
        check_text(text)
        files["campaign.yaml"] = text
    if cluster is not None:
        files |= cluster_files(cluster, path, files.get("campaign.yaml"), database)
    write_new(directory, files)
    click.echo(f"wrote {', '.join(str(directory / file) for file in files)}; next: {next_words(directory, cluster)}")
    if cluster is not None and _USER_WITHOUT_PASSWORD.search(files["my_launchpad.yaml"]):
        click.echo("rlaunch and qlaunch need the password: add it to the URI in my_launchpad.yaml")


def write_new(directory: Path, files: dict[str, str]) -> None:
    """Write files that must not exist; those in which a password may stand for their owner alone.

    Raises
    ------
    CommandFailed
        If one of them exists; none is written then.
    """
    there = [directory / name for name in files if (directory / name).exists()]
    if there:
        raise CommandFailed(f"{there[0]} exists; it is never overwritten; choose another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise CommandFailed(f"{directory} exists; it is a file, not a directory") from None
    for name, text in files.items():
        mode = 0o600 if name in SECRET else 0o666
        try:  # fails if it exists by now, whoever wrote it
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise CommandFailed(f"{directory / name} exists; it is never overwritten") from None
        with os.fdopen(descriptor, "w") as file:
            file.write(text)


def cluster_files(cluster: str, path: Path, text: str | None, database: str | None) -> dict[str, str]:
    """Return the workers' files for the campaign in a file, or in the text that will be written there."""
    import yaml

    from inv_design.config import load_config

    stated = yaml.safe_load(text).get("database", "embedded") if text is not None else load_config(path).database
    uri = database or os.environ.get(DATABASE_VARIABLE) or stated
    programs = Path(sys.executable).absolute().parent
    return worker_files(cluster, database=uri, folder=path.parent.resolve(), programs=programs)


def next_words(directory: Path, cluster: str | None) -> str:
    """Return what to do after `init`."""
    if cluster is None:
        return f"cd {directory} && inv-design check && inv-design run"
    return f"fill in queue and account in my_qadapter_*.yaml, then cd {directory} && inv-design check"


def with_database(text: str, database: str) -> str:
    """Return the text of a campaign with another database."""
    line = f"database: {quoted(database)}"
    changed, count = re.subn(r"(?m)^database:.*$", lambda _: line, text, count=1)
    return changed if count else f"{text.rstrip()}\n{line}\n"


def template_text(template: str) -> str:
    """Return a packaged template, its name still open."""
    return resources.files("inv_design").joinpath("templates", f"{template}.yaml").read_text()


def default_name(directory: Path) -> str:
    """Return a campaign name made of a directory's."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", directory.resolve().name).strip("-._")[:64]
    return name or "campaign"


def quoted(name: str) -> str:
    """Return a name as YAML text: ``2026`` in quotes, since it would be read as a number."""
    import json

    import yaml

    try:
        plain = yaml.safe_load(name) == name
    except yaml.YAMLError:
        plain = False
    return name if plain else json.dumps(name)


def check_text(text: str) -> None:
    """Raise :class:`click.BadParameter` if the text is no valid campaign: only name and database can be wrong."""
    import yaml
    from pydantic import ValidationError

    from inv_design.config import CampaignConfig, describe_error

    try:
        CampaignConfig.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise click.BadParameter(describe_error(error), param_hint="--name or --database") from None
