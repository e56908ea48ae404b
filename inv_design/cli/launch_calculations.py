"""`launch relax|elastic|eos`: calculations of any crystals as batches on the launchpad."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed, NothingMatched, one_line
from inv_design.cli.options import Settings, campaign_options, json_option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fireworks_specs.calculations import Launched

STRUCTURE_ID, CANDIDATE_ID = re.compile(r"s-[0-9a-f]{20}"), re.compile(r"c-[0-9a-f]{20}")


def calculation_command(kind: str, summary: str) -> click.Command:
    """Return the command that launches calculations of a kind."""

    @json_option
    @campaign_options
    @click.pass_obj
    def command(settings: Settings, **options: Any) -> None:
        _launch(settings, kind, **options)

    command.__doc__ = (
        f"{summary}\n\nCRYSTALS are ids of structures (s-...) or candidates (c-...), or files, which are ingested "
        "first. What has its result already is left out, and what failed, unless of something that may pass. Workers "
        "take the rest with rlaunch or qlaunch; `inv-design run` and --run compute it here. The results are "
        "calculations of the database."
    )
    decorated: Any = command
    for option in reversed(_options(kind)):
        decorated = option(decorated)
    made: click.Command = click.command(kind)(decorated)
    return made


def _options(kind: str) -> list[Callable[[Any], Any]]:
    strain = click.option(
        "--strain", type=click.FloatRange(0, 0.2, min_open=True, max_open=True), default=0.04, show_default=True,
        help="Largest linear strain of E(V).",
    )  # fmt: skip
    return [
        click.argument("crystals", nargs=-1, metavar="[CRYSTALS]..."),
        click.option("-w", "--where", multiple=True, metavar="COND", help="Candidates of the campaign, as in `query`."),
        click.option(
            "-k", "--calculator", default="mace-alloy-small", show_default=True, metavar="C",
            help="A calculator's name, a .safetensors file, or the id of a model that train-mlip made.",
        ),
        click.option(
            "--batch", type=click.IntRange(1, 200), default=10, show_default=True, help="Crystals per firework."
        ),
        click.option(
            "--fmax", type=click.FloatRange(0, min_open=True), default=0.02, show_default=True,
            help="Largest force after relaxation, eV/Å.",
        ),
        click.option(
            "--max-steps", type=click.IntRange(min=1), default=300, show_default=True, help="Relaxation steps."
        ),
        *([strain] if kind == "eos" else []),
        click.option("--run", "here", is_flag=True, help="Compute it in this process, too."),
    ]  # fmt: skip


def _launch(
    settings: Settings,
    kind: str,
    *,
    crystals: tuple[str, ...],
    where: tuple[str, ...],
    calculator: str,
    batch: int,
    here: bool,
    **numbers: Any,
) -> None:
    if bool(crystals) == bool(where):
        raise click.UsageError("give either CRYSTALS (ids or files) or --where conditions")
    if calculator == "gpaw":
        raise click.BadParameter("gpaw is DFT, which is stage III: stages.dft.backend", param_hint="--calculator")
    from fireworks_specs.calculations import launch_calculations
    from inv_design.cli.database import open_database

    chosen = {**numbers} if kind == "eos" else {**numbers, "keep_structure": _keep_structure()}
    with open_database(settings) as connection, render.quiet():
        ids, errors = (_matching(settings, where), []) if where else _structures(crystals)
        if not ids and not errors:
            raise NothingMatched("no crystal to compute")
        try:
            done = launch_calculations(connection, kind, ids, calculator=calculator, settings=chosen, batch=batch)
        except ValueError as error:
            raise click.BadParameter(one_line(str(error)), param_hint="--calculator") from None
        ran = _run(connection) if here else None
    for line in errors:
        render.say(f"bad: {line}")
    shown = {"kind": kind, "calculator": calculator, **asdict(done), **(ran or {}), "structure_ids": ids}
    if settings.as_json:
        render.json_document(shown)
    else:
        _say(done, ran)
    if errors:
        raise CommandFailed(f"{len(errors)} crystals cannot be read; the other {len(ids)} are launched")
    if ran is not None and ran["fireworks_failed"]:
        raise CommandFailed(f"{ran['fireworks_failed']} fireworks failed; `inv-design lpad get_fws -s FIZZLED -d all`")


def _keep_structure() -> dict[str, float]:
    from inv_design.config import MlipConfig

    return dict(MlipConfig().keep_structure)


def _matching(settings: Settings, where: Sequence[str]) -> list[str]:
    """Return the structure ids of a campaign's candidates that meet conditions."""
    from inv_design.cli.database import campaign_name
    from inv_design.cli.filters import option
    from stores.queries import candidates

    name = campaign_name(settings)
    with option("--where"):
        found = candidates(name, where=list(where))
    if not found:
        raise NothingMatched(f"no candidate of {name} matches {' and '.join(where)}")
    return list(dict.fromkeys(c["structure_id"] for c in found))


def _structures(crystals: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (structure ids of ids and files in their order, one line for each crystal that cannot be read)."""
    ids: list[str] = []
    errors: list[str] = []
    for text in crystals:
        if not STRUCTURE_ID.fullmatch(text) and not CANDIDATE_ID.fullmatch(text):
            new, bad = _ingested(text)
            ids += new
            errors += bad
        else:
            ids.append(_known(text))
    return list(dict.fromkeys(ids)), errors


def _known(identity: str) -> str:
    """Return the structure id of a structure or candidate.

    Raises
    ------
    LookupError
        If the database does not have it.
    """
    from stores.connection import current

    collection, field = ("structures", "structure_id") if identity[0] == "s" else ("candidates", "candidate_id")
    found = current().db[collection].find_one({field: identity}, {"structure_id": 1})
    if found is None:
        raise LookupError(f"the database has no {collection.removesuffix('s')} {identity!r}")
    return str(found["structure_id"])


def _ingested(path: str) -> tuple[list[str], list[str]]:
    """Return (structure ids of a file's crystals, which are inserted where they are new; what cannot be read)."""
    from inv_design.cli.inputs import read_files
    from stores.provenance import provenance
    from stores.records import insert_structure

    ids, errors = [], []
    for item in read_files([path]):
        try:
            if item.structure is None:
                raise ValueError(item.error or f"{item.source}: no crystal")
            origin = item.source.rsplit(":", 1)[0]
            source = {
                "kind": "ingested", "id": str(item.properties.get("id", item.source)), "source": Path(origin).name
            }  # fmt: skip
            ids.append(insert_structure(item.structure, source, provenance(inputs=[Path(origin).name])))
        except ValueError as error:
            errors.append(one_line(str(error)))
    return ids, errors


def _run(connection: Any) -> dict[str, int]:
    from fireworks_specs import pool
    from fireworks_specs.calculations import run_calculations

    try:
        run, failed = run_calculations(connection)
    finally:
        pool.close()
    return {"fireworks_run": run, "fireworks_failed": failed}


def _say(done: Launched, ran: dict[str, int] | None) -> None:
    notes = [f"{done.again} of them once more, after a failure that may pass"] if done.again else []
    notes += [f"{done.known} have the result"] if done.known else []
    notes += [f"{done.waiting} wait already"] if done.waiting else []
    notes += [f"{done.failed} failed for good"] if done.failed else []
    text = f"{done.structures} crystals in {done.workflows} workflows added"
    render.say(f"{text} ({', '.join(notes)})" if notes else text)
    if ran is not None:
        render.say(f"{ran['fireworks_run']} fireworks run here, {ran['fireworks_failed']} failed")
    elif done.structures:
        render.say("workers take them with rlaunch or qlaunch; `inv-design run`, or the same with --run, computes here")
