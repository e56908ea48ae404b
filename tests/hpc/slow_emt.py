"""EMT that takes its time without taking a core: what a long calculation is to a scheduler."""

from __future__ import annotations

import os
import time
from typing import Any

from ase.calculators.emt import EMT


class SlowEMT(EMT):
    """EMT with a pause of ``$SLOW_EMT_SECONDS`` per calculation."""

    def calculate(self, *arguments: Any, **options: Any) -> None:
        """Wait, then calculate."""
        time.sleep(float(os.environ.get("SLOW_EMT_SECONDS", "0")))
        super().calculate(*arguments, **options)
