"""The report's footer: settings, records, software and models of a campaign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inv_design.cli.trust_data import label_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inv_design.config import CampaignConfig
    from stores.connection import Connection


def provenance(
    connection: Connection, campaign: dict[str, Any], config: CampaignConfig, models: Iterable[dict[str, Any]]
) -> dict[str, list[tuple[str, str]]]:
    """Return the lines of the report's footer by heading."""
    made = campaign.get("provenance") or {}
    stages = config.stages
    settings = [
        ("campaign", config.name),
        *(("target" if i == 0 else "and", f"{o.name} {o.text}") for i, o in enumerate(config.objectives)),
        ("data", f"{config.data.source}, elements {', '.join(config.data.elements)}"),
        ("generator", f"{config.generator.name}, {config.generator.samples_per_round} samples per round"),
        ("stage I", f"{stages.predictor.model}, within {100 * stages.predictor.tolerance:g} %"),
        ("stage II", f"{stages.mlip.calculator}, within {100 * stages.mlip.tolerance:g} %"),
        ("stage III", f"{label_name((), config)}, {stages.dft.budget_per_round} labels per round"),
        ("chosen by", stages.predictor.acquisition),
        ("excluded", ", ".join(config.chemistry.exclude) or "nothing"),
        *([("cost", costs)] if (costs := cost_text(config)) else []),
        ("seed", str(config.seed)),
    ]
    records = [
        ("database", _place(connection)),
        ("started", f"{str(made.get('created_at', ''))[:16]} UTC by {made.get('created_by', '')}"),
        ("command", str(made.get("command", ""))),
    ]
    trained = sorted(models, key=lambda m: (m.get("round") or 0, m["kind"]))
    sets: dict[str, str] = {}
    for model in trained:
        if model.get("training_set_id"):
            sets.setdefault(model["training_set_id"], f"round {model.get('round')}")
    return {
        "Settings": settings,
        "Records": records,
        "Software": [(name, str(version)) for name, version in (made.get("versions") or {}).items()],
        "Models": [
            (
                m["kind"] if m.get("round") is None else f"round {m['round']} {m['kind']}",
                f"{m['name']} {m['model_id']}, seed {m.get('seed', '-')}{_error(m)}",
            )
            for m in trained
        ],
        "Training sets": [(number, identity) for identity, number in sets.items()],
    }


def cost_text(config: CampaignConfig) -> str:
    """Return the costs of elements and how they are weighted."""
    costs = ", ".join(f"{symbol} {value:g}" for symbol, value in sorted(config.chemistry.cost.items()))
    return f"by {config.chemistry.cost_by}: {costs}" if costs else ""


def _place(connection: Connection) -> str:
    """Return where the database is, without the folders of one machine."""
    if connection.kind == "embedded":
        return f"embedded, {connection.uri_redacted.rsplit('/', 1)[-1]}"
    return connection.uri_redacted


def _error(model: dict[str, Any]) -> str:
    """Return a predictor's held-out error, where its training measured one."""
    error = (model.get("metrics") or {}).get("mae_log10")
    return f", held-out MAE {error:.3f} log10(GPa)" if isinstance(error, float) else ""
