"""Candidates as OPTIMADE structures: JSON lines that optimade-python-tools serves."""

from __future__ import annotations

import json
import os
from datetime import datetime
from functools import reduce
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stores.scan import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from stores.connection import Connection

API_VERSION = "1.2.0"
PREFIX = "invdesign"
BATCH = 200
STAGES = ("generated", "predictor", "mlip", "dft")

FIELDS: dict[str, tuple[str, str | None, str]] = {
    "bulk_modulus_vrh": ("float", "GPa", "Bulk modulus (Voigt-Reuss-Hill): the best value there is."),
    "bulk_modulus_method": ("string", None, "Where that value comes from: predictor, mlip, surrogate, gpaw, vasp."),
    "shear_modulus_vrh": ("float", "GPa", "Shear modulus (Voigt-Reuss-Hill): the best value there is."),
    "density": ("float", "g/cm^3", "Density, of the relaxed crystal where it was relaxed."),
    "volume_per_atom": ("float", "Å^3", "Volume per atom, of the relaxed crystal where it was relaxed."),
    "cost": ("float", None, "Relative cost of the elements, by the campaign's table."),
    "target_error": ("float", None, "Relative deviation from the campaign's target."),
    "born_stable": ("boolean", None, "Whether the elastic tensor fulfils Born's criteria."),
    "hit": ("boolean", None, "Whether a label meets the campaign's targets; null without a label."),
    "stage": ("string", None, "The last stage that the candidate entered: predictor, mlip or dft."),
    "status": ("string", None, "What became of it there: passed, rejected, failed or waiting."),
    "reason": ("string", None, "Why it was rejected or failed."),
    "campaign": ("string", None, "The campaign that generated it."),
    "round": ("integer", None, "The round of the campaign."),
    "candidate_id": ("string", None, "The candidate's id in the campaign."),
    "generator_model_id": ("string", None, "The model that generated it."),
    "spacegroup_number": ("integer", None, "Number of the space group (spglib, see spacegroup_symprec)."),
    "spacegroup_symprec": ("float", "Å", "Tolerance with which the space group was found."),
}  # fmt: skip
"""Field of our own -> (OPTIMADE type, unit, description); served with the prefix ``_invdesign_``."""

Report = dict[str, Any]


def export_optimade(
    connection: Connection,
    path: Path,
    *,
    campaigns: Sequence[str] | None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Write the crystals of campaigns' candidates (``None``: of all) as OPTIMADE JSON lines, one entry per crystal.

    The crystal is the one that was generated; the values are of the candidate that came furthest. Beside the file
    comes ``NAME.config.json``, with which optimade-python-tools serves it.

    Raises
    ------
    LookupError
        If a campaign is not in the database, or there is no candidate.
    """
    path = Path(path)
    known = sorted(connection.db["campaigns"].distinct("name"))
    chosen = known if campaigns is None else list(campaigns)
    for name in chosen:
        if name not in known:
            raise LookupError(f"the database holds no campaign {name!r}; it holds {', '.join(known) or 'none'}")
    found = connection.db["candidates"].find({"campaign": {"$in": chosen}}, {"structure_id": 1, "_id": 0})
    ids = sorted({candidate["structure_id"] for candidate in found})
    if not ids:
        raise LookupError(f"there is no candidate in {', '.join(chosen) or 'the database'} to export")
    fields = FIELDS | _further_fields(connection, chosen)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in (_header(), _info(fields)):
                file.write(_line(record))
            count = 0
            for entry in _entries(connection, chosen, ids, fields):
                file.write(_line(entry))
                count += 1
                if progress is not None:
                    progress(count, len(ids), "")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    config = path.with_suffix(".config.json")
    config.write_text(json.dumps(server_config(path, fields), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "structures": count,
        "campaigns": chosen,
        "config": str(config),
    }


def server_config(path: Path, fields: Mapping[str, tuple[str, str | None, str]] = FIELDS) -> dict[str, Any]:
    """Return the configuration with which optimade-python-tools serves a file ($OPTIMADE_CONFIG_FILE)."""
    return {
        "insert_from_jsonl": str(path.resolve()),
        "insert_test_data": False,
        "database_backend": "mongomock",
        "create_default_index": False,
        "provider": {
            "prefix": PREFIX,
            "name": "inv_design",
            "description": "Candidates of campaigns of inverse materials design",
            "homepage": None,
        },
        "provider_fields": {"structures": [{"name": name, **about} for name, about in _properties(fields).items()]},
    }


def structure_attributes(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OPTIMADE attributes of a ``structures`` record."""
    from inv_design.structures.files import structure_from_dict

    structure = structure_from_dict(record["structure"])
    symbols = [site.specie.symbol for site in structure]
    counts = {symbol: symbols.count(symbol) for symbol in sorted(set(symbols))}
    divisor = reduce(gcd, counts.values())
    reduced = {symbol: count // divisor for symbol, count in counts.items()}
    return {
        "immutable_id": record["structure_id"],
        "elements": list(counts),
        "nelements": len(counts),
        "elements_ratios": [count / len(symbols) for count in counts.values()],
        "chemical_formula_reduced": _formula(reduced),
        "chemical_formula_descriptive": record["formula"],
        "chemical_formula_anonymous": _formula(
            dict(zip(_letters(), sorted(reduced.values(), reverse=True), strict=False))
        ),
        "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3,
        "lattice_vectors": structure.lattice.matrix.tolist(),
        "cartesian_site_positions": structure.cart_coords.tolist(),
        "nsites": len(symbols),
        "species": [{"name": s, "chemical_symbols": [s], "concentration": [1.0]} for s in counts],
        "species_at_sites": symbols,
        "structure_features": [],
    }


def _entries(
    connection: Connection, campaigns: list[str], ids: list[str], fields: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the entries in the order of their ids, some read at a time."""
    from stores.references import read

    for part in batches(ids, BATCH):
        criteria = {"structure_id": {"$in": part}, "campaign": {"$in": campaigns}}
        best: dict[str, dict[str, Any]] = {}
        for summary in connection.db["candidate_summaries"].find(criteria):
            other = best.get(summary["structure_id"])
            if other is None or _rank(summary) < _rank(other):
                best[summary["structure_id"]] = summary
        for record in read(connection, "structures", part, whole=True):
            yield _entry(record, best.get(record["structure_id"], {}), fields)


def _rank(summary: Mapping[str, Any]) -> tuple[int, str]:
    """Return an order in which the candidate that came furthest is first."""
    stage = summary.get("stage")
    return (-STAGES.index(stage) if stage in STAGES else 1, summary["candidate_id"])


def _entry(record: Mapping[str, Any], summary: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    group = record["spacegroup"]
    values = {"spacegroup_number": group.get("number"), "spacegroup_symprec": group.get("symprec")}
    values |= {name: value for name, value in (summary.get("properties") or {}).items() if name in fields}
    values |= {name: summary[name] for name in fields if summary.get(name) is not None}
    changed = summary.get("last_updated") or record["provenance"].get("created_at")
    attributes = structure_attributes(record) | {"last_modified": _time(changed)}
    attributes |= {f"_{PREFIX}_{name}": values.get(name) for name in fields}
    return {"id": record["structure_id"], "type": "structures", "attributes": attributes}


def _further_fields(connection: Connection, campaigns: list[str]) -> dict[str, tuple[str, str | None, str]]:
    """Return the properties that campaigns name themselves, with their units."""
    fields: dict[str, tuple[str, str | None, str]] = {}
    for campaign in connection.db["campaigns"].find({"name": {"$in": campaigns}}, {"config.properties": 1}):
        for name, unit in ((campaign.get("config") or {}).get("properties") or {}).items():
            if name not in FIELDS and name.isidentifier() and name.islower():
                fields[name] = ("float", str(unit), f"{name}: the best value there is.")
    return fields


def _properties(fields: Mapping[str, tuple[str, str | None, str]]) -> dict[str, dict[str, Any]]:
    """Return name with prefix -> what OPTIMADE says about a property."""
    return {
        f"_{PREFIX}_{name}": {"type": kind, "description": text, **({"unit": unit} if unit else {})}
        for name, (kind, unit, text) in fields.items()
    }


def _header() -> dict[str, Any]:
    return {"x-optimade": {"meta": {"api_version": API_VERSION}}}


def _info(fields: Mapping[str, tuple[str, str | None, str]]) -> dict[str, Any]:
    properties = _properties(fields)
    return {
        "type": "info",
        "id": "structures",
        "description": "Crystals that campaigns of inverse materials design generated, with what is known of them",
        "formats": ["json"],
        "properties": properties,
        "output_fields_by_format": {"json": list(properties)},
    }


def _formula(counts: Mapping[str, int]) -> str:
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in counts.items())


def _letters() -> Iterator[str]:
    """Yield A, B, ... Z, Aa, Ba, ... as anonymous formulas name elements."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    yield from alphabet
    for second in alphabet.lower():
        yield from (f"{first}{second}" for first in alphabet)


def _time(value: Any) -> dict[str, str] | None:
    """Return a time in whole seconds, as Extended JSON: as bare text the served database could not compare it."""
    if not isinstance(value, datetime):
        return None
    return {"$date": value.isoformat(timespec="seconds").split("+")[0] + "Z"}


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
