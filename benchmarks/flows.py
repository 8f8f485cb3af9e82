r"""Flows beside zuko, nflows and normflows: what a step, a density and a draw cost.

Batches of 1024 in 6, 16 and 64 dimensions, 5 spline layers of 8 bins over perceptrons of
64 x 64, single precision, one thread; times are of the process, so that other work on the machine
does not count, and all cases take turns. Ratios are over the bare networks: the five masked
perceptrons of the autoregressive flows (or those of the couplings) evaluated or trained by
themselves, which no method can avoid.

    python benchmarks/flows.py [--repeats 9] [--dims 6,16,64] [--discrete] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from flows_peers import (
    BINS,
    HIDDEN,
    LAYERS,
    nflows_flow,
    normflows_flow,
    peers,
    zuko_flow,
)
from torch import Tensor, nn
from torch.nn import functional as F

from core.flows import CNF, NSF
from core.report import (
    Table,
    hardware,
    provenance,
    read_results,
    report,
    versions,
    write_results,
    write_text,
)
from core.transforms import compile_splines

BATCH = 1024
DIMS = (6, 16, 64)
CNF_BATCH = 256
INNER = 3
NOTES = (
    "nflows and normflows are couplings, whose networks are smaller; their ratio is over the bare "
    "networks of couplings of the same hidden layers. A ratio below 1 happens where batch-last "
    "layers are faster than those of the bare networks, which are torch.nn.functional.linear.",
    "'aleator, fused' is compile_splines(flow): torch.compile of the splines' kernels alone. The "
    "sampling column of nflows and normflows is of couplings, which invert in one pass.",
    "Continuous flows: the same network (zuko's), weights after 30 steps of training, one "
    "Hutchinson probe, rtol 1e-5 and atol 1e-6 for both, and ours at its default of 1e-5 too; the "
    "error is the largest of ln p, exact trace, over the batch, against 1e-9 in double precision.",
)


@dataclass
class Case:
    """Something to time; seconds of this process.

    At its turn a case runs once untimed, so that caches hold what is its own, as in a loop, and
    then `INNER` times.
    """

    key: tuple[int, str, str]
    run: Callable[[], Any]
    repeats: int
    seconds: list[float] = field(default_factory=list)

    def time_once(self) -> None:
        if len(self.seconds) >= self.repeats:
            return
        if self.repeats > 1:
            self.run()
        for _ in range(INNER if self.repeats > 1 else 1):
            start = time.process_time()
            self.run()
            self.seconds.append(time.process_time() - start)

    @property
    def milliseconds(self) -> float:
        return 1e3 * sorted(self.seconds)[len(self.seconds) // 2]


class Bare(nn.Module):
    """Networks alone: masked perceptrons of all features, or perceptrons of half of them."""

    def __init__(self, dims: int, autoregressive: bool) -> None:
        super().__init__()
        size = 3 * BINS - 1
        kept = dims if autoregressive else dims // 2
        outputs = size * (dims if autoregressive else dims - dims // 2)
        self.nets = nn.ModuleList(
            nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((kept, HIDDEN, HIDDEN, outputs)))
            for _ in range(LAYERS)
        )
        self.kept, self.autoregressive = kept, autoregressive
        self.masks = [[torch.ones_like(layer.weight) for layer in net] for net in self.nets]

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for net, masks in zip(self.nets, self.masks, strict=True):
            h = x[:, : self.kept]
            for i, (layer, mask) in enumerate(zip(net, masks, strict=True)):
                weight = layer.weight * mask if self.autoregressive else layer.weight
                h = F.linear(h if i == 0 else F.relu(h), weight, layer.bias)
            found.append(h)
        return found


def verbs(
    dims: int, name: str, model: nn.Module, log_prob: Any, sample: Any, repeats: int, slow: int
) -> Iterator[Case]:
    """The three cases of a flow."""
    x = torch.randn(BATCH, dims, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        (-log_prob(x).mean()).backward()
        optimizer.step()

    @torch.no_grad()
    def density() -> None:
        log_prob(x)

    @torch.no_grad()
    def draw() -> None:
        sample(BATCH)

    yield Case((dims, name, "step"), step, repeats)
    yield Case((dims, name, "log_prob"), density, repeats)
    yield Case((dims, name, "sample"), draw, slow)


def bare(dims: int, autoregressive: bool, repeats: int) -> Iterator[Case]:
    """Forward and training step of the networks, from a gradient that costs nothing."""
    net = Bare(dims, autoregressive)
    x = torch.randn(BATCH, dims)
    with torch.no_grad():
        gradients = [torch.randn_like(h) for h in net(x)]
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(net(x), gradients)
        optimizer.step()

    @torch.no_grad()
    def forward() -> None:
        net(x)

    name = "bare networks" if autoregressive else "bare networks of couplings"
    yield Case((dims, name, "step"), step, repeats)
    yield Case((dims, name, "log_prob"), forward, repeats)


def ours(dims: int, compiled: bool, autoregressive: bool) -> tuple[NSF, Any, Any]:
    flow = NSF((dims,), layers=LAYERS, hidden=(HIDDEN, HIDDEN), bins=BINS,
               autoregressive=autoregressive)  # fmt: skip
    compile_splines(flow, compiled)
    return flow, lambda x: flow.log_prob(x).value, lambda n: flow.sample((n,))


def discrete(repeats: int, dims: tuple[int, ...]) -> dict[tuple[int, str, str], float]:
    """Milliseconds of all cases, which take turns."""
    found = {}
    for d in dims:
        torch.manual_seed(0)
        cases = [*bare(d, True, repeats), *bare(d, False, repeats)]
        for name, made, slow in (
            ("aleator", ours(d, False, True), repeats),
            ("aleator, fused", ours(d, True, True), repeats),
            ("zuko", zuko_flow(d), 1),  # tens of seconds in 64 dimensions
            ("aleator coupling, fused", ours(d, True, False), repeats),
            ("nflows coupling", nflows_flow(d), repeats),
            ("normflows coupling", normflows_flow(d), repeats),
        ):
            cases += verbs(d, name, *made, repeats, slow)
        for case in cases:
            if case.repeats > 1:
                case.run()  # compiles, allocates
        for _ in range(repeats):
            for case in cases:
                case.time_once()
        found |= {case.key: case.milliseconds for case in cases}
    return found


def discrete_rows(times: dict[tuple[int, str, str], float]) -> list[dict[str, Any]]:
    rows = []
    for d, name in dict.fromkeys((d, name) for d, name, _ in times):
        row: dict[str, Any] = {"dims": d, "flow": name}
        base = "bare networks of couplings" if "coupling" in name else "bare networks"
        for verb in ("step", "log_prob", "sample"):
            if (d, name, verb) in times:
                row[verb] = times[d, name, verb]
            if verb != "sample" and not name.startswith("bare"):
                row[f"{verb} ratio"] = times[d, name, verb] / times[d, base, verb]
        if "sample" in row:
            row["sample ratio"] = times[d, "zuko", "sample"] / row["sample"]
        rows.append(row)
    return rows


class ZukoNet(nn.Module):
    """The network of a zuko CNF as ours takes it."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, t: Tensor, context: None = None) -> Tensor:
        angle = self.transform.freqs * t[:, None]
        parts = torch.cat([angle.cos(), angle.sin()], 1)
        return self.transform.ode(torch.cat([parts, x], 1))


def continuous(repeats: int, dims: tuple[int, ...]) -> list[dict[str, Any]]:
    """A training step of a continuous flow, and how exact its density is."""
    import zuko

    rows = []
    for d in dims:
        torch.manual_seed(0)
        x = torch.randn(CNF_BATCH, d) * torch.linspace(0.3, 2, d) + 0.5
        flow = zuko.flows.CNF(d, hidden_features=(HIDDEN, HIDDEN), exact=False)
        optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            (-flow().log_prob(x).mean()).backward()
            optimizer.step()
        net = ZukoNet(flow.transform)
        made: dict[str, tuple[nn.Module, Any, Any]] = {}
        for name, tolerance in (
            ("aleator, tolerance of zuko", {"rtol": 1e-5, "atol": 1e-6}),
            ("aleator, default", {"rtol": 1e-5, "atol": 1e-5}),
        ):
            for gradient in ("direct", "checkpoint", "adjoint"):
                ours = CNF(net, (d,), trace="hutchinson", gradient=gradient, solver=tolerance)
                exact = CNF(net, (d,), trace="exact", solver=tolerance)
                made[f"{name}, {gradient}"] = (
                    ours,
                    lambda m=ours, x=x: m.loss(x).mean(),
                    lambda m=exact, x=x: m.log_prob(x).value,
                )
        made["zuko"] = (
            flow,
            lambda f=flow, x=x: -f().log_prob(x).mean(),
            lambda f=flow.transform, d=d, x=x: exact_zuko(f, d, x, torch.float32),
        )
        with torch.no_grad():
            truth = exact_zuko(flow.transform, d, x.double(), torch.float64, 1e-9)
        cases = {}
        for name, (model, loss, _) in made.items():

            def step(model: nn.Module = model, loss: Any = loss) -> None:
                for parameter in model.parameters():
                    parameter.grad = None
                loss().backward()

            cases[name] = Case((d, name, "step"), step, repeats)
        for _ in range(repeats):
            for case in cases.values():
                case.time_once()
        for name, (_, _, density) in made.items():
            with torch.no_grad():
                error = (density() - truth).abs().max().item()
            ratio = cases["zuko"].milliseconds / cases[name].milliseconds
            rows.append({"dims": d, "flow": name, "step": cases[name].milliseconds,
                         "ratio": ratio, "error": error})  # fmt: skip
    return rows


def exact_zuko(
    transform: Any, d: int, x: Tensor, dtype: torch.dtype, tolerance: float | None = None
) -> Tensor:
    """Ln p by zuko with the exact trace."""
    import zuko

    options = {} if tolerance is None else {"atol": tolerance, "rtol": tolerance}
    flow = zuko.flows.CNF(d, hidden_features=(HIDDEN, HIDDEN), exact=True, **options)
    flow.transform.load_state_dict(transform.state_dict())
    return flow.to(dtype)().log_prob(x)


def kept(path: Path, again: tuple[tuple[int, ...], tuple[int, ...]]) -> list[list[dict[str, Any]]]:
    """Rows of both tables for dimensions that are not measured again."""
    if not path.exists():
        return [[], []]
    return [
        [dict(row) for row in table.rows if row["dims"] not in dims]
        for table, dims in zip(read_results(path)[1], again, strict=True)
    ]


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By dimension."""
    return sorted(rows, key=lambda row: row["dims"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dims", default=",".join(map(str, DIMS)), help="others are kept")
    parser.add_argument("--discrete", action="store_true", help="no continuous flows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    dims = tuple(map(int, options.dims.split(",")))
    smooth = tuple(d for d in dims if d != 16 and not options.discrete)
    before = kept(options.out / "flows.json", (dims, smooth))
    times = discrete(options.repeats, dims)
    found = [
        Table(
            in_order(before[0] + discrete_rows(times)),
            {
                "dims": "D",
                "flow": "flow",
                "step": "step (ms)",
                "step ratio": "over bare",
                "log_prob": "log_prob (ms)",
                "log_prob ratio": "over bare ",
                "sample": "sample (ms)",
                "sample ratio": "faster than zuko",
            },
            dict.fromkeys(("step", "log_prob", "sample"), ".1f")
            | {"step ratio": ".2f", "log_prob ratio": ".2f", "sample ratio": ".1f"},
            title=f"Spline flows: {BATCH} examples, {LAYERS} layers, one thread, medians",
        ),
        Table(
            in_order(before[1] + continuous(max(3, options.repeats // 2), smooth)),
            {
                "dims": "D",
                "flow": "flow",
                "step": "step (ms)",
                "ratio": "faster than zuko",
                "error": "error of ln p (nats)",
            },
            {"step": ".0f", "ratio": ".2f", "error": ".1e"},
            title=f"Continuous flows: {CNF_BATCH} examples, gradient of the likelihood",
        ),
    ]
    made_by = provenance()
    made_by["hardware"] = f"{hardware()}, 1 thread used, other work on the machine"
    made_by["versions"] = versions() | peers()
    results = write_results(options.out / "flows.json", found, made_by=made_by, notes=NOTES)
    page = report(results, "Flows: speed")
    page += "".join(f"\nNote: {line}\n" for line in NOTES)
    write_text(options.out / "flows.md", page)
    for table in found:
        table.print()
    print(*NOTES, sep="\n")


if __name__ == "__main__":
    main()
