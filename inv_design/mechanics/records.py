"""Results as plain data: what a database or a JSON file takes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Return ``value`` with arrays as lists, crystals as dictionaries, and numbers that are not finite as ``None``."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.as_dict() if hasattr(value, "as_dict") else value


def plain_fields(result: Any) -> dict[str, Any]:
    """Return the fields of a result dataclass as plain data."""
    return {field.name: plain(getattr(result, field.name)) for field in dataclasses.fields(result)}
