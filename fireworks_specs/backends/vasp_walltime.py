"""A VASP run ends in order before Slurm ends it, and is no result then."""

from __future__ import annotations

from pathlib import Path

from custodian.vasp.handlers import WalltimeHandler

from fireworks_specs.backends.vasp_failures import has_converged


class StopBeforeWalltime(WalltimeHandler):
    """custodian's handler, with which a run that it stopped fails: custodian's own takes what is there for the end."""

    raises_runtime_error = True

    def check(self, directory: str = "./") -> bool:
        """Return whether the time is over for a run that has not come to its end; custodian asks after the end, too."""
        return bool(super().check(directory)) and not has_converged(Path(directory))
