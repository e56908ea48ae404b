import json
import math
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.protocol import canonical_json, content_id, protocol_id

plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=12,
)
settings_strategy = st.dictionaries(st.text(min_size=1, max_size=6), plain, min_size=1, max_size=5)


def shuffled(value):
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    if isinstance(value, list):
        return tuple(shuffled(item) for item in value)
    return value


@given(settings_strategy)
def test_order_of_keys_and_kind_of_sequence_do_not_matter(settings):
    assert protocol_id(settings) == protocol_id(shuffled(settings))


@given(settings_strategy)
def test_the_id_survives_a_round_trip_through_json(settings):
    assert protocol_id(json.loads(canonical_json(settings))) == protocol_id(settings)


@given(settings_strategy, st.text(min_size=1, max_size=6), st.integers())
def test_another_value_is_another_protocol(settings, key, value):
    changed = {**settings, key: value}
    if canonical_json(changed) != canonical_json(settings):
        assert protocol_id(changed) != protocol_id(settings)


@given(st.integers(-(10**6), 10**6), st.floats(-1e-15, 1e-15))
def test_float_noise_does_not_matter(thousandths, noise):
    value = thousandths / 1000
    assert protocol_id({"x": value}) == protocol_id({"x": value * (1 + noise)})
    assert protocol_id({"x": 0.1 + 0.2}) == protocol_id({"x": 0.3})


def test_equal_settings_in_other_types_are_one_protocol():
    class Mode(Enum):
        FAST = "fast"

    one = {"fmax": 1.0, "mode": Mode.FAST, "strain": np.array([0.5, 1.0]), "n": np.int64(3), "path": Path("a/b")}
    two = {"fmax": 1, "mode": "fast", "strain": [0.5, 1], "n": 3, "path": "a/b"}
    assert protocol_id(one) == protocol_id(two)


def test_distinct_settings_differ():
    ids = {protocol_id({"x": x}) for x in (0, 1, True, False, None, "1", 1.5, [1], {"1": 1}, math.inf)}
    assert len(ids) == 10


def test_known_value():
    """The id is the same on every machine and in every version: changing it orphans results."""
    assert protocol_id({"code": "mace", "fmax": 0.01, "steps": 500}) == "p-" + _sha(
        '{"code":"mace","fmax":0.01,"steps":500}'
    )
    assert content_id("c", ["a", 1, 2, 3]) == "c-" + _sha('["a",1,2,3]')


def _sha(text):
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:20]


def test_what_has_no_canonical_form_is_refused():
    with pytest.raises(TypeError, match="canonical form"):
        protocol_id({"calculator": object()})
    with pytest.raises(TypeError, match="no string"):
        protocol_id({1: "a"})
