"""`metrics`: how good the crystals of a file are."""

from __future__ import annotations

from typing import Any

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed
from inv_design.cli.inputs import parse_targets, read_files
from inv_design.cli.options import Settings, database_options, json_option

SHARES = {
    "valid_structure": "atoms apart, cell with volume",
    "valid_composition": "charge balance possible (CDVAE)",
    "valid": "both",
    "unique": "not like an earlier one of the file",
    "novel": "not like one of the reference",
    "valid_unique_novel": "valid structure, unique and novel",
}


@click.command()
@click.argument("file")
@click.option("--reference", help="Known crystals, for novelty: a file, or mp-binaries.")
@click.option("-t", "--target", metavar="P=V", help="Such as K=350, for the target error.")
@click.option(
    "--values", default="file", show_default=True, metavar="V",
    help="Whose values the target error judges: 'file' (a property in the file) or 'predictor'.",
)  # fmt: skip
@click.option("-m", "--model", metavar="M", help="The predictor, with --values predictor.  [default: the packaged one]")
@json_option
@database_options
@click.pass_obj
def metrics(
    settings: Settings, *, file: str, reference: str | None, target: str | None, values: str, model: str | None
) -> None:
    """Measure validity, uniqueness, novelty and target error of crystals in a file.

    Fractions come with their counts. Unreadable entries are counted, named on standard error, and the exit code is 1.
    """
    if values not in ("file", "predictor"):
        raise click.BadParameter(f"{values!r} is neither 'file' nor 'predictor'", param_hint="--values")
    targets = parse_targets([target] if target else [])
    from inv_design.metrics.generation import generation_metrics

    items = list(read_files([file]))
    good = [item for item in items if item.structure is not None]
    bad = [item.error for item in items if item.structure is None]
    for line in bad:
        render.say(f"bad: {line}")
    if not good:
        raise CommandFailed(f"{file} holds no readable crystal")
    structures = [item.structure for item in good if item.structure is not None]
    name, wanted = next(iter(targets.items()), (None, None))
    judged: list[float | None] | None = None
    judge = None
    if name is not None:
        if values == "predictor":
            judged, judge = predicted(settings, structures, name, model)
        else:
            judged, judge = [_number(item.properties.get(name)) for item in good], f"{name} in {file}"
            if all(v is None for v in judged):
                raise CommandFailed(f"{file} has no property {name}; add --values predictor to have it predicted")
    known = load_reference(reference) if reference else None
    with render.quiet():
        record = generation_metrics(structures, reference=known, values=judged, target=wanted).record()
    record |= {"file": file, "reference": reference, "unreadable": len(bad), "judge": judge}
    if settings.as_json:
        render.json_document(record)
    else:
        show(record)
    if bad:
        raise CommandFailed(f"{len(bad)} of {len(items)} entries of {file} are unreadable; the others are measured")


def load_reference(source: str) -> list[Any]:
    """Return the crystals of a file, or the packaged ones.

    Raises
    ------
    CommandFailed
        If the file holds none.
    """
    if source == "mp-binaries":
        from inv_design.datasets.mp_binaries import load_alloys

        return [entry.structure for entry in load_alloys()]
    items = list(read_files([source]))
    found = [item.structure for item in items if item.structure is not None]
    if not found:
        raise CommandFailed(items[0].error if items and items[0].error else f"{source} holds no crystal")
    return found


def predicted(
    settings: Settings, structures: list[Any], name: str, model: str | None
) -> tuple[list[float | None], str]:
    """Return (value per crystal or ``None``, the judge's name)."""
    from inv_design.cli.models import find_predictor

    predictor, label = find_predictor(settings, model, property=name)
    with render.quiet():
        prediction = predictor.predict(structures)
    pairs = zip(prediction.values, prediction.errors, strict=True)
    return [None if error is not None else float(value) for value, error in pairs], f"predictor {label}"


def show(record: dict[str, Any]) -> None:
    """Print the shares with their counts, and the target error."""
    rows = []
    for name, meaning in SHARES.items():
        if name in record:
            share = record[name]
            fraction = "-" if share["fraction"] is None else f"{100 * share['fraction']:.1f} %"
            rows.append((name, fraction, f"{share['count']} of {share['total']}", meaning))
    render.table(rows, ("metric", "share", "count", "meaning"), right=("share", "count"))
    target = record.get("target")
    if target and target["n"]:
        within = target["within_20"]
        click.echo(
            f"target {target['target']:g} GPa by {record['judge']}: mean relative error {100 * target['mape']:.1f} %, "
            f"median {target['median']:.1f} GPa, within 20 %: {within['count']} of {within['total']}"
        )
        if target["missing"]:
            click.echo(f"{target['missing']} crystals have no value")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
