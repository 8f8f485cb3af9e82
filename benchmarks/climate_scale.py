"""Global daily fields, downscaled out of core: memory, throughput, and what a kill -9 leaves.

    python benchmarks/climate_scale.py [--degrees 1] [--days 30,60] [--train-days 24,48]
                                       [--members 1] [--workers 2] [--work FOLDER] [--out FOLDER]
                                       [--parts training,downscaling,killed,shares,predictors]

Synthetic temperature (waves that drift and decay, a fixed relief, noise with a power law) is
written as Zarr, day by day. A small model is trained from the fine fields (a quarter of a degree
for one of 1 degree) with `memory=0`, that is from disk; another series of coarse fields is
downscaled by the command line with Dask workers, in two lengths; one of the runs is killed and
started again; `predictors` trains on block means in a file of their own, from disk and in memory.
Memory is what processes hold for themselves (anonymous pages), summed over all of a
run, at its peak. How good the downscaling is, is no question here. Tables that the folder of
results holds already stay there, unless they are made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import xarray as xr
from partial import renewed

from apps.climate_downscaling.train import on_domain
from core.registry import build
from core.report import Row, Table, report, write_results, write_text

HERE = Path(__file__).parent
FACTOR = 4
START = np.datetime64("2001-01-01", "ns")
SETTINGS = (
    "split.test_fraction=0",
    "split.validation_fraction=0.1",
    "split.gap=1",
    "mean.lengths=[0.5]",
    "mean.strengths=[1.0]",
    "mean.blocks=2",
    "mean.gap=1",
    "residual.context=coarse",
    "residual.positions=0",
    "residual.crop=96",
    'residual.model={"net": {"channels": 8, "multipliers": [1, 2]}}',
    'residual.sampler={"name": "2m", "steps": 4}',
    "fit.steps=20",
    "fit.batch_size=4",
    "fit.validate_every=0",
    "memory=0",
)
NETWORKS: dict[str, dict[str, Any] | None] = {
    "8 channels, 2 levels": None,
    "32 channels, 3 levels": {"channels": 32, "multipliers": [1, 2, 2]},
}
"""The network that all else here uses, and one of the size that recipes have."""
PARTS = ("training", "downscaling", "killed", "shares", "predictors")
"""Functions that make a table each."""


def main(arguments: list[str] | None = None) -> None:
    """Make the data, run everything, write climate_scale.md and climate_scale.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--degrees", type=float, default=1.0, help="of the coarse fields")
    parser.add_argument("--days", default="30,60", help="lengths of the series to downscale")
    parser.add_argument("--train-days", default="24,48", help="lengths of the training series")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=2, help="days a task")
    parser.add_argument("--work", type=Path, default=Path("scale"), help="for data and outputs")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default: all")
    options = parser.parse_args(arguments)
    wanted = options.parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"{min(unknown)}: unknown; known are {', '.join(PARTS)}")
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.out / "climate_scale.json"
    tables, made_by = renewed(path, [globals()[part](options) for part in PARTS if part in wanted])
    results = write_results(path, tables, made_by=made_by)
    write_text(options.out / "climate_scale.md", report(results, "Downscaling at scale"))
    for found in tables:
        found.print()


def training(options: argparse.Namespace) -> Table:
    """Train from disk on series of several lengths; the last model is the one that is used."""
    rows = []
    for days in numbers(options.train_days):
        data, model = options.work / f"fine_{days}.zarr", options.work / "model"
        write(data, days, options.degrees / FACTOR, seed=0)
        shutil.rmtree(model, ignore_errors=True)
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        command = ["train", str(data), "--variables", "tas", "--factor", str(FACTOR), *settings]
        wall, peak = run([*command, "-o", str(model), "--device", "cpu"])
        size = days * cells(options.degrees / FACTOR) * 4 / 2**20
        rows.append({"days": days, "field": size, "all": 4 * size, "peak": peak, "wall": wall})
        _say(f"trained on {days} days: {wall:.0f} s, {peak:.0f} MiB")
    columns = {
        "days": "days",
        "field": "data (MiB)",
        "all": "on disk in training (MiB)",
        "peak": "memory at its peak (MiB)",
        "wall": "wall (s)",
    }
    formats = dict.fromkeys(("field", "all", "peak", "wall"), ".0f")
    title = f"{scale(options)}: training from disk, global"
    return Table(rows, columns, formats, {}, title)


def predictors(options: argparse.Namespace, coarser: int = 20) -> Table:
    """Train on predictors of their own, with fields on disk, then with all in memory."""
    rows = []
    for days in numbers(options.train_days):
        data, drivers = (options.work / f"{name}_{days}.zarr" for name in ("fine", "drivers"))
        write(data, days, options.degrees / FACTOR, seed=0)
        write(drivers, days, options.degrees / FACTOR, seed=0, average=coarser)
        row: Row = {"days": days, "field": days * cells(options.degrees / FACTOR) * 4 / 2**20}
        for name, memory in (("disk", 0), ("memory", 64)):
            chosen = (*SETTINGS, "predictors.lags=[0]", "predictors.strengths=[100]")
            words = [w for s in (*chosen, f"memory={memory}") for w in ("--set", s)]
            command = ["train", str(data), "--variables", "tas", "--predictors", str(drivers)]
            model = ["-o", str(options.work / "prognosis"), "--overwrite", "--device", "cpu"]
            row[f"{name}_wall"], row[name] = run([*command, *words, *model])
            _say(f"{days} days, {name}: {row[f'{name}_wall']:.0f} s, {row[name]:.0f} MiB")
        rows.append(row)
    columns = {
        "days": "days",
        "field": "data (MiB)",
        "disk": "memory, from disk (MiB)",
        "memory": "memory, in memory (MiB)",
        "disk_wall": "wall, from disk (s)",
        "memory_wall": "wall, in memory (s)",
    }
    degrees = options.degrees / FACTOR
    title = f"{coarser * degrees:g} to {degrees:g} degrees: training with --predictors, global"
    return Table(rows, columns, dict.fromkeys([*columns][1:], ".0f"), {}, title)


def downscaling(options: argparse.Namespace) -> Table:
    """Downscale series of several lengths, and what a decade would take at that speed."""
    lengths = numbers(options.days)
    rows: list[Row] = []
    walls: list[float] = []
    for days in lengths:
        source, output = options.work / f"coarse_{days}.zarr", options.work / f"out_{days}.zarr"
        write(source, days, options.degrees / FACTOR, seed=1, average=FACTOR)
        shutil.rmtree(output, ignore_errors=True)
        wall, peak = run(_downscale(options, source, output))
        points = days * options.members * cells(options.degrees / FACTOR)
        rows.append({"days": days, "written": points * 4 / 2**20, "peak": peak, "wall": wall})
        if len(rows) > 1:  # what more days cost, without the start of the workers
            further = (days - lengths[len(rows) - 2]) / (wall - walls[-1])
            rows[-1]["points"] = further * points / days
            rows[-1]["decade"] = 3652 / further / 3600
        walls.append(wall)
        _say(f"downscaled {days} days: {wall:.0f} s, {peak:.0f} MiB")
    columns = {
        "days": "days",
        "written": "values (MiB)",
        "peak": "memory at its peak (MiB)",
        "wall": "wall (s)",
        "points": "further grid points a second",
        "decade": "a decade at that speed (h)",
    }
    formats = dict.fromkeys(("written", "peak", "wall", "points"), ".0f") | {"decade": ".1f"}
    title = (
        f"{scale(options)}: downscaling, members: {options.members}, "
        f"Dask workers: {options.workers}"
    )
    return Table(rows, columns, formats, {}, title)


def killed(options: argparse.Namespace) -> Table:
    """Kill a run with all its workers half way, start it again, compare with a whole one."""
    days = min(numbers(options.days))
    source, output = options.work / f"coarse_{days}.zarr", options.work / "killed.zarr"
    whole = options.work / f"out_{days}.zarr"
    partial = output.with_name(output.name + ".partial")
    for path in (output, partial):
        shutil.rmtree(path, ignore_errors=True)

    def half_done() -> bool:
        return len(list((partial / "done").glob("*"))) >= days // options.chunk // 2

    run(_downscale(options, source, output), stop=half_done)
    left = len(list((partial / "done").glob("*"))) * options.chunk
    wall, _ = run(_downscale(options, source, output))
    with xr.open_zarr(output) as ours, xr.open_zarr(whole) as theirs:
        apart = max(
            float(np.abs(ours["tas"][:, t].values - theirs["tas"][:, t].values).max())
            for t in range(days)
        )
    row = {"days": days, "done": left, "wall": wall, "apart": apart}
    columns = {
        "days": "days",
        "done": "days done when killed",
        "wall": "wall of the rest (s)",
        "apart": "largest difference (K)",
    }
    title = f"{scale(options)}: kill -9 of command and workers, then the same command again"
    return Table([row], columns, {"wall": ".0f", "apart": ".1e"}, {}, title)


def shares(options: argparse.Namespace, days: int = 2) -> Table:
    """Where the time of a day goes, in one process: the network, or all else.

    Both are times of the processor, which other work on the machine hardly changes. The network's
    is that of the evaluations of a day, noted and made again by themselves.
    """
    from apps.climate_downscaling.downscale import Downscaler
    from apps.climate_downscaling.job import Job

    source = sorted(options.work.glob("coarse_*.zarr"))[0]
    rows = []
    for title, net in NETWORKS.items():
        downscaler = Downscaler.load(options.work / "model", "cpu")
        if net:  # how long it takes does not depend on the weights
            model = downscaler.model
            words = {**model.config.residual.model, "net": net}
            residual = dataclasses.replace(model.config.residual, model=words)
            model.config = dataclasses.replace(model.config, residual=residual)
            model.residual = on_domain(model, build(model.residual_config(residual.crop)))
        denoiser = downscaler.model.trained.denoiser
        job = Job(options.work / "model", [str(source)], None, "cpu", members=options.members)
        job.use(downscaler, downscaler.field(source))
        calls: list[tuple[Any, ...]] = []
        noted = denoiser.register_forward_pre_hook(lambda _, given, to=calls: to.append(given))
        job(0, 1)
        noted.remove()
        network = math.inf
        for _ in range(2):
            started = time.process_time()
            with torch.no_grad():
                for given in calls:
                    denoiser(*given)
            network = min(network, time.process_time() - started)
        total = math.inf
        for first in range(days):
            started = time.process_time()
            job(first, first + 1)
            total = min(total, time.process_time() - started)
        parameters = sum(p.numel() for p in denoiser.parameters())
        row = {"net": title, "parameters": parameters, "calls": len(calls), "total": total}
        rows.append(row | {"network": network, "ratio": total / network})
        _say(f"{title}: {total:.2f} s a day, {network:.2f} s of these in the network")
    columns = {
        "net": "network",
        "parameters": "parameters",
        "calls": "tiles evaluated a day",
        "total": "seconds a day",
        "network": "of these in the network",
        "ratio": "all / network",
    }
    formats = {"total": ".2f", "network": ".2f", "ratio": ".3f"}
    title = f"{scale(options)}: where the processor's time goes, one thread, nothing written"
    return Table(rows, columns, formats, {}, title)


def _downscale(options: argparse.Namespace, source: Path, output: Path) -> list[str]:
    return [
        *("downscale", str(source), "--model", str(options.work / "model"), "-o", str(output)),
        *("--members", str(options.members), "--workers", str(options.workers)),
        *("--chunk", str(options.chunk), "--no-figure", "--device", "cpu"),
    ]


def write(path: Path, days: int, degrees: float, seed: int, average: int = 1) -> None:
    """Write a synthetic series as Zarr, one day a chunk; its block means where told so."""
    if path.exists():
        return
    lat = np.arange(-90 + degrees / 2, 90, degrees)
    lon = np.arange(degrees / 2, 360, degrees)
    draft = path.with_name(path.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    area = np.cos(np.deg2rad(lat))
    for day, field in enumerate(fields(days, lat, lon, seed)):
        y, x = lat, lon
        if average > 1:
            weights = area.reshape(-1, average, 1, 1)
            blocks = field.reshape(len(lat) // average, average, len(lon) // average, average)
            field = (blocks * weights).mean((1, 3)) / weights.mean((1, 3))
            y, x = (axis.reshape(-1, average).mean(1) for axis in (lat, lon))
        dataset = xr.Dataset(
            {"tas": (("time", "lat", "lon"), field[None].astype(np.float32), {"units": "K"})},
            {
                "time": np.array([START + np.timedelta64(day, "D")]),
                "lat": ("lat", y, {"units": "degrees_north"}),
                "lon": ("lon", x, {"units": "degrees_east"}),
            },
        )
        if day:
            dataset.to_zarr(draft, append_dim="time", consolidated=False)
        else:
            encoding = {"time": {"units": "days since 2000-01-01"}}
            dataset.to_zarr(draft, encoding=encoding, consolidated=False)
    os.replace(draft, path)


def fields(days: int, lat: np.ndarray, lon: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Daily fields (H, W) one by one: the same relief for every seed, other weather."""
    shape = (len(lat), len(lon))
    ky, kx = np.meshgrid(
        np.fft.fftfreq(shape[0], 1 / shape[0]),
        np.fft.rfftfreq(shape[1], 1 / shape[1]),
        indexing="ij",
    )
    power = (4 + np.hypot(ky, kx)) ** -1.8

    def noise(rng: np.random.Generator) -> np.ndarray:
        real, imaginary = rng.standard_normal((2, *power.shape))
        values = np.fft.irfft2(power * (real + 1j * imaginary), shape)
        return values / values.std()

    relief = noise(np.random.default_rng(99))
    zonal = 288 - 45 * np.sin(np.deg2rad(lat))[:, None] ** 2
    rng = np.random.default_rng(seed)
    weather = noise(rng)
    for _ in range(days):
        weather = 0.8 * np.roll(weather, shape[1] // 90, axis=1) + 0.6 * noise(rng)
        yield zonal - 3 * relief + (4 + relief) * weather


def numbers(given: str) -> list[int]:
    """Of a list with commas."""
    return [int(n) for n in given.split(",")]


def scale(options: argparse.Namespace) -> str:
    """From what to what, for titles."""
    return f"{options.degrees:g} to {options.degrees / FACTOR:g} degrees"


def cells(degrees: float) -> int:
    """Of a global grid."""
    return round(180 / degrees) * round(360 / degrees)


def run(arguments: Sequence[str], stop: Callable[[], bool] | None = None) -> tuple[float, float]:
    """The climate command in a process of its own: wall time (s) and peak of memory (MiB).

    Where `stop` comes true, the process and all its children are killed (SIGKILL).
    """
    command = [sys.executable, "-m", "pipelines.climate", *arguments]
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    last: list[bytes] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: last.extend(process.stderr or []), daemon=True)
    reader.start()
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        if stop is not None and stop():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return time.perf_counter() - started, peak
        time.sleep(0.3)
    reader.join(timeout=5)
    if process.returncode:
        raise SystemExit(b"".join(last[-5:]).decode())
    return time.perf_counter() - started, peak


def memory(pid: int) -> float:
    """MiB of anonymous memory of a process and its children."""
    total = 0.0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1]) / 1024
    except (psutil.Error, OSError):
        pass  # one of them has just ended
    return total


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
