"""`training-set`: the versions of what a campaign learned from, and what distinguishes them."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from inv_design.cli import render
from inv_design.cli.errors import NothingMatched
from inv_design.cli.options import Settings, campaign_options, json_option

if TYPE_CHECKING:
    from inv_design.datasets.training_set import TrainingSetDiff

SHOWN = 20
"""Members or changes of a kind that are printed without -v."""
SPLITS = ("train", "val", "test")


@click.group("training-set")
def training_set() -> None:
    """List, show and compare training sets.

    A training set is an immutable snapshot whose id (t-) is the hash of its content: crystals, labels and splits. ID is
    an id, the start of one, `round:N` for the set that a round of the campaign learned from, or `latest`.
    """


@training_set.command("list")
@json_option
@campaign_options
@click.pass_obj
def list_sets(settings: Settings) -> None:
    """List the training sets of a campaign, one per row, with the rounds that learned from it."""
    from inv_design.cli.database import campaign_name, open_database

    open_database(settings, read_only=True)
    name = campaign_name(settings)
    rows = sets_of(name)
    if not rows:
        raise NothingMatched(f"campaign {name!r} has no training set yet; `inv-design run` makes one for each round")
    if settings.as_json:
        render.json_document(rows)
        return
    columns = ["training set", "rounds", "members", "labels", "excluded", "parent", "made"]
    table = [
        (
            r["training_set_id"], ", ".join(map(str, r["rounds"])) or "-", r["size"], counted(r["labels_by_method"]),
            r["excluded"], r["parent_training_set_id"], str(r["created_at"])[:16],
        )
        for r in rows
    ]  # fmt: skip
    render.table(table, columns, right=["members", "excluded"], cut="labels")


@training_set.command()
@click.argument("id_", metavar="ID")
@json_option
@campaign_options
@click.pass_obj
def show(settings: Settings, id_: str) -> None:
    """Show one training set: its splits, its labels by method, and what was left out and why.

    With -v every member is listed.
    """
    from inv_design.cli.database import open_database

    open_database(settings, read_only=True)
    record = describe(load(settings, id_))
    if settings.as_json:
        render.json_document(record)
        return
    lines = [
        ("training set", record["training_set_id"]),
        ("campaign", f"{record['campaign']}, round {record['round']}"),
        ("parent", record["parent_training_set_id"] or "-"),
        ("members", f"{record['size']} crystals of {record['systems']} chemical systems"),
        ("splits", counted(record["splits"])),
        ("labels", counted(record["labels_by_method"])),
        ("in two splits", ", ".join(record["leaks"]) or "no chemical system"),
        ("left out", counted(record["excluded_reasons"])),
    ]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name:<{width}}  {text}")
    if settings.verbose:
        click.echo()
        member_table(record["members"])


@training_set.command()
@click.argument("a")
@click.argument("b")
@json_option
@campaign_options
@click.pass_obj
def diff(settings: Settings, a: str, b: str) -> None:
    """Show what distinguishes training set B from training set A.

    Crystals that are in one only, labels that differ with their old and new value and method, and chemical systems in
    another split: none, unless a set was made by hand. With -v all are listed.
    """
    from inv_design.cli.database import open_database
    from inv_design.datasets.training_set import diff_members

    open_database(settings, read_only=True)
    old, new = load(settings, a), load(settings, b)
    found = diff_members(old["members"], new["members"])
    if settings.as_json:
        record = {"a": old["training_set_id"], "b": new["training_set_id"], **summary(found)}
        render.json_document({**record, **{k: getattr(found, k) for k in ("added", "removed", "relabelled", "moved")}})
        return
    print_diff(old, new, found, shown=None if settings.verbose else SHOWN)


# -- reading ----------------------------------------------------------------------------------------------------------


def sets_of(campaign: str) -> list[dict[str, Any]]:
    """Return a campaign's training sets in the order of the rounds that first learned from them."""
    rounds = rounds_of(campaign)
    by_set: dict[str, list[int]] = {}
    for number, ids in sorted(rounds.items()):
        for identity in ids:
            by_set.setdefault(identity, []).append(number)
    rows = []
    for identity, numbers in by_set.items():
        document = document_of(identity)
        if document is None:  # a model names it, and it was not imported with the model
            continue
        rows.append(
            {
                "training_set_id": identity,
                "rounds": numbers,
                "size": document["size"],
                "labels_by_method": document.get("labels_by_method") or {},
                "excluded": len(document.get("excluded") or []),
                "parent_training_set_id": document.get("parent_training_set_id"),
                "created_at": (document.get("provenance") or {}).get("created_at"),
            }
        )
    return rows


def rounds_of(campaign: str) -> dict[int, list[str]]:
    """Return round -> ids of the training sets that a campaign learned from, the newest last."""
    from builders.training_members import training_set_ids
    from stores.connection import current

    connection = current()
    stores = (connection.maggma_store("training_sets"), connection.maggma_store("models"))
    return training_set_ids(*stores, campaign)


def load(settings: Settings, text: str) -> dict[str, Any]:
    """Return a training set with its members.

    Raises
    ------
    LookupError
        If there is none, or several.
    """
    identity = identify(settings, text)
    document = document_of(identity)
    if document is None:
        raise LookupError(f"{text} is {identity}, which is not in this database; import it")
    return {**document, "members": document.get("members") or []}


def identify(settings: Settings, text: str) -> str:
    """Return the id of a training set: given, begun, or by ``round:N`` or ``latest``.

    Raises
    ------
    LookupError
        If there is none, or several.
    """
    from inv_design.cli.database import campaign_name
    from inv_design.cli.records import full_id

    match = re.fullmatch(r"latest|round:(\d+)", text)
    if match is None:
        identity = full_id(f"t-{text}" if re.fullmatch(r"[0-9a-f]+", text) else text)
        if not identity.startswith("t-"):
            raise LookupError(f"{identity} is no training set; `inv-design training-set list` shows them")
        return identity
    name = campaign_name(settings)
    rounds = rounds_of(name)
    if not rounds:
        raise LookupError(f"campaign {name!r} has no training set yet; `inv-design run` makes one for each round")
    number = max(rounds) if text == "latest" else int(match.group(1))
    if number not in rounds:
        known = ", ".join(map(str, sorted(rounds)))
        raise LookupError(f"round {number} of campaign {name!r} has no training set; rounds {known} have one")
    return rounds[number][-1]


def document_of(identity: str) -> dict[str, Any] | None:
    """Return a training set's document with the parts that are in GridFS, or ``None``."""
    from stores.documents import TrainingSet

    document = TrainingSet.objects(training_set_id=identity).first()
    return None if document is None else {k: v for k, v in document.complete().items() if k != "_id"}


# -- saying -----------------------------------------------------------------------------------------------------------


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """Return a training set with the numbers that sum it up."""
    from builders.campaign_metrics import reason_kind
    from inv_design.datasets.training_set import leaks, splits_by_system

    members = document["members"]
    splits = Counter(str(m.get("split")) for m in members)
    return {
        **{k: document.get(k) for k in ("training_set_id", "campaign", "round", "parent_training_set_id", "size")},
        "created_at": (document.get("provenance") or {}).get("created_at"),
        "systems": len(splits_by_system(members)),
        "splits": {name: splits[name] for name in (*SPLITS, *sorted(splits.keys() - set(SPLITS))) if splits[name]},
        "labels_by_method": document.get("labels_by_method") or {},
        "leaks": leaks(members),
        "excluded_reasons": dict(Counter(reason_kind(e["reason"]) for e in document.get("excluded") or [])),
        "excluded": document.get("excluded") or [],
        "members": members,
    }


def summary(found: TrainingSetDiff) -> dict[str, Any]:
    """Return the counts of a comparison."""
    names = sorted(found.old_methods.keys() | found.new_methods.keys())
    return {
        "counts": {name: len(getattr(found, name)) for name in ("added", "removed", "relabelled", "moved")},
        "labels_by_method": {
            name: {"a": found.old_methods.get(name, 0), "b": found.new_methods.get(name, 0)} for name in names
        },
    }


def print_diff(old: dict[str, Any], new: dict[str, Any], found: TrainingSetDiff, *, shown: int | None) -> None:
    """Print a comparison: the counts, then what is behind them."""
    click.echo(f"{old['training_set_id']} ({old['size']} members) -> {new['training_set_id']} ({new['size']} members)")
    if not found:
        click.echo("no difference")
        return
    record = summary(found)
    click.echo(", ".join(f"{count} {name}" for name, count in record["counts"].items()))
    for name, counts in record["labels_by_method"].items():
        click.echo(f"labels by {name}: {counts['a']} -> {counts['b']}")
    for title, members in (("added", found.added), ("removed", found.removed)):
        if members:
            click.echo(f"\n{title}")
            member_table(members[:shown])
            say_more(len(members), shown)
    if found.relabelled:
        click.echo("\nrelabelled")
        changes = [
            (r["structure_id"], r["chemsys"], r["property"], label_text(r["old"]), label_text(r["new"]))
            for r in found.relabelled[:shown]
        ]
        render.table(changes, ["structure", "system", "property", "old", "new"])
        say_more(len(found.relabelled), shown)
    if found.moved:
        click.echo("\nin another split")
        rows = [(m["chemsys"], ", ".join(m["old"]), ", ".join(m["new"])) for m in found.moved[:shown]]
        render.table(rows, ["system", "old", "new"])
        say_more(len(found.moved), shown)


def member_table(members: list[dict[str, Any]]) -> None:
    """Print members with their labels."""
    rows = [
        (
            m["structure_id"], m.get("chemsys"), m.get("split"),
            "; ".join(f"{name} {label_text(label)}" for name, label in (m.get("labels") or {}).items()),
        )
        for m in members
    ]  # fmt: skip
    render.table(rows, ["structure", "system", "split", "labels"], cut="labels")


def label_text(label: dict[str, Any] | None) -> str:
    """Return a label in words: value, unit, method."""
    if label is None:
        return "-"
    return f"{render.number(label.get('value'))} {label.get('unit')} by {label.get('method')}"


def counted(counts: dict[str, int]) -> str:
    """Return ``"12 vasp, 3 gpaw"``."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "-"


def say_more(total: int, shown: int | None) -> None:
    """Say that there is more than was printed."""
    if shown is not None and total > shown:
        click.echo(f"and {total - shown} more; -v lists all")
