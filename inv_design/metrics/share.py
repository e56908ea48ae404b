"""Share: a fraction that never travels without its counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Share:
    """A fraction with the counts behind it."""

    count: int
    total: int

    @property
    def fraction(self) -> float | None:
        """``count / total``, ``None`` of nothing."""
        return self.count / self.total if self.total else None

    def record(self) -> dict[str, Any]:
        """Return count, total and fraction."""
        return {**asdict(self), "fraction": self.fraction}
