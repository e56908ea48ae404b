"""`query`: candidates that match conditions, as a table, JSON, csv, extxyz or CIF files."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.crystals import crystal_of, crystal_option, load_crystals, with_crystals
from inv_design.cli.errors import NothingMatched
from inv_design.cli.filters import element_filter, option, place_filter, sort_keys, where_filter
from inv_design.cli.options import Settings, campaign_options, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

FORMATS = ("table", "json", "csv", "extxyz", "cif")
SUFFIX_FORMATS = {".json": "json", ".csv": "csv", ".extxyz": "extxyz", ".xyz": "extxyz", ".cif": "cif", ".zip": "cif"}
TABLE_LIMIT = 50
COUNTED = 1000
"""How many candidates beyond a page are counted; a server without the index would read them all."""


@click.command()
@click.option(
    "-w", "--where", multiple=True, metavar="COND", help="K=340..360, K>=300, status=passed, stages.mlip.value<400 ..."
)
@click.option("--elements", multiple=True, metavar="E,E", help="Contains all of these elements.")
@click.option("--any-of", multiple=True, metavar="E,E", help="Contains at least one of these elements.")
@click.option("--without", multiple=True, metavar="E,E", help="Contains none of these elements.")
@click.option("--stage", type=click.Choice(("generated", "predictor", "mlip", "dft")), help="Last stage entered.")
@click.option(
    "--status", type=click.Choice(("passed", "rejected", "failed", "waiting")), help="What became of it there."
)
@click.option("--round", "rounds", type=click.IntRange(min=0), multiple=True, help="Round; may be repeated.")
@click.option(
    "--protocol", "protocols", multiple=True, metavar="[STAGE=]ID", help="With a result by this protocol, of any stage."
)
@click.option(
    "--sort",
    multiple=True,
    metavar="FIELD",
    help="Sort by a field, -FIELD for largest first; without a value last.  [default: round]",
)
@click.option(
    "--pareto",
    metavar="FIELDS",
    help="Order by Pareto front: K,G,-density (more is better; with -, less), or 'objectives': the campaign's.",
)
@click.option("--fronts", type=click.IntRange(min=1), help="With --pareto: only so many fronts, 1 for the best alone.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"At most so many, 0 for all.  [default: {TABLE_LIMIT} in a table, else all]",
)
@click.option("--skip", type=click.IntRange(min=0), default=0, help="Leave out the first so many.")
@click.option("--after", metavar="ID", help="Go on after this candidate: the last one of the page before.")
@click.option("-f", "--format", "form", type=click.Choice(FORMATS), help="What to write.  [default: by -o, else table]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File, or folder for CIF.  [default: standard output]"
)
@crystal_option
@json_option
@campaign_options
@click.pass_obj
def query(
    settings: Settings,
    *,
    where: tuple[str, ...],
    elements: tuple[str, ...],
    any_of: tuple[str, ...],
    without: tuple[str, ...],
    stage: str | None,
    status: str | None,
    rounds: tuple[int, ...],
    protocols: tuple[str, ...],
    sort: tuple[str, ...],
    pareto: str | None,
    fronts: int | None,
    limit: int | None,
    skip: int,
    after: str | None,
    form: str | None,
    output: Path | None,
    crystal: str,
) -> None:
    """List candidates that match conditions.

    Conditions are joined by "and". With --pareto, each candidate has its front among all that match (pareto_rank, 0
    the best: no other is at least as good in all fields and better in one; null without all the values), and --sort
    orders within a front. Exit code 3 if nothing matches.
    """
    if fronts and not pareto:
        raise click.UsageError("--fronts needs --pareto FIELDS, such as --pareto K,-density")
    if settings.as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} exclude each other; leave one out")
    form = form or (
        "json" if settings.as_json else SUFFIX_FORMATS.get(output.suffix.lower(), "cif") if output else "table"
    )
    if form == "cif" and output is None:
        raise click.UsageError("CIF files need -o FOLDER (or a .cif or .zip file)")
    if after and (pareto or skip):
        raise click.UsageError("--after goes with --sort; leave out --pareto and --skip")
    conditions = [element_filter(elements, any_of, without), place_filter(stage, status, rounds, protocols)]

    from inv_design.cli.database import campaign_name, open_database
    from stores import candidate_pages as pages
    from stores.conditions import merge

    open_database(settings, read_only=True)
    name = campaign_name(settings)
    fields = pages.asked_fields(name, where, sort, pareto or ())
    wanted = merge([{"campaign": name}, *conditions, where_filter(where, fields)])
    keys = sort_keys(sort, fields) or pages.DEFAULT_ORDER
    if limit is None:
        limit = TABLE_LIMIT if form == "table" else 0
    columns: list[str] = []
    if pareto:
        with option("--pareto"):
            criteria = pages.pareto_criteria(pareto, fields, name)
        columns = [field for field, _ in criteria]
        documents, total = pages.pareto_page(wanted, keys, criteria, fronts=fronts, skip=skip, limit=limit)
        more = ""
        if total > len(documents):
            more = f"{len(documents)} of {total} candidates; --limit 0 shows all, --skip the next ones"
    else:
        documents = pages.page(wanted, keys, limit=limit and limit + 1, skip=skip, after=after)
        more = told_apart(wanted, documents, limit, skip if not after else None)
        documents = documents[: limit or None]
    if settings.verbose:
        render.say(index_line(wanted, [] if pareto else keys))
    if not documents:
        if form == "json" and output is None:
            render.json_document([])
        raise NothingMatched(nothing(name, wanted, skip, after))
    write(documents, form, output, columns=columns, crystal=crystal)
    if more:
        render.say(more)


def told_apart(wanted: dict[str, Any], documents: Sequence[Mapping[str, Any]], limit: int, skip: int | None) -> str:
    """Return how many of how many are shown and how to see the next, ``""`` if these are all.

    Parameters
    ----------
    documents
        The page, and one more where there are more.
    skip
        How many were left out before it, ``None`` if that is not known.
    """
    from stores.candidate_pages import count_candidates

    if not limit or len(documents) <= limit:
        return f"the last {len(documents)} of {skip + len(documents)} candidates" if skip and documents else ""
    following = f"--limit 0 shows all, --after {documents[limit - 1]['candidate_id']} the next ones"
    if skip is None:
        return f"{limit} candidates, and more; {following}"
    most = skip + limit + COUNTED
    total = count_candidates(wanted, limit=most + 1)
    return f"{limit} of {total if total <= most else f'more than {most}'} candidates; {following}"


def index_line(wanted: dict[str, Any], keys: list[tuple[str, int]]) -> str:
    """Return which index serves a question on this store, or that none does."""
    from stores.candidate_pages import explained

    plans = explained(wanted, keys)
    if plans is None:
        return "index: this server does not say which"
    if any(name is None for name, _ in plans):
        return "index: none serves this question, so that all candidates are read"
    names = ", ".join(dict.fromkeys(str(name) for name, _ in plans))
    ordered = all(ordered for _, ordered in plans)
    return f"index: {names}" if ordered else f"index: {names}; the matches are then sorted"


def nothing(campaign: str, wanted: dict[str, Any], skip: int, after: str | None) -> str:
    """Return the line for a query without result: which of the conditions leave nothing."""
    from stores.candidate_pages import count_candidates

    total = count_candidates({"campaign": campaign})
    if not total:
        return f"campaign {campaign!r} has no candidates yet; `inv-design run` makes some"
    if skip and (found := count_candidates(wanted)):
        return f"nothing left after --skip {skip}: {found} candidates match"
    if after and count_candidates(wanted, limit=1):
        return f"nothing left after {after}: it is the last in this order"
    return f"no candidate matches; campaign {campaign!r} has {total}"


def write(
    documents: list[dict[str, Any]], form: str, output: Path | None, *, columns: Sequence[str] = (), crystal: str
) -> None:
    """Write summaries in a format to a file or to standard output; a table has further ``columns``."""
    if form in ("extxyz", "cif"):
        write_crystals(documents, form, output, crystal=crystal)
        return
    documents = with_crystals(documents, crystal)
    if output is None:
        _write_text(documents, form, sys.stdout, columns=columns)
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w", newline="") as file:
            _write_text(documents, form, file, columns=columns)
        render.say(f"wrote {len(documents)} candidates to {output}")


def _write_text(documents: list[dict[str, Any]], form: str, stream: TextIO, *, columns: Sequence[str]) -> None:
    if form == "json":
        stream.write(json.dumps(render.plain(documents), ensure_ascii=False, allow_nan=False, indent=2) + "\n")
    elif form == "csv":
        rows = [flat(d) for d in documents]
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif stream is sys.stdout:
        show_table(documents, fields=columns)
    else:
        raise click.UsageError("a table goes to the terminal; choose --format json or csv for a file")


def show_table(documents: list[dict[str, Any]], *, fields: Sequence[str] = ()) -> None:
    """Print one line per candidate, with its Pareto front and the fields that decided it, if any."""
    from inv_design.cli.budgets import beyond_budget, spent_budgets
    from stores.candidate_pages import number_at
    from stores.connection import current

    waiting = {d["campaign"] for d in documents if d.get("status") == "waiting"}
    spent = spent_budgets(current().db, waiting) if waiting else frozenset()
    further = {f.removeprefix("properties."): f for f in fields if not f.endswith("bulk_modulus_vrh")}
    fronts = ("front",) if fields else ()
    columns = (
        "id", "formula", "K (GPa)", "by", *further, *fronts, "stage", "status", "round", "space group",
        "crystal", "Born", "reason",
    )  # fmt: skip
    rows = [
        (
            d.get("candidate_id"), d.get("formula"), modulus(d.get("bulk_modulus_vrh")), d.get("bulk_modulus_method"),
            *(number(number_at(d, field)) for field in further.values()), *(d.get("pareto_rank") for _ in fronts),
            d.get("stage"), d.get("status"), d.get("round"), spacegroup(d.get("crystal_spacegroup")),
            d["crystal"], d.get("born_stable"), d.get("reason") or beyond_budget(d, spent) or None,
        )
        for d in documents
    ]  # fmt: skip
    render.table(rows, columns, right=("round", "K (GPa)", *further, *fronts), cut="reason")


def spacegroup(group: Any) -> str:
    """Return symbol and number of a space group as ``structures`` has it, or ``-``."""
    if isinstance(group, dict):
        return f"{group.get('symbol', '?')} ({group.get('number', '?')})" if group else "-"
    return str(group) if group else "-"


def modulus(value: float | None) -> str:
    """Return a modulus with one decimal, or ``-``."""
    return "-" if value is None else f"{value:.1f}"


def number(value: float | None) -> str:
    """Return a number with four figures, or ``-``."""
    return "-" if value is None else f"{value:.4g}"


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a document as one level of dotted columns; lists are joined by spaces, or JSON."""
    row: dict[str, Any] = {}
    for name, value in document.items():
        if name == "provenance":
            continue
        if isinstance(value, dict):
            row.update(flat(value, f"{prefix}{name}."))
        elif isinstance(value, list):
            simple = all(not isinstance(item, dict | list) for item in value)
            row[f"{prefix}{name}"] = " ".join(map(str, value)) if simple else json.dumps(render.plain(value))
        else:
            row[f"{prefix}{name}"] = render.plain(value)
    return row


def write_crystals(
    documents: Sequence[dict[str, Any]], form: str, output: Path | None, *, crystal: str = "relaxed"
) -> None:
    """Write the crystals of summaries with their ids and key numbers, in order."""
    import tempfile

    from inv_design.structures.files import write_structures

    suffix = output.suffix.lower() if output is not None else ".extxyz"
    allowed = (".extxyz", ".xyz") if form == "extxyz" else ("", ".cif", ".zip")
    if suffix not in allowed:
        raise click.BadParameter(
            f"{output} does not fit --format {form}; end it in {' or '.join(a or '(no suffix)' for a in allowed)}",
            param_hint="-o",
        )
    chosen = [crystal_of(d, crystal) for d in documents]
    crystals = load_crystals([c["crystal_structure_id"] for c in chosen])
    pairs = [
        (crystals[c["crystal_structure_id"]], {**key_numbers(d), **{k: v for k, v in c.items() if v is not None}})
        for d, c in zip(documents, chosen, strict=True)
        if c["crystal_structure_id"] in crystals
    ]
    if missing := len(documents) - len(pairs):
        render.say(f"warning: {missing} crystals are not in this database and are left out")
    if output is not None:
        render.say(f"wrote {write_structures(output, pairs)} crystals to {output}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidates.extxyz"
        write_structures(path, pairs)
        sys.stdout.write(path.read_text())


def key_numbers(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a file of crystals says about each: ids, stage, status and the best number."""
    names = (
        "candidate_id", "structure_id", "round", "stage", "status", "bulk_modulus_vrh", "bulk_modulus_method",
        "born_stable", "generator_model_id", "seed", "condition",
    )  # fmt: skip
    return {"id": document["candidate_id"], **{n: document[n] for n in names if document.get(n) is not None}}
