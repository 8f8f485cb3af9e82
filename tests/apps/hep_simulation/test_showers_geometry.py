"""Binning files, good and bad."""

import numpy as np
import pytest

from apps.hep_simulation.features import padded, unpadded
from apps.hep_simulation.geometry import check_voxels, read_geometry
from core.errors import AleatorError


def test_a_geometry_survives_its_xml(small, uneven, tmp_path):
    for geometry in (small, uneven):
        (tmp_path / "b.xml").write_text(geometry.to_xml())
        assert read_geometry(tmp_path / "b.xml") == geometry
        assert type(geometry).from_dict(geometry.to_dict()) == geometry


def test_voxels_are_stored_with_r_fastest_then_alpha_then_layer(small):
    voxels = np.arange(small.voxels, dtype=np.float32)[None]
    assert np.array_equal(padded(voxels, small)[0], voxels.reshape(5, 4, 3))
    assert small.radii[:4].tolist() == [0.5, 2.0, 4.5, 0.5]
    assert small.angles[:4] == pytest.approx([-0.75 * np.pi] * 3 + [-0.25 * np.pi])


def test_padding_is_undone_exactly(uneven):
    voxels = np.random.default_rng(0).uniform(size=(6, uneven.voxels))
    full = padded(voxels, uneven)
    assert full.shape == (6, 3, 4, 3)
    assert full.sum() == pytest.approx(voxels.sum())
    assert np.array_equal(unpadded(full, uneven), voxels)


def test_known_data_sets_are_recognised(binning):
    assert binning.voxels == 6480
    assert "data set 2" in binning.describe()
    with pytest.raises(AleatorError, match=r"40500 voxels is CaloChallenge data set 3"):
        check_voxels(40500, binning, "file")


def _bins(layers):
    return f'<Bins><Bin name="e" pid="11">{layers}</Bin></Bins>'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<Bins></Bins>", "no <Bin> element"),
        ("<Bins><Bin", "not valid XML"),
        ('<Bins><Bin name="e" pid="11"></Bin></Bins>', "no layer has a voxel"),
        (
            _bins('<Layer id="0" r_edges="0,2,1" n_bin_alpha="1"/>'),
            "must increase",
        ),
        (
            _bins('<Layer id="0" r_edges="0" n_bin_alpha="4"/>'),
            "4 sectors but one radius",
        ),
        (
            _bins('<Layer id="0" r_edges="0,1" n_bin_alpha="x"/>'),
            "not a whole number",
        ),
        (
            '<Bins><Bin name="e" pid="11"><Layer id="3" r_edges="0,1" n_bin_alpha="1"/>'
            '<Layer id="3" r_edges="0,1" n_bin_alpha="1"/></Bin></Bins>',
            "layer 3 is given twice",
        ),
        ('<Bins><Bin name="e"/><Bin name="g"/></Bins>', "say which particle"),
    ],
)
def test_bad_binning_files_are_named(body, message, tmp_path):
    path = tmp_path / "binning.xml"
    path.write_text(body)
    with pytest.raises(AleatorError, match=message):
        read_geometry(path)


def test_a_binning_of_another_particle_is_refused(small, tmp_path):
    (tmp_path / "b.xml").write_text(small.to_xml())
    with pytest.raises(AleatorError, match=r"no binning of 'muon'; it has electron"):
        read_geometry(tmp_path / "b.xml", "muon")
    with pytest.raises(AleatorError, match="no such binning file"):
        read_geometry(tmp_path / "c.xml")
