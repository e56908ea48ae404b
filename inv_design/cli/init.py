"""`init`: a commented campaign.yaml in a new directory."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import click

from inv_design.cli.errors import CommandFailed
from inv_design.cli.options import common_options

TEMPLATES = ("default", "demo", "minimal")
PLACEHOLDER = "CAMPAIGN_NAME"


@click.command()
@click.argument("directory", type=click.Path(file_okay=True, path_type=Path))
@click.option(
    "-t", "--template", type=click.Choice(TEMPLATES), default="default", show_default=True, help="What to start from."
)
@click.option("--name", help="Name of the campaign.  [default: the directory's]")
@common_options
def init(directory: Path, template: str, name: str | None) -> None:
    """Write a commented campaign.yaml into a new directory.

    An existing campaign.yaml is never overwritten (exit code 1).
    """
    path = directory / "campaign.yaml"
    text = template_text(template).replace(PLACEHOLDER, quoted(name or default_name(directory)))
    check_text(text)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:  # fails if it exists, whoever wrote it
            file.write(text)
    except FileExistsError:
        what = "it is never overwritten; choose another directory" if path.exists() else "it is a file, not a directory"
        raise CommandFailed(f"{path if path.exists() else directory} exists; {what}") from None
    click.echo(f"wrote {path}; next: cd {directory} && inv-design check && inv-design run")


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
    """Raise :class:`click.BadParameter` if the text is no valid campaign: only the name can be wrong."""
    import yaml
    from pydantic import ValidationError

    from inv_design.config import CampaignConfig, describe_error

    try:
        CampaignConfig.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        raise click.BadParameter(describe_error(error), param_hint="--name") from None
