"""Preparing data once for many trainings: coarsened, split, checked, in one Zarr store.

    OUT.zarr/fine        the fine fields, canonical units
    OUT.zarr/coarse      their area-weighted block means
    OUT.zarr/normaliser  mean and standard deviation of both over the training part

`part` on the time axis says which times are for training (0), for nothing (1) and for testing (2).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from apps.climate_downscaling.config import Config, parse_config
from apps.climate_downscaling.field import Field, Layout, Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.prognosis_fit import prepare_prognosis
from apps.climate_downscaling.training_data import Prepared, prepare_data
from core.errors import AleatorError

MARK = "aleator_prepared"
CHUNK = 256
SETTLED = ("variables", "factor", "predictors", "split", "time_range", "region")
"""Options that a store was prepared with, and that training cannot change."""
_LAG = re.compile(r"\[([+-]\d+)\]")


def prepare(source: str, output: Path, config: Config, *, overwrite: bool = False) -> str:
    """Coarsen conservatively, or bring predictors onto one grid; split, normalise, write as Zarr.

    Args:
        source: fine NetCDF, Zarr or GRIB, or stations.
        output: Zarr folder to write.
        config: variables, factor or predictors, and split; kept in the store for `train`.
        overwrite: replace an existing store.

    Returns:
        what was done, in words.

    Raises:
        AleatorError: bad data, or the output exists.
    """
    if output.exists() and not overwrite:
        raise AleatorError(f"{output} exists; choose another name or --overwrite")
    prepared = (prepare_prognosis if config.predictors.files else prepare_data)(source, config)
    draft = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        _write(prepared, draft, config)
        if output.exists():
            shutil.rmtree(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    lines = [prepared.fine.describe()]
    if config.predictors.files:
        lines.append(prepared.coarse.describe())
    lines += [f"split: {prepared.describe_split()}", f"wrote {output}"]
    return "\n".join(lines)


def stored_settings(source: str) -> dict[str, Any]:
    """What `prepare` was asked for, of a store that it wrote; nothing of anything else."""
    attributes = _attributes(source)
    stored = json.loads(attributes[MARK]) if MARK in attributes else {}
    return {name: stored[name] for name in SETTLED if stored.get(name) is not None}


def open_prepared(source: str, config: Config) -> Prepared:
    """What `prepare` wrote, or fine data prepared on the fly.

    Raises:
        AleatorError: the store was prepared for other variables or another factor.
    """
    attributes = _attributes(source)
    if MARK not in attributes:
        return (prepare_prognosis if config.predictors.files else prepare_data)(source, config)
    stored = parse_config(json.loads(attributes[MARK]))
    for name in SETTLED:
        found, wanted = getattr(stored, name), getattr(config, name)
        if name == "split":  # early stopping is decided at training
            wanted = dataclasses.replace(wanted, validation_fraction=found.validation_fraction)
        if name == "predictors":  # so is the regression's strength
            wanted = dataclasses.replace(wanted, strengths=found.strengths)
        if found != wanted:
            raise AleatorError(
                f"{source} was prepared with {name}={_shown(found)}, not {_shown(wanted)}; "
                "prepare it again, or train with the same options"
            )
    fine, coarse = (_read(source, group) for group in ("fine", "coarse"))
    part = fine.data["part"].values
    train = np.flatnonzero(part == 0)
    test = np.flatnonzero(part == 2)
    first = int(test[0]) if len(test) else len(part)
    return Prepared(fine, coarse, slice(0, int(train[-1]) + 1), slice(first, len(part)), fine.grid)


def _shown(value: Any) -> str:
    files = getattr(value, "files", None)
    if files is None:
        return str(value)
    return f"{', '.join(files) or 'none'} at lags {list(value.lags)}"


def _attributes(source: str) -> dict[str, Any]:
    if not Path(source).is_dir():
        return {}
    try:
        return xr.open_zarr(source, chunks=None).attrs
    except Exception:  # not a Zarr store: `open_field` says so in one line
        return {}


def _write(prepared: Prepared, draft: Path, config: Config) -> None:
    part = np.ones(len(prepared.fine), dtype=np.int8)
    part[prepared.train], part[prepared.test] = 0, 2
    title = prepared.fine.attributes.get("title", Path(prepared.fine.source).name)
    attributes = {MARK: json.dumps(config.to_dict()), "title": f"Prepared for training: {title}"}
    xr.Dataset(attrs=attributes).to_zarr(draft, mode="w", zarr_format=2, consolidated=True)
    for group in ("fine", "coarse"):
        dataset = _dataset(getattr(prepared, group), part)
        dataset.to_zarr(draft, group=group, mode="a", zarr_format=2, consolidated=True)
    _normaliser(draft).to_zarr(
        draft, group="normaliser", mode="a", zarr_format=2, consolidated=True
    )
    zarr.consolidate_metadata(str(draft), zarr_format=2)  # of all groups, for those who open all


def _dataset(field: Field, part: np.ndarray) -> xr.Dataset:
    """A field as xarray writes it; what it is beside its numbers goes into one attribute."""
    data = field.data.drop_vars([n for n in field.data.coords if n not in ("time", "y", "x")])
    data = data.chunk({"time": CHUNK, "y": -1, "x": -1})
    flags = {"flag_values": np.array([0, 1, 2], np.int8), "flag_meanings": "training gap test"}
    data = data.assign_coords(part=("time", part, flags))
    for variable in field.variables:
        data[variable.name].attrs = {
            key: getattr(variable, key)
            for key in ("units", "standard_name", "long_name", "cell_methods")
            if getattr(variable, key)
        }
        data[variable.name].encoding = {}
    data = data.rename({name: _stored_name(name) for name in field.names})
    statics = field.statics.drop_vars(list(field.statics.coords))
    facts = {
        "grid": field.grid.to_dict(),
        "variables": [vars(variable) for variable in field.variables],
        "calendar": field.calendar,
        "source": field.source,
        "statics": [str(name) for name in statics],
    }
    return data.assign(statics).assign_attrs(field=json.dumps(facts))


def _stored_name(name: str) -> str:
    """`tas_lag-1` of `tas[-1]`: brackets are no part of a path."""
    return _LAG.sub(r"_lag\1", name)


def _normaliser(store: Path) -> xr.Dataset:
    """Mean and standard deviation of every cell over the training part."""
    found = {}
    for group in ("fine", "coarse"):
        data = xr.open_zarr(store, group=group)
        names = [name for name, array in data.data_vars.items() if "time" in array.dims]
        part = data[names].isel(time=np.flatnonzero(data["part"].values == 0))
        renamed = {"y": f"{group}_y", "x": f"{group}_x"}
        for word, values in (("mean", part.mean("time")), ("std", part.std("time"))):
            for name in names:
                found[f"{name}_{group}_{word}"] = values[name].rename(renamed).compute()
    return xr.Dataset(found)


def _read(source: str, group: str) -> Field:
    data = xr.open_zarr(source, group=group)
    facts = json.loads(data.attrs["field"])
    grid = Grid.from_dict(facts["grid"])
    statics = data[facts["statics"]].drop_vars(["y", "x"], errors="ignore").load()
    named = {_stored_name(variable["name"]): variable["name"] for variable in facts["variables"]}
    return Field(
        data=data.drop_vars(facts["statics"]).rename(named),
        grid=grid,
        variables=tuple(Variable(**variable) for variable in facts["variables"]),
        calendar=facts["calendar"],
        source=facts["source"],
        statics=statics,
        layout=Layout(),
        attributes={},
    )
