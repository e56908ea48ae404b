"""The report's figures: plain values in, SVG text out (matplotlib, no display)."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pymatgen.core import Structure

    from inv_design.objective import Objective
    from inv_design.report.data import (
        Distribution,
        ElementStage,
        Evaluation,
        LatentMap,
        ParetoPoint,
        Parity,
        Reliability,
    )

INK, MUTED, GRID, TRAINING, TARGET = "#1b2733", "#667585", "#e3e8ee", "#c3ccd6", "#d1495b"
ROUND_COLOURS = ("#7aa6c2", "#2f7ea6", "#14506e", "#0b2f42")
AXIS = "Bulk modulus K_VRH (GPa)"
WARNING_SHARE = 0.30
"""An element in more of the candidates than this is marked: the generator may have narrowed down to it."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "inv_design",  # the same data gives the same bytes
    "svg.fonttype": "path",
}


def round_colour(index: int, total: int) -> str:
    """Return the colour of round ``index`` of ``total``: the later, the darker."""
    if total <= len(ROUND_COLOURS):
        return ROUND_COLOURS[index + (1 if total <= 2 else 0)]
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list("rounds", ROUND_COLOURS)
    return str(to_hex(ramp(index / (total - 1))))


@contextmanager
def _figure(width: float, height: float, **grid: Any) -> Iterator[tuple[Figure, Any]]:
    """Yield (figure, axes) in the report's style, without touching matplotlib's global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**grid)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def modulus_distributions(
    items: Sequence[Distribution], training: dict[int, list[float]], *, target: float, judge: str, tolerance: float
) -> str:
    """Return ridges of one judge: a row per round, candidates in colour over the training set in grey (densities).

    Parameters
    ----------
    items
        The judge's distributions, values in GPa.
    training
        Round -> training-set values in GPa.
    target, tolerance
        Wanted value in GPa and the relative window around it that is shaded.
    """
    items = sorted((i for i in items if i.values), key=lambda i: i.round)
    # the training set is the scale: a judge's outlier must not squeeze it
    reach = [
        target * (1 + tolerance),
        *(v for i in items for v in i.values),
        *(v for t in training.values() for v in t),
    ]
    high = float(min(max(np.percentile(reach, 99.5), target * 1.35), 700))
    edges = np.linspace(0, high, 36).tolist()
    with _figure(4.1, 0.75 + 0.95 * len(items), nrows=len(items), ncols=1, sharex=True, squeeze=False) as (fig, axes):
        for row, item in enumerate(items):
            axis: Axes = axes[row, 0]
            axis.axvspan(target * (1 - tolerance), target * (1 + tolerance), color=TARGET, alpha=0.08, lw=0)
            known = training.get(item.round) or []
            if known:
                axis.hist(known, bins=edges, density=True, color=TRAINING, alpha=0.75, label="training set", lw=0)
            colour = round_colour(row, len(items))
            values = np.clip(item.values, 0, high)
            axis.hist(values, bins=edges, density=True, histtype="stepfilled", color=colour, alpha=0.35, lw=0)
            axis.hist(values, bins=edges, density=True, histtype="step", color=colour, lw=1.6)
            axis.axvline(target, color=TARGET, lw=1.4)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            axis.set_xlim(0, high)
            mean, std = np.mean(item.values), np.std(item.values)
            beside: dict[str, Any] = {"transform": axis.transAxes, "ha": "right"}
            axis.text(-0.03, 0.78, f"round {item.round}", weight="bold", color=colour, **beside)
            axis.text(
                -0.03, 0.22, f"n = {len(item.values)}\n{mean:.0f} ± {std:.0f} GPa", fontsize=8, color=MUTED, **beside
            )
            if row == 0:
                axis.text(target, 1.02, f"target {target:g}", transform=axis.get_xaxis_transform(), ha="center",
                          va="bottom", color=TARGET, fontsize=8, weight="bold")  # fmt: skip
        axes[-1, 0].set_xlabel(f"K (GPa) by {judge}")
        return _svg(fig)


def target_errors(items: Sequence[Evaluation], *, target: float) -> str:
    """Return two panels of one judge: mean relative error, and what was generated, both against the target in GPa."""
    rounds = sorted({item.round for item in items})
    with _figure(9.4, 3.3, nrows=1, ncols=2) as (fig, (left, right)):
        span = max(i.target for i in items) - min(i.target for i in items)
        for index, number in enumerate(rounds):
            mine = sorted((i for i in items if i.round == number), key=lambda i: i.target)
            colour = round_colour(index, len(rounds))
            goals = [i.target for i in mine]
            left.plot(goals, [100 * i.mean_relative_error for i in mine], "o-", color=colour, ms=5,
                      label=f"round {number} (n = {min(i.n for i in mine)} each)")  # fmt: skip
            shift = 0.012 * span * (index - (len(rounds) - 1) / 2)  # so that rounds stand beside each other
            for item in mine:
                right.scatter(
                    [item.target + shift] * len(item.values), item.values, s=9, color=colour, alpha=0.35, lw=0
                )
            achieved = [(i.target, i.median) for i in mine if i.median is not None]
            if achieved:
                right.plot(*zip(*achieved, strict=True), "o-", color=colour, ms=5)
        limits = [min(i.target for i in items) * 0.8, max(i.target for i in items) * 1.05]
        right.plot(limits, limits, color=MUTED, lw=0.8, ls="--", zorder=0)
        for axis in (left, right):
            axis.axvline(target, color=TARGET, lw=1.2, zorder=0)
            axis.grid(color=GRID, lw=0.8)
            axis.set_axisbelow(True)
            axis.set_xlabel("Target bulk modulus (GPa)")
        left.set_ylim(bottom=0)
        left.set_ylabel("Mean relative error (%)")
        right.set_ylabel("Generated, by the judge (GPa)")
        left.legend()
        return _svg(fig)


def parity(item: Parity) -> str:
    """Return predicted against reference values in GPa, with the diagonal, ±20 % and the mean absolute error."""
    x, y = np.asarray(item.reference, float), np.asarray(item.predicted, float)
    keep = np.isfinite(x) & np.isfinite(y)
    low, high = 0.0, float(max(x[keep].max(), y[keep].max()) * 1.06)
    with _figure(3.2, 3.3) as (fig, axis):
        line = np.array([low, high])
        axis.fill_between(line, 0.8 * line, 1.2 * line, color=TRAINING, alpha=0.35, lw=0)
        axis.plot(line, line, color=MUTED, lw=0.8)
        if item.std is not None:
            std = np.nan_to_num(np.asarray(item.std, float))
            axis.errorbar(x[keep], y[keep], yerr=std[keep], fmt="none", ecolor=ROUND_COLOURS[0], elinewidth=0.6,
                          alpha=0.5, zorder=1)  # fmt: skip
        rounds = sorted(set(item.rounds or []))
        if len(rounds) > 1:
            number = np.asarray(item.rounds)
            for index, wanted in enumerate(rounds):
                mine = keep & (number == wanted)
                axis.scatter(x[mine], y[mine], s=11, color=round_colour(index, len(rounds)), alpha=0.75, lw=0, zorder=2,
                             label=f"round {wanted}: MAE {np.abs(x - y)[mine].mean():.0f}")  # fmt: skip
            axis.legend(loc="lower right", fontsize=7)
        else:
            axis.scatter(x[keep], y[keep], s=11, color=ROUND_COLOURS[1], alpha=0.75, lw=0, zorder=2)
        error = np.abs(x - y)[keep]
        relative = 100 * np.mean(error / np.abs(x[keep])) if (x[keep] != 0).all() else float("nan")
        text = f"n = {keep.sum()}\nMAE {error.mean():.1f} GPa\nmean rel. error {relative:.0f} %"
        axis.text(0.04, 0.97, text, transform=axis.transAxes, va="top", fontsize=8)
        axis.set_xlim(low, high)
        axis.set_ylim(low, high)
        axis.set_aspect("equal")
        axis.set_title(item.title)
        axis.set_xlabel(f"{item.reference_by} (GPa)")
        axis.set_ylabel(f"{item.predicted_by} (GPa)")
        return _svg(fig)


def reliability(items: Sequence[Reliability]) -> str:
    """Return observed against nominal coverage, a curve per set of labels, with the band that chance gives it."""
    with _figure(3.2, 3.3) as (fig, axis):
        level = np.linspace(0, 1, 51)
        axis.plot([0, 100], [0, 100], color=MUTED, lw=0.8)
        for index, item in enumerate(items):
            colour = round_colour(index, len(items)) if len(items) > 1 else ROUND_COLOURS[1]
            width = 1.96 * np.sqrt(level * (1 - level) / item.n)
            axis.fill_between(100 * level, 100 * np.clip(level - width, 0, 1), 100 * np.clip(level + width, 0, 1),
                              color=colour, alpha=0.13, lw=0)  # fmt: skip
            axis.plot(100 * np.asarray(item.nominal), 100 * np.asarray(item.observed), "o-", ms=3.5, lw=1.2,
                      color=colour, label=f"{item.title} (n = {item.n})")  # fmt: skip
        axis.set_xlim(0, 100)
        axis.set_ylim(0, 100)
        axis.set_aspect("equal")
        axis.set_title("Reliability of the intervals")
        axis.set_xlabel("Nominal coverage (%)")
        axis.set_ylabel("Observed coverage (%)")
        axis.legend(loc="upper left", fontsize=7)
        return _svg(fig)


STATE_STYLES: dict[str, dict[str, Any]] = {
    "out": {"color": TRAINING, "s": 10, "label": "rejected or failed"},
    "open": {"color": ROUND_COLOURS[1], "s": 16, "label": "passed so far"},
    "hit": {"color": "#2e7d4f", "s": 26, "label": "hit"},
}


def pareto(points: Sequence[ParetoPoint], x: Objective, y: Objective, *, target: float, tolerance: float) -> str:
    """Return candidates between two objectives, those on the Pareto front ringed.

    Parameters
    ----------
    x, y
        The objectives of the axes; a wanted range or value of ``y`` is shaded or drawn.
    target, tolerance
        The bulk modulus wanted on ``x``, in GPa, and the relative window around it.
    """
    with _figure(4.4, 3.4) as (fig, axis):
        axis.axvspan(target * (1 - tolerance), target * (1 + tolerance), color=TARGET, alpha=0.08, lw=0)
        axis.axvline(target, color=TARGET, lw=1.2)
        for state, style in STATE_STYLES.items():
            mine = [p for p in points if p.state == state]
            if mine:
                axis.scatter(
                    [p.values[x.name] for p in mine], [p.values[y.name] for p in mine], lw=0, alpha=0.8, **style
                )
        # what was rejected must not squeeze the rest
        for name, limit in ((x.name, axis.set_xlim), (y.name, axis.set_ylim)):
            kept = [p.values[name] for p in points if p.state != "out"]
            kept += np.percentile([p.values[name] for p in points], [5, 95]).tolist()
            margin = 0.06 * (max(kept) - min(kept)) or 0.05 * abs(kept[0]) or 1.0
            limit(min(kept) - margin, max(kept) + margin)
        front = [p for p in points if p.front]
        axis.scatter([p.values[x.name] for p in front], [p.values[y.name] for p in front], s=52, facecolors="none",
                     edgecolors=INK, lw=0.9, label="Pareto front")  # fmt: skip
        if y.kind == "value" and y.value is not None:
            axis.axhline(y.value, color=TARGET, lw=1, ls="--")
        elif y.kind == "range":
            low, high = axis.get_ylim()
            axis.axhspan(max(y.low, low), min(y.high, high), color=TARGET, alpha=0.08, lw=0)
            axis.set_ylim(low, high)
        arrow = {"max": " ↑", "min": " ↓"}.get(y.kind, "")
        unit = f" ({y.unit})" if y.unit else ""
        axis.set_xlabel(AXIS)
        axis.set_ylabel(f"{y.title[:1].upper()}{y.title[1:]}{unit}{arrow}")
        axis.legend(fontsize=7)
        return _svg(fig)


def element_map(stages: dict[int, list[ElementStage]], *, most: int = 18, rounds: int = 4) -> str:
    """Return a heat map: elements down, the stages of each round across, coloured by enrichment, shares as numbers.

    Parameters
    ----------
    stages
        Round -> its stages in order.
    most, rounds
        How many elements and rounds are shown: those of the largest shares among candidates, and the last rounds. The
        other elements are one row.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    from inv_design.metrics.elements import ENOUGH, ENRICHMENT_LIMIT, SHARE_LIMIT, STAGE_NAMES

    shown = {number: stages[number] for number in sorted(stages)[-rounds:]}
    top: dict[str, float] = {}
    for stage in (s for found in shown.values() for s in found if s.stage != "training_set"):
        for symbol, share in stage.shares.items():
            top[symbol] = max(share if stage.n >= ENOUGH else 0.0, top.get(symbol, 0.0))
    symbols = sorted(top, key=lambda s: (-top[s], s))[:most]
    columns: list[tuple[float, int, ElementStage]] = []
    at = 0.0
    for number, found in shown.items():
        for stage in found:
            columns.append((at, number, stage))
            at += 1.0
        at += 0.5
    norm = LogNorm(1 / 8, 8)
    with _figure(max(4.2, 0.52 * at + 1.4), 0.235 * len(symbols) + 1.5) as (fig, axis):
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable

        colours = colormaps["RdBu_r"]
        for left, _, stage in columns:
            rest = sum(share for symbol, share in stage.shares.items() if symbol not in symbols)
            if rest >= 0.005:
                axis.text(left + 0.48, len(symbols) + 0.49, f"{100 * rest:.0f}", ha="center", va="center", fontsize=7,
                          color=MUTED)  # fmt: skip
            for row, symbol in enumerate(symbols):
                share, ratio = stage.shares.get(symbol, 0.0), stage.enrichment.get(symbol)
                colour = colours(norm(min(max(ratio, 1 / 8), 8))) if ratio and share else "#f5f7f9"
                axis.add_patch(Rectangle((left, row), 0.96, 0.94, facecolor=colour, lw=0))
                judged = stage.stage != "training_set" and stage.n >= ENOUGH
                over = judged and (share > SHARE_LIMIT or (ratio or 0.0) > ENRICHMENT_LIMIT)
                if over and share:
                    axis.add_patch(
                        Rectangle((left + 0.03, row + 0.03), 0.9, 0.88, fill=False, edgecolor=TARGET, lw=1.4)
                    )
                if share >= 0.005:
                    dark = ratio is not None and (ratio > 4 or ratio < 0.25)
                    axis.text(left + 0.48, row + 0.49, f"{100 * share:.0f}", ha="center", va="center", fontsize=7,
                              color="white" if dark else INK)  # fmt: skip
        axis.set_xlim(-0.1, at - 0.4)
        axis.set_ylim(len(symbols) + 1, -0.05)
        axis.set_yticks([row + 0.47 for row in range(len(symbols) + 1)], [*symbols, "others"])
        labels = [f"{STAGE_NAMES.get(stage.stage, stage.stage)}\nn = {stage.n}" for _, _, stage in columns]
        slanted: dict[str, Any] = {"rotation": 55, "ha": "right", "rotation_mode": "anchor", "fontsize": 7}
        axis.set_xticks([left + 0.48 for left, _, _ in columns], labels, **slanted)
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
        for number in shown:
            mine = [left for left, n, _ in columns if n == number]
            axis.text((mine[0] + mine[-1] + 0.96) / 2, -0.25, f"round {number}", ha="center", va="bottom",
                      weight="bold", fontsize=8, clip_on=False)  # fmt: skip
        bar = fig.colorbar(ScalarMappable(norm, colours), ax=axis, shrink=0.6, ticks=[1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8])
        bar.ax.set_yticklabels(["⅛", "¼", "½", "1", "2", "4", "8"])
        bar.ax.minorticks_off()
        bar.set_label("times the share in the training set")
        bar.outline.set_visible(False)
        return _svg(fig)


def latent_map(item: LatentMap, *, seed: int = 0) -> str:
    """Return the t-SNE map (van der Maaten & Hinton 2008) of latent vectors (n, d) coloured by bulk modulus in GPa."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    vectors = np.asarray(item.vectors, float)
    count = len(vectors)
    if vectors.shape[1] > 32:
        vectors = PCA(min(32, count), random_state=seed).fit_transform(vectors)
    scaled = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-9)
    perplexity = float(min(30, max(2, (count - 1) / 3)))
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(scaled)
    added = np.asarray(item.added)
    values = np.asarray(item.values, float)
    with _figure(6.4, 4.4) as (fig, axis):
        old = added == 0
        norm = {"vmin": 0.0, "vmax": float(np.nanpercentile(values, 99))}
        drawn = axis.scatter(*points[old].T, c=values[old], cmap="viridis", s=9, lw=0, alpha=0.85, **norm)
        rounds = sorted(set(added[~old].tolist()))
        for index, number in enumerate(rounds):
            mine = added == number
            marker = "oD^svP"[index % 6]
            axis.scatter(*points[mine].T, c=values[mine], cmap="viridis", s=34, edgecolors=TARGET, linewidths=1.3,
                         marker=marker, label=f"added in round {number} ({mine.sum()})", **norm)  # fmt: skip
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel("t-SNE 1")
        axis.set_ylabel("t-SNE 2")
        bar = fig.colorbar(drawn, ax=axis, shrink=0.85)
        bar.set_label(AXIS)
        bar.outline.set_visible(False)
        if rounds:
            axis.legend(loc="best")
        return _svg(fig)


def element_bars(shares: dict[int, list[tuple[str, float]]], *, most: int = 16) -> str:
    """Return the share of candidates that contain each element, a bar per round; above 30 % in red.

    Parameters
    ----------
    shares
        Round -> (element, share 0..1), as :func:`inv_design.report.data.element_shares` returns them.
    """
    rounds = sorted(shares)
    top: dict[str, float] = {}
    for number in rounds:
        for symbol, share in shares[number]:
            top[symbol] = max(share, top.get(symbol, 0.0))
    symbols = sorted(top, key=lambda s: (-dict(shares[rounds[-1]]).get(s, 0.0), -top[s], s))[:most]
    width = 0.8 / len(rounds)
    with _figure(9.4, 2.7) as (fig, axis):
        for index, number in enumerate(rounds):
            mine = dict(shares[number])
            heights = [100 * mine.get(s, 0.0) for s in symbols]
            at = np.arange(len(symbols)) - 0.4 + width * (index + 0.5)
            axis.bar(at, heights, width * 0.92, color=round_colour(index, len(rounds)), label=f"round {number}")
        axis.axhline(100 * WARNING_SHARE, color=TARGET, lw=1, ls="--")
        axis.set_xticks(range(len(symbols)), symbols)
        last = dict(shares[rounds[-1]])
        for label, symbol in zip(axis.get_xticklabels(), symbols, strict=True):
            over = last.get(symbol, 0.0) > WARNING_SHARE
            label.set_color(TARGET if over else INK)
            label.set_weight("bold" if over else "normal")
        axis.set_ylabel("Candidates with it (%)")
        axis.tick_params(axis="x", length=0)
        axis.set_xlim(-0.6, len(symbols) - 0.4)
        axis.legend(ncols=len(rounds))
        return _svg(fig)


def element_colours(structure: Structure) -> dict[str, str]:
    """Return element symbol -> Jmol's colour, as in the pictures of :func:`crystal`."""
    from ase.data import atomic_numbers
    from ase.data.colors import jmol_colors
    from matplotlib.colors import to_hex

    symbols = sorted(element.symbol for element in structure.composition.elements)
    return {symbol: str(to_hex(jmol_colors[atomic_numbers[symbol]])) for symbol in symbols}


def crystal(structure: Structure) -> str:
    """Return a picture of a crystal's conventional cell, rotated into perspective, in Jmol's colours."""
    from ase.data import covalent_radii
    from ase.visualize.plot import plot_atoms
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    try:
        shown = SpacegroupAnalyzer(structure, symprec=0.05).get_conventional_standard_structure()
    except Exception:  # no symmetry found: any cell is as good
        shown = structure
    if len(shown) > 40:
        shown = structure
    atoms = AseAtomsAdaptor.get_atoms(shown)
    atoms = _with_boundary_images(atoms)
    with _figure(1.5, 1.5) as (fig, axis):
        plot_atoms(atoms, axis, radii=0.55 * covalent_radii[atoms.numbers], rotation="-80x,-18y,-6z", show_unit_cell=2)
        axis.set_axis_off()
        axis.set_aspect("equal")
        return _svg(fig)


def _with_boundary_images(atoms: Any) -> Any:
    """Return ASE atoms with the images of atoms on faces, edges and corners, so that the cell looks complete."""
    import itertools

    scaled = atoms.get_scaled_positions(wrap=True) % 1.0
    scaled[np.isclose(scaled, 1.0, atol=1e-3)] = 0.0
    positions, numbers = [], []
    for point, number in zip(scaled, atoms.numbers, strict=True):
        ranges = [(0.0, 1.0) if abs(x) < 1e-3 else (0.0,) for x in point]
        for shift in itertools.product(*ranges):
            positions.append(point + np.array(shift))
            numbers.append(number)
    from ase import Atoms

    return Atoms(numbers=numbers, scaled_positions=np.array(positions), cell=atoms.cell, pbc=False)
