"""The documentation says what the code does: generated pages, commands and options, examples, links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import click
import numpy as np
import pytest
import yaml

from inv_design.cli import COMMANDS, main

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SHARED = {"--config", "--database", "--campaign", "--json", "--verbose", "--debug", "--help"}


def generator() -> object:
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["campaign-yaml.md", "records.md"])
def test_generated_pages_are_current(name: str) -> None:
    made = generator().PAGES[name]()  # type: ignore[attr-defined]
    assert (DOCS / "reference" / name).read_text() == made, "run `make docs`"


def section(name: str) -> str:
    text = (DOCS / "reference" / "cli.md").read_text()
    match = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/reference/cli.md has no section {name}"
    return match.group(1)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_is_documented(name: str) -> None:
    text = section(name)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            names = [o for o in parameter.opts if o.startswith("--")]
            assert any(o in SHARED or o in text for o in names), f"{name}: {names} is not in docs/reference/cli.md"


def test_documented_options_exist() -> None:
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", section(name)):
            assert option in known, f"docs/reference/cli.md: {name} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_shown_commands_exist(page: Path) -> None:
    for name in re.findall(r"^\s*inv-design ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert name in COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_shown_campaigns_are_valid(page: Path) -> None:
    from inv_design.config import CampaignConfig

    for block in re.findall(r"```yaml\n(.*?)```", page.read_text().replace("\n   ", "\n"), re.DOTALL):
        raw = yaml.safe_load(block)
        CampaignConfig.model_validate({"name": "x", "targets": {"K": "350 GPa"}, **raw})


def test_the_example_generator_works() -> None:
    from inv_design.datasets.mp_binaries import load_alloys
    from inv_design.generators.protocol import Condition, Generator

    text = (DOCS / "how-to" / "own-generator.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code.group(1), names)
    made = names["Neighbours"]()  # type: ignore[operator]
    assert isinstance(made, Generator)
    entries = load_alloys()[:200]
    made.fit([e.structure for e in entries], [e.labels["bulk_modulus_vrh"] for e in entries])
    condition = Condition({"bulk_modulus_vrh": 150.0}, exclude_elements=frozenset({"Os"}), max_sites=8)
    samples = made.sample(5, condition, seed=3)
    copy = type(made).from_bytes(made.to_bytes())
    again = copy.sample(5, condition, seed=3)
    assert len(samples) == 5
    for one, other in zip(samples, again, strict=True):
        assert condition.allows({e.symbol for e in one.structure.composition.elements})
        assert np.allclose(one.structure.frac_coords, other.structure.frac_coords)
        assert np.allclose(one.structure.lattice.matrix, other.structure.lattice.matrix)
