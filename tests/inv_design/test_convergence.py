"""Convergence of K with cutoff and k-point density: the search on laws that are known, the command with them."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.cli import main
from inv_design.mechanics.convergence import CUTOFFS, K_DENSITIES, Point, converge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT = 200.0


def law(cutoff_error: float, k_error: float) -> Callable[[float, float], Point]:
    """Return a bulk modulus that comes down to 200 GPa like a basis, and swings into it like k points."""

    def measure(cutoff: float, k_density: float) -> Point:
        basis = cutoff_error * 2 ** -((cutoff - CUTOFFS[0]) / 50)
        swing = k_error * (-1) ** round(k_density) * 3 / k_density**2 * 3
        cost = cutoff**1.5 * k_density**3
        return Point(cutoff, k_density, LIMIT * (1 + basis + swing), 12.0, cost, (round(k_density * 2),) * 3)

    return measure


def test_the_cheapest_setting_within_the_error_is_chosen() -> None:
    found = converge(law(0.05, 0.02), error=0.01)
    assert found.converged
    assert abs(found.deviation(found.chosen)) <= 0.01
    settled = [p for p in found.points if p.cutoff >= 450 and p.k_density >= found.chosen.k_density]
    assert found.chosen.seconds == min(p.seconds for p in settled if abs(found.deviation(p)) <= 0.01)
    assert found.chosen.cutoff > CUTOFFS[0]  # the basis is 5 % off there
    assert found.finest.cutoff == max(p.cutoff for p in found.points)
    assert found.finest.k_density == max(p.k_density for p in found.points)


@settings(max_examples=60, deadline=None)
@given(basis=st.floats(-0.3, 0.3), swing=st.floats(-0.3, 0.3), error=st.floats(0.003, 0.2))
def test_a_choice_is_within_the_error_of_the_finest_and_of_what_came_after(
    basis: float, swing: float, error: float
) -> None:
    asked: list[tuple[float, float]] = []
    measure = law(basis, swing)

    def noted(cutoff: float, k_density: float) -> Point:
        asked.append((cutoff, k_density))
        return measure(cutoff, k_density)

    found = converge(noted, error=error)
    assert len(asked) == len(set(asked)) == len(found.points) <= len(CUTOFFS) + len(K_DENSITIES) + 1
    assert abs(found.deviation(found.chosen)) <= error
    if found.converged:  # the finest is within half an error of the limit
        assert abs(found.chosen.bulk_modulus / LIMIT - 1) <= 1.5 * error


def test_nearly_all_choices_are_within_the_error_of_the_limit() -> None:
    draw = random.Random(1)
    laws = [law(draw.uniform(-0.1, 0.1), draw.uniform(-0.3, 0.3)) for _ in range(1000)]
    found = [result for measure in laws if (result := converge(measure, error=0.02)).converged]
    errors = [abs(result.chosen.bulk_modulus / LIMIT - 1) / 0.02 for result in found]
    assert len(found) > 100
    assert sum(error > 1 for error in errors) < 0.08 * len(found)  # 4 %
    assert max(errors) < 1.25


@pytest.mark.parametrize(
    ("k_densities", "converged"), [((5.7, 5.8, 5.9, 6.0, 7.0, 8.0, 9.0, 10.0), True), ((5.7, 5.8, 5.9, 6.0), False)]
)
def test_densities_with_the_same_grid_are_one_value(k_densities: tuple[float, ...], converged: bool) -> None:
    values = {13: 150.0, 16: 168.0, 18: 160.0, 20: 160.2, 22: 160.1}

    def measure(cutoff: float, k_density: float) -> Point:
        n = {7.0: 16, 8.0: 18, 9.0: 20, 10.0: 22}.get(k_density, 13)
        return Point(cutoff, k_density, values[n], 12.0, cutoff * n**3, (n, n, n))

    found = converge(measure, error=0.02, k_densities=k_densities)
    assert found.converged is converged
    if converged:
        assert found.chosen.k_density == 8.0
    else:
        assert "has not come to rest" in found.reasons[0]


def test_two_values_that_agree_by_chance_do_not_end_a_scan() -> None:
    values = {3.0: 150.0, 4.0: 150.5, 5.0: 190.0, 6.0: 200.0, 7.0: 200.4, 8.0: 199.9}

    def measure(cutoff: float, k_density: float) -> Point:
        return Point(cutoff, k_density, values.get(k_density, LIMIT), 12.0, k_density)

    found = converge(measure, error=0.01)
    assert found.converged
    assert found.chosen.k_density == 6.0


def test_a_value_that_meets_the_finest_by_chance_is_not_chosen() -> None:
    """Metals swing with the grid: the coarsest value lies within 2 % of the finest, its neighbours 13 % and 9 % off."""
    values = {3.0: 158.5, 4.0: 140.0, 5.0: 175.0, 6.0: 161.0, 7.0: 160.5, 8.0: 161.2}
    basis = {350.0: 1.015, 450.0: 1.004, 550.0: 1.001}

    def measure(cutoff: float, k_density: float) -> Point:
        value = values.get(k_density, 161.0) * basis.get(cutoff, 1.0)
        return Point(cutoff, k_density, value, 12.0, cutoff**1.5 * k_density**3)

    found = converge(measure, error=0.02)
    assert abs(found.deviation(found.points[0])) <= 0.02
    assert found.converged
    assert found.chosen.setting == (350.0, 6.0)


def test_scans_that_settle_elsewhere_than_the_finest_are_said() -> None:
    """At the small cutoff the density makes no difference, at larger ones it does: no cheaper setting is confirmed."""

    def measure(cutoff: float, k_density: float) -> Point:
        coarse = cutoff > CUTOFFS[0] and k_density < 5
        return Point(cutoff, k_density, 120.0 if coarse else LIMIT, 12.0, cutoff * k_density)

    found = converge(measure, error=0.01)
    assert (found.chosen, found.converged) == (found.finest, False)
    assert "450 eV and 3 k points" in found.reasons[0]


def test_what_does_not_come_to_rest_is_said() -> None:
    found = converge(law(0.0, 0.5), error=0.003)
    assert not found.converged
    assert "10 k points" in found.reasons[0]
    assert found.chosen is found.finest or abs(found.deviation(found.chosen)) <= 0.003


@pytest.mark.parametrize(
    ("error", "cutoffs", "text"), [(0.0, CUTOFFS, "between 0 and 1"), (0.02, (400.0,), "at least two cutoffs")]
)
def test_nonsense_is_refused(error: float, cutoffs: tuple[float, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        converge(law(0.1, 0.1), error=error, cutoffs=cutoffs)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def crystal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with aluminium; GPAW is replaced by a law."""
    from fireworks_specs.backends import gpaw

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpaw, "require", lambda _: None)
    measure = law(0.05, 0.02)
    monkeypatch.setattr(gpaw, "measure_point", lambda _, __, cutoff, density: measure(cutoff, density))
    path = tmp_path / "Al.cif"
    Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.04), ["Al"], [[0, 0, 0]]).to(str(path))
    return path


def test_converge_prints_a_table_and_draws_a_plot(crystal: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    result = CliRunner().invoke(main, ["dft", "converge", str(crystal), "-e", "1%", "-o", str(plot)])
    assert result.exit_code == 0, result.output
    assert "<- chosen" in result.output
    assert "gpaw: {cutoff:" in result.output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_converge_as_json(crystal: Path) -> None:
    result = CliRunner().invoke(main, ["dft", "converge", str(crystal), "--error", "0.01", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["formula"], found["converged"], found["error"]) == ("Al", True, 0.01)
    assert [p["chosen"] for p in found["points"]].count(True) == 1
    assert abs(next(p for p in found["points"] if p["chosen"])["deviation"]) <= 0.01


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--error", "2"], 2, "between 0 and 1"),
        (["--error", "two"], 2, "'two' is no number"),
        (["--cutoffs", "400"], 2, "at least two"),
        (["--k-densities", "3,x"], 2, "no numbers"),
        (["-o", "plot.doc"], 2, "suffix"),
        (["-o", "nowhere/plot.png"], 2, "nowhere"),
        (["--error", "0.1%", "--k-densities", "3,4"], 1, "larger --cutoffs or --k-densities"),
    ],
)
def test_converge_says_what_is_wrong(
    crystal: Path, options: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["dft", "converge", str(crystal), *options])
    assert stopped.value.code == code
    assert text in capsys.readouterr().err
