"""Configs are put together from file and overrides, and bad ones are refused by name."""

import json

import pytest

from apps.climate_downscaling.config import parse_config, read_config
from core.errors import AleatorError


def test_file_then_overrides_then_options(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"variables": ["pr"], "fit": {"steps": 7, "ema": 0.9}}))
    config = read_config(file, {"fit": {"steps": 9}}, variables="tas, pr", factor=4)
    assert config.variables == ("tas", "pr")
    assert (config.fit.steps, config.fit.ema, config.factor) == (9, 0.9, 4)


def test_a_config_survives_its_checkpoint():
    config = read_config(None, {"mean": {"lengths": [0.5, 1]}}, variables="tas", factor=4)
    assert parse_config(config.to_dict()) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"fit": {"stepps": 3}}, r"unknown option fit\.stepps"),
        ({"colour": "red"}, "unknown option colour"),
        ({"fit": {"steps": "many"}}, r"fit\.steps"),
        ({"fit": {"steps": 0}}, r"fit\.steps=0: at least 1"),
        ({"factor": 1}, "factor=1: at least 2"),
        ({"split": {"test_fraction": 1.5}}, r"test_fraction=1\.5"),
        ({"mean": {"base": "cubic"}}, "bicubic, bilinear, nearest"),
        ({"residual": {"context": "fine"}}, r"residual\.context"),
        ({"variables": ["tas", "tas"]}, "named twice"),
    ],
)
def test_bad_options_are_named(overrides, message):
    with pytest.raises(AleatorError, match=message):
        read_config(None, {"variables": ["tas"], "factor": 4, **overrides})


def test_missing_options_and_files_are_named(tmp_path):
    with pytest.raises(AleatorError, match="--variables is missing"):
        read_config(None, {"factor": 2})
    with pytest.raises(AleatorError, match="--factor is missing"):
        read_config(None, {"variables": ["tas"]})
    with pytest.raises(AleatorError, match="no such file"):
        read_config(tmp_path / "none.json", {})
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(AleatorError, match="not a JSON file"):
        read_config(tmp_path / "bad.json", {})
