"""Archives that other programs wrote: tar in all its compressions, cut short, and made to harm."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from pymatgen.core import Lattice, Structure

from inv_design.structures import files
from inv_design.structures.files import read_structures

if TYPE_CHECKING:
    from pathlib import Path


def cif(a: float) -> bytes:
    return Structure(Lattice.cubic(a), ["Al", "Cu"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(fmt="cif").encode()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_tars_are_read_in_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"made{suffix}"
    mode = {".tar": "w", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}.get(suffix, "w:gz")
    with tarfile.open(path, mode) as archive:
        for i in range(3):
            add(archive, f"generated/{i}.cif", cif(3.0 + i / 10))
        add(archive, "generated/.hidden.cif", b"")
    items = list(read_structures(path))
    assert [round(i.structure.lattice.a, 3) for i in items if i.structure] == [3.0, 3.1, 3.2]
    assert items[1].source.endswith(f"made{suffix}/generated/1.cif:0")
    assert [i.source for i in read_structures(tmp_path)] == [i.source for i in items]


def test_a_tar_cut_short_gives_what_is_before_the_cut(tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        for i in range(4):
            add(archive, f"{i}.cif", cif(3.0 + i / 10))
    content = whole.read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    good = [i for i in read_structures(tmp_path / "cut.tar") if i.structure is not None]
    assert 0 < len(good) < 4
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(content)[:-200])
    items = list(read_structures(tmp_path / "cut.tar.gz"))
    assert items[-1].error is not None
    assert "cannot be unpacked" in items[-1].error


def test_no_tar_and_empty_tar_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.tar.gz").write_bytes(b"rubbish" * 100)
    (tmp_path / "nothing.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name, words in (("no.tar.gz", "cannot be"), ("nothing.tar", "cannot be"), ("empty.tar", "empty archive")):
        (item,) = read_structures(tmp_path / name)
        assert item.error is not None
        assert words in item.error


def test_links_and_paths_out_of_the_archive_harm_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        add(archive, "../../outside.cif", cif(3.0))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            link = tarfile.TarInfo("secret.cif")
            link.type, link.linkname = kind, "/etc/hostname"
            archive.addfile(link)
    (item,) = read_structures(tmp_path / "evil.tar")
    assert item.structure is not None
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["evil.tar"]


def test_bombs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_MEMBER", 10_000)
    monkeypatch.setattr(files, "MAX_ARCHIVE", 40_000)
    zeros = b"0" * 9_000
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(9):
            archive.writestr(f"{i}.cif", zeros)
        archive.writestr("big.cif", zeros * 2)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive_:
        for i in range(9):
            add(archive_, f"{i}.cif", zeros)
    with tarfile.open(tmp_path / "big.tar", "w") as archive_:
        add(archive_, "big.cif", zeros * 2)
        add(archive_, "good.cif", cif(3.0))
    for name in ("bomb.zip", "bomb.tar.gz"):
        items = list(read_structures(tmp_path / name))
        assert "more than 40000 bytes" in str(items[-1].error)
        assert len(items) <= 6
    big, good = read_structures(tmp_path / "big.tar")
    assert "18000 bytes" in str(big.error)
    assert good.structure is not None
    (tmp_path / "bomb.cif.gz").write_bytes(gzip.compress(zeros * 100))
    (item,) = read_structures(tmp_path / "bomb.cif.gz")
    assert "more than 10000 bytes" in str(item.error)
