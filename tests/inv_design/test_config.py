"""CampaignConfig: defaults of the paper, units, and errors that name the key and the cure."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inv_design.config import CampaignConfig, ConfigError, load_config, parse_target, property_name

MINIMAL = {"name": "stiff", "targets": {"bulk_modulus_vrh": "350 GPa"}}


def write(tmp_path, data) -> str:
    path = tmp_path / "campaign.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return str(path)


def test_a_generator_that_cannot_fix_a_shape_is_named() -> None:
    wish = {"name": "x", "targets": {"K": "350 GPa"}, "generator": {"name": "substitution", "sites": 4}}
    with pytest.raises(ValueError, match="cannot fix sites"):
        CampaignConfig.model_validate(wish)


def test_defaults_are_the_papers():
    config = CampaignConfig.model_validate(MINIMAL)
    stages = config.stages
    assert config.target == 350.0
    assert (stages.predictor.tolerance, stages.mlip.tolerance) == (0.30, 0.20)
    assert stages.predictor.match == {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
    assert stages.predictor.min_elements == 2
    assert config.generator.samples_per_round == 500
    assert config.data.max_sites == 20


def test_round_trip_through_a_plain_record():
    config = CampaignConfig.model_validate({**MINIMAL, "chemistry": {"exclude": ["Tc"], "cost": {"Re": 10}}})
    assert CampaignConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targts": {}}, "did you mean 'targets'"),
        ({"stages": {"mlip": {"tolerence": 0.1}}}, "did you mean 'tolerance'"),
        ({"targets": {"bulk_modulus_vrh": "350 eV"}}, "unit 'eV' is not supported"),
        ({"targets": {"bulk_modulus_vrh": "-3"}}, "not positive"),
        ({"targets": {"bulk_modulus_vrh": "many"}}, "'many' is not a number"),
        ({"targets": {"hardness": 3}}, "unknown property 'hardness'"),
        ({"targets": {}}, "at least one target"),
        ({"targets": {"shear_modulus_vrh": 100}}, "add it to targets"),
        ({"chemistry": {"exclude": ["Xx"]}}, "'Xx' is neither"),
        ({"data": {"exclude": ["Qq"]}}, "'Qq' is neither"),
        ({"database": "mongodb://me:secret@host/db"}, "contains a password"),
        ({"name": "../evil"}, "name"),
        ({"rounds": -1}, "rounds"),
        ({"stages": {"dft": {"backend": "magic"}}}, "backend"),
    ],
)
def test_errors_are_one_line_that_names_the_cure(tmp_path, change, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, {**MINIMAL, **change}))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "not valid YAML"), ("- 1", "holds no keys"), ("", "holds no keys")]
)
def test_files_that_are_no_campaign(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, text))


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")


def test_missing_key(tmp_path):
    with pytest.raises(ConfigError, match="'targets' is missing"):
        load_config(write(tmp_path, {"name": "x"}))


@pytest.mark.parametrize("alias", ["K", "bulk_modulus", "bulk_modulus_vrh"])
def test_aliases(alias):
    assert property_name(alias) == "bulk_modulus_vrh"
    assert CampaignConfig.model_validate({"name": "x", "targets": {alias: 100}}).target == 100


@settings(max_examples=50)
@given(st.floats(1e-6, 1e6), st.sampled_from(["", " GPa", "GPa", "  GPa "]))
def test_targets_with_and_without_unit(number, unit):
    assert parse_target(f"{number!r}{unit}", name="bulk_modulus_vrh") == number


@settings(max_examples=100)
@given(st.text(max_size=20))
def test_any_text_is_a_target_or_a_one_line_value_error(text):
    message = ""
    try:
        assert parse_target(text, name="bulk_modulus_vrh") > 0
    except ValueError as error:
        message = str(error)
    assert "\n" not in message


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*CampaignConfig.model_fields, "junk"]),
        st.one_of(
            st.none(),
            st.integers(),
            st.text(max_size=5),
            st.lists(st.integers(), max_size=2),
            st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
        ),
    )
)
def test_any_mapping_is_a_campaign_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "campaign.yaml"
    path.write_text(yaml.safe_dump(data))
    message = ""
    try:
        load_config(path)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message
