"""`metrics`: how good the crystals of a file are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import CommandFailed
from inv_design.cli.inputs import parse_targets, read_files
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

    from inv_design.metrics.generation import GenerationMetrics
    from inv_design.metrics.stability import Hull
    from inv_design.structures.files import ReadItem

SHARES = {
    "valid_structure": "atoms apart, cell with volume",
    "valid_composition": "charge balance possible (CDVAE)",
    "valid": "both",
    "unique": "not like an earlier one of the file",
    "novel": "not like one of the reference",
    "valid_unique_novel": "valid structure, unique and novel",
}
SUITES = ("cdvae", "mattergen", "genmetrics")
MEANINGS = {
    "coverage_recall": "held-out crystals with a generated one near",
    "coverage_precision": "generated crystals with a held-out one near",
    "amsd_recall": "mean distance to the nearest structure, (V/N)^(1/3)",
    "amsd_precision": "the same from generated to held out",
    "amcd_recall": "mean distance to the nearest composition, Mendeleev steps",
    "amcd_precision": "the same from generated to held out",
    "wasserstein_density": "between the distributions of density, g/cm^3",
    "wasserstein_elements": "between those of the number of elements",
    "structure_diversity": "mean pairwise distance of structures",
    "composition_diversity": "mean pairwise distance of compositions",
    "novel_unique": "unique and novel",
    "stable": "0.1 eV/atom above the hull or less",
    "stable_strict": "on the hull or below",
    "sun": "stable, unique, novel",
    "sun_strict": "the same on the hull or below",
    "mean_e_above_hull": "eV/atom",
    "median_e_above_hull": "eV/atom",
    "without_e_above_hull": "crystals without an energy above the hull",
    "rmsd": "displacement by relaxation, Å",
    "validity": "mean of the two below",
    "validity_space_group": "space groups, scaled with a P1 dummy",
    "validity_elements": "elements, scaled with a dummy",
    "novelty": "matches none of the reference (wide tolerances)",
    "uniqueness": "ordered pairs that do not match (wide tolerances)",
    "coverage": "generated that match one held out, over those held out",
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
@click.option(
    "--suite", "suites", multiple=True, type=click.Choice([*SUITES, "all"]),
    help="Further metrics by the definitions of CDVAE, MatterGen (stable, unique, novel) or matbench-genmetrics.",
)  # fmt: skip
@click.option("--test", "held_out", metavar="FILE", help="Held-out crystals, for coverage.  [default: the reference]")
@click.option(
    "--hull", metavar="FILE",
    help="Known phases as JSON, [{composition, energy_per_atom}, ...] in eV/atom, for MatterGen's stability.",
)  # fmt: skip
@click.option("--relaxed", metavar="FILE", help="The same crystals relaxed, in the same order, for the displacement.")
@click.option(
    "-k", "--calculator", metavar="C",
    help="Relax the crystals with this calculator for energies and displacements; the hull must be by the same.",
)  # fmt: skip
@json_option
@database_options
@click.pass_obj
def metrics(
    settings: Settings,
    *,
    file: str,
    reference: str | None,
    target: str | None,
    values: str,
    model: str | None,
    suites: tuple[str, ...],
    held_out: str | None,
    hull: str | None,
    relaxed: str | None,
    calculator: str | None,
) -> None:
    """Measure validity, uniqueness, novelty and target error of crystals in a file.

    Fractions come with their counts. Unreadable entries are counted, named on standard error, and the exit code is 1.
    Energies are the file's property energy_per_atom (eV/atom) unless a calculator is given; without a hull the file's
    e_above_hull counts.
    """
    if values not in ("file", "predictor"):
        raise click.BadParameter(f"{values!r} is neither 'file' nor 'predictor'", param_hint="--values")
    wanted = set(SUITES) if "all" in suites else set(suites)
    if hull or relaxed or calculator:
        wanted.add("mattergen")
    if "genmetrics" in wanted and not reference:
        raise click.UsageError("--suite genmetrics needs known crystals; add --reference FILE, or mp-binaries")
    targets = parse_targets([target] if target else [])
    from inv_design.cli.models import have_calculator
    from inv_design.metrics.generation import generation_metrics

    phases = read_hull(hull) if hull else None
    if calculator is not None:
        have_calculator(settings, calculator)
    items = list(read_files([file]))
    good = [item for item in items if item.structure is not None]
    bad = [item.error for item in items if item.structure is None]
    for line in bad:
        render.say(f"bad: {line}")
    if not good:
        raise CommandFailed(f"{file} holds no readable crystal")
    structures = [item.structure for item in good if item.structure is not None]
    name, goal = next(iter(targets.items()), (None, None))
    judged, judge = None, None
    if name is not None:
        judged, judge = (
            predicted(settings, structures, name, model) if values == "predictor" else said(good, name, file)
        )
    known = load_reference(reference) if reference else None
    test = load_reference(held_out) if held_out else None
    after = relaxed_structures(relaxed, items) if relaxed else None
    with render.quiet():
        result = generation_metrics(structures, reference=known, values=judged, target=goal)
        record = result.record()
        if "mattergen" in wanted:
            record["mattergen"] = stability(good, result, phases, after, calculator, failed=len(bad))
        record |= other_suites(wanted, structures, result, known, test)
    record |= {"file": file, "reference": reference, "unreadable": len(bad), "judge": judge}
    if wanted:
        record |= {"test": held_out, "hull": hull, "relaxed": relaxed, "calculator": calculator}
    if settings.as_json:
        render.json_document(record)
    else:
        show(record)
    if bad:
        raise CommandFailed(f"{len(bad)} of {len(items)} entries of {file} are unreadable; the others are measured")


def said(items: Sequence[ReadItem], name: str, file: str) -> tuple[list[float | None], str]:
    """Return (value of a property per crystal or ``None``, whose values they are) as a file says.

    Raises
    ------
    CommandFailed
        If no crystal has the property.
    """
    values = [_number(item.properties.get(name)) for item in items]
    if all(value is None for value in values):
        raise CommandFailed(f"{file} has no property {name}; add --values predictor to have it predicted")
    return values, f"{name} in {file}"


def other_suites(
    wanted: set[str],
    structures: list[Structure],
    metrics: GenerationMetrics,
    known: list[Structure] | None,
    test: list[Structure] | None,
) -> dict[str, Any]:
    """Return the metrics of CDVAE and of matbench-genmetrics, those of them that are wanted."""
    record: dict[str, Any] = {}
    if "cdvae" in wanted:
        from inv_design.metrics.cdvae import cdvae_metrics

        record["cdvae"] = cdvae_metrics(structures, metrics, known if test is None else test)
    if "genmetrics" in wanted:
        from inv_design.metrics.genmetrics import genmetrics

        record["genmetrics"] = genmetrics(structures, known or [], test)
    return record


def stability(
    items: Sequence[ReadItem],
    metrics: GenerationMetrics,
    hull: Hull | None,
    relaxed: list[Structure | None] | None,
    calculator: str | None,
    *,
    failed: int,
) -> dict[str, Any]:
    """Return MatterGen's metrics, with energies and relaxed crystals from the files or from a calculator.

    Raises
    ------
    CommandFailed
        If the calculator cannot be had.
    """
    from inv_design.metrics.mattergen import mattergen_metrics
    from inv_design.metrics.stability import energies_above_hull, relaxation_rmsds

    structures: list[Structure] = [item.structure for item in items if item.structure is not None]
    energies = [_number(item.properties.get("energy_per_atom")) for item in items]
    above: list[float | None] | None = [_number(item.properties.get("e_above_hull")) for item in items]
    if calculator is not None:
        energies, relaxed = relax(structures, calculator)
    if hull is not None:
        above, errors = energies_above_hull(structures, energies, hull)
        for reason, n in Counter(errors.values()).most_common(5):
            render.say(f"no energy above the hull for {n}: {reason}")
    elif above is not None and all(value is None for value in above):
        above = None
    rmsd = None if relaxed is None else relaxation_rmsds(structures, relaxed)
    return mattergen_metrics(metrics, e_above_hull=above, rmsd=rmsd, failed=failed)


def relax(structures: Sequence[Structure], name: str) -> tuple[list[float | None], list[Structure | None]]:
    """Return (eV/atom or ``None``, relaxed crystal or ``None``) per crystal; one that fails never stops it.

    Raises
    ------
    CommandFailed
        If there is no such calculator.
    """
    from inv_design.calculators.registry import get_calculator
    from inv_design.mechanics.relax import relax_structures
    from inv_design.structures.matching import unmatchable

    try:
        calculator = get_calculator(name)
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise CommandFailed(" ".join(str(error).split())) from None
    sound = [i for i, structure in enumerate(structures) if unmatchable(structure) is None]
    energies: list[float | None] = [None] * len(structures)
    relaxed: list[Structure | None] = [None] * len(structures)
    for i, result in zip(sound, relax_structures([structures[i] for i in sound], calculator), strict=True):
        if result.error is None and result.structure is not None:
            energies[i], relaxed[i] = result.energy_per_atom, result.structure
    return energies, relaxed


def read_hull(path: str) -> Hull:
    """Return the convex hull of a file.

    Raises
    ------
    CommandFailed
        If it cannot be read.
    """
    from inv_design.metrics.stability import Hull

    try:
        return Hull.from_file(path)
    except FileNotFoundError:
        raise CommandFailed(f"{path} does not exist; check the path") from None
    except (ValueError, OSError) as error:
        raise CommandFailed(str(error)) from None


def relaxed_structures(path: str, items: Sequence[ReadItem]) -> list[Structure | None]:
    """Return the relaxed crystal of each readable one of ``items``, ``None`` where it is not readable.

    Raises
    ------
    CommandFailed
        If the file has another number of entries.
    """
    after = list(read_files([path]))
    if len(after) != len(items):
        raise CommandFailed(f"{path} has {len(after)} entries for {len(items)} crystals; give one each, in their order")
    return [second.structure for first, second in zip(items, after, strict=True) if first.structure is not None]


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
    """Print the shares with their counts, the suites that were asked for, and the target error."""
    rows = [(name, *_cells(record[name]), meaning) for name, meaning in SHARES.items() if name in record]
    render.table(rows, ("metric", "share", "count", "meaning"), right=("share", "count"))
    for suite in SUITES:
        if suite in record:
            meanings = SHARES | MEANINGS
            rows = [(k, *_cells(v), meanings[k]) for k, v in record[suite].items() if k in meanings]
            click.echo(f"\n{suite}")
            render.table(rows, ("metric", "value", "count", "meaning"), right=("value", "count"))
    target = record.get("target")
    if target and target["n"]:
        within = target["within_20"]
        click.echo(
            f"target {target['target']:g} GPa by {record['judge']}: mean relative error {100 * target['mape']:.1f} %, "
            f"median {target['median']:.1f} GPa, within 20 %: {within['count']} of {within['total']}"
        )
        if target["missing"]:
            click.echo(f"{target['missing']} crystals have no value")


def _cells(value: Any) -> tuple[str, str]:
    """Return a value and its count as text: of a share, of a mean with its number, of a plain number."""
    if isinstance(value, dict) and "fraction" in value:
        share = "-" if value["fraction"] is None else f"{100 * value['fraction']:.1f} %"
        return share, f"{value['count']} of {value['total']}"
    if isinstance(value, dict):
        return _text(value["mean"]), str(value["n"])
    return _text(value), ""


def _text(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
