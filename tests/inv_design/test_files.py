"""Reading and writing crystals: every format, broken inputs beside good ones, order and ids."""

from __future__ import annotations

import gzip
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.structures.files import ReadItem, read_structures, structure_from_dict, write_structures
from inv_design.structures.identity import structure_id


def crystals() -> list[Structure]:
    return [
        Structure(Lattice.cubic(2.9), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure(Lattice.hexagonal(2.76, 4.46), ["Re", "Ru"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    ]


def labelled() -> list[tuple[Structure, dict[str, object]]]:
    more = {"note": "two words", "condition": {"bulk_modulus_vrh": 350.0}}
    return [(s, {"id": f"c-{i}", "bulk_modulus_vrh": 100.5 + i, **more}) for i, s in enumerate(crystals())]


@pytest.mark.parametrize("name", ["a.extxyz", "a.json", "a.jsonl", "a.csv", "a.cif", "a.zip", "folder"])
def test_round_trip_keeps_crystals_ids_properties_and_order(tmp_path, name):
    pairs = labelled()
    if name == "a.csv":
        for _, properties in pairs:
            properties.pop("condition")
    assert write_structures(tmp_path / name, pairs) == 3
    back = list(read_structures(tmp_path / name))
    assert [item.error for item in back] == [None] * 3
    assert [item.properties["id"] for item in back] == ["c-0", "c-1", "c-2"]
    for item, (structure, properties) in zip(back, pairs, strict=True):
        assert structure_id(item.structure) == structure_id(structure)
        assert {k: item.properties[k] for k in properties} == properties


def test_order_survives_a_folder_of_more_than_ten(tmp_path):
    base = crystals()[0]
    write_structures(tmp_path / "many", [(base, {"id": f"x{i}"}) for i in range(12)])
    assert [item.properties["id"] for item in read_structures(tmp_path / "many")] == [f"x{i}" for i in range(12)]


def test_cif_with_several_blocks_keeps_the_good_ones(tmp_path):
    write_structures(tmp_path / "a.cif", labelled())
    text = (tmp_path / "a.cif").read_text().replace("Cl4", "Xx4").replace("  Cl  ", "  Xx  ")
    (tmp_path / "a.cif").write_text(text)
    items = list(read_structures(tmp_path / "a.cif"))
    assert [item.error is None for item in items] == [True, False, True]
    assert "unknown element 'Xx'" in items[1].error
    assert "a.cif:1" in items[1].error


def test_cif_of_another_program_with_symmetry(tmp_path):
    from pymatgen.io.cif import CifWriter

    (tmp_path / "nacl.cif").write_text(str(CifWriter(crystals()[1], symprec=0.01)))
    (item,) = read_structures(tmp_path / "nacl.cif")
    assert item.error is None
    assert structure_id(item.structure) == structure_id(crystals()[1])


def test_oxidation_states_are_dropped(tmp_path):
    s = crystals()[1]
    s.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    (tmp_path / "a.json").write_text(json.dumps([s.as_dict()]))
    (item,) = read_structures(tmp_path / "a.json")
    assert {str(x) for x in item.structure.species} == {"Na", "Cl"}


@pytest.mark.parametrize("name", ["POSCAR", "CONTCAR_relaxed", "x.vasp"])
def test_poscar(tmp_path, name):
    crystals()[1].to(filename=str(tmp_path / name), fmt="poscar")
    (item,) = read_structures(tmp_path / name)
    assert item.error is None
    assert item.structure.composition.reduced_formula == "NaCl"


def test_poscar_without_symbols_says_so(tmp_path):
    lines = crystals()[0].to(fmt="poscar").splitlines()
    lines[0] = "no names"
    del lines[5]
    (tmp_path / "POSCAR").write_text(
        "\n".join(line.rsplit(" ", 1)[0] if i > 6 else line for i, line in enumerate(lines))
    )
    (item,) = read_structures(tmp_path / "POSCAR")
    assert item.structure is None
    assert "element symbols" in item.error


def test_extxyz_broken_frame_in_the_middle(tmp_path):
    write_structures(tmp_path / "a.extxyz", labelled())
    lines = (tmp_path / "a.extxyz").read_text().splitlines()
    lines[4] = "eight"  # the count of the second frame
    (tmp_path / "a.extxyz").write_text("\n".join(lines) + "\n")
    items = list(read_structures(tmp_path / "a.extxyz"))
    assert [item.error is None for item in items] == [True, False, True]
    assert items[2].properties["id"] == "c-2"
    assert "eight" in items[1].error


def test_extxyz_unknown_element_no_cell_nan_and_truncation(tmp_path):
    good = '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 bulk_modulus=120.0\nFe 0 0 0\n'
    text = (
        good
        + good.replace("Fe", "Qq")
        + "1\nProperties=species:S:1:pos:R:3\nFe 0 0 0\n"
        + good.replace("Fe 0 0 0", "Fe nan 0 0")
        + good.replace("120.0", "nan")
        + good.replace("120.0", "-5")
        + "3\nLattice=\"3 0 0 0 3 0 0 0 3\"\nFe 0 0 0\n"
    )  # fmt: skip
    (tmp_path / "a.xyz").write_text(text)
    items = list(read_structures(tmp_path / "a.xyz"))
    assert [item.error is None for item in items] == [True] + [False] * 6
    assert items[0].properties == {"bulk_modulus_vrh": 120.0}
    for item, words in zip(
        items[1:], ["'Qq'", "no cell", "coordinate", "not finite", "-5", "ends within"], strict=True
    ):  # fmt: skip
        assert words in item.error
        assert "\n" not in item.error
        assert item.source in item.error


def test_csv_with_cif_column_aliases_and_bad_values(tmp_path):
    import csv

    cif = crystals()[0].to(fmt="cif")
    rows = [
        {"material_id": "mp-1", "cif": cif, "K_VRH": "150"},
        {"material_id": "mp-2", "cif": "garbage", "K_VRH": "150"},
        {"material_id": "mp-3", "cif": cif, "K_VRH": "-3"},
        {"material_id": "mp-4", "cif": cif, "K_VRH": ""},
        {"material_id": "mp-5", "cif": "", "K_VRH": "1"},
    ]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    items = list(read_structures(tmp_path / "a.csv"))
    assert [item.error is None for item in items] == [True, False, False, True, False]
    assert items[0].properties == {"material_id": "mp-1", "id": "mp-1", "bulk_modulus_vrh": 150}
    assert "bulk_modulus_vrh" not in items[3].properties
    assert "-3" in items[2].error


def test_csv_without_structure_column(tmp_path):
    (tmp_path / "a.csv").write_text("formula,K\nFe,1\n")
    (item,) = read_structures(tmp_path / "a.csv")
    assert "formula, K" in item.error


def test_json_shapes(tmp_path):
    a, b = (s.as_dict() for s in crystals()[:2])
    shapes = {
        "list": [a, b],
        "records": [{"structure": a, "bulk_modulus_vrh": 1.0}, {"structure": b}],
        "structures": {"structures": [a, b]},
        "ids": {"mp-1": a, "mp-2": {"structure": b, "k_vrh": 3}},
        "matbench": {"index": ["mb-0", "mb-1"], "columns": ["structure", "log10(K_VRH)"], "data": [[a, 2.0], [b, 1.0]]},
        "cif": [{"cif": s.to(fmt="cif")} for s in crystals()[:2]],
    }
    for name, data in shapes.items():
        with gzip.open(tmp_path / f"{name}.json.gz", "wt") as file:
            json.dump(data, file)
        items = list(read_structures(tmp_path / f"{name}.json.gz"))
        assert [item.error for item in items] == [None, None], name
        assert [structure_id(i.structure) for i in items] == [structure_id(s) for s in crystals()[:2]], name
    matbench = list(read_structures(tmp_path / "matbench.json.gz"))
    assert matbench[0].properties == {"id": "mb-0", "bulk_modulus_vrh": pytest.approx(100.0)}


def test_json_of_another_class_is_never_decoded(tmp_path):
    record = crystals()[0].as_dict()
    record["sites"][0]["properties"] = {"magmom": {"@module": "this", "@class": "Zen"}}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    import sys

    sys.modules.pop("this", None)
    (item,) = read_structures(tmp_path / "a.json")
    assert item.error is None
    assert "this" not in sys.modules


def test_partial_occupancy_is_an_error(tmp_path):
    s = Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    (tmp_path / "a.json").write_text(json.dumps([s.as_dict()]))
    (item,) = read_structures(tmp_path / "a.json")
    assert "partially occupied" in item.error


def test_zip_with_a_broken_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.cif", crystals()[0].to(fmt="cif"))
        archive.writestr("2.cif", "data_x\nnothing\n")
        archive.writestr("3.cif", crystals()[2].to(fmt="cif"))
        archive.writestr("readme.txt", "hello")
    items = list(read_structures(tmp_path / "a.zip"))
    assert [item.error is None for item in items] == [True, False, True, False]
    assert "2.cif" in items[1].error


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.zip", b"PK nonsense"),
        ("a.json", b"{"),
        ("a.json.gz", b"not gzip"),
        ("a.cif", b""),
        ("a.extxyz", b""),
        ("a.json", b"[]"),
        ("a.dat", b"1 2 3"),
        ("a.cif", b"\xff\xfe\x00"),
    ],
)
def test_unreadable_files_are_one_error(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (item,) = read_structures(tmp_path / name)
    assert item.structure is None
    assert name in item.error


def test_missing_file(tmp_path):
    (item,) = read_structures(tmp_path / "none.cif")
    assert "does not exist" in item.error


def test_write_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"'\.foo'"):
        write_structures(tmp_path / "a.foo", labelled())


def test_write_skips_errors(tmp_path):
    assert write_structures(tmp_path / "a.json", [ReadItem(None, {}, "x", "bad"), *labelled()]) == 3


def test_structure_from_dict_equals_pymatgens():
    for s in crystals():
        assert structure_from_dict(s.as_dict()) == s


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["cif", "vasp", "extxyz", "csv", "json", "jsonl"]))
def test_any_text_gives_items_and_never_raises(tmp_path_factory, text, suffix):
    path = tmp_path_factory.mktemp("fuzz") / f"a.{suffix}"
    path.write_text(text, encoding="utf-8", errors="replace")
    items = list(read_structures(path))
    assert items
    assert all((item.structure is None) == (item.error is not None) for item in items)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2), st.floats(0, 1), st.floats(0, 1), st.binary(min_size=1, max_size=3))
def test_damaged_cif_never_raises(tmp_path_factory, which, start, length, patch):
    text = crystals()[which].to(fmt="cif").encode()
    i = int(start * len(text))
    damaged = text[:i] + patch + text[i + int(length * 20) :]
    path = tmp_path_factory.mktemp("fuzz") / "a.cif"
    path.write_bytes(damaged)
    for item in read_structures(path):
        assert (item.structure is None) == (item.error is not None)
        if item.structure is not None:
            assert np.isfinite(item.structure.frac_coords).all()
