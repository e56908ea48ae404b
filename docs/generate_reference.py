"""Write the reference pages that follow from code: campaign.yaml's keys and the records' fields.

Run it after a change of ``inv_design/config.py`` or ``stores/documents``; a test fails while the pages are out of date.
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by docs/generate_reference.py; change the code, then run it again. -->"


def campaign_yaml() -> str:
    """Return the page of campaign.yaml: a table per section, each key with type, default and meaning."""
    from inv_design.config import ALIASES, PROPERTY_UNITS, CampaignConfig

    lines = [
        "# campaign.yaml",
        "",
        NOTE,
        "",
        "The whole of a campaign. `inv-design init DIR` writes one; only `name` and `targets` must be given. An",
        "unknown key, a value out of range or a missing unit is an error that names the key and the nearest right",
        "one. Once a campaign has started, only `rounds`, `database` and `password_file` may change.",
        "",
        "Properties that can be targets, with the unit that a value may carry:",
        "",
        *_table(("property", "unit"), [(f"`{name}`", unit) for name, unit in PROPERTY_UNITS.items()]),
        "",
        f"Short names: {', '.join(f'`{short}` = `{name}`' for short, name in ALIASES.items())}.",
        "",
        *_section(CampaignConfig, "", "Top level"),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _section(model: Any, path: str, title: str) -> list[str]:
    from pydantic_core import PydanticUndefined

    rows, below = [], []
    for name, field in model.model_fields.items():
        full = f"{path}{name}"
        if hasattr(field.annotation, "model_fields"):
            below.append((full, field.annotation))
            continue
        default = "required" if field.default is PydanticUndefined else f"`{_yaml(field.default)}`"
        rows.append((f"`{full}`", _type(field.annotation), default, field.description or ""))
    text = " ".join((model.__doc__ or "").split())
    lines = [f"## {title}", "", text, "", *(_table(("key", "type", "default", "meaning"), rows) if rows else []), ""]
    for full, inner in below:
        lines += _section(inner, f"{full}.", f"`{full}`")
    return lines


def _type(annotation: Any) -> str:
    """Return a type as a reader of YAML calls it."""
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "any"}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    parts = [_type(a) if origin is not typing.Literal else f"`{a}`" for a in arguments]
    if annotation in names:
        text = names[annotation]
    elif origin is typing.Annotated:
        text = _type(arguments[0])
    elif origin is list:
        text = f"list of {parts[0]}"
    elif origin is tuple:
        text = f"[{', '.join(parts)}]"
    elif origin is dict:
        text = f"{parts[0]} → {parts[1]}"
    elif origin in (typing.Union, types.UnionType, typing.Literal):
        text = " or ".join(parts)
    else:
        text = str(annotation)
    return text


def _yaml(value: Any) -> str:
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1000).strip()
    return text.removesuffix("...").strip()


def records() -> str:
    """Return the page of the records: a table per collection, each field with its type, and the indexes."""
    from stores.documents import AUTHORITATIVE, DERIVED, OPERATIONAL

    lines = [
        "# Records",
        "",
        NOTE,
        "",
        "Every record is a MongoDB document, declared with mongoengine in `stores/documents`. Units are fixed: GPa,",
        "Å, eV, eV/atom, K. Authoritative records are inserted once and never rewritten; derived ones belong to a",
        "builder and can be made again at any time. Every record carries `provenance`: `created_at` (UTC),",
        "`created_by` (user@host), `versions`, `command`, `inputs` (ids of the records it was made from) and, where",
        "one ran, `fw_id`.",
        "",
        "Ids are hashes of content: `s-` structure, `c-` candidate, `k-` calculation, `m-` model, `t-` training",
        "set, `e-` evaluation. The same crystal sent twice is one structure; the same calculation twice is one",
        "calculation.",
        "",
    ]
    for title, group in (("Authoritative", AUTHORITATIVE), ("Derived", DERIVED), ("Operational", OPERATIONAL)):
        lines += [f"## {title}", ""]
        for document in group:
            lines += _document(document)
    return "\n".join(lines).rstrip() + "\n"


def _document(document: Any) -> list[str]:
    fields = [
        (f"`{name}`", _field(field), "yes" if field.required or getattr(field, "unique", False) else "")
        for name, field in document._fields.items()
        if name not in ("id", "spilled", "provenance")
    ]
    text = " ".join(re.sub(r":class:`[\w.]*?(\w+)`|:meth:`(\w+)`", r"`\1\2`", document.__doc__ or "").split())
    indexes = []
    for spec in document._meta.get("indexes", []):
        keys = spec["fields"] if isinstance(spec, dict) else spec
        keys = [keys] if isinstance(keys, str) else list(keys)
        unique = " (unique)" if isinstance(spec, dict) and spec.get("unique") else ""
        indexes.append(f"`{', '.join(keys)}`{unique}")
    return [
        f"### {document._meta['collection']}",
        "",
        text.replace("``", "`"),
        "",
        *_table(("field", "type", "required"), fields),
        "",
        f"Indexes: {'; '.join(indexes)}.",
        "",
    ]


def _field(field: Any) -> str:
    name = type(field).__name__.removesuffix("Field").lower()
    names = {"string": "text", "dict": "mapping", "float": "number", "int": "integer", "objectid": "GridFS file id"}
    if name == "list":
        inner = getattr(field, "field", None)
        return f"list of {_field(inner)}" if inner is not None else "list"
    text = names.get(name, name)
    choices = getattr(field, "choices", None)
    return f"{text}: {', '.join(f'`{c}`' for c in choices)}" if choices else text


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [
        f"| {' | '.join(head)} |",
        f"|{'|'.join('---' for _ in head)}|",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]


PAGES = {"campaign-yaml.md": campaign_yaml, "records.md": records}


def main() -> None:
    """Write all pages."""
    for name, make in PAGES.items():
        (HERE / name).write_text(make())
        print(f"wrote {HERE / name}")


if __name__ == "__main__":
    main()
