"""Crystals and their properties in files: read them one by one with errors beside the good ones, and write them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pymatgen.core import Structure

    Parser = Callable[[str, str], Iterator["ReadItem"]]

FORMATS = "CIF, POSCAR/CONTCAR/*.vasp, extxyz, csv, json, jsonl (each also .gz), a zip, tar or folder of them"

PROPERTY_NAMES = {
    "k": "bulk_modulus_vrh", "k_vrh": "bulk_modulus_vrh", "bulk_modulus": "bulk_modulus_vrh",
    "g": "shear_modulus_vrh", "g_vrh": "shear_modulus_vrh", "shear_modulus": "shear_modulus_vrh",
    "formation_energy": "formation_energy_per_atom", "e_form": "formation_energy_per_atom",
}  # fmt: skip
"""Names met in files (lower case) -> stored names; moduli in GPa, energies in eV/atom."""

LOGARITHMS = {"log10(k_vrh)": "bulk_modulus_vrh", "log10(g_vrh)": "shear_modulus_vrh"}
"""Matbench columns that hold log10 of a modulus in GPa."""

ID_NAMES = ("id", "structure_id", "candidate_id", "material_id", "mp_id", "name")
STRUCTURE_COLUMNS = ("structure", "cif", "poscar")
CIF_PREFIX = "_inv_design_"
MAX_MEMBER = 256 * 2**20
"""Largest file inside a zip or tar, and largest content of a .gz, that is unpacked, in bytes."""
MAX_ARCHIVE = 4 * 2**30
"""Most bytes that are unpacked from one zip or tar; what comes after is not read."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class ReadItem:
    """One crystal of a file, or the reason why it is not one.

    Attributes
    ----------
    structure
        The crystal without oxidation states, or ``None``.
    properties
        Property -> number in the fixed unit, and everything else the file says about the crystal (``id`` ...).
    source
        ``file:frame``, frames counted from 0; a member of a zip or tar is ``archive.zip/member.cif:0``.
    error
        One line that names the input and says what to do, or ``None``.
    """

    structure: Structure | None
    properties: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    error: str | None = None


def read_structures(path: str | Path) -> Iterator[ReadItem]:
    """Yield every crystal of a file, archive or folder in order; what cannot be read becomes an item with its error.

    Nothing in a file is executed: JSON records are read field by field, never decoded into other classes. Archives are
    read in memory, member by member and within bounds; nothing is written to the disk.
    """
    path = Path(path)
    if path.is_dir():
        yield from _read_folder(path)
    elif not path.exists():
        yield ReadItem(None, {}, str(path), f"{path} does not exist; check the path")
    elif path.suffix.lower() == ".zip":
        yield from _read_zip(path)
    elif path.name.lower().endswith(TAR_SUFFIXES):
        yield from _read_tar(path)
    else:
        yield from _read_bytes(str(path), path.read_bytes)


def write_structures(path: str | Path, items: Iterable[ReadItem | tuple[Structure, Mapping[str, Any]]]) -> int:
    """Write crystals with their ids and properties in order, and return how many.

    The suffix decides: ``.extxyz``/``.xyz``, ``.json``, ``.jsonl``, ``.csv``, ``.zip`` of CIFs, one ``.cif`` with a
    block per crystal, and a path without suffix is a folder of CIFs. Items with an error are left out.

    Raises
    ------
    ValueError
        If the suffix is none of these.
    """
    path = Path(path)
    pairs = [(s, dict(p)) for s, p in map(_pair, items) if s is not None]
    suffix = path.suffix.lower()
    if suffix == "":
        path.mkdir(parents=True, exist_ok=True)
        for name, text in _cif_files(pairs):
            (path / name).write_text(text)
        return len(pairs)
    if suffix not in WRITERS:
        raise ValueError(f"cannot write {path}: suffix {suffix!r} is not one of {', '.join(WRITERS)}, or none (folder)")
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[suffix](path, pairs)
    return len(pairs)


def structure_from_dict(record: Mapping[str, Any]) -> Structure:
    """Return the crystal of pymatgen's ``Structure.as_dict()``, without decoding anything else in it.

    Raises
    ------
    ValueError
        If a field is missing or not what it should be, or an element is unknown.
    """
    from pymatgen.core import Structure

    try:
        matrix = record["lattice"]["matrix"]
        coords = [site["abc"] for site in record["sites"]]
        species = [{_symbol(s): float(s.get("occu", 1)) for s in site["species"]} for site in record["sites"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a pymatgen structure ({type(error).__name__}: {error})") from None
    return Structure(matrix, species, coords)


def _symbol(record: Mapping[str, Any]) -> str:
    return check_element(str(record["element"]))


def check_element(symbol: str) -> str:
    """Return an element symbol (``D`` is ``H``).

    Raises
    ------
    ValueError
        If there is no such element.
    """
    from pymatgen.core import Element

    if symbol in ("D", "T"):
        return "H"
    if not Element.is_valid_symbol(symbol):
        raise ValueError(f"unknown element {symbol!r}")
    return symbol


# --- containers ------------------------------------------------------------------------------------------------------


def _read_folder(path: Path) -> Iterator[ReadItem]:
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    archives = (".zip", *TAR_SUFFIXES)
    readable = [p for p in files if p.name.lower().endswith(archives) or _parser(p.name) is not None]
    if not readable:
        yield ReadItem(None, {}, str(path), f"{path} holds no file of a known format; known: {FORMATS}")
    for file in readable:
        yield from read_structures(file)


def _read_zip(path: Path) -> Iterator[ReadItem]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not Path(m.filename).name.startswith(".")]
            if not members:
                yield ReadItem(None, {}, str(path), f"{path} is an empty archive; put CIF files into it")
            total = 0
            for member in members:
                name = f"{path}/{member.filename}"
                total += member.file_size if member.file_size <= MAX_MEMBER else 0
                if total > MAX_ARCHIVE:
                    yield ReadItem(None, {}, name, f"{path} has more than {MAX_ARCHIVE} bytes of content; split it")
                    return
                if member.file_size > MAX_MEMBER:
                    yield ReadItem(None, {}, name, f"{name} has {member.file_size} bytes; unpack it and split it")
                else:
                    yield from _read_bytes(name, lambda m=member: archive.read(m))  # type: ignore[misc]
    except (zipfile.BadZipFile, OSError) as error:
        yield ReadItem(None, {}, str(path), f"{path} cannot be unpacked ({_one_line(error)}); make the archive again")


def _read_tar(path: Path) -> Iterator[ReadItem]:
    """Yield the crystals of a tar as a stream: one cut short gives what is before the cut."""
    count = 0
    try:
        # decompressed here and not by tarfile, so that the bound holds for everything tarfile reads, headers too
        with (
            _open_compressed(path) as file,
            tarfile.open(fileobj=cast("IO[bytes]", _Bounded(file)), mode="r|") as archive,
        ):
            for member in archive:
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                count += 1
                name = f"{path}/{member.name}"
                if member.size > MAX_MEMBER:
                    yield ReadItem(None, {}, name, f"{name} has {member.size} bytes; unpack it and split it")
                    continue
                content = archive.extractfile(member)
                assert content is not None
                data = content.read()
                if len(data) < member.size:
                    raise EOFError(f"it ends within {member.name}")
                yield from _read_bytes(name, lambda d=data: d)  # type: ignore[misc]
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
        yield ReadItem(None, {}, str(path), f"{path} cannot be unpacked ({_one_line(error)}); make the archive again")
        return
    if count == 0:
        yield ReadItem(None, {}, str(path), f"{path} is an empty archive; put CIF files into it")


def _open_compressed(path: Path) -> Any:
    """Return the uncompressed stream of a file, whatever its suffix says."""
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if start.startswith(b"BZh"):
        return bz2.open(path)
    return lzma.open(path) if start.startswith(b"\xfd7zXZ") else path.open("rb")


class _Bounded:
    """A stream that ends with an error after ``MAX_ARCHIVE`` bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, MAX_ARCHIVE

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        data: bytes = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"more than {MAX_ARCHIVE} bytes of content")
        return data


def _read_bytes(name: str, read: Callable[[], bytes]) -> Iterator[ReadItem]:
    parser = _parser(name)
    if parser is None:
        yield ReadItem(None, {}, name, f"{name}: unknown format; known: {FORMATS}")
        return
    try:
        data = read()
        if name.lower().endswith(".gz"):
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_MEMBER + 1)
            if len(data) > MAX_MEMBER:
                raise ValueError(f"more than {MAX_MEMBER} bytes of content")
        text = data.decode("utf-8-sig")
    except Exception as error:  # truncated gzip streams and encrypted members raise half a dozen types
        yield ReadItem(None, {}, name, f"{name} cannot be read ({_one_line(error)}); write it again as UTF-8 text")
        return
    count = 0
    for count, item in enumerate(parser(name, text), 1):  # noqa: B007
        yield item
    if count == 0:
        yield ReadItem(None, {}, name, f"{name} holds no structure; check that it is complete")


def _parser(name: str) -> Parser | None:
    base = Path(name).name
    if base.lower().endswith(".gz"):
        base = base[:-3]
    suffix = Path(base).suffix.lower()
    if suffix in PARSERS:
        return PARSERS[suffix]
    return _read_poscar if base.upper().startswith(("POSCAR", "CONTCAR")) else None


# --- formats ---------------------------------------------------------------------------------------------------------


def _item(source: str, make: Callable[[], tuple[Structure, Mapping[str, Any]]]) -> ReadItem:
    """Return the item of one record: ``make`` parses it and may raise anything."""
    try:
        structure, raw = make()
        return ReadItem(_check_structure(structure), _check_properties(raw), source)
    except Exception as error:  # parsers of foreign files raise anything; the item carries it
        message = _one_line(error)
        return ReadItem(None, {}, source, f"{source}: {message}; correct or remove this entry")


def _check_structure(structure: Structure) -> Structure:
    import numpy as np
    from pymatgen.core import DummySpecies, Element

    if len(structure) == 0:
        raise ValueError("no atoms")
    if not np.isfinite(structure.lattice.matrix).all():
        raise ValueError("the cell has a value that is not finite (NaN or infinite)")
    if not np.isfinite(structure.frac_coords).all():
        raise ValueError("a coordinate is not finite (NaN or infinite)")
    if structure.volume < 1e-3 * len(structure):
        raise ValueError(f"the cell is degenerate (volume {structure.volume:.3g} Å^3)")
    for specie in structure.composition:
        if isinstance(specie, DummySpecies):
            raise ValueError(f"unknown element {specie.symbol!r}")
    if not structure.is_ordered:
        raise ValueError(f"{structure.composition.formula} has partially occupied sites, an ordered crystal is needed")
    if not all(isinstance(specie, Element) for specie in structure.composition):
        structure = structure.copy()
        structure.remove_oxidation_states()
    return structure


def _check_properties(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return properties under their stored names, numbers as numbers; a modulus must be positive and all be finite."""
    properties: dict[str, Any] = {}
    for key, given in raw.items():
        name, value = _named(str(key).strip(), _number(given))
        if value is None or value == "":
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} = {value} is not finite")
        if name.endswith(("modulus_vrh", "modulus")) and (not isinstance(value, float | int) or value <= 0):
            raise ValueError(f"{name} = {value!r} GPa is not a positive number")
        properties[name] = value
    known = next((properties[n] for n in ID_NAMES if n in properties), None)
    if known is not None:
        properties["id"] = str(known)
    return properties


def _named(name: str, value: Any) -> tuple[str, Any]:
    """Return a property under its stored name; a logarithm becomes the value."""
    lower = name.lower()
    if lower in LOGARITHMS and isinstance(value, float | int):
        return LOGARITHMS[lower], 10.0**value
    return PROPERTY_NAMES.get(lower, name), value


def _number(value: Any) -> Any:
    """Return plain Python numbers for numpy's, and for text that is a number."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[-+]?\d{1,15}", text):
            return int(text)
        try:
            return float(text) if not re.search(r"_", text) else text
        except ValueError:
            return text
    return value


def _read_cif(name: str, text: str) -> Iterator[ReadItem]:
    blocks = [b for b in re.split(r"(?im)^(?=data_)", text) if re.match(r"(?i)data_", b)]
    for frame, block in enumerate(b for b in blocks if "_atom_site" in b or len(blocks) == 1):
        yield _item(f"{name}:{frame}", lambda b=block: _parse_cif(b))  # type: ignore[misc]


def _parse_cif(block: str) -> tuple[Structure, dict[str, Any]]:
    import warnings

    from pymatgen.io.cif import CifFile, CifParser

    data = next(iter(CifFile.from_str(block).data.values())).data
    for label in data.get("_atom_site_type_symbol") or data.get("_atom_site_label") or []:
        match = re.match(r"[A-Za-z]+", str(label))
        letters = match.group(0) if match else ""
        # a label may go on with letters (Fe1a, FeA), a type symbol is the element itself
        if not any(_is_element(letters[:n].capitalize()) for n in (2, 1) if letters[:n]):
            raise ValueError(f"unknown element {label!r}")
        if "_atom_site_type_symbol" in data:
            check_element(letters.capitalize())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structures = CifParser.from_str(block).parse_structures(primitive=False, on_error="raise")
    properties: dict[str, Any] = {
        key.removeprefix(CIF_PREFIX): _cif_value(value) for key, value in data.items() if key.startswith(CIF_PREFIX)
    }
    title = block.split(None, 1)[0][len("data_") :]
    properties.setdefault("id", title)
    return structures[0], properties


def _is_element(symbol: str) -> bool:
    try:
        check_element(symbol)
    except ValueError:
        return False
    return True


def _cif_value(value: str) -> Any:
    text = str(value).strip("'\"")
    if text.startswith("json:"):
        return json.loads(bytes.fromhex(text.removeprefix("json:")))
    return text


def _read_poscar(name: str, text: str) -> Iterator[ReadItem]:
    def parse() -> tuple[Structure, dict[str, Any]]:
        from pymatgen.io.vasp import Poscar

        poscar = Poscar.from_str(text, default_names=None, read_velocities=False)
        if not poscar.true_names:
            raise ValueError("no element symbols (VASP 4 format); add them as the sixth line")
        for symbol in poscar.site_symbols:
            check_element(symbol)
        return poscar.structure, {}

    if text.strip():
        yield _item(f"{name}:0", parse)


def _read_extxyz(name: str, text: str) -> Iterator[ReadItem]:
    lines = text.splitlines()
    start = frame = 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        source = f"{name}:{frame}"
        count = lines[start].strip()
        if not count.isdigit() or start + 2 + int(count) > len(lines):
            what = "the file ends within it" if count.isdigit() else f"number of atoms expected, found {count[:40]!r}"
            yield ReadItem(None, {}, source, f"{source}: {what}; correct or remove this entry")
            following = _next_frame(lines, start + 1)
            if following is None:
                return
            start, frame = following, frame + 1
            continue
        end = start + 2 + int(count)
        chunk = "\n".join(lines[start:end]) + "\n"
        yield _item(source, lambda c=chunk: _parse_extxyz(c))  # type: ignore[misc]
        start, frame = end, frame + 1


def _next_frame(lines: list[str], start: int) -> int | None:
    return next(
        (i for i in range(start, len(lines) - 1) if lines[i].strip().isdigit() and "Lattice=" in lines[i + 1]), None
    )


def _parse_extxyz(frame: str) -> tuple[Structure, dict[str, Any]]:
    import ase.io
    from pymatgen.core import Structure

    try:
        atoms = next(ase.io.iread(io.StringIO(frame), format="extxyz", index=0))
    except KeyError as error:
        raise ValueError(f"unknown element {error.args[0]!r}") from None
    if atoms.cell.rank < 3:
        raise ValueError('no cell; give Lattice="..." with three vectors in the comment line')
    properties = {k: v for k, v in atoms.info.items() if k not in ("spacegroup", "unit_cell", "occupancy")}
    if atoms.calc is not None:
        properties.update({k: v for k, v in atoms.calc.results.items() if isinstance(v, float | int)})
    species = [check_element(symbol) for symbol in atoms.get_chemical_symbols()]
    return Structure(atoms.cell.array, species, atoms.positions, coords_are_cartesian=True), properties


def _read_csv(name: str, text: str) -> Iterator[ReadItem]:
    csv.field_size_limit(MAX_MEMBER)
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        yield ReadItem(None, {}, name, f"{name} is not a csv file ({error}); write it with one header line")
        return
    columns = [c for c in (rows[0] if rows else {}) if c and c.strip().lower() in STRUCTURE_COLUMNS]
    if rows and not columns:
        found = ", ".join(str(c) for c in rows[0])
        yield ReadItem(None, {}, name, f"{name} has columns {found}; it needs one of {', '.join(STRUCTURE_COLUMNS)}")
        return
    for frame, row in enumerate(rows):
        yield _item(f"{name}:{frame}", lambda r=row: _parse_record(r))  # type: ignore[misc]


def _read_json(name: str, text: str) -> Iterator[ReadItem]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        yield ReadItem(None, {}, name, f"{name} is not JSON ({error}); one record a line needs the suffix .jsonl")
        return
    for frame, record in enumerate(_records(data)):
        yield _item(f"{name}:{frame}", lambda r=record: _parse_record(r))  # type: ignore[misc]


def _records(data: Any) -> list[Any]:
    """Return the records in JSON data: a list, one record, ``{"structures": [...]}``, a table, or id -> record."""
    if isinstance(data, list):
        return data
    if not isinstance(data, dict):
        return [data]
    if isinstance(data.get("columns"), list) and isinstance(data.get("data"), list):  # pandas' "split", as in matbench
        index = data.get("index") or [None] * len(data["data"])
        return [
            {"id": i, **dict(zip(data["columns"], row, strict=False))}
            for i, row in zip(index, data["data"], strict=False)
        ]
    if isinstance(data.get("structures"), list):
        return data["structures"]
    if "sites" in data or any(column in data for column in STRUCTURE_COLUMNS):
        return [data]
    return [{"id": key, **_as_record(value)} for key, value in data.items()]


def _as_record(value: Any) -> dict[str, Any]:
    is_record = isinstance(value, dict) and "sites" not in value
    return value if is_record else {"structure": value}


def _read_jsonl(name: str, text: str) -> Iterator[ReadItem]:
    lines = [line for line in text.splitlines() if line.strip()]
    for frame, line in enumerate(lines):
        yield _item(f"{name}:{frame}", lambda x=line: _parse_record(json.loads(x)))  # type: ignore[misc]


def _parse_record(record: Any) -> tuple[Structure, dict[str, Any]]:
    """Return crystal and properties of a record: a pymatgen dict, or fields of which one is the crystal."""
    if isinstance(record, dict) and "sites" in record:
        properties = record.get("properties")
        return structure_from_dict(record), dict(properties) if isinstance(properties, dict) else {}
    if not isinstance(record, dict):
        raise ValueError(f"{str(record)[:60]!r} is not a record with a structure")
    column = next((c for c in record if str(c).strip().lower() in STRUCTURE_COLUMNS and record[c]), None)
    if column is None:
        raise ValueError(f"no structure; give one of the fields {', '.join(STRUCTURE_COLUMNS)}")
    value = record[column]
    properties = {k: v for k, v in record.items() if k is not None and k != column and not str(k).startswith("@")}
    nested = properties.pop("properties", None)
    if isinstance(nested, dict):
        properties.update(nested)
    if isinstance(value, str):
        return _parse_text(value), properties
    return structure_from_dict(value), properties


def _parse_text(text: str) -> Structure:
    """Return the crystal of a text field: JSON, CIF or POSCAR."""
    if text.lstrip().startswith("{"):
        return structure_from_dict(json.loads(text))
    if re.search(r"(?im)^\s*data_", text):
        return _parse_cif(re.sub(r"(?is)^.*?(?=^data_)", "", text.replace("\r\n", "\n"), count=1, flags=re.M))[0]
    item = next(_read_poscar("text", text), None)
    if item is None or item.structure is None:
        raise ValueError("the structure field is neither JSON, CIF nor POSCAR")
    return item.structure


PARSERS: dict[str, Parser] = {
    ".cif": _read_cif, ".mcif": _read_cif, ".vasp": _read_poscar, ".poscar": _read_poscar, ".contcar": _read_poscar,
    ".xyz": _read_extxyz, ".extxyz": _read_extxyz, ".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}  # fmt: skip


# --- writing ---------------------------------------------------------------------------------------------------------


def _pair(item: ReadItem | tuple[Structure, Mapping[str, Any]]) -> tuple[Structure | None, Mapping[str, Any]]:
    return (item.structure, item.properties) if isinstance(item, ReadItem) else item


def _cif_files(pairs: list[tuple[Structure, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
    """Yield (file name, CIF); names are numbered so that sorting them keeps the order."""
    width = max(4, len(str(len(pairs))))
    for i, (structure, properties) in enumerate(pairs):
        title = _cif_title(properties, i)
        yield f"{i:0{width}d}_{title}.cif", _cif_text(structure, properties, title)


def _cif_title(properties: Mapping[str, Any], i: int) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", str(properties.get("id", i)))[:100] or str(i)


def _cif_text(structure: Structure, properties: Mapping[str, Any], title: str) -> str:
    lattice = structure.lattice
    lines = [f"data_{title}", "_symmetry_space_group_name_H-M   'P 1'", "_symmetry_Int_Tables_number   1"]
    lines += [f"_cell_length_{x}   {length:.10f}" for x, length in zip("abc", lattice.abc, strict=True)]
    names = ("alpha", "beta", "gamma")
    lines += [f"_cell_angle_{x}   {angle:.10f}" for x, angle in zip(names, lattice.angles, strict=True)]
    lines += [f"_cell_volume   {lattice.volume:.8f}", f"_chemical_formula_sum   '{structure.formula}'"]
    for key, value in properties.items():
        if re.fullmatch(r"\w+", key):
            lines.append(f"{CIF_PREFIX}{key}   {_to_cif(value)}")
    lines += ["loop_", " _symmetry_equiv_pos_site_id", " _symmetry_equiv_pos_as_xyz", "  1  'x, y, z'", "loop_"]
    columns = ("type_symbol", "label", "symmetry_multiplicity", "fract_x", "fract_y", "fract_z", "occupancy")
    lines += [f" _atom_site_{column}" for column in columns]
    for i, site in enumerate(structure):
        x, y, z = site.frac_coords
        lines.append(f"  {site.specie.symbol}  {site.specie.symbol}{i}  1  {x:.10f}  {y:.10f}  {z:.10f}  1")
    return "\n".join(lines) + "\n"


def _to_cif(value: Any) -> str:
    """Return a value as CIF text: numbers and short plain text as they are, all else as hexadecimal JSON."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, str) and re.fullmatch(r"[\w .:+/()-]{1,60}", value) and not value.startswith("json:"):
        return f"'{value}'"
    return "json:" + json.dumps(value, default=str).encode().hex()


def _write_cif(path: Path, pairs: list[tuple[Structure, dict[str, Any]]]) -> None:
    path.write_text("\n".join(_cif_text(s, p, _cif_title(p, i)) for i, (s, p) in enumerate(pairs)))


def _write_zip(path: Path, pairs: list[tuple[Structure, dict[str, Any]]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _cif_files(pairs):
            archive.writestr(name, text)


def _write_extxyz(path: Path, pairs: list[tuple[Structure, dict[str, Any]]]) -> None:
    import ase.io
    from ase import Atoms

    frames = []
    for structure, properties in pairs:
        symbols = [site.specie.symbol for site in structure]
        atoms = Atoms(symbols, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
        atoms.info = {k: v for k, v in properties.items() if v is not None}
        frames.append(atoms)
    if frames:
        ase.io.write(path, frames, format="extxyz")
    else:
        path.write_text("")


def _json_record(structure: Structure, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {**properties, "structure": structure.as_dict()}


def _write_json(path: Path, pairs: list[tuple[Structure, dict[str, Any]]]) -> None:
    path.write_text(json.dumps([_json_record(s, p) for s, p in pairs], default=str) + "\n")


def _write_jsonl(path: Path, pairs: list[tuple[Structure, dict[str, Any]]]) -> None:
    path.write_text("".join(json.dumps(_json_record(s, p), default=str) + "\n" for s, p in pairs))


def _write_csv(path: Path, pairs: list[tuple[Structure, dict[str, Any]]]) -> None:
    columns = list(dict.fromkeys(key for _, p in pairs for key in p))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "cif"])
        writer.writeheader()
        for i, (structure, properties) in enumerate(pairs):
            writer.writerow({**properties, "cif": _cif_text(structure, {}, _cif_title(properties, i))})


WRITERS: dict[str, Callable[[Path, list[tuple[Structure, dict[str, Any]]]], None]] = {
    ".extxyz": _write_extxyz, ".xyz": _write_extxyz, ".json": _write_json, ".jsonl": _write_jsonl, ".csv": _write_csv,
    ".cif": _write_cif, ".zip": _write_zip,
}  # fmt: skip


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
