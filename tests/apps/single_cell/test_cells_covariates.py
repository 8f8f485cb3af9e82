"""Covariates: fitted once, the same codes for other cells, and what does not fit."""

import json

import numpy as np
import pandas as pd
import pytest

from apps.single_cell.covariates import Covariates
from core.errors import AleatorError


def table(**columns):
    return pd.DataFrame(columns, index=[f"c{i}" for i in range(len(next(iter(columns.values()))))])


OBS = table(batch=["b", "a", "b", "a"], donor=[3, 1, 2, 1], age=[1.0, 2.0, 3.0, 6.0])


def fitted():
    return Covariates.fit(OBS, "f", batch_key="batch", categorical=["donor"], continuous=["age"])


def test_the_design_is_one_hot_and_standardised():
    design = fitted().encode(OBS, "f")
    np.testing.assert_array_equal(design.codes, [[1, 2], [0, 0], [1, 1], [0, 0]])
    np.testing.assert_allclose(design.values[:, 0], (OBS["age"] - 3) / OBS["age"].std(ddof=0))
    assert design.sizes == (2, 3)
    hot = pd.get_dummies(OBS[["batch", "donor"]].astype(str)).to_numpy(np.float32)
    np.testing.assert_array_equal(design.matrix()[:, :5], hot)
    assert design.matrix().shape == (4, fitted().width)


def test_other_cells_get_the_codes_of_the_training_cells_whatever_their_type():
    other = table(batch=pd.Categorical(["a", "b"]), donor=[1.0, 3.0], age=[3, 3])
    design = fitted().encode(other, "g")
    np.testing.assert_array_equal(design.codes, [[0, 0], [1, 2]])
    np.testing.assert_array_equal(design.values, 0)


def test_the_order_of_a_categorical_column_is_kept_and_unused_ones_are_not():
    column = pd.Categorical(["lo", "hi", "lo"], categories=["lo", "mid", "hi"])
    assert Covariates.fit(table(d=column), "f", batch_key="d").batch.categories == ("lo", "hi")


def test_a_round_trip_through_json():
    for covariates in (fitted(), Covariates()):
        assert Covariates.from_dict(json.loads(json.dumps(covariates.to_dict()))) == covariates


def test_no_covariates_is_an_empty_design():
    design = Covariates().encode(OBS, "f")
    assert design.matrix().shape == (4, 0)
    assert len(design) == 4


def test_one_category_and_a_constant_are_noted_and_harmless():
    one = table(batch=["a"] * 3, age=[5.0] * 3)
    covariates = Covariates.fit(one, "f", batch_key="batch", continuous=["age"])
    assert covariates.notes() == ("all cells have the same batch (a)",)
    np.testing.assert_array_equal(covariates.encode(one, "f").matrix(), [[1, 0]] * 3)


@pytest.mark.parametrize(
    ("obs", "options", "message"),
    [
        (
            OBS,
            {"batch_key": "plate"},
            "f: obs has no column plate .its columns: batch, donor, age",
        ),
        (
            table(b=["a", None, "b"]),
            {"batch_key": "b"},
            "b is missing in 1 cells, the first is c1",
        ),
        (table(x=[1.0, 2.0, np.nan]), {"continuous": ["x"]}, "missing in 1 cells, .* c2"),
        (table(x=[1.0, np.inf, 1]), {"continuous": ["x"]}, "x is infinite in cell c1"),
        (OBS, {"continuous": ["batch"]}, "batch does not hold numbers; give it as categorical"),
        (OBS, {"categorical": ["age"]}, "age differs in every cell"),
        (OBS, {"batch_key": "batch", "categorical": ["batch"]}, "batch is given twice"),
    ],
)
def test_what_cannot_be_a_covariate(obs, options, message):
    with pytest.raises(AleatorError, match=message):
        Covariates.fit(obs, "f", **options)


def test_an_unseen_category_names_the_cell_and_what_is_known():
    other = OBS.assign(donor=[1, 1, 7, 1])
    with pytest.raises(AleatorError, match=r"g: donor '7' of cell c2 .* \(known: 1, 2, 3\)"):
        fitted().encode(other, "g")
    with pytest.raises(AleatorError, match="age is missing in 4 cells"):
        fitted().encode(OBS.assign(age=np.nan), "g")
