"""Model files: one safetensors blob of tensors with a JSON configuration in its header, never a pickle."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

FORMAT = "inv-design-weights-1"
KEY = "inv_design"


def pack(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> bytes:
    """Return one safetensors blob that holds ``tensors`` (numpy arrays) and a JSON ``config``."""
    import numpy as np
    from safetensors.numpy import save

    # one metadata key: safetensors writes several in random order, and the bytes' hash is the model's id
    metadata = {KEY: json.dumps({"format": FORMAT, "config": config}, sort_keys=True)}
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata=metadata)


def unpack(blob: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (tensors, config) of a blob written by :func:`pack`.

    Raises
    ------
    ValueError
        If the bytes are not such a blob. Nothing in it is ever executed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        header_size = int.from_bytes(blob[:8], "little")
        header = json.loads(json.loads(blob[8 : 8 + header_size])["__metadata__"][KEY])
        if header["format"] != FORMAT:
            raise ValueError(f"unknown weights format {header['format']!r}, expected {FORMAT!r}")
        return load(blob), header["config"]
    except (SafetensorError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a model file (safetensors with an inv_design header): {error}") from error


def sha256(blob: bytes) -> str:
    """Return the hexadecimal SHA-256 of ``blob``, the content id of a model file."""
    return hashlib.sha256(blob).hexdigest()
