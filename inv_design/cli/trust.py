"""`trust`: predictor, potential and label side by side, and how often the stages' verdicts held."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import NothingMatched
from inv_design.cli.options import Settings, campaign_options, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inv_design.report.trust import Trust

SUFFIXES = (".html", ".png", ".svg", ".pdf")
CANDIDATES = 20
"""Candidates that the terminal shows; with -v all."""


@click.command()
@click.option("--round", "rounds", type=click.IntRange(min=0), multiple=True, help="Only this round; may be repeated.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write a page (.html) or a picture (.png, .svg, .pdf) instead.",
)  # fmt: skip
@json_option
@campaign_options
@click.pass_obj
def trust(settings: Settings, rounds: tuple[int, ...], output: Path | None) -> None:
    """Show how far predictor, potential and stages can be trusted.

    Of each candidate the bulk moduli by predictor, potential and label (DFT, or a surrogate, called one) side by side;
    of each pair of judges errors, bias, rank correlation and the coverage of the predictor's intervals; the table of
    the stages' verdicts against the label, and what it does not tell. Exit code 3 if no candidate was judged twice.
    """
    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise click.BadParameter(f"{output} must end in {', '.join(SUFFIXES)}", param_hint="-o")
    from inv_design.cli.database import campaign_config, campaign_name, open_database
    from inv_design.cli.report_data import hit_window
    from inv_design.cli.trust_data import collect_trust
    from inv_design.config import CampaignConfig

    connection = open_database(settings, read_only=True)
    name = campaign_name(settings)
    config = CampaignConfig.model_validate(campaign_config(name))
    found = collect_trust(connection.db, config, tolerance=hit_window(config), rounds=rounds)
    if not found.compared:
        raise NothingMatched(f"no candidate of {name} has values by two judges yet; see `inv-design status`")
    if output is not None:
        write(found, output)
        render.say(f"wrote {output}")
    elif settings.as_json:
        render.json_document(found.record())
    else:
        show(found, full=bool(settings.verbose))


def write(found: Trust, output: Path) -> None:
    """Write the report as a page or a picture, by the suffix."""
    from inv_design.report import trust as report

    output.parent.mkdir(parents=True, exist_ok=True)
    form = output.suffix.lower().removeprefix(".")
    if form == "html":
        output.write_text(report.page(found, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"), encoding="utf-8")
    else:
        output.write_bytes(report.overview(found, form))


def show(found: Trust, *, full: bool) -> None:
    """Print the tables."""
    from inv_design.metrics.trust import PATHS, VERDICTS
    from inv_design.report.trust import MISS, SHARES, percent

    record = found.record()
    columns = (
        "judge", "against", "n", "in doubt", "mean |dev.|", "median", "bias", "Spearman", "MAE log10", "within 1σ",
        "2σ",
    )  # fmt: skip
    render.table([_pair_row(p) for p in record["pairs"]], columns, right=columns[2:])
    click.echo()
    table = record["confusion"]
    rows = [(path, *(table[path][v] for v in VERDICTS)) for path in PATHS if sum(table[path].values())]
    render.table(rows, ("candidates that", *VERDICTS), right=VERDICTS)
    for name, share in record["shares"].items():
        if share["total"]:
            low, high = share["interval"]
            click.echo(
                f"{share['count']} of {share['total']} {SHARES[name]}: {percent(share['fraction'])} "
                f"(95 % interval {percent(low)} to {percent(high)})"
            )
    for item in record["fine_tuning"]:
        before, after = item["before"], item["after"]
        click.echo(
            f"round {item['round']}: fine-tuned on {item['learned']} labels: "
            f"{percent(after.get('mean_relative_error'))} off the labels of {item['n']} candidates that came later; "
            f"{item['base']}: {percent(before.get('mean_relative_error'))} off the same"
        )
    click.echo()
    compared = found.compared if full else found.compared[:CANDIDATES]
    names = ("id", "formula", "round", "predictor", "potential", "label", "I - III", "II - III", "verdict", "path")
    render.table([_candidate_row(r) for r in compared], names, right=names[2:8])
    if any(row.verdict == "miss" for row in found.rows):
        render.say(MISS[0].lower() + MISS[1:-1])
    if any(judgement.doubts for row in compared for judgement in row.judgements.values()):
        render.say("?: a quality flag puts the value in doubt, `inv-design show ID` names it; errors leave it out")
    for line in record["unknown"]:
        render.say(f"not known: {line}")
    if "surrogate" in found.label.lower():
        render.say(f"labels are by {found.label}, not by DFT")
    if len(compared) < len(found.compared):
        render.say(f"{len(compared)} of {len(found.compared)} candidates; -v shows all")


def _pair_row(pair: Mapping[str, Any]) -> tuple[Any, ...]:
    from inv_design.report.trust import percent

    return (
        pair["method"], pair["reference_method"], pair["n"], pair["left_out"], percent(pair.get("mean_relative_error")),
        percent(pair.get("median_relative_error")), percent(pair.get("bias"), sign=True), pair.get("spearman"),
        pair.get("mae_log10"), percent(pair.get("coverage_1s")), percent(pair.get("coverage_2s")),
    )  # fmt: skip


def _candidate_row(row: Any) -> tuple[Any, ...]:
    from inv_design.report.trust import percent

    texts = []
    for judge in ("predictor", "mlip", "label"):
        found = row.judgements.get(judge)
        std = f" ± {found.std:.0f}" if found and found.std else ""
        texts.append("-" if found is None else f"{found.value:.0f}{std}{' ?' if found.doubts else ''}")
    deviations = [percent(row.deviation(judge, "label"), sign=True) for judge in ("predictor", "mlip")]
    return (
        row.candidate_id, row.formula, row.round, *texts, *deviations,
        row.verdict + (" (audit)" if row.audited else ""), row.path,
    )  # fmt: skip
