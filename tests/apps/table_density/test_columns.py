"""Columns that repeat: told apart, spread over cells, and probabilities that stay bounded."""

import numpy as np
import pandas as pd
import pytest
import torch

from apps.table_density.columns import Column, as_config, discrete, from_config, kind_of, plan
from apps.table_density.preprocessing import Preprocessor
from core.errors import AleatorError

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=1000)
DICE = RNG.integers(1, 7, 1000).astype(float)
ATOM = np.where(RNG.random(1000) < 0.3, 0.0, NORMAL)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (NORMAL, "continuous"),
        (np.round(NORMAL, 2), "continuous"),  # rounding alone does not make a column discrete
        (DICE, "discrete"),
        (ATOM, "mixed"),
        (np.full(1000, 3.0), "constant"),
        (np.where(np.arange(1000) < 3, 1.0, 0.0), "constant"),
    ],
)
def test_kinds(values, kind):
    assert kind_of(values) == kind


def test_cells_meet_half_way_and_values_come_back():
    column = discrete("c", np.array([1.0, 2.0, 4.0, 2.0]))
    assert column.values == (1.0, 2.0, 4.0)
    assert column.edges == (0.5, 1.5, 3.0, 5.0)
    x, u = np.array([4.0, 1.0, 2.0]), np.array([0.0, 0.999, 0.5])
    spread, log_width = column.spread(x, u)
    np.testing.assert_allclose(spread, [3.0, 1.499, 2.25])
    np.testing.assert_allclose(log_width, np.log([2.0, 1.0, 1.5]))
    np.testing.assert_array_equal(column.gather(spread), x)


def test_values_that_differ_by_rounding_are_one():
    assert discrete("c", np.array([0.1 + 0.2, 0.3, 1.0])).values == pytest.approx((0.3, 1.0))


def test_a_new_value_of_a_discrete_column_is_refused():
    with pytest.raises(AleatorError, match="'c' has the value 3, which no training row has"):
        discrete("c", np.array([1.0, 2.0, 4.0])).spread(np.array([3.0]), np.zeros(1))


def test_a_jittered_column_moves_by_half_its_width():
    moved, log_width = Column("c", "jittered", width=0.2).spread(np.ones(2), np.array([0.0, 1.0]))
    np.testing.assert_allclose(moved, [0.9, 1.1])
    assert not log_width.any()


def test_plans_say_what_they_do_and_what_they_refuse():
    names, x = ["a", "dice", "atom"], np.stack([NORMAL, DICE, ATOM], 1)
    with pytest.raises(AleatorError, match=r"'atom': 3\d% of the rows .* --jitter atom=.*--keep"):
        plan(names, x, {}, set())
    decided = plan(names, x, {"atom": 0.1}, set())
    assert [c.kind for c in decided.columns] == ["continuous", "discrete", "jittered"]
    assert decided.remarks == ("dice: 6 distinct values, dequantised within their cells",)
    kept = plan(names, x, {}, {"atom", "dice"})
    assert {c.kind for c in kept.columns} == {"continuous"}
    with pytest.raises(AleatorError, match=r"'a' is .almost. constant, 2: .* --drop a"):
        plan(["a"], np.full((100, 1), 2.0), {}, set())
    with pytest.raises(AleatorError, match="no column 'z'; known: a, dice, atom"):
        plan(names, x, {"z": 1.0}, set())
    assert from_config(as_config(decided.columns)) == decided.columns


def test_boxes_are_standardised_and_the_jacobian_is_accounted_for():
    frame = pd.DataFrame({"a": 5 + 3 * NORMAL, "dice": DICE})
    columns = plan(["a", "dice"], frame.to_numpy(), {}, set()).columns
    fitted = Preprocessor.fit(frame, columns, [])
    cells = fitted.cells(frame)
    z = cells.at(torch.rand(cells.low.shape, generator=torch.Generator().manual_seed(0)))
    assert z.mean(0).abs().max() < 0.05
    assert (z.std(0) - 1).abs().max() < 0.05
    std_a, std_dice = frame["a"].std(ddof=0), np.sqrt(DICE.var() + 1 / 12)
    np.testing.assert_allclose(cells.log_unit, -np.log(std_a * std_dice), rtol=1e-5)
    assert not cells.width[:, 0].any()
    np.testing.assert_allclose(cells.width[:, 1], 1 / std_dice, rtol=1e-5)
    back = fitted.decode(z)
    np.testing.assert_array_equal(back["dice"], DICE)
    assert back["dice"].dtype.kind == "i"
    np.testing.assert_allclose(back["a"], frame["a"], rtol=1e-5, atol=1e-5)
    assert Preprocessor.from_config(fitted.config()) == fitted


def test_context_is_levels_or_standardised_numbers():
    frame = pd.DataFrame({"a": NORMAL, "s": np.where(DICE > 3, "high", "low"), "n": 2 + DICE})
    fitted = Preprocessor.fit(frame, (Column("a"),), ["s", "n"])
    context = fitted.context(frame)
    assert fitted.context_size == context.shape[1] == 3
    np.testing.assert_array_equal(context[:, 0], (DICE > 3).astype(float))
    assert abs(context[:, 2].mean()) < 1e-5
    with pytest.raises(AleatorError, match="'middle' was not in the training rows; known: high"):
        fitted.context(frame.assign(s="middle"))
    with pytest.raises(AleatorError, match="text where numbers were"):
        fitted.context(frame.assign(n="two"))
    many = frame.assign(s=[f"level {i}" for i in range(len(frame))])
    with pytest.raises(AleatorError, match="1000 levels"):
        Preprocessor.fit(many, (Column("a"),), ["s"])
