"""Detectors as users write them, and steps that become voxels."""

import json
import math

import numpy as np
import pytest

from apps.hep_simulation.geometry import Geometry, Layer
from apps.hep_simulation.oracle.detector import (
    PAR04,
    Detector,
    parse_detector,
    read_detector,
    voxelise,
)
from core.errors import AleatorError

LAYERS = (
    Layer(0, (0.0, 2.0, 5.0), 4),
    Layer(1, (0.0,), 1),
    Layer(2, (1.0, 3.0), 2),
)
GEOMETRY = Geometry("electron", 11, LAYERS)
PLAIN = Detector(absorber_mm=2.0, sensor_mm=1.0, repeats=1, calibration=10.0, threshold_mev=0.5)


def at(energy, radius, degrees, z):
    """A step at a place that is easy to think of; angles as in the files, from -180 degrees."""
    angle = math.radians(degrees)
    return [energy, radius * math.cos(angle), radius * math.sin(angle), z]


def test_a_step_lands_in_its_layer_sector_and_ring():
    steps = [
        at(1.0, 1.0, -170, 0.5),  # layer 0, first sector, inner ring
        at(2.0, 4.0, -100, 2.9),  # layer 0, first sector, outer ring
        at(3.0, 1.9, 170, 1.0),  # layer 0, last sector, inner ring
        at(4.0, 2.0, 10, 7.0),  # layer 2, second sector
    ]
    expected = np.zeros(10)
    expected[[0, 1, 6, 9]] = [10, 20, 30, 40]
    assert np.array_equal(voxelise(np.array(steps), PLAIN, GEOMETRY), expected)


def test_energy_outside_of_all_voxels_is_lost_and_nothing_else():
    lost = [at(1.0, 5.1, 0, 0.5), at(1.0, 0.5, 0, 4.0), at(1.0, 0.5, 0, 8.0)]
    assert not voxelise(np.array(lost), PLAIN, GEOMETRY).any()
    rng = np.random.default_rng(0)
    steps = np.stack(
        [at(rng.random(), rng.uniform(0, 4.99), rng.uniform(-180, 180), 1.0) for _ in range(300)]
    )
    found = voxelise(steps, PLAIN, GEOMETRY)
    assert found.sum() == pytest.approx(10 * steps[:, 0].sum(), rel=1e-12)


def test_steps_of_a_voxel_add_up_before_the_threshold():
    once = np.array([at(0.03, 1.0, 10, 0.5)])
    assert not voxelise(once, PLAIN, GEOMETRY).any()
    assert voxelise(np.repeat(once, 2, 0), PLAIN, GEOMETRY).sum() == pytest.approx(0.6)
    assert voxelise(np.zeros((0, 4)), PLAIN, GEOMETRY).shape == (10,)


def test_repeated_plates_are_one_layer():
    twice = Detector(absorber_mm=2.0, sensor_mm=1.0, repeats=2, calibration=10.0, threshold_mev=0)
    found = voxelise(np.array([at(1.0, 1.0, 0, 5.9), at(1.0, 2.0, 0, 12.5)]), twice, GEOMETRY)
    assert found[:8].sum() == 10  # the first of three layers reaches to 6 mm
    assert found[8:].sum() == 10  # the third begins at 12 mm


def test_detectors_are_named_or_read(tmp_path):
    assert read_detector("par04") is PAR04
    (tmp_path / "d.json").write_text(json.dumps({"absorber": "G4_Pb", "absorber_mm": 2.24}))
    lead = read_detector(str(tmp_path / "d.json"))
    assert (lead.absorber, lead.absorber_mm, lead.sensor) == ("G4_Pb", 2.24, "G4_Si")
    assert lead.fingerprint(GEOMETRY) != PAR04.fingerprint(GEOMETRY)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"absorbr": "G4_W"}, "no value 'absorbr'; known: absorber"),
        ({"absorber_mm": -1}, "absorber_mm=-1 is not a positive number"),
        ({"absorber_mm": "thick"}, "absorber_mm='thick' is not"),
        ({"sensor_mm": 0}, "sensor_mm=0; it must be positive"),
        ({"calibration": float("nan")}, "calibration=nan"),
        ({"repeats": 0}, "repeats=0; at least 1"),
        ({"sensor": ""}, "sensor is not the name of a material"),
    ],
)
def test_impossible_detectors_are_refused(values, message):
    with pytest.raises(AleatorError, match=message):
        parse_detector(values, "d.json")


def test_a_detector_that_is_not_there_is_refused():
    with pytest.raises(AleatorError, match="neither `par04` nor a JSON file"):
        read_detector("atlas.json")
