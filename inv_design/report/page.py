"""The page: ReportData in, one self-contained HTML text out; it loads nothing from anywhere."""

from __future__ import annotations

import base64
import math
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from inv_design.report import figures, trust
from inv_design.report.data import STAGE_TITLES, element_shares

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inv_design.report.data import BestCandidate, ReportData, RoundData, StageCount, StageNumber


def render(data: ReportData) -> str:
    """Return the report of a campaign as one HTML page; sections without data are left out."""
    sections = (
        _header(data),
        _headline(data),
        _funnel(data),
        _distributions(data),
        _target_errors(data),
        _best(data),
        _pareto(data),
        _parities(data),
        trust.section(data.trust) if data.trust is not None else "",
        _latent(data),
        _elements(data),
        _provenance(data),
    )
    template = Template(resources.files("inv_design.report").joinpath("template.html").read_text())
    return template.substitute(
        title=escape(f"{data.campaign} · inverse design report"), body="\n".join(filter(None, sections))
    )


def _header(data: ReportData) -> str:
    rounds = len(data.rounds)
    label = f" Labels: {escape(data.label_method)}." if data.label_method else ""
    banner = ""
    if data.label_is_surrogate:
        banner = (
            f'<p class="banner"><b>Rehearsal.</b> The labels of stage III come from {escape(data.label_method)}, '
            "not from DFT; each number that it gave is marked as surrogate.</p>"
        )
    return (
        f"<header><h1>{escape(data.campaign)}</h1>"
        f'<p class="lead">Crystals with a bulk modulus of {_goals(data)} · {rounds} round{"s" * (rounds != 1)} · '
        f"{escape(data.created_at)}.{label}</p>{banner}</header>"
    )


def _goals(data: ReportData) -> str:
    """Return what is wanted, the bulk modulus first."""
    if not data.objectives:
        return f"{data.target:g} GPa"
    first, *others = data.objectives
    return escape("; ".join([first.text, *(f"{o.title}: {o.text}" for o in others)]))


def _headline(data: ReportData) -> str:
    generated = sum(r.generated for r in data.rounds)
    cards = [(f"{generated:,}", f"crystals generated in {len(data.rounds)} round{'s' * (len(data.rounds) != 1)}")]
    for stage, text in (("predictor", "passed the rules and the predictor"), ("mlip", "passed the MLIP stage")):
        passed = sum(s.passed for r in data.rounds for s in r.stages if s.stage == stage)
        cards.append((f"{passed:,}", f"{text}{_percent(passed, generated)}"))
    hits = data.hits()
    what = "surrogate labels" if data.label_is_surrogate else "labels"
    if hits:
        hit, labelled = (sum(x) for x in zip(*hits.values(), strict=True))
        window = f"within {100 * data.tolerance:g} % of {data.target:g} GPa"
        others = ", other targets met" if len(data.objectives) > 1 else ""
        cards.append((f"{hit} of {labelled}", f"{what} are hits ({window}{others}, no quality flag against it)"))
    labels = data.labels()
    if labels:
        last = max(labels)
        values = labels[last]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        cards.append((f"{mean:.0f} ± {spread:.0f}", f"GPa, {what} of round {last} (mean ± standard deviation)"))
    sizes = [r.training_size for r in data.rounds if r.training_size]
    if sizes:
        grown = f", from {sizes[0]:,} in round {data.rounds[0].number}" if sizes[-1] != sizes[0] else ""
        cards.append((f"{sizes[-1]:,}", f"crystals in the training set{grown}"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{v}</b><span>{escape(t)}</span></div>' for v, t in cards)
        + "</div>"
    )


def _percent(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.0f} %)" if whole else ""


def _funnel(data: ReportData) -> str:
    body = "".join(_funnel_round(r) for r in data.rounds)
    return (
        "<h2>Funnel</h2><p class='note'>Each candidate is counted once in each stage that it entered; "
        "a rejected one is listed under the first rule that it broke.</p>"
        '<div class="key"><span><i class="pass"></i>passed</span><span><i class="rej"></i>rejected</span>'
        '<span><i class="fail"></i>failed to compute</span><span><i class="wait"></i>waiting</span></div>'
        "<table><thead><tr><th>Round</th><th>Stage</th><th class='n'>In</th><th></th><th class='n'>Passed</th>"
        f"<th>Why not</th></tr></thead><tbody>{body}</tbody></table>"
    )


def _funnel_round(item: RoundData) -> str:
    first = f"<b>{item.number}</b><span class='method'>{item.generated:,} generated{_by(item)}</span>"
    rows = []
    for index, stage in enumerate(item.stages):
        head = f"<td rowspan='{len(item.stages)}'>{first}</td>" if index == 0 else ""
        method = f"<span class='method'>{escape(stage.method)}</span>" if stage.method else ""
        rows.append(
            f"<tr>{head}<td>{STAGE_TITLES.get(stage.stage, escape(stage.stage))}{method}</td>"
            f"<td class='n'>{stage.entered:,}</td><td>{_bar(stage)}</td><td class='n'><b>{stage.passed:,}</b></td>"
            f"<td class='note'>{_reasons(stage)}</td></tr>"
        )
    return "".join(rows)


def _by(item: RoundData) -> str:
    return f" by {escape(item.generator)}" if item.generator else ""


def _bar(stage: StageCount) -> str:
    if not stage.entered:
        return '<div class="bar"></div>'
    parts = (("pass", stage.passed), ("rej", stage.rejected), ("fail", stage.failed), ("wait", stage.waiting))
    inner = "".join(f'<i class="{kind}" style="width:{100 * n / stage.entered:.2f}%"></i>' for kind, n in parts if n)
    return f'<div class="bar">{inner}</div>'


def _reasons(stage: StageCount) -> str:
    parts = [f"{escape(rule.replace('_', ' '))} {n}" for rule, n in sorted(stage.reasons.items(), key=lambda i: -i[1])]
    if stage.failed:
        parts.append(f'<span class="warn">failed {stage.failed}</span>')
    if stage.waiting > stage.over_budget:
        parts.append(f"waiting {stage.waiting - stage.over_budget}")
    if stage.over_budget:
        parts.append(f"beyond the budget {stage.over_budget}")
    return " · ".join(parts) or "-"


def _distributions(data: ReportData) -> str:
    order = {stage: index for index, stage in enumerate(STAGE_TITLES)}
    judges = sorted({(order.get(d.stage, 9), d.stage, d.judge) for d in data.distributions if d.values})
    if not judges:
        return ""
    training = {r.number: data.training_for(r.number) for r in data.rounds}
    parts = []
    for _, stage, judge in judges:
        mine = [d for d in data.distributions if d.stage == stage and d.judge == judge]
        svg = figures.modulus_distributions(mine, training, target=data.target, judge=judge, tolerance=data.tolerance)
        doubtful = sum(d.left_out for d in mine)
        note = f" {doubtful} more have quality flags that put the value in doubt." if doubtful else ""
        caption = f"Judged by {judge}: {_JUDGED.get(stage, 'candidates with a value')}.{note}"
        parts.append(_picture(svg, caption))
    return (
        "<h2>Where the candidates lie</h2><p class='note'>Bulk moduli of each round's candidates (colour) against the "
        "training set that the round's generator had seen (grey), as densities. Red: the target, shaded "
        f"±{100 * data.tolerance:g} %. Each judge sees only what reached its stage.</p>"
        f'<div class="row">{"".join(parts)}</div>'
    )


_JUDGED = {
    "predictor": "all generated crystals that could be predicted",
    "mlip": "the crystals that passed stage I, relaxed, from the elastic tensor",
    "dft": "the crystals that passed stage II and were labelled",
}


def _target_errors(data: ReportData) -> str:
    judges = list(dict.fromkeys(e.judge for e in data.evaluations))
    parts = []
    for judge in judges:
        mine = [e for e in data.evaluations if e.judge == judge]
        caption = (
            f"Judged by {judge}. Left: mean of |K - target| / target over all crystals generated for a target, before "
            "any screening. Right: each crystal and the medians; dashed: target met. Red: the campaign's target."
        )
        parts.append(_picture(figures.target_errors(mine, target=data.target), caption))
    return f"<h2>Target error of the generator</h2>{''.join(parts)}" if parts else ""


def _parities(data: ReportData) -> str:
    parts = [
        _picture(figures.parity(p), f"{p.title}: {p.predicted_by} against {p.reference_by}; grey band ±20 %.")
        for p in data.parities
        if len(p.reference) > 1
    ]
    curves = [r for r in data.reliability if r.n > 1]
    if curves:
        caption = (
            "Share of labels that lie in the predictor's central intervals (of log K), against the share that should; "
            "below the line it is too sure of itself. Bands: 95 % of what chance gives with so few labels. Candidates "
            "were chosen for what was predicted, so that theirs is not the reliability of any crystal."
        )
        parts.append(_picture(figures.reliability(curves), caption))
    if not parts:
        return ""
    return f"<h2>How far the judges can be trusted</h2><div class='row'>{''.join(parts)}</div>"


def _pareto(data: ReportData) -> str:
    points, others = data.pareto, data.objectives[1:]
    if not others or len(points) < 2:
        return ""
    first = data.objectives[0]
    pictures = [
        _picture(
            figures.pareto(points, first, other, target=data.target, tolerance=data.tolerance),
            f"{other.title} ({other.text}) against the bulk modulus ({first.text}), by the costliest "
            "method that each candidate has. Ringed: the Pareto front.",
        )
        for other in others[:3]
    ]
    front = sorted((p for p in points if p.front), key=lambda p: (first.badness(p.values[first.name]), p.id))
    names = [first, *others]
    head = "".join(f"<th class='n'>{o.title}{f' ({escape(o.unit)})' if o.unit else ''}</th>" for o in names)
    rows = "".join(
        f"<tr><td><b>{_formula(p.formula)}</b></td><td class='id'>{escape(p.id)}</td><td class='n'>{p.round}</td>"
        f"<td>{p.state}</td>{''.join(f'<td class=n>{p.values[o.name]:.4g}</td>' for o in names)}</tr>"
        for p in front[:FRONT_ROWS]
    )
    more = f" The nearest {FRONT_ROWS} of {len(front)} by the bulk modulus." if len(front) > FRONT_ROWS else ""
    return (
        f"<h2>Between the objectives</h2><p class='note'>{len(front)} of {len(points)} candidates with a value of "
        "every objective are on the Pareto front: no other that has not been rejected is at least as good in all and "
        f"better in one.{more} <code>inv-design query --pareto objectives</code> lists them.</p>"
        f"<div class='row'>{''.join(pictures)}</div><table><thead><tr><th>Front</th><th></th><th class='n'>Round</th>"
        f"<th>State</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


FRONT_ROWS = 10


def _latent(data: ReportData) -> str:
    if data.latent is None or len(data.latent.vectors) < 8:
        return ""
    who = f" of {data.latent.model}" if data.latent.model else ""
    caption = (
        f"t-SNE of the latent space{who}, coloured by bulk modulus; ringed in red: crystals that the campaign added."
    )
    return f"<h2>Latent space</h2>{_picture(figures.latent_map(data.latent), caption)}"


def _elements(data: ReportData) -> str:
    if data.element_stages:
        return _element_stages(data)
    shares = {number: element_shares(sets) for number, sets in data.element_sets.items() if sets}
    if not shares:
        return ""
    last = max(shares)
    over = [f"{symbol} ({100 * share:.0f} %)" for symbol, share in shares[last] if share > figures.WARNING_SHARE]
    warning = ""
    if over:
        warning = (
            f'<p><b class="warn">Narrow chemistry:</b> in round {last}, {escape(", ".join(over))} '
            f"{'is' if len(over) == 1 else 'are'} in more than {100 * figures.WARNING_SHARE:.0f} % of the candidates."
            "</p>"
        )
    caption = "Share of the candidates that passed stage I and contain the element; dashed: 30 %."
    return f"<h2>Elements</h2>{warning}{_picture(figures.element_bars(shares), caption)}"


def _element_stages(data: ReportData) -> str:
    last = max(data.element_stages)
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.warnings.get(last, []))
    warning = f'<p><b class="warn">Narrow chemistry</b> in round {last}:</p><ul>{lines}</ul>' if lines else ""
    caption = (
        "Share of the atoms in per cent, every crystal with the same weight. Colour: how many times the share in the "
        "training set. Red outline: more than 30 % of the atoms, or more than five times its share."
    )
    return f"<h2>Elements</h2>{warning}{_picture(figures.element_map(data.element_stages), caption)}"


def _best(data: ReportData) -> str:
    if not data.best:
        return ""
    rows = "".join(_best_row(c, data) for c in data.best)
    return (
        f"<h2>Best candidates</h2><p class='note'>Nearest to {data.target:g} GPa by the most trusted method each one "
        "has. Every number names its method. Picture, space group and cell are of the crystal that the last of its "
        "moduli belongs to.</p>"
        '<table class="best"><thead><tr><th></th><th>Crystal</th><th>Space group</th><th>Cell (Å)</th>'
        "<th>K, I · predictor (GPa)</th><th>K, II · MLIP (GPa)</th><th>K, III · label (GPa)</th>"
        f"<th>Born</th><th>Flags</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _best_row(item: BestCandidate, data: ReportData) -> str:
    picture = cell = dots = ""
    if item.structure is not None:
        picture = f'<img alt="{escape(item.formula)}" src="{_uri(figures.crystal(item.structure))}">'
        cell = _cell_text(item)
        colours = figures.element_colours(item.structure)
        dots = "".join(f'<i class="dot" style="background:{c}"></i>{escape(e)} ' for e, c in colours.items())
    born = {True: '<span class="yes">stable</span>', False: '<span class="no">unstable</span>', None: "-"}[
        item.born_stable
    ]
    flags = "".join(f'<span class="tag">{escape(f)}</span>' for f in item.flags) or "-"
    stages = "".join(
        f"<td>{_number(item.numbers, stage, data.target, item.waits_for.get(stage, '-'))}</td>"
        for stage in STAGE_TITLES
    )
    hull = (
        f'<span class="method">E above hull {item.e_above_hull:.3f} eV/atom</span>'
        if item.e_above_hull is not None
        else ""
    )
    crystal = f'<span class="method">{escape(item.crystal)}</span>' if item.crystal else ""
    return (
        f'<tr><td>{picture}</td><td><span class="formula">{_formula(item.formula)}</span>'
        f'<span class="method">{dots}· round {item.round}</span><span class="id">{escape(item.id)}</span></td>'
        f"<td>{escape(item.spacegroup) or '-'}{crystal}{hull}</td><td class='cell'>{cell}</td>{stages}"
        f"<td>{born}</td><td>{flags}</td></tr>"
    )


def _number(numbers: Iterable[StageNumber], stage: str, target: float, without: str) -> str:
    mine = [n for n in numbers if n.stage == stage and n.value is not None]
    texts = []
    for item in mine:
        assert item.value is not None
        if item.property == "shear_modulus_vrh":
            texts.append(f'<span class="method">G = {item.value:.0f} GPa</span>')
            continue
        std = f" ± {item.std:.0f}" if item.std is not None and math.isfinite(item.std) else ""
        off = round(100 * (item.value - target) / target)
        texts.append(f'<b>{item.value:.0f}</b>{std}<span class="method">{off:+d} % · {escape(item.method)}</span>')
    return "".join(texts) or (f'<span class="method">{escape(without)}</span>' if without != "-" else without)


def _cell_text(item: BestCandidate) -> str:
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    assert item.structure is not None
    try:
        lattice = SpacegroupAnalyzer(item.structure, symprec=0.05).get_conventional_standard_structure().lattice
    except Exception:  # no symmetry found
        lattice = item.structure.lattice
    a, b, c = lattice.abc
    parts = [f"a = {a:.3f}"]
    if abs(b - a) > 1e-3:
        parts.append(f"b = {b:.3f}")
    if abs(c - a) > 1e-3:
        parts.append(f"c = {c:.3f}")
    angles = [f"{n} = {x:.1f}°" for n, x in zip("αβγ", lattice.angles, strict=True) if abs(x - 90) > 0.1]
    return "<br>".join(parts) + (f'<span class="method">{", ".join(angles)}</span>' if angles else "")


def _formula(text: str) -> str:
    out, previous = [], ""
    for character in escape(text):
        digit = character.isdigit() and (previous.isalpha() or previous.isdigit() or previous == ")")
        out.append(f"<sub>{character}</sub>" if digit else character)
        previous = character
    return "".join(out)


def _provenance(data: ReportData) -> str:
    parts = []
    for heading, lines in data.provenance.items():
        rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in lines)
        parts.append(f"<section><h3>{escape(heading)}</h3><dl>{rows}</dl></section>")
    return (
        f'<footer><h2 style="margin-top:14px">Provenance</h2><div class="cols">{"".join(parts)}</div></footer>'
        if parts
        else ""
    )


def _picture(svg: str, caption: str) -> str:
    return f'<figure><img alt="{escape(caption)}" src="{_uri(svg)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _uri(svg: str) -> str:
    # an image of its own: ids of several inline drawings would collide
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
