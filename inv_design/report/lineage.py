"""A lineage as a picture: a row per generation, a column per kind of record, older records above and to the left."""

from __future__ import annotations

import html
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Literal

from inv_design.report.figures import GRID, INK, MUTED, STYLE, TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".pdf", ".html", ".dot")
COLUMNS = {
    "training_set": ("Training sets", "#dfe7f5"),
    "model": ("Models", "#d3ebe6"),
    "evaluation": ("Evaluations", "#eee6f3"),
    "candidate": ("Candidates", "#fbe9cf"),
    "structure": ("Structures", "#f3f3ee"),
    "calculation": ("Calculations", "#fadbd8"),
    "prediction": ("Predictions", "#eee6f3"),
}
"""Kind of record -> (title of its column, colour), in the order in which one is made from the other."""

KINDS = list(COLUMNS)

Place = tuple[int, int, str]
"""Generation, lap, kind."""

MOST = 4
"""Records of one kind and generation that are drawn; the others are counted."""
WIDTH, HEIGHT, GAP, COLUMN, MARGIN = 2.05, 0.36, 0.1, 2.6, 0.5  # inches
LETTERS = 38


@dataclass
class Graph:
    """The records of a lineage and what was made from what.

    Attributes
    ----------
    nodes
        Id -> its node of the lineage tree, in the order of the walk.
    edges
        (older id, newer id) -> what one is to the other.
    root
        The id whose lineage it is.
    """

    root: str
    nodes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    edges: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass
class Cell:
    """The records of one kind in one generation: those that are drawn, and how many are not."""

    shown: list[str]
    hidden: list[str]


def lineage_graph(tree: Mapping[str, Any], *, direction: Literal["up", "down"]) -> Graph:
    """Return the graph of a lineage tree (see :func:`stores.lineage.lineage`); each record is in it once."""
    graph = Graph(tree["id"])
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not node.get("seen") or node["id"] not in graph.nodes:
            graph.nodes[node["id"]] = {k: v for k, v in node.items() if k != "children"}
        for child in reversed(node.get("children", [])):
            ends = (child["id"], node["id"]) if direction == "up" else (node["id"], child["id"])
            if ends[::-1] not in graph.edges:  # a structure is a candidate's, and the candidate that structure's
                graph.edges.setdefault(ends, child.get("relation", ""))
            waiting.append(child)
    return graph


def places(graph: Graph) -> dict[str, Place]:
    """Return id -> (generation, lap, kind), which is a row and a column of the picture.

    The generation is the most training sets that lead to a record one after the other, from 0. A lap begins where an
    earlier kind is made from a later one in the same generation: a relaxed structure from the relaxation of another.
    """
    before: dict[str, set[str]] = {identity: set() for identity in graph.nodes}
    for older, newer in graph.edges:
        before[newer].add(older)
    order: list[str] = []
    while not order:
        try:
            order = list(TopologicalSorter(before).static_order())
        except CycleError as error:  # a structure that was generated again by what it had taught
            older, newer = error.args[1][:2]
            before[newer].discard(older)
    kinds = {identity: KINDS.index(graph.nodes[identity]["type"]) for identity in order}
    found: dict[str, int] = {}
    for identity in order:
        earlier = max((found[older] for older in before[identity]), default=-1)
        found[identity] = max(earlier, 0) + (kinds[identity] == 0 and earlier >= 0)
    stay_near(before, order, kinds, found)
    laps: dict[str, int] = {}
    for identity in order:
        beside = [older for older in before[identity] if found[older] == found[identity]]
        laps[identity] = max((laps[o] + (kinds[o] >= kinds[identity]) for o in beside), default=0)
    return {identity: (found[identity], laps[identity], graph.nodes[identity]["type"]) for identity in order}


def stay_near(
    before: Mapping[str, set[str]], order: list[str], kinds: Mapping[str, int], found: dict[str, int]
) -> None:
    """Put what was made from nothing that is known, such as a crystal from a file, beside what was made from it."""
    after: dict[str, set[str]] = defaultdict(set)
    for newer, olders in before.items():
        for older in olders:
            after[older].add(newer)
    for identity in reversed(order):
        if kinds[identity] and after[identity] and not before[identity]:
            found[identity] = max(min(found[n] - (kinds[n] == 0) for n in after[identity]), 0)


def cells(graph: Graph) -> dict[Place, Cell]:
    """Return place -> its records: the root, then those that belong to what is drawn already."""
    neighbours: dict[str, set[str]] = defaultdict(set)
    for older, newer in graph.edges:
        neighbours[older].add(newer)
        neighbours[newer].add(older)
    members: dict[Place, list[str]] = defaultdict(list)
    for identity, place in places(graph).items():
        members[place].append(identity)
    known = {identity: i for i, identity in enumerate(graph.nodes)}
    shown = {graph.root}
    row: dict[str, int] = {}
    made: dict[Place, Cell] = {}
    for place in sorted(members, key=lambda p: (p[0], column_key(p))):
        ranked = sorted(
            members[place],
            key=lambda i: (i != graph.root, -len(neighbours[i] & shown), -len(neighbours[i]), known[i]),
        )
        most = MOST if len(ranked) > MOST + 1 else MOST + 1  # "1 more" takes as much room as the one itself
        # beside what it was made from, so that arrows do not cross
        height = {i: min((row[n] for n in neighbours[i] & row.keys()), default=len(row)) for i in ranked[:most]}
        chosen = sorted(ranked[:most], key=lambda i: height[i])
        made[place] = Cell(chosen, ranked[most:])
        row |= {identity: i for i, identity in enumerate(chosen)}
        shown |= set(chosen)
    return made


def column_key(place: Place) -> tuple[int, int]:
    """Return what the columns are ordered by."""
    _, lap, kind = place
    return lap, KINDS.index(kind)


def write_lineage(tree: Mapping[str, Any], path: Path, *, direction: Literal["up", "down"]) -> Counter[str]:
    """Write the picture of a lineage; return how many records of each kind it is about.

    Parameters
    ----------
    tree
        As :func:`stores.lineage.lineage` returns it.
    path
        Its suffix chooses the form: a picture (svg, png, pdf), a page (html), or the whole graph for Graphviz (dot).

    Raises
    ------
    ValueError
        If the suffix is another.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path.name} ends in {suffix or 'nothing'!r}; end it in {', '.join(SUFFIXES)}")
    graph = lineage_graph(tree, direction=direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".dot":
        path.write_text(dot(graph))
    elif suffix == ".html":
        path.write_text(page(graph))
    else:
        path.write_bytes(drawing(graph, suffix[1:]))
    return Counter(str(node["type"]) for node in graph.nodes.values())


def dot(graph: Graph) -> str:
    """Return every record and every edge of the graph in Graphviz' language."""
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [shape=box, style="rounded,filled", fontname="sans-serif"];']
    for identity, node in graph.nodes.items():
        colour = COLUMNS[node["type"]][1]
        border = ", penwidth=2" if identity == graph.root else ""
        label = json.dumps("\n".join(filter(None, (identity, node.get("label", "")))), ensure_ascii=False)
        lines.append(f'  "{identity}" [label={label}, fillcolor="{colour}"{border}];')
    for (older, newer), relation in graph.edges.items():
        lines.append(f'  "{older}" -> "{newer}" [label={json.dumps(relation, ensure_ascii=False)}];')
    return "\n".join([*lines, "}"]) + "\n"


def page(graph: Graph) -> str:
    """Return a self-contained page with the picture and a table of all records."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", drawing(graph, "svg").decode(), flags=re.DOTALL)
    where = {identity: place[0] for identity, place in places(graph).items()}
    rows = "".join(
        f"<tr><td>{where[i]}</td><td>{html.escape(str(node['type']).replace('_', ' '))}</td>"
        f"<td><code>{html.escape(i)}</code></td><td>{html.escape(str(node.get('label', '')))}</td></tr>"
        for i, node in sorted(graph.nodes.items(), key=lambda item: (where[item[0]], item[1]["type"], item[0]))
    )
    style = (
        f"body{{font:14px sans-serif;color:{INK};margin:2em}}svg{{max-width:100%;height:auto}}"
        f"td,th{{text-align:left;padding:.2em 1em .2em 0;border-bottom:1px solid {GRID}}}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Lineage of {html.escape(graph.root)}</title>'
        f"<style>{style}</style><h1>Lineage of <code>{html.escape(graph.root)}</code></h1>{svg[svg.index('<svg') :]}"
        f"<table><tr><th>generation</th><th>kind</th><th>id</th><th>what</th></tr>{rows}</table></html>\n"
    )


def drawing(graph: Graph, form: str) -> bytes:
    """Return the picture in a form that matplotlib writes."""
    import io

    import matplotlib as mpl
    from matplotlib.figure import Figure

    made = cells(graph)
    columns = sorted({column_key(place) for place in made})
    boxes, bands, width, height = layout(made, columns)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        for number, (_, kind) in enumerate(columns):
            x = MARGIN + number * COLUMN
            axes.text(x, MARGIN * 0.55, COLUMNS[KINDS[kind]][0], weight="bold", va="center")
        for generation, (top, bottom) in bands.items():
            axes.axhline(top, color=GRID, lw=0.8, zorder=0.1)
            axes.text(
                MARGIN * 0.4, (top + bottom) / 2, row_title(graph, made, generation), color=MUTED, size=7, rotation=90,
                ha="center", va="center",
            )  # fmt: skip
        draw_edges(axes, graph, boxes, bands)
        for identity, (x, y) in boxes.items():
            draw_box(axes, graph, made, identity, (x, y))
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else None
        figure.savefig(buffer, format=form, dpi=130, metadata=metadata, facecolor="white")
    return buffer.getvalue()


def layout(
    made: Mapping[Place, Cell], columns: list[tuple[int, int]]
) -> tuple[dict[str, tuple[float, float]], dict[int, tuple[float, float]], float, float]:
    """Return (id -> left upper corner of its box, generation -> its band, width, height), in inches from above."""
    boxes: dict[str, tuple[float, float]] = {}
    bands: dict[int, tuple[float, float]] = {}
    top = MARGIN
    for generation in sorted({place[0] for place in made}):
        here = {place: cell for place, cell in made.items() if place[0] == generation}
        most = max(len(cell.shown) + bool(cell.hidden) for cell in here.values())
        depth = most * (HEIGHT + GAP) + 2.5 * GAP
        for place, cell in here.items():
            names = [*cell.shown, *([more_name(place)] if cell.hidden else [])]
            x = MARGIN + columns.index(column_key(place)) * COLUMN
            start = top + 1.5 * GAP + (most - len(names)) * (HEIGHT + GAP) / 2
            for i, name in enumerate(names):
                boxes[name] = (x, start + i * (HEIGHT + GAP))
        bands[generation] = (top, top + depth)
        top += depth
    return boxes, bands, MARGIN + (len(columns) - 1) * COLUMN + WIDTH + MARGIN / 2, top + GAP


def more_name(place: Place) -> str:
    """Return the name of the box that counts what is not drawn."""
    generation, lap, kind = place
    return f"+{generation}+{lap}+{kind}"


def row_title(graph: Graph, made: Mapping[Place, Cell], generation: int) -> str:
    """Return ``round N`` if the records of a generation agree on it, else its number."""
    ids = [i for place, cell in made.items() if place[0] == generation for i in (*cell.shown, *cell.hidden)]
    rounds = {graph.nodes[i].get("round") for i in ids} - {None}
    return f"round {rounds.pop()}" if len(rounds) == 1 else f"generation {generation}"


def draw_box(axes: Axes, graph: Graph, made: Mapping[Place, Cell], identity: str, corner: tuple[float, float]) -> None:
    """Draw one record, or the count of those that are not drawn."""
    from matplotlib.patches import FancyBboxPatch

    x, y = corner
    style = "round,pad=0,rounding_size=0.06"
    if identity.startswith("+"):
        _, generation, lap, kind = identity.split("+")
        n = len(made[int(generation), int(lap), kind].hidden)
        axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle=style, fc="white", ec=MUTED, ls=":", lw=0.8))
        title = COLUMNS[kind][0].lower()
        axes.text(x + 0.08, y + HEIGHT / 2, f"{n} more {title}", va="center", size=7, color=MUTED, style="italic")
        return
    node = graph.nodes[identity]
    own = identity == graph.root
    colour = "white" if node.get("missing") else COLUMNS[node["type"]][1]
    edge, line = (TARGET, 1.8) if own else (MUTED, 0.6)
    axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle=style, fc=colour, ec=edge, lw=line))
    lines = list(texts(identity, node))
    for i, (text, size, weight) in enumerate(lines):
        offset = HEIGHT * (i + 0.5) / len(lines)
        axes.text(x + 0.08, y + offset, text, va="center", size=size, weight=weight, color=INK)


def texts(identity: str, node: Mapping[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Yield (text, size, weight) of a box: the id, and what it is."""
    yield identity if len(identity) <= 24 else f"{identity[:23]}…", 6.5, "bold"
    label = "not in this database" if node.get("missing") else str(node.get("label", ""))
    if node["type"] == "training_set":
        label = label.replace("; labels: ", ": ")
    if node["type"] == "structure":
        label = label.split(", ", maxsplit=1)[0] if "generated" in label or "relaxed" in label else label
    yield label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}…", 6, "normal"


def draw_edges(
    axes: Axes,
    graph: Graph,
    boxes: Mapping[str, tuple[float, float]],
    bands: Mapping[int, tuple[float, float]],
) -> None:
    """Draw what was made from what; edges of what is not drawn lead to the box that counts it."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    where = places(graph)
    named = {i: i if i in boxes else more_name(where[i]) for i in graph.nodes}
    rows = {named[i]: place[0] for i, place in where.items()}
    drawn = {(named[older], named[newer]) for older, newer in graph.edges if not told_before(graph, older, newer)}
    for older, newer in sorted(drawn):
        (x0, y0), (x1, y1) = boxes[older], boxes[newer]
        counted = older.startswith("+") or newer.startswith("+")
        look: dict[str, Any] = {
            "arrowstyle": "-|>", "mutation_scale": 6, "shrinkA": 0, "shrinkB": 0, "color": MUTED, "lw": 0.7,
            "alpha": 0.45 if counted else 0.75, "ls": ":" if counted else "-", "zorder": 0.5,
        }  # fmt: skip
        if x1 < x0 and rows[newer] > rows[older]:  # into a later generation: along the line between the rows
            turn, line = x0 + WIDTH + GAP, bands[rows[newer]][0]
            way = [(x0 + WIDTH, y0 + HEIGHT / 2), (turn, y0 + HEIGHT / 2), (turn, line), (x1 + WIDTH / 2, line)]
            look |= {"color": INK, "joinstyle": "round"}
            axes.add_patch(FancyArrowPatch(path=Path([*way, (x1 + WIDTH / 2, y1)]), **look))
            continue
        if x1 > x0 + 1.5 * COLUMN:  # past a column: between its boxes, so as not to seem to come out of one
            turn, lane, side = x0 + WIDTH + GAP, y0 + HEIGHT + GAP / 2, x1 - 2 * GAP
            way = [(x0 + WIDTH, y0 + HEIGHT * 0.8), (turn, lane), (side, lane), (side + GAP, y1 + HEIGHT * 0.8)]
            axes.add_patch(FancyArrowPatch(path=Path([*way, (x1, y1 + HEIGHT * 0.8)]), **look))
            continue
        if x1 > x0:
            start, end, bend = (x0 + WIDTH, y0 + HEIGHT / 2), (x1, y1 + HEIGHT / 2), 0.0
        elif x1 < x0:
            start, end, bend = (x0, y0 + HEIGHT * 0.75), (x1 + WIDTH, y1 + HEIGHT * 0.75), 0.0
        else:  # within a column
            start, end, bend = (x0, y0 + HEIGHT / 2), (x1, y1 + HEIGHT / 2), 0.25
        axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **look))


def told_before(graph: Graph, older: str, newer: str) -> bool:
    """Return whether a training set has a label from the one that it was grown from: that one has the arrow."""
    if graph.nodes[newer]["type"] != "training_set" or graph.nodes[older]["type"] == "training_set":
        return False
    parents = (o for o, n in graph.edges if n == newer and graph.nodes[o]["type"] == "training_set")
    return any((older, parent) in graph.edges for parent in parents)
