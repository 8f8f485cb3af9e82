"""Large domains: a model trained on patches, drawn whole and by tiles of several sizes.

    python benchmarks/climate_tiles.py DATA [--models FOLDER] [--members 4] [--times 6]
                                       [--out FOLDER]

DATA/radar holds `knmi_pr_5min_1km_20100826.nc` (KNMI radar, rain every five minutes on 1 km; from
pysteps-data); the model, 8 km to 1 km, is trained on patches of 64 cells by recipes/radar.json
where it is not in FOLDER yet. The same noise is denoised in every row. `seam` is the mean square
step of the residual across borders of tiles over that elsewhere: 1 if nothing shows. `apart` is
the root mean square difference from the whole, in units of the ensemble's spread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.downscale import ensemble
from apps.climate_downscaling.evaluation import scores
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.train import train
from core.path_model import PathModel
from core.report import Row, Table, report, write_results, write_text
from core.tiling import Tiles

HERE = Path(__file__).parent
SOURCE = "radar/knmi_pr_5min_1km_20100826.nc"
WINDOW = {"y": slice(300, 588), "x": slice(250, 538)}
"""Of the radar's cells, 288 x 288 km."""
TILES = {"whole": None, "64": Tiles(64, 32), "64, narrow overlap": Tiles(64, 16)} | {
    "96": Tiles(96, 48)
}


def main(arguments: list[str] | None = None) -> None:
    """Train if need be, draw, compare, write climate_tiles.md and climate_tiles.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--times", type=int, default=6, help="of the test part")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    fine = options.models / "radar.nc"
    if not fine.exists():
        with xr.open_dataset(options.data / SOURCE) as whole:
            whole.isel(WINDOW).astype("float32").to_netcdf(fine)
    config = read_config(HERE / "recipes" / "radar.json", {})
    folder = options.models / "radar"
    if not (folder / "model.json").exists():
        train(str(fine), folder, config, resume=True, say=_say)
    model = DownscalingModel.load(folder)
    prepared = open_prepared(str(fine), config)
    start = prepared.test.start
    stop = min(prepared.test.stop, start + options.times)
    truth = prepared.arrays(slice(start, stop))[0][:, 0].where(model.valid, torch.nan)
    rows: list[Row] = []
    whole = None
    residual = model.trained
    assert isinstance(residual, PathModel)
    for name, tiles in TILES.items():
        residual.tiles = tiles
        started = time.perf_counter()
        drawn = ensemble(
            model, prepared.coarse, start, stop, members=options.members, conserve=False
        )[:, :, 0]
        seconds = time.perf_counter() - started
        whole = drawn if whole is None else whole
        found = scores(torch.from_numpy(drawn), truth, amount=True)
        spread = np.nanmean(whole.var(0)) ** 0.5
        apart = np.sqrt(np.nanmean((drawn - whole) ** 2)) / spread
        columns = borders(tiles, drawn.shape[-1])
        rows.append(
            {"tiles": name, **found, "apart": apart, "seam": seam(drawn, whole, columns)}
            | {"seconds": seconds / drawn[:, :, 0, 0].size}
        )
        _say(f"{name}: {rows[-1]}")
    columns = {
        "tiles": "tiles",
        "crps": "CRPS",
        "spread_skill": "spread/skill",
        "lsd": "LSD (dB)",
        "wet_days": "wet",
        "apart": "apart",
        "seam": "seam",
        "seconds": "s a field",
    }
    formats = {"crps": ".4f", "spread_skill": ".2f", "lsd": ".2f", "wet_days": "+.3f"}
    formats |= {"apart": ".3f", "seam": ".3f", "seconds": ".2f"}
    title = f"KNMI radar, 288 x 288 km, 8 to 1 km, {stop - start} times, {options.members} members"
    table = Table(rows, columns, formats, title=title)
    results = write_results(options.out / "climate_tiles.json", [table])
    write_text(options.out / "climate_tiles.md", report(results, "Downscaling in tiles"))
    table.print()


def borders(tiles: Tiles | None, width: int) -> list[int]:
    """Columns at which a tile begins, or the one before it ends."""
    if tiles is None:
        return []
    starts = tiles.starts(width)[1:]
    ends = [start + tiles.size for start in tiles.starts(width)[:-1]]
    return sorted({*starts, *ends})


def seam(drawn: np.ndarray, whole: np.ndarray, columns: list[int]) -> float:
    """Mean square step across the columns over that elsewhere, relative to the whole's own."""
    if not columns:
        return 1.0
    ratios = []
    for fields in (drawn, whole):
        steps = np.nanmean(np.diff(fields, axis=-1) ** 2, axis=(0, 1, 2))
        here = np.zeros(len(steps), bool)
        here[[column - 1 for column in columns]] = True
        ratios.append(np.nanmean(steps[here]) / np.nanmean(steps[~here]))
    return float(ratios[0] / ratios[1])


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
