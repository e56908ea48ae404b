"""The trust report: predictor, potential and label side by side, as figures and as a section of a page."""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.metrics.trust import (
    PAIRS,
    PATHS,
    VERDICTS,
    Judgement,
    Row,
    agreements,
    before_and_after,
    confusion,
    unknown,
    verdict_shares,
)
from inv_design.report.figures import GRID, INK, MUTED, ROUND_COLOURS, STYLE, TARGET, TRAINING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 40
"""Candidates that a table or a figure shows at most."""
VERDICT_COLOURS = {"hit": "#2e7d4f", "miss": TARGET, "failed": "#e0a100", "not labelled": "#9fb0bf"}
TITLES = {"predictor": "Predictor", "mlip": "Potential", "label": "Label"}
MISS = "A miss is a label outside a target's window, or one that a quality flag puts in doubt."
SHARES = {
    "stage_I_by_II": "of what stage I passed, stage II passed",
    "stage_II_by_III": "of what both passed and was labelled, are hits (precision)",
    "stage_II_misses": "of what stage II rejected and was labelled all the same, are hits",
}


@dataclass(frozen=True)
class Trust:
    """How far a campaign's judges can be trusted.

    Attributes
    ----------
    label
        What the labels are by; a surrogate is called one.
    base
        Structure id -> what the configured potential says, where a fine-tuned one judged.
    learned
        Round -> ids of the calculations that its fine-tuned potential learned from.
    target, tolerance
        K wanted, GPa, and the relative window around it in which a label is a hit.
    """

    campaign: str
    rows: list[Row]
    label: str
    target: float
    tolerance: float
    base: Mapping[str, Judgement]
    learned: Mapping[int, frozenset[str]]

    @property
    def compared(self) -> list[Row]:
        """The candidates that two judges or more have a value for: labelled ones first, then by round and formula."""
        both = [r for r in self.rows if len(r.judgements) > 1]
        return sorted(both, key=lambda r: ("label" not in r.judgements, r.round, r.formula, r.candidate_id))

    def record(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "campaign": self.campaign,
            "label": self.label,
            "target": self.target,
            "tolerance": self.tolerance,
            "pairs": agreements(self.rows),
            "confusion": confusion(self.rows),
            "shares": verdict_shares(self.rows),
            "unknown": unknown(self.rows),
            "fine_tuning": before_and_after(self.rows, self.base, self.learned),
            "candidates": [row.record() for row in self.compared],
        }


# -- figures ----------------------------------------------------------------------------------------------------------


def parities(trust: Trust, form: str = "svg") -> bytes:
    """Return the parity plots of the three pairs of judges, beside each other, as ``svg`` or ``png``."""
    return _drawn(10.2, 3.9, form, lambda figure: _parities(figure.subplots(1, 3), trust))


def ladder(trust: Trust, form: str = "svg") -> bytes:
    """Return the labelled candidates as rows, each with what predictor, potential and label say of it."""
    rows = _ladder_rows(trust)
    return _drawn(9.4, 1.1 + 0.23 * max(len(rows), 2), form, lambda figure: _ladder(figure.subplots(), trust, rows))


def tuning(trust: Trust, form: str = "svg") -> bytes:
    """Return the potential before and after fine-tuning against the labels, an arrow per held-out candidate."""
    return _drawn(4.6, 4.2, form, lambda figure: _tuning(figure.subplots(), trust))


def overview(trust: Trust, form: str = "png") -> bytes:
    """Return parity plots and candidates in one picture."""
    rows = _ladder_rows(trust)
    height = 1.1 + 0.23 * max(len(rows), 2)

    def draw(figure: Figure) -> None:
        parts = figure.subfigures(2, 1, height_ratios=(3.9, height), squeeze=False)
        _parities(parts[0, 0].subplots(1, 3), trust)
        _ladder(parts[1, 0].subplots(), trust, rows)

    return _drawn(10.2, 3.9 + height, form, draw)


def _drawn(width: float, height: float, form: str, draw: Any) -> bytes:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        if form == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        else:
            figure.savefig(buffer, format=form, dpi=150, facecolor="white")
    return buffer.getvalue()


def _parities(axes: Sequence[Axes], trust: Trust) -> None:
    for axis, (judge, reference) in zip(axes, PAIRS, strict=True):
        sound = [
            r
            for r in trust.rows
            if {judge, reference} <= r.judgements.keys()
            and not r.judgements[judge].doubts
            and not r.judgements[reference].doubts
        ]
        axis.set_title(f"{TITLES[judge]} against {TITLES[reference].lower()}")
        if not sound:
            axis.text(0.5, 0.5, "no candidate has both", transform=axis.transAxes, ha="center", color=MUTED)
            axis.set_axis_off()
            continue
        x, y = ([r.judgements[side].value for r in sound] for side in (reference, judge))
        # what is far off must not squeeze the rest; it is drawn at the edge
        high = float(min(max(*x, *y), 1.3 * max(np.percentile([*x, *y], 97), trust.target))) * 1.05
        low = max(0.0, 0.85 * float(np.percentile([*x, *y], 1)))
        line = np.array([low, high])
        axis.fill_between(line, 0.8 * line, 1.2 * line, color=TRAINING, alpha=0.3, lw=0)
        axis.plot(line, line, color=MUTED, lw=0.8)
        for side in (axis.axvline, axis.axhline):
            side(trust.target, color=TARGET, lw=0.8, ls=":")
        for verdict, colour in VERDICT_COLOURS.items():
            mine = [r for r in sound if r.verdict == verdict]
            if not mine:
                continue
            across = np.clip([r.judgements[reference].value for r in mine], low, high)
            up = np.clip([r.judgements[judge].value for r in mine], low, high)
            std = [r.judgements[judge].std or 0.0 for r in mine]
            dim = verdict == "not labelled"
            if any(std):
                axis.errorbar(
                    across, up, yerr=std, fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.25 if dim else 0.5
                )
            axis.scatter(across, up, s=12 if dim else 20, color=colour, alpha=0.6 if dim else 0.9, lw=0,
                         zorder=2 if dim else 3, label=f"{verdict} ({len(mine)})")  # fmt: skip
        relative = np.array(y) / np.array(x) - 1
        text = f"n = {len(sound)}\n|dev.| {100 * np.abs(relative).mean():.0f} %, bias {100 * relative.mean():+.0f} %"
        axis.text(0.04, 0.97, text, transform=axis.transAxes, va="top", fontsize=8)
        axis.set_xlim(low, high)
        axis.set_ylim(low, high)
        axis.set_aspect("equal")
        axis.set_xlabel(f"K by {_who(sound, reference, trust)} (GPa)")
        axis.set_ylabel(f"K by {_who(sound, judge, trust)} (GPa)")
        axis.legend(loc="lower right", fontsize=7, handletextpad=0.2, borderpad=0.2)


def _who(rows: Sequence[Row], judge: str, trust: Trust) -> str:
    if judge == "label":
        return trust.label
    methods = list(dict.fromkeys(r.judgements[judge].method for r in rows))
    return methods[0] if len(methods) == 1 else f"{methods[0]}, fine-tuned"


def _ladder_rows(trust: Trust) -> list[Row]:
    """Return the labelled candidates by their labels, the hits nearest to the target where there are too many."""
    labelled = [r for r in trust.rows if "label" in r.judgements]
    near = sorted(labelled, key=lambda r: abs(r.judgements["label"].value - trust.target))[:SHOWN]
    return sorted(near, key=lambda r: (r.judgements["label"].value, r.candidate_id))


def _ladder(axis: Axes, trust: Trust, rows: Sequence[Row]) -> None:
    axis.set_title("Labelled candidates, each by all its judges")
    axis.axvspan(
        trust.target * (1 - trust.tolerance), trust.target * (1 + trust.tolerance), color=TARGET, alpha=0.08, lw=0
    )
    axis.axvline(trust.target, color=TARGET, lw=1)
    styles: dict[str, dict[str, Any]] = {
        "predictor": {"marker": "s", "color": ROUND_COLOURS[0], "s": 26},
        "mlip": {"marker": "o", "color": ROUND_COLOURS[2], "s": 30},
        "label": {"marker": "D", "color": INK, "s": 26},
    }
    for place, row in enumerate(rows):
        values = [j.value for j in row.judgements.values()]
        axis.plot([min(values), max(values)], [place, place], color=GRID, lw=3, zorder=0, solid_capstyle="round")
        predicted = row.judgements.get("predictor")
        if predicted is not None and predicted.std:
            axis.errorbar(predicted.value, place, xerr=predicted.std, fmt="none", ecolor=ROUND_COLOURS[0], elinewidth=1)
    for judge, style in styles.items():
        chosen = [(row.judgements[judge].value, place) for place, row in enumerate(rows) if judge in row.judgements]
        if chosen:
            who = _who([r for r in rows if judge in r.judgements], judge, trust)
            axis.scatter(*zip(*chosen, strict=True), lw=0, zorder=3, label=who, **style)
    axis.set_yticks(
        range(len(rows)), [f"{r.formula} · {r.round}{' · audit' if r.audited else ''}" for r in rows], fontsize=7.5
    )
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_color(VERDICT_COLOURS[row.verdict])
    axis.set_ylim(-0.8, max(len(rows), 1) - 0.2)
    axis.grid(axis="x", color=GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.set_xlabel("Bulk modulus K (GPa)")
    if rows:
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=7.5)


def _tuning(axis: Axes, trust: Trust) -> None:
    pairs = []
    for row in trust.rows:
        base, mine, label = trust.base.get(row.structure_id), row.judgements.get("mlip"), row.judgements.get("label")
        known = trust.learned.get(row.round)
        if known is not None and row.label_id not in known and base and mine and label:
            pairs.append((label.value, base.value, mine.value))
    values = np.array(pairs)
    low, high = 0.9 * float(values.min()), 1.06 * float(values.max())
    line = np.array([low, high])
    axis.fill_between(line, 0.8 * line, 1.2 * line, color=TRAINING, alpha=0.3, lw=0)
    axis.plot(line, line, color=MUTED, lw=0.8)
    for at, before, after in pairs:
        axis.annotate("", (at, after), (at, before), arrowprops={"arrowstyle": "->", "color": MUTED, "lw": 0.7})
    axis.scatter(values[:, 0], values[:, 1], s=20, facecolors="white", edgecolors=MUTED, label="before", zorder=3)
    axis.scatter(values[:, 0], values[:, 2], s=20, color=ROUND_COLOURS[2], lw=0, label="after fine-tuning", zorder=4)
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")
    axis.set_title(f"Held-out candidates, n = {len(pairs)}")
    axis.set_xlabel(f"K by {trust.label} (GPa)")
    axis.set_ylabel("K by the potential (GPa)")
    axis.legend(loc="upper left", fontsize=8)


# -- the section of a page --------------------------------------------------------------------------------------------


def section(trust: Trust) -> str:
    """Return the trust report as HTML; empty where no two judges have seen the same candidate."""
    if not trust.compared:
        return ""
    record = trust.record()
    parts = [
        "<h2>Predictor, potential and label side by side</h2>",
        _figure(
            parities(trust),
            "Each point is a candidate, those beyond the frame at its edge; grey band ±20 %, dotted: the target. "
            "Candidates were chosen for what was predicted of them: errors are those of chosen crystals. Values "
            "that quality flags put in doubt are left out.",
        ),
        _pairs_table(record["pairs"], trust),
        "<h3>Verdicts of the stages against the label</h3>",
        _confusion_table(record["confusion"]),
        f"<p class='note'>{MISS}</p>",
        _shares(record["shares"]),
        "".join(f"<p class='note'>{escape(line)}</p>" for line in record["unknown"]),
        _tuning_part(record["fine_tuning"], trust),
    ]
    if any("label" in r.judgements for r in trust.rows):
        parts.append(
            _figure(
                ladder(trust),
                "Squares with bars: the predictor ± one standard deviation; circles: the potential; diamonds: "
                f"{trust.label}. Names are green for hits, red for misses; the number is the round.",
            )
        )
    return "".join(parts) + _candidates_table(trust)


def _figure(svg: bytes, caption: str) -> str:
    import base64

    uri = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    return f'<figure><img alt="{escape(caption)}" src="{uri}"><figcaption>{escape(caption)}</figcaption></figure>'


def percent(value: float | None, *, sign: bool = False) -> str:
    """Return a fraction as per cent, ``-`` for none."""
    return "-" if value is None else f"{100 * value:{'+' if sign else ''}.1f} %"


def _pairs_table(pairs: Sequence[Mapping[str, Any]], trust: Trust) -> str:
    head = (
        "<table><thead><tr><th>Judge</th><th>against</th><th class='n'>n</th><th class='n'>Mean |dev.|</th>"
        "<th class='n'>Median</th><th class='n'>Bias</th><th class='n'>Spearman</th><th class='n'>MAE log10</th>"
        "<th class='n'>Within 1σ / 2σ</th></tr></thead><tbody>"
    )
    body = "".join(
        f"<tr><td>{escape(p['method'])}</td><td>{escape(_reference(p, trust))}</td><td class='n'>{p['n']}"
        f"{_left_out(p)}</td><td class='n'>{percent(p.get('mean_relative_error'))}</td>"
        f"<td class='n'>{percent(p.get('median_relative_error'))}</td>"
        f"<td class='n'>{percent(p.get('bias'), sign=True)}</td><td class='n'>{_number(p.get('spearman'), 2)}</td>"
        f"<td class='n'>{_number(p.get('mae_log10'), 3)}</td><td class='n'>{_coverage(p)}</td></tr>"
        for p in pairs
    )
    return f"{head}{body}</tbody></table>"


def _reference(pair: Mapping[str, Any], trust: Trust) -> str:
    """Return whom a judge is measured against; a label by another method than the campaign's keeps its own name."""
    method = str(pair["reference_method"])
    return trust.label if pair["reference"] == "label" and method in trust.label.lower() else method


def _left_out(pair: Mapping[str, Any]) -> str:
    return f"<span class='method'>{pair['left_out']} in doubt</span>" if pair["left_out"] else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _coverage(pair: Mapping[str, Any]) -> str:
    if "coverage_1s" not in pair:
        return "-"
    return f"{100 * pair['coverage_1s']:.0f} / {100 * pair['coverage_2s']:.0f} % (68 / 95)"


def _confusion_table(table: Mapping[str, Mapping[str, int]]) -> str:
    colours = {"hit": "46,125,79", "miss": "209,73,91", "failed": "224,161,0", "not labelled": "102,117,133"}
    paths = [p for p in PATHS if sum(table[p].values())]
    head = "".join(f"<th class='n'>{verdict}</th>" for verdict in VERDICTS)
    body = ""
    for path in paths:
        total = sum(table[path].values())
        cells = "".join(
            f"<td class='n' style='background:rgba({colours[v]},{0.45 * n / total:.2f})'>{n}</td>"
            for v in VERDICTS
            for n in [table[path][v]]
        )
        body += f"<tr><td>{path}</td>{cells}<td class='n'><b>{total}</b></td></tr>"
    return (
        f"<table style='max-width:660px'><thead><tr><th>Candidates that</th>{head}<th class='n'>all</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _shares(shares: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        f"<li><b>{s['count']} of {s['total']}</b> {SHARES[name]}: {percent(s['fraction'])} "
        f"(95 % interval {percent(s['interval'][0])} to {percent(s['interval'][1])})</li>"
        for name, s in shares.items()
        if s["total"]
    ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _tuning_part(found: Sequence[Mapping[str, Any]], trust: Trust) -> str:
    if not found:
        return ""
    rows = "".join(
        f"<tr><td class='n'>{f['round']}</td><td>{escape(f['base'])} → {escape(f['method'])}</td>"
        f"<td class='n'>{f['learned']}</td><td class='n'>{f['n']}</td>"
        + "".join(
            f"<td class='n'>{percent(f[when].get(key), sign=key == 'bias')}</td>"
            for key in ("mean_relative_error", "bias")
            for when in ("before", "after")
        )
        + "</tr>"
        for f in found
    )
    return (
        "<h3>The potential before and after fine-tuning</h3><p class='note'>Each round's potential learned from the "
        "labels of the rounds before and is judged on this round's candidates, whose labels came later; on those that "
        "it passed, for stage II decides what is labelled.</p><div class='row'>"
        + _figure(tuning(trust), "Open: the configured potential; filled: the one that was fine-tuned for the round.")
        + "</div><table><thead><tr><th class='n'>Round</th><th>Potential</th><th class='n'>Labels learned</th>"
        "<th class='n'>n judged</th><th class='n'>|dev.| before</th><th class='n'>after</th>"
        f"<th class='n'>Bias before</th><th class='n'>after</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _candidates_table(trust: Trust) -> str:
    rows = trust.compared
    body = "".join(_candidate_row(r) for r in rows[:SHOWN])
    more = f" The first {SHOWN} of {len(rows)}; `inv-design trust --json` has all." if len(rows) > SHOWN else ""
    return (
        f"<h3>Candidates</h3><p class='note'>K in GPa. Deviations are from the label.{escape(more)}</p>"
        "<table><thead><tr><th>Crystal</th><th class='n'>Round</th>"
        "<th class='n'>Predictor</th><th class='n'>Potential</th>"
        f"<th class='n'>{escape(trust.label)}</th><th class='n'>I - III</th><th class='n'>II - III</th><th>Verdict</th>"
        f"</tr></thead><tbody>{body}</tbody></table>"
    )


def _candidate_row(row: Row) -> str:
    cells = []
    for judge in ("predictor", "mlip", "label"):
        found = row.judgements.get(judge)
        std = f" ± {found.std:.0f}" if found and found.std else ""
        doubt = "<span class='method'>in doubt</span>" if found and found.doubts else ""
        cells.append("<td class='n'>-</td>" if found is None else f"<td class='n'>{found.value:.0f}{std}{doubt}</td>")
    deviations = "".join(
        f"<td class='n'>{percent(row.deviation(judge, 'label'), sign=True)}</td>" for judge in ("predictor", "mlip")
    )
    colour = VERDICT_COLOURS[row.verdict]
    note = " (audit)" if row.audited else ""
    return (
        f"<tr><td><b>{escape(row.formula)}</b> <span class='id'>{escape(row.candidate_id)}</span></td>"
        f"<td class='n'>{row.round}</td>{''.join(cells)}{deviations}"
        f"<td style='color:{colour}'>{row.verdict}{note}<span class='method'>{escape(row.path)}</span></td></tr>"
    )


def page(trust: Trust, created_at: str) -> str:
    """Return the trust report as one self-contained HTML page."""
    from importlib import resources
    from string import Template

    template = Template(resources.files("inv_design.report").joinpath("template.html").read_text())
    banner = ""
    if "surrogate" in trust.label.lower():
        banner = f'<p class="banner"><b>Rehearsal.</b> The labels come from {escape(trust.label)}, not from DFT.</p>'
    head = (
        f"<header><h1>{escape(trust.campaign)}: what to trust</h1><p class='lead'>K wanted: {trust.target:g} GPa · "
        f"{escape(created_at)}. Labels: {escape(trust.label)}.</p>{banner}</header>"
    )
    body = section(trust) or "<p>No candidate has been judged twice yet.</p>"
    return template.substitute(title=escape(f"{trust.campaign} · trust report"), body=head + body)
