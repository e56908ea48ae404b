"""Names to generators: the entry points of the group ``inv_design.generators``."""

from __future__ import annotations

from functools import cache
from importlib import resources
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inv_design.generators.protocol import Generator

GROUP = "inv_design.generators"
DEFAULT_WEIGHTS = "con_cdvae.safetensors"


def generator_names() -> list[str]:
    """Return the names of all installed generators, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def generator_class(name: str) -> type[Generator]:
    """Return the class behind a generator's name.

    Raises
    ------
    ValueError
        If no such generator is installed.
    """
    for point in entry_points(group=GROUP):
        if point.name == name:
            loaded: type[Generator] = point.load()
            return loaded
    raise ValueError(f"no generator {name!r} is installed; there are {', '.join(generator_names())}")


def make_generator(name: str, **settings: Any) -> Generator:
    """Return an unfitted generator.

    Parameters
    ----------
    name
        ``"con_cdvae"``, ``"substitution"``, ``"random_symmetric"``, ``"external"`` or another installed entry point.
    settings
        Keyword arguments of the generator's settings.

    Raises
    ------
    ValueError
        If the name or a setting is unknown.
    """
    factory = generator_class(name)
    try:
        return factory(**settings)
    except TypeError as error:
        raise ValueError(f"generator {name!r} does not take these settings: {error}") from error


def load_generator(blob: bytes) -> Generator:
    """Return the fitted generator of a blob written by its ``to_bytes``.

    Raises
    ------
    ValueError
        If the blob is not a model file, or of a generator that is not installed.
    """
    from inv_design.weights import unpack

    _, config = unpack(blob)
    if "generator" not in config:
        raise ValueError(f"not a generator's model file (its configuration has {sorted(config)})")
    return generator_class(config["generator"]).from_bytes(blob)


@cache
def default_weights() -> bytes:
    """Return the packaged pretrained Con-CDVAE as a blob (see the MODEL_CARD.md beside it).

    Raises
    ------
    FileNotFoundError
        If the package was installed without its model file.
    """
    path = resources.files("inv_design.generators") / "weights" / DEFAULT_WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"the packaged generator {path} is missing; train one with models/con_cdvae/train.py")
    return path.read_bytes()


def default_generator() -> Generator:
    """Return a fresh copy of the packaged pretrained Con-CDVAE."""
    return load_generator(default_weights())
