"""The options of `query` as a MongoDB filter and a sort order: :mod:`stores.conditions`, errors told by option."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Fields = Mapping[str, type | None]


@contextmanager
def option(name: str) -> Iterator[None]:
    """Turn a ValueError into wrong usage of an option.

    Raises
    ------
    click.BadParameter
        If a ValueError was raised inside.
    """
    try:
        yield
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=name) from None


def where_filter(texts: Iterable[str], fields: Fields) -> dict[str, Any]:
    """Return the filter of conditions such as ``K=340..360``, ``stages.mlip.value>300``, ``status=passed``.

    Raises
    ------
    click.BadParameter
        If a condition has another form, its field is unknown, or its value does not fit the field.
    """
    from stores.conditions import condition, merge

    with option("--where"):
        return merge(condition(text, fields) for text in texts)


def element_filter(every: Iterable[str], any_of: Iterable[str], without: Iterable[str]) -> dict[str, Any]:
    """Return the filter on ``elements``: all of ``every``, at least one of ``any_of``, none of ``without``.

    Raises
    ------
    click.BadParameter
        If a name is neither an element nor a group that may stand there.
    """
    from stores.conditions import element_filter as translate

    parts: list[list[str]] = [[], [], []]
    wanted: dict[str, Any] = {}
    for i, (name, texts) in enumerate((("--elements", every), ("--any-of", any_of), ("--without", without))):
        with option(name):
            given = [*parts[:i], list(texts), *parts[i + 1 :]]
            wanted |= translate(*given).get("elements", {})
    return {"elements": wanted} if wanted else {}


def place_filter(
    stage: str | None, status: str | None, rounds: tuple[int, ...], protocols: tuple[str, ...]
) -> dict[str, Any]:
    """Return the filter on stage, status, rounds and protocols.

    Raises
    ------
    click.BadParameter
        If a protocol names no stage or no id.
    """
    from stores.conditions import candidate_filter

    with option("--protocol"):
        return candidate_filter(stage=stage, status=status, round=rounds, protocol=protocols)


def sort_keys(texts: Iterable[str], fields: Fields) -> list[tuple[str, int]]:
    """Return (field, 1 or -1) for ``K`` and ``-K``; commas separate several.

    Raises
    ------
    click.BadParameter
        If a field is unknown or has no order.
    """
    from stores.conditions import sort_keys as translate

    with option("--sort"):
        return translate(texts, fields)
