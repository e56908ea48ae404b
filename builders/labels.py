"""Which calculations are stage III's labels: by the campaign's own backend, with its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from builders.potentials import is_by

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inv_design.config import DftConfig


def label_kind(stage: DftConfig) -> str:
    """Return the kind of calculation that the backend's labels are: ``eos`` or ``elastic``."""
    return {"surrogate": "eos", "gpaw": stage.gpaw.kind, "vasp": "elastic"}[stage.backend]


def is_label(record: Mapping[str, Any], protocol: Any, stage: DftConfig) -> bool:
    """Return whether a calculation is a label of stage III.

    A label of another campaign is this one's too if it is by the same backend with the same settings. What a protocol
    does not say is not held against it, and versions do not count: finished labels outlive an update of a library.

    Parameters
    ----------
    record
        The calculation: ``kind`` and ``method``.
    protocol
        The settings stored with it; records of other programs may have none.
    """
    if (record["method"], record["kind"]) != (stage.backend, label_kind(stage)):
        return False
    protocol = protocol if isinstance(protocol, dict) else {}
    settings: dict[str, Any] = stage.gpaw.model_dump(exclude={"ranks"}) if stage.backend == "gpaw" else {}
    if record["kind"] == "eos":
        settings["strain"] = stage.strain
    named = protocol.get("calculator") if stage.backend == "surrogate" else None
    return is_by(named, stage.calculator) and all(protocol.get(k, v) == v for k, v in settings.items())
