"""A model by what the user calls it: the packaged one, a file, or an id of the database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inv_design.cli.errors import one_line

if TYPE_CHECKING:
    from inv_design.cli.options import Settings
    from inv_design.generators.protocol import Generator
    from inv_design.predictors.protocol import Predictor


def find_predictor(
    settings: Settings, model: str | None, *, property: str | None = "bulk_modulus_vrh"
) -> tuple[Predictor, str]:
    """Return (predictor, its name for records).

    Parameters
    ----------
    model
        ``None`` or ``packaged`` for the packaged one, a ``.safetensors`` file, a model id or a predictor's name.
    property
        What it must predict; ``None`` for what it does, and the bulk modulus of the packaged one.

    Raises
    ------
    ValueError, LookupError, FileNotFoundError
        If there is no such model, or it is not a predictor, or one of another property.
    """
    predictor, label = _predictor(settings, model, property or "bulk_modulus_vrh")
    if property is not None and predictor.property != property:
        raise ValueError(f"model {label} predicts {predictor.property!r}, not {property!r}; give a model of that")
    return predictor, label


def _predictor(settings: Settings, model: str | None, packaged: str) -> tuple[Predictor, str]:
    """Return (predictor, its name for records); ``packaged`` is the property of a packaged one."""
    from inv_design.predictors.registry import default_predictor, load_predictor, predictor_names

    if model in (None, "packaged"):
        predictor = default_predictor(packaged)
        return predictor, f"packaged:{predictor.name}"
    assert model is not None
    if (path := _model_file(model)) is not None:
        return load_predictor(path.read_bytes()), str(path)
    if model in predictor_names():
        predictor = default_predictor(packaged)
        if predictor.name == model:
            return predictor, f"packaged:{model}"
        raise ValueError(
            f"no trained {model!r} is packaged; give a model id of the database or a .safetensors file, "
            f"or leave --model out for {predictor.name!r}"
        )
    return load_predictor(_stored(settings, model, "predictor")), model


def find_generator(settings: Settings, model: str | None) -> tuple[Generator, str]:
    """Return (generator, its name for records); one that needs no weights is fitted to the packaged alloys.

    Raises
    ------
    ValueError, LookupError, FileNotFoundError
        If there is no such model, or it is not a generator.
    """
    from inv_design.generators.registry import default_generator, generator_names, load_generator

    if model in (None, "packaged", "con_cdvae"):
        generator = default_generator()
        return generator, f"packaged:{generator.name}"
    assert model is not None
    if (path := _model_file(model)) is not None:
        return load_generator(path.read_bytes()), str(path)
    if model in generator_names():
        return _fitted(model), model
    return load_generator(_stored(settings, model, "generator")), model


def _fitted(name: str) -> Generator:
    """Return a generator by name, fitted to the packaged alloys (quick for those that need no training)."""
    from inv_design.cli.render import progress
    from inv_design.datasets.mp_binaries import load_alloys
    from inv_design.generators.registry import make_generator

    generator = make_generator(name)
    entries = load_alloys()
    with progress(f"Fit {name} to the packaged alloys") as bar:
        generator.fit([e.structure for e in entries], [e.labels["bulk_modulus_vrh"] for e in entries], progress=bar)
    return generator


def _model_file(text: str) -> Path | None:
    """Return the path if ``text`` names a model file."""
    path = Path(text)
    if text.endswith(".safetensors") or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(2, "no such model file", text)
        return path
    return None


def _stored(settings: Settings, model_id: str, kind: str) -> bytes:
    """Return the weights of a model of the database."""
    from inv_design.cli.database import open_database
    from inv_design.config import ConfigError
    from stores.documents import Model

    try:
        open_database(settings, read_only=True)
    except (ConfigError, ConnectionError) as error:
        raise LookupError(
            f"{model_id!r} is no packaged {kind} and no file, and there is no database to ask: {one_line(str(error))}"
        ) from None
    document = Model.objects(model_id=model_id).first()
    if document is None:
        known = [m.model_id for m in Model.objects(kind=kind).only("model_id").limit(20)]
        hint = f"it has {', '.join(known)}" if known else f"it has no {kind} yet"
        raise LookupError(f"{model_id!r} is no packaged {kind}, no file and no model of the database ({hint})")
    if document.kind != kind:
        raise ValueError(f"model {model_id} is a {document.kind}, a {kind} is needed")
    return bytes(document.load())


def have_calculator(settings: Settings, name: str) -> None:
    """Fetch the weights of a calculator that is a model of the database, unless this machine has them.

    Raises
    ------
    LookupError, ValueError
        If the database has no such model, or it is no potential.
    """
    from inv_design.calculators.registry import MODEL_ID, cached_model

    if not MODEL_ID.fullmatch(name) or cached_model(name).is_file():
        return
    from fireworks_specs.firetasks.train_mlip import fetch_calculator
    from inv_design.cli.database import open_database

    with open_database(settings, read_only=True):
        fetch_calculator(name)
