"""Hashes of settings: the id of everything that determines a result."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

SIGNIFICANT_DIGITS = 12


def protocol_id(settings: Mapping[str, Any]) -> str:
    """Return ``"p-"`` and 20 hexadecimal digits of the hash of everything that determines a result.

    Put in the code's name and version, the hash of model weights, and the settings. The order of keys, 1 against 1.0,
    tuples against lists and float noise beyond 12 digits make no difference.

    Raises
    ------
    TypeError
        If a value has no canonical form (an object, a function).
    """
    return content_id("p", settings)


def content_id(prefix: str, content: Any) -> str:
    """Return ``prefix-`` and 20 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return f"{prefix}-{hashlib.sha256(canonical_json(content).encode()).hexdigest()[:20]}"


def canonical_json(content: Any) -> str:
    """Return the one JSON text of plain data; see :func:`protocol_id`."""
    return json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _canonical(value: Any) -> Any:  # noqa: PLR0911 (one line per type)
    if isinstance(value, Enum):
        return _canonical(value.value)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _canonical_float(float(value))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"setting name {key!r} is no string; name every setting by a string")
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_canonical(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, PurePath):
        return value.as_posix()
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return _canonical(value.tolist())
    raise TypeError(f"{value!r} of type {type(value).__name__} has no canonical form; give plain numbers and strings")


def _canonical_float(value: float) -> Any:
    if not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
