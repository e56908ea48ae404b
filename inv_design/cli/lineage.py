"""`lineage`: where a record came from, or what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.options import Settings, database_options, json_option

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree


@click.command()
@click.argument("id_", metavar="ID")
@click.option("--down", is_flag=True, help="What came of it, instead of where it came from.")
@click.option("--depth", type=click.IntRange(min=0), help="Go only so many steps.")
@click.option(
    "--all", "everything", is_flag=True, help="List also what is otherwise counted, such as reference labels."
)
@json_option
@database_options
@click.pass_obj
def lineage(settings: Settings, *, id_: str, down: bool, depth: int | None, everything: bool) -> None:
    """Show where a record came from, or what came of it.

    ID is a candidate (c-), structure (s-), model (m-), training set (t-) or calculation (k-), or the start of one.
    """
    from inv_design.cli.database import open_database
    from inv_design.cli.records import full_id
    from stores.lineage import lineage as walk

    open_database(settings, read_only=True)
    tree = walk(full_id(id_), direction="down" if down else "up", depth=depth, everything=everything)
    if settings.as_json:
        render.json_document(tree)
        return
    from rich.tree import Tree

    root = Tree(node_text(tree), guide_style="dim")
    add_children(root, tree)
    render.console().print(root)


def add_children(branch: Tree, node: dict[str, Any]) -> None:
    """Add a lineage node's children to a branch."""
    from rich.text import Text

    for name, count in (node.get("counted") or {}).items():
        branch.add(Text(f"{count} {name}", style="dim"))
    for child in node.get("children", []):
        add_children(branch.add(node_text(child)), child)
    if node.get("more"):
        branch.add(Text(f"{node['more']} more (--depth)", style="dim"))


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
