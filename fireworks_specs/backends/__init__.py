"""Stage-III backends: each computes the bulk modulus of one crystal; results say which backend made them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inv_design.config import CampaignConfig, DftConfig


class Backend(Protocol):
    """What ``surrogate``, ``gpaw`` and ``vasp`` implement."""

    method: str
    """Stored with every result: ``surrogate``, ``gpaw`` or ``vasp``."""
    kind: str
    """The kind of calculation: ``eos`` or ``elastic``."""
    batch: int
    """Crystals per firework: 1 for DFT, some for a potential that imports slowly and computes fast."""
    label: str
    """How plots and tables name it; a surrogate is called one."""

    def protocol(self, config: CampaignConfig) -> dict[str, Any]:
        """Return everything that determines the result."""
        ...

    def compute(self, structures: Sequence[Any], config: CampaignConfig) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (index, record) as crystals finish; a failure is a record with ``state`` failed, never an exception.

        The record has ``state``, ``results`` (``bulk_modulus_vrh`` in GPa, ...), ``flags``, ``error``, ``structure``.
        """
        ...


def get_backend(stage: DftConfig | str) -> Backend:
    """Return the backend of a stage III; a name stands for its default settings, on which its ``kind`` may depend.

    Raises
    ------
    ValueError
        If this version does not have it.
    """
    name = stage if isinstance(stage, str) else stage.backend
    if name == "surrogate":
        from fireworks_specs.backends.surrogate import Surrogate

        return Surrogate()
    if name == "vasp":
        from fireworks_specs.backends.vasp import Vasp

        return Vasp()
    if name == "gpaw":
        from fireworks_specs.backends.gpaw import Gpaw

        return Gpaw(None if isinstance(stage, str) else stage)
    raise ValueError(f"stages.dft.backend {name!r} is not in this version; use 'gpaw', 'vasp' or 'surrogate'")
