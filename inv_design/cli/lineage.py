"""`lineage`: where a record came from, or what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

SIBLINGS = 8
"""Records of one relation that the tree lists under another; the rest is counted."""


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--down", is_flag=True, help="What came of it, instead of where it came from.")
@click.option("--depth", type=click.IntRange(min=0), help="Go only so many steps.")
@click.option(
    "--all", "everything", is_flag=True, help="List also what is otherwise counted, such as reference labels."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a picture instead: .svg, .png, .pdf, .html, or .dot for Graphviz.",
)
@json_option
@database_options
@click.pass_obj
def lineage(
    settings: Settings, *, id_: str, down: bool, depth: int | None, everything: bool, output: Path | None
) -> None:
    """Show where a record came from, or what came of it.

    ID is a candidate (c-), structure (s-), model (m-), training set (t-) or calculation (k-), or the start of one. A
    picture has a row per generation and a column per kind of record; of many alike it draws a few and counts the rest.
    """
    from inv_design.cli.database import open_database
    from inv_design.cli.records import full_id
    from stores.lineage import lineage as walk

    if output is not None:
        from inv_design.report.lineage import SUFFIXES, write_lineage

        if output.suffix.lower() not in SUFFIXES:
            raise click.BadParameter(f"{output} has no suffix of {', '.join(SUFFIXES)}", param_hint="-o")
    open_database(settings, read_only=True)
    direction: Literal["up", "down"] = "down" if down else "up"
    tree = walk(full_id(id_), direction=direction, depth=depth, everything=everything)
    if output is not None:
        kinds = write_lineage(tree, output, direction=direction)
        found = ", ".join(f"{n} {kind.replace('_', ' ')}{'s' if n > 1 else ''}" for kind, n in kinds.items())
        render.say(f"wrote {output}: {found}")
    if settings.as_json:
        render.json_document(tree)
    if settings.as_json or output is not None:
        return
    from rich.tree import Tree

    root = Tree(node_text(tree), guide_style="dim")
    add_children(root, tree, most=None if everything else SIBLINGS)
    render.console().print(root)


def add_children(branch: Tree, node: dict[str, Any], *, most: int | None) -> None:
    """Add a lineage node's children to a branch: of each relation the ``most`` with most behind them, and a count."""
    from rich.text import Text

    for name, count in (node.get("counted") or {}).items():
        branch.add(Text(f"{count} {name}", style="dim"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for child in node.get("children", []):
        groups.setdefault(child.get("relation", ""), []).append(child)
    for relation, children in groups.items():
        shown = children if most is None else first_of(children, most)
        for child in shown:
            add_children(branch.add(node_text(child)), child, most=most)
        if len(children) > len(shown):
            branch.add(Text(f"{len(children) - len(shown)} more: {relation} (--all)", style="dim"))
    if node.get("more"):
        branch.add(Text(f"{node['more']} more (--depth)", style="dim"))


def first_of(children: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return the ``most`` nodes that have most behind them, in their order."""
    chosen = sorted(range(len(children)), key=lambda i: -size(children[i]))[:most]
    return [children[i] for i in sorted(chosen)]


def size(node: dict[str, Any]) -> int:
    """Return how many nodes a lineage tree has."""
    return 1 + sum(size(child) for child in node.get("children", []))


def node_text(node: dict[str, Any]) -> Text:
    """Return the line of a lineage node: relation, id, what it is, when it was made."""
    from rich.text import Text

    text = Text()
    if node.get("relation"):
        text.append(f"{node['relation']} ", style="italic")
    text.append(str(node["id"]), style="bold cyan")
    if node.get("missing"):
        text.append("  not in this database", style="red")
    elif node.get("seen"):
        text.append("  (above)", style="dim")
    else:
        made = node.get("created_at")
        when = f", {made:%Y-%m-%d %H:%M}" if hasattr(made, "strftime") else ""
        text.append(f"  {node.get('label', '')}")
        text.append(when, style="dim")
    return text
