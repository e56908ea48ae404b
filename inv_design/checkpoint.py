"""Checkpoints: a long computation offers its state at safe points, and whoever runs it decides what to keep.

A state is named arrays and JSON-able values, enough to go on as if nothing had happened: parameters, the optimiser's
moments, the states of the generators of random numbers, where the loop stands. The functions below turn torch's objects
into such arrays and back, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import torch

    Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class State:
    """How far a computation is.

    Attributes
    ----------
    tensors
        Named arrays.
    values
        JSON-able values; numbers come back as they were (Python's ``json`` keeps every digit of a float).
    """

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class Checkpoint:
    """Where a computation keeps its state; this one keeps nothing. Who runs a computation passes a better one."""

    def resume(self) -> State | None:
        """Return the state to go on from, ``None`` to begin."""
        return None

    def offer(self, state: Callable[[], State]) -> None:
        """Keep ``state()`` if it is time to; called at every safe point, it may raise to stop the computation."""


class Within(Checkpoint):
    """The checkpoint of a part of a computation, inside of the one of the whole.

    Parameters
    ----------
    whole
        The checkpoint of the whole.
    around
        Returns the rest of the whole's state; its names must differ from the part's, which begin with ``part.``.
    start
        State to begin the part from, of :meth:`split`.
    """

    PREFIX = "part."

    def __init__(self, whole: Checkpoint, around: Callable[[], State], start: State | None = None) -> None:
        self.whole, self.around, self.start = whole, around, start

    def resume(self) -> State | None:
        """Return the part's state to go on from."""
        return self.start

    def offer(self, state: Callable[[], State]) -> None:
        """Offer the state of the whole with that of the part in it."""

        def joined() -> State:
            part, rest = state(), self.around()
            tensors = {self.PREFIX + name: array for name, array in part.tensors.items()}
            return State({**rest.tensors, **tensors}, {**rest.values, "part": part.values})

        self.whole.offer(joined)

    @classmethod
    def split(cls, state: State) -> tuple[State, State]:
        """Return (state of the rest, state of the part) of a state that was offered through this class."""
        part = {n.removeprefix(cls.PREFIX): a for n, a in state.tensors.items() if n.startswith(cls.PREFIX)}
        rest = {n: a for n, a in state.tensors.items() if not n.startswith(cls.PREFIX)}
        values = {name: value for name, value in state.values.items() if name != "part"}
        return State(rest, values), State(part, dict(state.values["part"]))


# -- torch's objects as arrays ----------------------------------------------------------------------------------------


def named_arrays(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return tensors as arrays ``PREFIX.NAME``, copied."""
    return {f"{prefix}.{name}": tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def load_tensors(prefix: str, tensors: Mapping[str, torch.Tensor], arrays: Tensors) -> None:
    """Write the arrays of :func:`named_arrays` into tensors of the same names, in place.

    Raises
    ------
    KeyError, RuntimeError
        If one is missing or of another size.
    """
    import torch

    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(arrays[f"{prefix}.{name}"].copy()).reshape(tensor.shape))


def optimizer_arrays(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """Return the optimiser's moments and counts as arrays ``PREFIX.PARAMETER.NAME``."""
    moments = optimizer.state_dict()["state"]
    return {
        key: array
        for number, state in moments.items()
        for key, array in named_arrays(f"{prefix}.{number}", state).items()
    }


def load_optimizer(prefix: str, optimizer: torch.optim.Optimizer, arrays: Tensors) -> None:
    """Give an optimiser the moments of :func:`optimizer_arrays`; its settings stay."""
    import torch

    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, array in arrays.items():
        if key.startswith(f"{prefix}."):
            number, _, name = key.removeprefix(f"{prefix}.").partition(".")
            tensor = torch.from_numpy(array.copy())
            moments.setdefault(int(number), {})[name] = tensor.reshape(()) if name == "step" else tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def random_arrays(generator: torch.Generator | None = None) -> dict[str, np.ndarray]:
    """Return the states of torch's global random numbers and of a generator."""
    import torch

    arrays = {"random.global": torch.get_rng_state().numpy().copy()}
    if generator is not None:
        arrays["random.own"] = generator.get_state().numpy().copy()
    return arrays


def load_random(arrays: Tensors, generator: torch.Generator | None = None) -> None:
    """Go on with the random numbers of :func:`random_arrays`."""
    import torch

    torch.set_rng_state(torch.from_numpy(arrays["random.global"].copy()))
    if generator is not None:
        generator.set_state(torch.from_numpy(arrays["random.own"].copy()))
