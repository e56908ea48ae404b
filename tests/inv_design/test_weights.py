"""Model files: what goes in comes out, the same bytes in every process, and a pickle is refused, not executed."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from inv_design.weights import pack, sha256, unpack

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2], dtype=np.int64)}
CONFIG = {"kind": "test", "z": [1, 2.5, None], "nested": {"y": 1}}


def test_round_trip() -> None:
    tensors, config = unpack(pack(TENSORS, CONFIG))
    assert config == CONFIG
    assert set(tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype


def test_the_same_model_is_the_same_bytes_in_another_process() -> None:
    code = (
        "import numpy as np; from inv_design.weights import pack, sha256\n"
        "t = {'a': np.array([1, 2], dtype=np.int64), 'b': np.arange(6, dtype=np.float32).reshape(2, 3)}\n"
        "print(sha256(pack(t, {'nested': {'y': 1}, 'z': [1, 2.5, None], 'kind': 'test'})))"
    )
    hashes = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(3)
    }
    assert hashes == {sha256(pack(TENSORS, CONFIG))}


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


@pytest.mark.parametrize("blob", [b"", b"x" * 7, b"\x00" * 64, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_is_no_model_file_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="not a model file"):
        unpack(blob)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    from inv_design.generators.registry import load_generator
    from inv_design.predictors.registry import load_predictor

    mark = tmp_path / "executed"
    blob = pickle.dumps(Bomb(mark))
    for load in (unpack, load_predictor, load_generator):
        with pytest.raises(ValueError, match="not a model file"):
            load(blob)
    assert not mark.exists()


def test_the_packaged_weights_are_model_files() -> None:
    root = resources.files("inv_design")
    files = [Path(str(p)) for folder in ("predictors", "generators") for p in (root / folder / "weights").iterdir()]
    blobs = [p for p in files if p.suffix == ".safetensors"]
    assert len(blobs) == 3
    for path in blobs:
        assert path.stat().st_size < 3e6
        _, config = unpack(path.read_bytes())
        assert config
