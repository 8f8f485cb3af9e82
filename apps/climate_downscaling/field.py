"""A field in memory terms: which variables, on which cells, at which times, in which units.

A `Field` is what every other room of this application works on. Its values stay lazy until
`read` asks for some time steps; names and units are canonical (CMIP short names; K, mm day-1,
m s-1, Pa), and what the file called things is remembered in `layout` for the output.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling.blocks import coarsen
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.times import show_time, time_keys, year_fraction
from core.errors import AleatorError

FILL = 1e15
"""No climate variable is this large: it is a fill value that the file does not declare."""


@dataclass(frozen=True)
class Variable:
    """What is known about one variable.

    Attributes:
        name: CMIP short name, or the file's own where it has none.
        units: in memory.
        standard_name: CF standard name; empty where there is none.
        long_name: in words.
        cell_methods: CF cell methods of the file.
        source_name: the file's name for it.
        source_units: the file's units.
        scale: memory value = scale · file value + offset.
        offset: see `scale`.
    """

    name: str
    units: str
    standard_name: str = ""
    long_name: str = ""
    cell_methods: str = ""
    source_name: str = ""
    source_units: str = ""
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Layout:
    """What the file calls its axes, and how the field was turned onto the model's grid.

    Attributes:
        time_name: of the time dimension.
        lat_name: of the two-dimensional latitude.
        lon_name: of the two-dimensional longitude.
        mapping_name: of the grid mapping variable.
        flip_y: the file's rows run the other way.
        flip_x: the file's columns run the other way.
        roll_x: columns by which a global file starts elsewhere.
        shift_x: degrees from the field's longitudes to the file's, one per column.
    """

    time_name: str = "time"
    lat_name: str = "lat"
    lon_name: str = "lon"
    mapping_name: str = "crs"
    flip_y: bool = False
    flip_x: bool = False
    roll_x: int = 0
    shift_x: tuple[float, ...] = ()

    def restore(self, values: np.ndarray, factor: int = 1) -> np.ndarray:
        """Turn values (..., ny factor, nx factor) on the field's cells to the file's order."""
        if self.roll_x:
            values = np.roll(values, self.roll_x * factor, axis=-1)
        if self.flip_x:
            values = values[..., ::-1]
        return values[..., ::-1, :] if self.flip_y else values


@dataclass(frozen=True, eq=False)
class Field:
    """Lazy fields on one grid.

    Attributes:
        data: dataset of dask arrays (time, y, x), or (member, time, y, x), float32.
        grid: the cells.
        variables: what the data variables are, in order.
        calendar: CF name of the calendar.
        notes: what was done on reading, in words.
        source: where it came from, in words.
        statics: variables without time (y, x), e.g. orography.
        layout: what the file calls its axes.
        attributes: global attributes of the file.
    """

    data: xr.Dataset
    grid: Grid
    variables: tuple[Variable, ...]
    calendar: str = "standard"
    notes: tuple[str, ...] = ()
    source: str = "dataset"
    statics: xr.Dataset = field(default_factory=xr.Dataset)
    layout: Layout = field(default_factory=Layout)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.data.sizes["time"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, V, H, W)."""
        return len(self), len(self.variables), *self.grid.shape

    @property
    def members(self) -> int | None:
        """Number of members of an ensemble; None where there is no such axis."""
        return self.data.sizes.get("member")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables, in order."""
        return tuple(variable.name for variable in self.variables)

    @property
    def times(self) -> np.ndarray:
        """(T,) datetime64 or cftime objects."""
        return self.data["time"].values

    @property
    def extras(self) -> dict[str, xr.DataArray]:
        """Scalar and per-time coordinates of the file that its output keeps."""
        own = {"time", "y", "x", "member"}
        return {str(name): c for name, c in self.data.coords.items() if name not in own}

    def variable(self, name: str) -> Variable:
        """The variable of that name.

        Raises:
            AleatorError: there is none.
        """
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise AleatorError(f"{self.source}: no variable {name}; it has {', '.join(self.names)}")

    def static(self, name: str) -> np.ndarray:
        """A variable without time, (H, W) float32.

        Raises:
            AleatorError: there is none.
        """
        if name not in self.statics:
            listed = ", ".join(map(str, self.statics)) or "none"
            raise AleatorError(f"{self.source}: no static variable {name}; it has {listed}")
        return self.statics[name].values.astype(np.float32)

    def read(
        self, start: int = 0, stop: int | None = None, *, allow_missing: bool = False
    ) -> np.ndarray:
        """Load some time steps, and only those.

        Args:
            start: first time step.
            stop: one past the last; None for all.
            allow_missing: leave missing cells as NaN instead of refusing them.

        Returns:
            (T, V, H, W) float32; (M, T, V, H, W) of an ensemble.

        Raises:
            AleatorError: missing or undeclared fill values; a damaged file.
        """
        import dask

        window = self.data.isel(time=slice(start, stop))
        try:
            arrays = dask.compute(
                *(window[name].data for name in self.names), scheduler="synchronous"
            )
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            raise AleatorError(
                f"{self.source}: cannot be read at {window['time'].values[:1]}...: the file is "
                f"damaged or was cut short ({_first_line(error)})"
            ) from error
        values = np.stack(arrays, axis=-3)
        self.refuse_bad(values, start, allow_missing=allow_missing)
        return values

    def refuse_bad(
        self, values: np.ndarray, start: int = 0, *, allow_missing: bool = False
    ) -> None:
        """Refuse values that are missing, or are undeclared fill values.

        Args:
            values: (..., T, V, H, W), of this field.
            start: their first time step.
            allow_missing: NaN is fine.

        Raises:
            AleatorError: there are such values; says which variable and when.
        """
        for name, index in zip(self.names, range(values.shape[-3]), strict=True):
            channel = values[..., index, :, :]
            missing = np.isnan(channel)
            count = int(missing.sum())
            if count and not allow_missing:
                steps = missing.any((-2, -1)).reshape(-1, missing.shape[-3]).any(0)
                first = self.times[start + int(steps.argmax())]
                raise AleatorError(
                    f"{self.source}: {name} is missing (NaN) at {count} of {missing.size} cells, "
                    f"first at {show_time(first)}; fill them or choose a region or --time-range "
                    "without gaps"
                )
            if np.nanmax(np.abs(channel), initial=0.0) > FILL:
                raise AleatorError(
                    f"{self.source}: {name} has values beyond {FILL:g}: declare the fill value "
                    f"(_FillValue or missing_value) of the variable"
                )

    def time_keys(self) -> np.ndarray:
        """(T,) int64 seconds since 1970-01-01 in the calendar of the field."""
        return time_keys(self.times)

    def year_fraction(self) -> np.ndarray:
        """(T,) how much of the year has passed, in [0, 1), in the calendar of the field."""
        return year_fraction(self.times)

    def hour(self) -> np.ndarray:
        """(T,) hour of the day, UTC, in [0, 24)."""
        return (self.time_keys() % 86400) / 3600.0

    def isel(
        self,
        time: slice = slice(None),
        y: slice = slice(None),
        x: slice = slice(None),
    ) -> Field:
        """Some time steps, rows and columns."""
        space = {"y": y, "x": x}
        return dataclasses.replace(
            self,
            data=self.data.isel({"time": time, **space}),
            statics=self.statics.isel(space, missing_dims="ignore"),
            grid=self.grid.isel(y, x),
        )

    def crop(self, factor: int) -> Field:
        """The first rows and columns, as many as whole blocks of `factor` take."""
        ny, nx = self.grid.crop(factor).shape
        return self.isel(y=slice(ny), x=slice(nx))

    def coarsen(self, factor: int, *, skipna: bool = False) -> Field:
        """Lazy area-weighted block means; arguments as for `grid.coarsen`."""
        weights = self.grid.area_weights()
        grid = self.grid.coarsen(factor)
        mean = {"weights": weights, "skipna": skipna}

        def blocks(array: xr.DataArray) -> xr.DataArray:
            whole = array.chunk(y=-1, x=-1).data
            sizes = (*whole.chunks[:-2], (grid.shape[0],), (grid.shape[1],))
            means = whole.map_blocks(coarsen, factor, chunks=sizes, dtype=array.dtype, **mean)
            return xr.DataArray(means, dims=array.dims, attrs=array.attrs)

        data = self.data.drop_vars(["y", "x"])
        coarse = xr.Dataset({name: blocks(data[name]) for name in self.names}, data.coords)
        statics = xr.Dataset({n: blocks(v.chunk()).compute() for n, v in self.statics.items()})
        return dataclasses.replace(
            self,
            data=coarse.assign_coords(y=grid.y, x=grid.x),
            statics=statics,
            grid=grid,
            notes=(*self.notes, f"averaged over blocks of {factor} x {factor} cells"),
        )

    def onto(self, grid: Grid, rows: np.ndarray, columns: np.ndarray) -> Field:
        """The cells (rows, columns) of this field, which are those of `grid`.

        Args:
            grid: the grid wanted.
            rows: (ny,) row of this field for each row of the grid.
            columns: (nx,) column of this field for each column of the grid.

        Returns:
            the field on `grid`, with the file's names, and notes of what was turned.
        """
        flip_y, flip_x = (len(i) > 1 and bool(np.median(np.diff(i)) < 0) for i in (rows, columns))
        roll = 0
        if self.grid.is_global and len(columns) == self.grid.shape[1]:
            roll = int(len(columns) - 1 - columns[0] if flip_x else columns[0])
        found = self.grid.x[columns]
        shift = 360.0 * np.round((found - grid.x) / 360.0)
        if grid.kind != "latlon":
            shift = np.zeros(len(columns))
        elif np.ptp(shift) and not roll:  # the window crosses the seam of the file's longitudes
            shift[:] = -360.0 * np.round(grid.x.mean() / 360.0)
        index = {"y": _as_slice(rows), "x": _as_slice(columns)}
        told = [
            (flip_y, "latitudes turned to the model's order"),
            (flip_x, "longitudes turned to the model's order"),
            (bool(shift.any() or roll), "longitudes moved to the model's convention"),
            ((len(rows), len(columns)) != self.grid.shape, "cut to the model's domain"),
        ]
        data = self.data.isel(index).assign_coords(y=grid.y, x=grid.x)
        layout = dataclasses.replace(
            self.layout,
            flip_y=self.layout.flip_y ^ flip_y,
            flip_x=self.layout.flip_x ^ flip_x,
            roll_x=roll or self.layout.roll_x,
            shift_x=tuple(shift.tolist()),
        )
        return dataclasses.replace(
            self,
            data=data,
            statics=self.statics.isel(index, missing_dims="ignore"),
            grid=dataclasses.replace(
                grid,
                y_name=self.grid.y_name,
                x_name=self.grid.x_name,
                grid_mapping=self.grid.grid_mapping or grid.grid_mapping,
            ),
            layout=layout,
            notes=(*self.notes, *(text for happened, text in told if happened)),
        )

    def fingerprint(self) -> str:
        """16 hexadecimal digits of names, units, cells, times and sampled values."""
        digest = hashlib.sha256()
        digest.update(repr([(v.name, v.units) for v in self.variables]).encode())
        digest.update(repr((self.calendar, self.shape, self.members)).encode())
        for values in (self.grid.y, self.grid.x, self.time_keys()):
            digest.update(np.ascontiguousarray(values).tobytes())
        for step in sorted({0, len(self) // 2, len(self) - 1}):
            digest.update(self.read(step, step + 1, allow_missing=True).tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """What the field holds, in words, one fact a line."""
        listed = ", ".join(f"{v.name} ({v.long_name}, {v.units})" for v in self.variables)
        first, last = (show_time(self.times[i]) for i in (0, -1))
        lines = [
            self.source,
            f"  variables: {listed}",
            f"  times: {len(self)}, {first} to {last}, calendar {self.calendar}",
            f"  grid: {self.grid.describe()}",
        ]
        if self.members:
            lines.append(f"  members: {self.members}")
        if self.statics:
            lines.append(f"  static: {', '.join(map(str, self.statics))}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _as_slice(index: np.ndarray) -> slice | np.ndarray:
    steps = np.diff(index)
    if len(index) == 1 or (steps == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    if (steps == -1).all():
        return slice(int(index[0]), int(index[-1]) - 1 if index[-1] else None, -1)
    return index


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
