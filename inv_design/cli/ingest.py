"""`ingest`: crystals and their labels from files into the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed, one_line
from inv_design.cli.inputs import read_files
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inv_design.structures.files import ReadItem

LABELS = ("bulk_modulus_vrh", "shear_modulus_vrh", "formation_energy_per_atom", "energy_per_atom", "e_above_hull")
"""Properties of a file that become labels: GPa for moduli, eV/atom for energies."""


@click.command()
@click.argument("files", nargs=-1, metavar="FILE...")
@click.option("--outputs", is_flag=True, help="Finished DFT flows of the JobStore that have no calculation yet.")
@click.option("--source", help="Where the labels come from, for their provenance.  [default: the file]")
@click.option("--functional", help="Method behind the labels, such as PBE, for their protocol.")
@json_option
@database_options
@click.pass_obj
def ingest(
    settings: Settings, *, files: tuple[str, ...], outputs: bool, source: str | None, functional: str | None
) -> None:
    """Read crystals and their labels from files into the database.

    Every good item is kept, in any case. Each bad one gets a line on standard error that names it and the cure, and
    then the exit code is 1. What is in the database already is not stored twice.

    With --outputs, the elastic flows that finished in the database's JobStore become calculations, if they are none
    yet: a killed worker may leave such, and so do flows that were run with jobflow's own managers.
    """
    from inv_design.cli.database import open_database

    if bool(files) == outputs:
        raise click.UsageError("give either files or --outputs")
    open_database(settings)
    if outputs:
        _ingest_outputs(as_json=settings.as_json)
        return
    with render.progress("Read") as bar:
        good: dict[str, list[ReadItem]] = {}
        errors: list[str] = []
        for item in read_files(files):
            if (problem := item.error or _unusable(item)) is not None:
                errors.append(problem)
            else:
                good.setdefault(source or item.source.rsplit(":", 1)[0], []).append(item)
            bar.advance()
        read = bar.done
    counts = {"read": read, "kept": 0, "structures": 0, "labels": 0, "known": 0, "bad": len(errors)}
    for origin, items in good.items():
        for name, count in store(items, origin, functional).items():
            counts[name] += count
    for line in errors:
        render.say(f"bad: {line}")
    if settings.as_json:
        render.json_document({**counts, "errors": errors})
    else:
        click.echo(
            f"kept {counts['kept']} of {counts['read']} crystals: {counts['structures']} new structures, "
            f"{counts['labels']} new labelled records, {counts['known']} labelled records known before"
        )
    if errors:
        raise CommandFailed(f"{len(errors)} of {read} items are bad; the {counts['kept']} good ones are kept")


def _ingest_outputs(*, as_json: bool) -> None:
    from dataclasses import asdict

    from fireworks_specs.ingestion import ingest_outputs

    done = ingest_outputs()
    if as_json:
        render.json_document(asdict(done))
    else:
        click.echo(f"{done.found} finished flows, {done.inserted} new calculations")
    if done.unreadable:
        raise CommandFailed(f"{done.unreadable} of {done.found} flows cannot be read; the log (-v) names them")


def store(items: Sequence[ReadItem], origin: str, functional: str | None) -> dict[str, int]:
    """Write crystals, and the labels of those that have some; return counts of what was kept and new."""
    from inv_design.datasets.mp_binaries import LabelledStructure
    from stores.connection import current
    from stores.ingest import ingest_reference
    from stores.provenance import provenance
    from stores.records import insert_structures

    database = current().db
    before = database["structures"].estimated_document_count()
    labelled: list[Any] = []
    bare: list[ReadItem] = []
    for item in items:
        assert item.structure is not None
        labels = {name: float(item.properties[name]) for name in LABELS if _is_number(item.properties.get(name))}
        if labels:
            identity = str(item.properties.get("id", item.source))
            labelled.append(LabelledStructure(structure=item.structure, labels=labels, source_id=identity))
        else:
            bare.append(item)
    counts = {"kept": len(items), "labels": 0, "known": 0}
    if labelled:
        protocol = {"functional": functional} if functional else {}
        result = ingest_reference(labelled, origin, protocol=protocol)
        counts |= {"labels": result["calculations"], "known": result["known"]}
    if bare:
        sources = [{"kind": "ingested", "id": str(i.properties.get("id", i.source)), "source": origin} for i in bare]
        insert_structures([i.structure for i in bare if i.structure is not None], sources, provenance(inputs=[origin]))
    return {**counts, "structures": database["structures"].estimated_document_count() - before}


def _unusable(item: ReadItem) -> str | None:
    """Return why a crystal that was read cannot have a record."""
    from inv_design.structures.identity import structure_id

    assert item.structure is not None
    try:
        structure_id(item.structure)
    except ValueError as error:
        return f"{item.source}: {one_line(str(error))}; correct or remove this entry"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
