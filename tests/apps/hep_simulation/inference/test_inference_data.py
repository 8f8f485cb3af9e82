"""Files of event sets: what is read, and what is refused with its name."""

import h5py
import numpy as np
import pytest

from apps.hep_simulation.inference.data import read_sets, write_sets
from apps.hep_simulation.inference.prior import BoxPrior
from core.errors import AleatorError

PRIOR = BoxPrior(("a", "b"), (0.0, -1.0), (1.0, 1.0))


@pytest.fixture
def path(tmp_path):
    """Five sets of four events with three observables."""
    rng = np.random.default_rng(0)
    theta = PRIOR.from_unit(rng.random((5, 2)))
    write_sets(tmp_path / "s.hdf5", rng.normal(size=(5, 4, 3)), ("x", "y", "z"), theta, PRIOR)
    return tmp_path / "s.hdf5"


def spoil(path, **changes):
    """Replace datasets or attributes; None removes."""
    with h5py.File(path, "a") as file:
        for name, value in changes.items():
            where = file if name in ("x", "theta") else file.attrs
            if name in where:
                del where[name]
            if value is not None:
                where[name] = value


def test_what_was_written_is_read(path):
    found = read_sets(path, simulated=True)
    assert found.x.shape == (5, 4, 3)
    assert found.prior == PRIOR
    assert found.first(2).x.shape == (5, 2, 3)


def test_one_set_needs_no_axis_of_sets(path):
    spoil(path, theta=None, x=np.ones((4, 3)), prior_low=None)
    assert read_sets(path).x.shape == (1, 4, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": None}, "no dataset 'theta'; it has x"),
        ({"x": np.ones((0, 4, 3))}, "none of them 0"),
        ({"x": np.ones((5, 4))[:, :, None] * np.nan, "x_names": ["x"]}, "not finite in 20 places"),
        ({"x_names": ["x", "y"]}, "2 x_names for 3 columns"),
        ({"x_names": None}, "attribute x_names is missing"),
        ({"prior_low": None}, "prior_low is missing"),
        ({"prior_high": [1.0, -2.0]}, r"prior of b: \[-1.0, -2.0\] is no interval"),
        ({"theta_names": ["a", "a"]}, "names repeat"),
        ({"theta": np.full((5, 2), 3.0)}, "a=3 is not inside the prior"),
        ({"theta": np.full((4, 2), 0.5)}, "theta has shape"),
        ({"x": np.array([b"text"])}, "real numbers are needed"),
    ],
)
def test_what_is_wrong_is_named(path, changes, message):
    spoil(path, **changes)
    with pytest.raises(AleatorError, match=message):
        read_sets(path, simulated=True)


def test_a_file_cut_short_is_refused(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AleatorError, match="not HDF5, or cut short"):
        read_sets(path)


def test_more_events_than_there_are_are_refused(path):
    with pytest.raises(AleatorError, match="have 4 events; 9"):
        read_sets(path).first(9)


@pytest.mark.exact
def test_units_of_the_prior():
    theta = np.array([[0.25, 0.0]])
    assert PRIOR.to_unit(theta).tolist() == [[0.25, 0.5]]
    assert PRIOR.from_unit(PRIOR.to_unit(theta)).tolist() == theta.tolist()
    assert PRIOR.log_volume == pytest.approx(np.log(2))
