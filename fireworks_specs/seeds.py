"""Seeds: every random step of a campaign derives its own from the campaign's one."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: str | int) -> int:
    """Return a seed in [0, 2^31) from the parts, such as (campaign seed, round, "generate", chunk)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
