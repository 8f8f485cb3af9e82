"""Philox against the vectors that its authors publish."""

import numpy as np
import pytest
from scipy import stats

from apps.hep_simulation.jets.streams import philox, uniforms

KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.exact
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    assert philox(np.array(counter, dtype=np.uint64), key).tolist() == expected


def test_numbers_are_uniform_and_those_of_an_event_are_its_own():
    event, place = np.repeat(np.arange(5000), 2), np.tile([0, 1], 5000)
    u = uniforms(7, 1, event, place, 6)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.001
    assert np.abs(np.corrcoef(u.T) - np.eye(6)).max() < 0.05
    assert ((u > 0) & (u < 1)).all()
    some = [9, 4321, 17]
    assert np.array_equal(uniforms(7, 1, event[some], place[some], 6), u[some])
    assert not np.array_equal(uniforms(8, 1, event[some], place[some], 6), u[some])
    assert not np.array_equal(uniforms(7, 2, event[some], place[some], 6), u[some])
