"""Ids are hashes of content: whether a record has the id that its content gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pymatgen.core import Structure


def check_content(collection: str, record: Mapping[str, Any]) -> None:
    """Raise ValueError if a record has not the id of its content; its spilled parts must be in it.

    A model's id is not looked at: those of models that a migration changed are older than their files.
    """
    from stores import records

    if collection == "structures":
        _check_structure(record)
    elif collection == "calculations":
        structure, kind, protocol = _take(record, "structure_id", "kind", "protocol_id")
        expect(record, "calculation_id", records.calculation_id(structure, kind, protocol, record.get("attempt")))
    elif collection == "candidates":
        expect(record, "candidate_id", records.candidate_id(*_take(record, "campaign", "round", "seed", "index")))
    elif collection == "training_sets":
        expect(record, "training_set_id", records.training_set_id(record.get("members") or []))


def hashed_model_id(record: Mapping[str, Any]) -> str:
    """Return the id that a model's file, training set and place in a campaign have."""
    from stores.records import model_id

    return model_id(*(record.get(field) for field in ("sha256", "training_set_id", "campaign", "round")))  # type: ignore[arg-type]


def expect(record: Mapping[str, Any], field: str, expected: Any) -> None:
    """Raise ValueError if a field is not what the content says."""
    if record[field] != expected:
        raise ValueError(f"{field} is {record[field]!r}, its content has {expected!r}")


def _check_structure(record: Mapping[str, Any]) -> None:
    from inv_design.structures.files import structure_from_dict
    from inv_design.structures.identity import structure_id
    from stores.provenance import versions

    structure = structure_from_dict(record["structure"])
    identity = structure_id(structure)
    if identity != record["structure_id"]:
        there, here = (record["provenance"].get("versions") or {}).get("spglib"), versions().get("spglib")
        other = "" if there in (here, None) else f" (by spglib {here}, it was made with {there}: install that one)"
        raise ValueError(f"structure_id is {record['structure_id']!r}, its content has {identity!r}{other}")
    if not _is_formula_of(structure, record["formula"]):
        raise ValueError(f"formula is {record['formula']!r}, its content has {structure.composition.reduced_formula!r}")
    expect(record, "nsites", len(structure))
    expect(record, "elements", sorted({element.symbol for element in structure.composition.elements}))


def _is_formula_of(structure: Structure, formula: str) -> bool:
    """Return whether a formula is a crystal's, in whatever order a version of pymatgen writes the elements."""
    from pymatgen.core import Composition

    try:
        return bool(Composition(formula).reduced_composition == structure.composition.reduced_composition)
    except ValueError:
        return False


def _take(record: Mapping[str, Any], *fields: str) -> list[Any]:
    return [record[field] for field in fields]
