"""`predict`: a property of the crystals in files, by a predictor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed
from inv_design.cli.inputs import read_files
from inv_design.cli.options import Settings, database_options, json_option
from stores.scan import batches

if TYPE_CHECKING:
    from inv_design.predictors.protocol import Predictor
    from inv_design.structures.files import ReadItem

CHUNK = 64


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "-m", "--model", metavar="M", help="Model id, .safetensors file or predictor's name.  [default: the packaged one]"
)
@click.option(
    "--property", "property_", metavar="P",
    help="Property to predict.  [default: bulk_modulus_vrh, or what the model predicts]",
)  # fmt: skip
@json_option
@database_options
@click.pass_obj
def predict(settings: Settings, files: tuple[str, ...], model: str | None, property_: str | None) -> None:
    """Predict a property of the crystals in files.

    FILE is CIF, POSCAR, extxyz, csv or JSON, a zip or a folder of them. One line per crystal in the order of the input;
    what cannot be read or predicted gets a line with its error, the rest goes on, and the exit code is 1.
    """
    from inv_design.cli.models import find_predictor
    from inv_design.objective import ALIASES, property_name

    wanted = None if property_ is None else ALIASES.get(property_, property_)
    if wanted is not None and model is None:  # a model may predict any property, the packaged ones only known ones
        try:
            wanted = property_name(wanted)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--property") from None
    predictor, label = find_predictor(settings, model, property=wanted)
    records: list[dict[str, Any]] = []
    failed = 0
    with render.progress("Predict") as bar:
        for batch in batches(read_files(files), CHUNK):
            for record in predict_batch(predictor, label, batch, first=bar.done):
                failed += record["error"] is not None
                if settings.as_json:
                    render.json_line(record)
                else:
                    records.append(record)
            bar.update(bar.done + len(batch))
        total = bar.done
    if not settings.as_json:
        show_records(records)
    if failed:
        raise CommandFailed(f"{failed} of {total} crystals failed; their lines say why")


def predict_batch(predictor: Predictor, label: str, batch: list[ReadItem], *, first: int) -> list[dict[str, Any]]:
    """Return one record per item, in order; ``first`` is the index of the first one in the whole input."""
    good = [item.structure for item in batch if item.structure is not None]
    with render.quiet():
        prediction = predictor.predict(good) if good else None
    records, position = [], 0
    for offset, item in enumerate(batch):
        record: dict[str, Any] = {
            "source": item.source,
            "index": first + offset,
            "id": item.properties.get("id"),
            "formula": item.structure.composition.reduced_formula if item.structure is not None else None,
            "property": predictor.property,
            "value": None,
            "std": None,
            "unit": predictor.unit,
            "model": label,
            "error": item.error,
        }
        if item.structure is not None and prediction is not None:
            error = prediction.errors[position]
            if error is None:
                record["value"] = float(prediction.values[position])
                record["std"] = float(prediction.std[position])
            record["error"] = error
            position += 1
        records.append(record)
    return records


def show_records(records: list[dict[str, Any]]) -> None:
    """Print predictions as a table, errors below it."""
    good = [r for r in records if r["error"] is None]
    if good:
        head = good[0]
        rows = [(r["source"], r["formula"], f"{r['value']:.4g}", _std(r["std"])) for r in good]
        unit = f" ({head['unit']})" if head["unit"] else ""
        columns = ("source", "formula", f"{head['property']}{unit}", "std")
        render.table(rows, columns, right=columns[2:])
        render.say(f"model: {head['model']}")
    for record in records:
        if record["error"] is not None:
            render.say(f"failed: {_with_source(record)}")


def _std(value: float) -> str:
    return f"{value:.2g}" if value == value else "-"  # noqa: PLR0124 - NaN is not itself


def _with_source(record: dict[str, Any]) -> str:
    error = str(record["error"])
    return error if error.startswith(str(record["source"])) else f"{record['source']}: {error}"
