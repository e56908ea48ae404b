"""`generate`: crystals for a target property."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.inputs import parse_elements, parse_targets
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from inv_design.generators.protocol import Generator, Sample

SUFFIXES = (".extxyz", ".xyz", ".json", ".jsonl", ".csv", ".cif", ".zip", "")


@click.command()
@click.option(
    "-t", "--target", "targets", multiple=True, metavar="P=V",
    help="Such as bulk_modulus=350 or K=350; repeat it for several properties at once (G, density ...).",
)  # fmt: skip
@click.option("-n", "--number", type=click.IntRange(min=1), default=10, show_default=True, help="Number of crystals.")
@click.option(
    "-m", "--model", metavar="M", help="Model id, .safetensors file or generator's name.  [default: the packaged one]"
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed, the same crystals."
)
@click.option("--elements", multiple=True, metavar="E,E", help="Only these elements (or groups such as metals).")
@click.option("--exclude", multiple=True, metavar="E,E", help="None of these elements (or groups such as actinides).")
@click.option("--max-sites", type=click.IntRange(min=1), help="Largest number of atoms in the primitive cell.")
@click.option("--sites", type=click.IntRange(min=1), help="Exact number of atoms in the primitive cell.")
@click.option("--composition", metavar="FORMULA", help="Reduced formula, such as Re3W.")
@click.option("--crystal-system", metavar="S", help="Such as cubic or hexagonal.")
@click.option(
    "--conditioning",
    type=click.Choice(("given", "filled")),
    help="What the prior sees: only what is asked for, or the rest too, lent by training crystals near the target.",
)
@click.option(
    "--latent-filter",
    type=click.IntRange(min=1),
    help="Keep the best of so many latents by predicted property; 1: off.",
)
@click.option(
    "--rank",
    type=click.Choice(("decoded", "latent")),
    help="What the filter ranks by: the decoded cell, or the latent.",
)
@click.option("--guidance", type=click.FloatRange(min=0), help="Classifier-free guidance factor; 1: conditional only.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path),
    help="File (.extxyz, .json, .jsonl, .csv, .cif, .zip of CIFs) or folder of CIFs.",
)  # fmt: skip
@json_option
@database_options
@click.pass_obj
def generate(
    settings: Settings,
    *,
    targets: tuple[str, ...],
    number: int,
    model: str | None,
    seed: int,
    elements: tuple[str, ...],
    exclude: tuple[str, ...],
    max_sites: int | None,
    sites: int | None,
    composition: str | None,
    crystal_system: str | None,
    conditioning: str | None,
    latent_filter: int | None,
    rank: str | None,
    guidance: float | None,
    output: Path,
) -> None:
    """Generate crystals for a target property, or several, and write them with ids, model, seed and condition.

    At least one target, number of sites, composition or crystal system must be given; what can be targeted is what
    the model was trained on.
    """
    wanted = parse_targets(targets)
    if not wanted and not (sites or composition or crystal_system):
        raise click.UsageError("give a --target such as bulk_modulus=350 (or --sites, --composition, --crystal-system)")
    banned, allowed = parse_elements(exclude), parse_elements(elements)
    if output.suffix.lower() not in SUFFIXES:
        raise click.BadParameter(
            f"suffix {output.suffix!r} is not one of {', '.join(SUFFIXES[:-1])}, or none (folder)", param_hint="-o"
        )

    from inv_design.cli.models import find_generator
    from inv_design.generators.protocol import Condition
    from inv_design.structures.files import write_structures

    condition = Condition(
        targets=wanted,
        exclude_elements=frozenset(banned),
        elements=frozenset(allowed) if allowed else None,
        max_sites=max_sites,
        sites=sites,
        composition=composition,
        crystal_system=None if crystal_system is None else crystal_system.lower(),
    )
    generator, label = find_generator(settings, model)
    generator = configured(
        generator, latent_filter=latent_filter, rank_with=rank, guidance=guidance, conditioning=conditioning
    )
    warn_of_extrapolation(generator, wanted)
    with render.progress("Generate", number) as bar, render.quiet():
        samples = generator.sample(number, condition, seed=seed, progress=bar)
        bar.update(len(samples), total=number)
    written = write_structures(output, [(s.structure, sample_properties(s, label)) for s in samples])
    report_result(settings, samples, written, label, output)


def configured(generator: Generator, **options: Any) -> Generator:
    """Return the generator with other sampling settings; options that are ``None`` were not given.

    Raises
    ------
    click.UsageError
        If it has no such settings, or refuses a value.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return generator
    with_settings = getattr(generator, "with_settings", None)
    flags = ", ".join(f"--{name.removesuffix('_with').replace('_', '-')}" for name in given)
    if with_settings is None:
        raise click.UsageError(f"the generator {generator.name} does not take {flags}")
    try:
        made: Generator = with_settings(**given)
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"the generator {generator.name} refuses {flags}: {error}") from None
    return made


def warn_of_extrapolation(generator: Generator, targets: dict[str, float]) -> None:
    """Say on standard error if a target lies outside what the generator has seen."""
    ranges = generator.capabilities().ranges
    for name, value in targets.items():
        low, high = ranges.get(name, (value, value))
        if not low <= value <= high:
            render.say(
                f"note: {name} {value:g} is outside {low:.0f} to {high:.0f}, the range that {generator.name} has seen"
            )


def sample_properties(sample: Sample, model: str) -> dict[str, Any]:
    """Return what a file says about a sample: id, place, model, seed, condition, score."""
    from inv_design.structures.identity import structure_id

    properties: dict[str, Any] = {
        "id": structure_id(sample.structure),
        "index": sample.index,
        "model": model,
        "seed": sample.seed,
        "condition": sample.condition,
    }
    if sample.score is not None:
        properties["score"] = float(sample.score)
    return properties


def report_result(settings: Settings, samples: list[Sample], written: int, model: str, output: Path) -> None:
    """Print what was made."""
    if settings.as_json:
        for sample in samples:
            formula = sample.structure.composition.reduced_formula
            render.json_line({**sample_properties(sample, model), "formula": formula, "nsites": len(sample.structure)})
        return
    if settings.verbose:
        rows = [
            (
                s.index,
                sample_properties(s, model)["id"],
                s.structure.composition.reduced_formula,
                len(s.structure),
                s.score,
            )
            for s in samples
        ]
        render.table(rows, ("#", "id", "formula", "sites", "score (GPa)"), right=("#", "sites", "score (GPa)"))
    render.say(f"wrote {written} crystals by {model} to {output}")
