"""Predictors by name: the built-in ones, those that other packages register, and the packaged default."""

from __future__ import annotations

from importlib import import_module, metadata, resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inv_design.predictors.protocol import Predictor

ENTRY_POINTS = "inv_design.predictors"
BUILT_IN: dict[str, str] = {
    "cgcnn": "inv_design.predictors.ensemble:CGCNNEnsemble",
    "extra_trees": "inv_design.predictors.forest:ExtraTrees",
    "forest": "inv_design.predictors.forest:RandomForest",
}


def predictor_names() -> list[str]:
    """Return the names :func:`make_predictor` knows, sorted."""
    return sorted(set(BUILT_IN) | {point.name for point in metadata.entry_points(group=ENTRY_POINTS)})


def make_predictor(name: str, *, property: str = "bulk_modulus_vrh", **settings: Any) -> Predictor:
    """Return an unfitted predictor of ``property`` with the settings of its class.

    Raises
    ------
    ValueError
        If the name is unknown or a setting is not one of its.
    """
    try:
        return _predictor_class(name)(property, **settings)
    except TypeError as error:
        raise ValueError(f"the predictor {name!r} does not take these settings: {error}") from error


def load_predictor(blob: bytes) -> Predictor:
    """Return the predictor of a model file, of whichever kind its header names.

    Raises
    ------
    ValueError
        If the bytes are not a model file or its kind is unknown.
    """
    from inv_design.weights import unpack

    _, config = unpack(blob)
    return _predictor_class(str(config.get("kind"))).from_bytes(blob)


def default_predictor(property: str = "bulk_modulus_vrh") -> Predictor:
    """Return the packaged predictor of ``property``, trained on all 1,309 packaged alloys.

    Raises
    ------
    ValueError
        If none is packaged for the property.
    """
    folder = resources.files("inv_design.predictors") / "weights"
    path = folder / f"{property}-cgcnn.safetensors"
    if not path.is_file():
        suffix = "-cgcnn.safetensors"
        known = sorted(p.name.removesuffix(suffix) for p in folder.iterdir() if p.name.endswith(suffix))
        raise ValueError(
            f"no packaged predictor of {property!r}; there is one of {', '.join(known)}; or train your own"
        )
    return load_predictor(path.read_bytes())


def _predictor_class(name: str) -> Any:
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return getattr(import_module(module), attribute)
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()
    raise ValueError(f"no predictor is called {name!r}; choose from {', '.join(predictor_names())}")
