"""Crystals of candidates: relaxed by the judge whose K they have, or as generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    F = TypeVar("F", bound="Callable[..., Any]")

RELAXED, GENERATED = "relaxed", "generated"
BATCH = 500
"""Structures asked for at once."""


def crystal_option(command: F) -> F:
    """Add ``--crystal``."""
    return click.option(
        "--crystal",
        type=click.Choice((RELAXED, GENERATED)),
        default=RELAXED,
        show_default=True,
        help="The crystal that K belongs to, relaxed by the label or the MLIP where one did, or the one generated.",
    )(command)


def crystal_of(summary: Mapping[str, Any], which: str = RELAXED) -> dict[str, Any]:
    """Return which crystal of a candidate is meant, by its summary's ``structure_id`` and ``stages``.

    Parameters
    ----------
    which
        ``relaxed``: by the costliest stage that gave a K and kept its crystal, as generated where none did; or
        ``generated``.

    Returns
    -------
    dict
        ``crystal`` (``relaxed`` or ``generated``), ``crystal_structure_id``, and ``crystal_by``: the method that
        relaxed it (``mlip``, ``surrogate``, ``gpaw``, ``vasp``), ``None`` if none did.
    """
    stages = summary.get("stages") or {}
    for stage in ("dft", "mlip") if which == RELAXED else ():
        record = stages.get(stage) or {}
        if record.get("value") is not None and record.get("output_structure_id"):
            return {
                "crystal": RELAXED,
                "crystal_structure_id": record["output_structure_id"],
                "crystal_by": record.get("method") or stage,
            }
    return {"crystal": GENERATED, "crystal_structure_id": summary["structure_id"], "crystal_by": None}


def with_crystals(summaries: Sequence[Mapping[str, Any]], which: str = RELAXED) -> list[dict[str, Any]]:
    """Return summaries with what :func:`crystal_of` says, and ``crystal_spacegroup`` as ``structures`` has it."""
    chosen = [crystal_of(summary, which) for summary in summaries]
    # a summary has the space group of its generated crystal
    relaxed = [c["crystal_structure_id"] for c in chosen if c["crystal"] == RELAXED]
    groups = {d["structure_id"]: d.get("spacegroup") for d in _structures(relaxed, "spacegroup")}
    return [
        {
            **summary,
            **crystal,
            "crystal_spacegroup": summary.get("spacegroup")
            if crystal["crystal"] == GENERATED
            else groups.get(crystal["crystal_structure_id"]),
        }
        for summary, crystal in zip(summaries, chosen, strict=True)
    ]


def crystal_text(record: Mapping[str, Any]) -> str:
    """Return in words which crystal is meant: ``relaxed by vasp``, ``generated``."""
    return f"relaxed by {record['crystal_by']}" if record["crystal"] == RELAXED else GENERATED


def load_crystals(ids: Sequence[str]) -> dict[str, Any]:
    """Return structure id -> pymatgen Structure for the ids that the database has."""
    from inv_design.structures.files import structure_from_dict

    return {d["structure_id"]: structure_from_dict(d["structure"]) for d in _structures(ids, "structure")}


def _structures(ids: Iterable[str], *fields: str) -> Iterator[dict[str, Any]]:
    from stores.connection import current

    wanted = list(dict.fromkeys(ids))
    shown = {"_id": 0, "structure_id": 1, **dict.fromkeys(fields, 1)}
    for start in range(0, len(wanted), BATCH):
        yield from current().db["structures"].find({"structure_id": {"$in": wanted[start : start + BATCH]}}, shown)
