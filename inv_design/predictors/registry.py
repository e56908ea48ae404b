"""Predictors by name: the built-in ones, those that other packages register, and the packaged default."""

from __future__ import annotations

from importlib import import_module, metadata, resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inv_design.predictors.protocol import Predictor
    from inv_design.predictors.target import Target

SUFFIX = "-cgcnn.safetensors"
ENTRY_POINTS = "inv_design.predictors"
BUILT_IN: dict[str, str] = {
    "cgcnn": "inv_design.predictors.ensemble:CGCNNEnsemble",
    "extra_trees": "inv_design.predictors.forest:ExtraTrees",
    "forest": "inv_design.predictors.forest:RandomForest",
}


def predictor_names() -> list[str]:
    """Return the names :func:`make_predictor` knows, sorted."""
    return sorted(set(BUILT_IN) | {point.name for point in metadata.entry_points(group=ENTRY_POINTS)})


def make_predictor(name: str, *, property: str | Target = "bulk_modulus_vrh", **settings: Any) -> Predictor:
    """Return an unfitted predictor of ``property`` with the settings of its class.

    A property that is not in :data:`inv_design.predictors.target.KNOWN` may come as a ``Target`` with its unit, scale
    and bounds; else it has no unit, no bounds, and its labels decide the scale.

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
    """Return the packaged predictor of ``property``, trained on all trusted labels of the packaged alloys.

    Raises
    ------
    ValueError
        If none is packaged for the property.
    """
    folder = resources.files("inv_design.predictors") / "weights"
    path = folder / f"{property}{SUFFIX}"
    if not path.is_file():
        known = ", ".join(packaged_properties())
        raise ValueError(f"no packaged predictor of {property!r}; there is one of {known}; or train your own")
    return load_predictor(path.read_bytes())


def packaged_properties() -> list[str]:
    """Return the properties that :func:`default_predictor` knows, sorted."""
    folder = resources.files("inv_design.predictors") / "weights"
    return sorted(p.name.removesuffix(SUFFIX) for p in folder.iterdir() if p.name.endswith(SUFFIX))


def _predictor_class(name: str) -> Any:
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return getattr(import_module(module), attribute)
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return point.load()
    raise ValueError(f"no predictor is called {name!r}; choose from {', '.join(predictor_names())}")
