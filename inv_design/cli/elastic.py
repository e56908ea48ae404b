"""`elastic`: relaxation, elastic tensor, moduli, Born verdict and quality flags of the crystals in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed, one_line
from inv_design.cli.inputs import read_files
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inv_design.mechanics.lockstep import Work
    from inv_design.structures.files import ReadItem

WORTH_WORKERS = 40
"""Crystals from which on worker processes are worth their start."""

EMPTY: dict[str, Any] = {
    "bulk_modulus_vrh": None,
    "shear_modulus_vrh": None,
    "born_stable": None,
    "elastic_tensor": None,
    "flags": [],
    "converged": None,
}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "-k", "--calculator", "name", default="mace-alloy-small", show_default=True, metavar="C",
    help="mace-alloy-small, chgnet, emt, gpaw, mace-mp-0 ..., a .safetensors file, an import path module:callable, or "
    "the id of a model that train-mlip made.",
)  # fmt: skip
@click.option("--relax/--no-relax", default=True, show_default=True, help="Relax positions and cell first.")
@click.option("--fmax", type=float, default=0.02, show_default=True, help="Largest force after relaxation, eV/Å.")
@click.option("--max-steps", type=click.IntRange(min=1), default=300, show_default=True, help="Relaxation steps.")
@json_option
@database_options
@click.pass_obj
def elastic(settings: Settings, *, files: tuple[str, ...], name: str, relax: bool, fmax: float, max_steps: int) -> None:
    """Relax crystals and calculate their elastic tensors.

    Moduli and tensors are in GPa (Voigt notation, 6 x 6). One record per crystal in the order of the input; one that
    fails gets a record with its error, the rest goes on, and the exit code is 1.
    """
    if not fmax > 0:
        raise click.BadParameter(f"{fmax} eV/Å is not positive", param_hint="--fmax")
    from inv_design.calculators.registry import get_calculator
    from inv_design.cli.models import have_calculator

    have_calculator(settings, name)
    try:
        with render.quiet():
            get_calculator(name)
    except ValueError as error:
        raise click.BadParameter(one_line(str(error)), param_hint="--calculator") from None
    records: list[dict[str, Any]] = []
    items = list(read_files(files))
    with render.progress("Elastic tensors", len(items)) as bar:
        options = {"calculator": name, "relax": relax, "fmax": fmax, "max_steps": max_steps}
        for done, record in enumerate(measured(items, options, bar), start=1):
            records.append(record)
            if settings.as_json:
                render.json_line(record)
            bar.update(max(done, bar.done))
    if not settings.as_json:
        show_records(records, full=bool(settings.verbose))
    failed = sum(record["error"] is not None for record in records)
    if failed:
        raise CommandFailed(f"{failed} of {len(records)} crystals failed; their records say why")


def measured(items: list[ReadItem], options: dict[str, Any], bar: render.Bar) -> Iterator[dict[str, Any]]:
    """Yield the record of each item in order; several are computed at a time, and of many one batch per core.

    ``$INV_DESIGN_WORKERS`` sets how many; a few crystals are computed here, for workers take seconds to start.
    """
    from fireworks_specs import pool

    def placed(index: int, record: dict[str, Any]) -> dict[str, Any]:
        item = items[index]
        if "formula" not in record:  # its worker died
            record = {"formula": None, **EMPTY, "unit": "GPa", "error": record["error"]}
        place = {"source": item.source, "index": index, "id": item.properties.get("id")}
        return {**place, **record, "calculator": options["calculator"]}

    here = len(items) < WORTH_WORKERS
    records = measure(items, **options) if here else pool.map_structures(measure, items, **options)
    waiting: dict[int, dict[str, Any]] = {}
    following = 0
    try:
        for done, (index, record) in enumerate(records, start=1):
            bar.update(done)
            waiting[index] = placed(index, record)
            while following in waiting:
                yield waiting.pop(following)
                following += 1
    finally:
        if not here:
            pool.close()


def measure(
    items: Sequence[ReadItem], *, calculator: str, relax: bool, fmax: float, max_steps: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, elastic record) of each crystal as it finishes, or its error; moduli in GPa."""
    from inv_design.calculators.registry import get_calculator
    from inv_design.mechanics.lockstep import run_together

    works = (_measure(item, relax=relax, fmax=fmax, max_steps=max_steps) for item in items)
    with render.quiet():
        records = run_together(works, get_calculator(calculator))
    while True:
        with render.quiet():
            found = next(records, None)
        if found is None:
            return
        yield found


def _measure(item: ReadItem, *, relax: bool, fmax: float, max_steps: int) -> Work[dict[str, Any]]:
    from inv_design.mechanics.elastic import elasticity
    from inv_design.mechanics.relax import relaxation
    from inv_design.mechanics.stages import UNCONVERGED

    structure = item.structure
    if structure is None:
        return {"formula": None, **EMPTY, "unit": "GPa", "error": item.error}
    record: dict[str, Any] = {"formula": structure.composition.reduced_formula, **EMPTY, "unit": "GPa", "error": None}
    try:
        if relax:
            relaxed = yield from relaxation(structure, fmax=fmax, max_steps=max_steps)
            if relaxed.error is not None or relaxed.structure is None:
                return {**record, "error": f"relaxation: {relaxed.error}"}
            structure = relaxed.structure
            record |= {
                "converged": relaxed.converged,
                "volume_change": relaxed.volume_change,
                "energy_per_atom": relaxed.energy_per_atom,
            }
        tensor = (yield from elasticity(structure)).as_dict()
        error = tensor.pop("error", None)
        if error is not None:
            return {**record, "error": f"elastic tensor: {error}"}
        record |= {"elastic_tensor": tensor.pop("tensor"), **tensor, "structure": structure.as_dict()}
        if record["converged"] is False:
            record["flags"] = [*record["flags"], UNCONVERGED]
    except Exception as error:  # one bad crystal never stops the others
        record["error"] = f"{type(error).__name__}: {one_line(str(error))}"
    return record


def show_records(records: list[dict[str, Any]], *, full: bool) -> None:
    """Print the moduli as a table, with ``full`` the tensors too; errors come below."""
    good = [r for r in records if r["error"] is None]
    if good:
        columns = ("source", "formula", "K_VRH (GPa)", "G_VRH (GPa)", "Born stable", "converged", "flags")
        rows = [
            (
                r["source"], r["formula"], f"{r['bulk_modulus_vrh']:.1f}", f"{r['shear_modulus_vrh']:.1f}",
                r["born_stable"], r["converged"], ", ".join(r["flags"]) or "-",
            )
            for r in good
        ]  # fmt: skip
        render.table(rows, columns, right=columns[2:4])
    if full:
        for r in good:
            click.echo(f"\n{r['source']} {r['formula']}: elastic tensor, GPa")
            for line in r["elastic_tensor"]:
                click.echo("  " + " ".join(f"{value:9.2f}" for value in line))
    for r in records:
        if r["error"] is not None:
            text = str(r["error"])
            render.say(f"failed: {text if text.startswith(r['source']) else r['source'] + ': ' + text}")
