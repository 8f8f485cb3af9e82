r"""Samplers beside diffusers and azula: cost of a step beyond the network, and accuracy.

1. Overhead: a batch of 1 x 3 x 32 x 32 and a network that returns its input; the time of whole
   sampling loops less that of the network calls, per evaluation. All cases take turns in one
   process on one thread, and medians are kept, so that a busy machine slows all alike.
2. Accuracy: `samplers_accuracy.py`.

    python benchmarks/samplers.py [--out FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from samplers_accuracy import (
    AZULA,
    DIFFUSERS,
    NOTES,
    VP,
    accuracy,
    diffusers_scheduler,
    load_azula,
    load_diffusers,
    other_data,
)
from torch import Tensor, nn

from core.denoiser import Posterior
from core.diffusion import Diffusion
from core.random import randn
from core.report import Table, hardware, provenance, report, versions, write_results, write_text
from core.solvers import make_sampler

BUDGETS = (8, 12, 16, 20, 32, 64)
SHAPE = (1, 3, 32, 32)
STEPS = 20
QUIET = 0.1
"""Share of the runs that the second figure of a step stays over: others share the machine."""


class Identity(nn.Module):
    """A network that costs next to nothing: returns its input, whatever else it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("there", torch.zeros(()))  # azula asks a network for its dtype

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        self.calls += 1
        return x


@dataclass
class Case:
    """One thing to time; `kind` is "all" (as a user runs it) or "alone" (the solver only)."""

    library: str
    sampler: str
    kind: str
    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None
    evaluations: int = 0
    seconds: list[float] = field(default_factory=list)

    def time_once(self) -> None:
        """Time a run that follows one of its own kind: the caches are warm, as in a long draw."""
        for _ in range(2):
            self.before()
            self.run()
        self.before()
        start = time.perf_counter()
        self.run()
        self.seconds.append(time.perf_counter() - start)

    def microseconds(self, share: float = 0.5) -> float:
        """Per evaluation: the median, or what a smaller share of the runs stays under."""
        ranked = sorted(self.seconds)
        return 1e6 * ranked[int(share * (len(ranked) - 1))] / self.evaluations


def our_cases(net: Identity, x: Tensor) -> Iterator[Case]:
    """Through a `Diffusion` with EDM preconditioning, and with a ready posterior."""
    model = Diffusion(net, SHAPE[1:], path="vp")
    generator = torch.Generator().manual_seed(0)
    for name in ("2m", "ddim", "euler", "heun", "unipc", "ddpm"):
        sampler = make_sampler(name, steps=STEPS)
        bound = model.bind(None)

        def ready(x_t: Tensor, t: float) -> Posterior:
            return Posterior(net(x_t), x_t, VP.at(t))

        for kind, denoise in (("all", bound), ("alone", ready)):
            yield Case(
                "aleator",
                name,
                kind,
                lambda s=sampler, d=denoise: s(d, x, path=VP, generator=generator),
            )


def diffusers_cases(net: Identity, x: Tensor) -> Iterator[Case]:
    """The loop of its pipelines; setting the time steps is not counted."""
    for name in (*DIFFUSERS, "DDPM"):
        scheduler = diffusers_scheduler(name, {})
        steps = (STEPS + 1) // 2 if "Heun" in name else STEPS
        generator = torch.Generator().manual_seed(0)
        extra = {"generator": generator} if "DDPM" in name else {}

        def before(s: Any = scheduler, n: int = steps) -> None:
            s.set_timesteps(n)
            if hasattr(s, "set_begin_index"):
                s.set_begin_index(0)

        def run(s: Any = scheduler, extra: dict[str, Any] = extra) -> None:
            x_t = x * s.init_noise_sigma
            for t in s.timesteps:
                x_t = s.step(net(s.scale_model_input(x_t, t), t), t, x_t, **extra).prev_sample

        yield Case("diffusers", name, "all", run, before)


def azula_cases(net: Identity, x: Tensor) -> Iterator[Case]:
    """Its Karras denoiser (the preconditioning that ours has too), and a ready posterior."""
    azula = load_azula()
    schedule = azula.noise.VPSchedule()

    class Ready(azula.denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return azula.denoise.DiracPosterior(net(x_t))

    for name in (*AZULA, "DDPM"):
        steps = STEPS // 2 if name == "Heun" else STEPS
        karras = azula.denoise.KarrasDenoiser(net, schedule)
        for kind, denoiser in (("all", karras), ("alone", Ready())):
            sampler = getattr(azula.sample, f"{name}Sampler")
            sampler = sampler(denoiser, steps=steps, silent=True)
            yield Case("azula", name, kind, lambda s=sampler: s(x))


@torch.no_grad()
def overhead(repeats: int) -> list[dict[str, Any]]:
    """Microseconds per evaluation beyond the network, one row a sampler."""
    net, x = Identity(), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    level = torch.zeros(1)
    cases = list(our_cases(net, x))
    cases += diffusers_cases(net, x) if load_diffusers() else []
    cases += azula_cases(net, x) if load_azula() else []
    generator = torch.Generator().manual_seed(0)
    network, noise, update = references = [
        Case("", "the network", "", lambda: [net(x, level, None) for _ in range(STEPS)]),
        Case("", "noise", "", lambda: [randn(SHAPE, generator) for _ in range(STEPS)]),
        Case("", "update", "", lambda: [(0.5 * x).add_(x, alpha=0.5) for _ in range(STEPS)]),
    ]
    for case in cases:
        net.calls = 0
        case.before()
        case.run()
        case.evaluations = net.calls
    for case in references:
        case.evaluations = STEPS
    for _ in range(repeats):
        for case in (*references, *cases):
            case.time_once()
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for case in cases:
        key = (case.library, case.sampler)
        row = rows.setdefault(key, {"library": case.library, "sampler": case.sampler})
        row[case.kind] = case.microseconds() - network.microseconds()
        if case.kind == "all":
            row["quiet"] = case.microseconds(QUIET) - network.microseconds(QUIET)
    named = (("a multiply and an add", update), ("a draw of the noise", noise))
    return [
        *rows.values(),
        *(
            {"sampler": name, "all": case.microseconds(), "quiet": case.microseconds(QUIET)}
            for name, case in named
        ),
    ]


def tables(quick: bool) -> list[Table]:
    """What a step costs, what it brings, and whether the data matter."""
    budgets = BUDGETS[:2] if quick else BUDGETS
    columns = {"library": "library", "sampler": "sampler"}
    timed = Table(
        overhead(3 if quick else 300),
        {
            **columns,
            "all": "beyond the network",
            "quiet": "in the quietest tenth",
            "alone": "of which the solver",
        },
        dict.fromkeys(("all", "quiet", "alone"), ".1f"),
        title="Overhead: µs per network evaluation, 1 x 3 x 32 x 32, one thread, medians",
    )
    keys = [f"e{budget}" for budget in budgets]
    truth = Table(
        accuracy(budgets, 400 if quick else 4000),
        {**columns, "options": "options", **{k: k[1:] for k in keys}},
        dict.fromkeys(keys, ".4f"),
        dict.fromkeys(keys, "min"),
        title="Accuracy: mean |x_0 - exact| after so many evaluations; the data have unit scale",
    )
    pairs = [
        f"{name} {grid}" for name in ("2m", "unipc") for grid in ("log_snr", "asinh", "karras")
    ]
    others = Table(
        other_data(20, 400 if quick else 4000),
        {"data": "data", **{pair: pair for pair in pairs}},
        dict.fromkeys(pairs, ".4f"),
        title="Grids on other data: the same error after 20 evaluations",
    )
    return [timed, truth, others]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="few repeats: does it run?")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = tables(options.quick)
    made_by = provenance()
    made_by["hardware"] = f"{hardware()}, 1 thread used"
    made_by["versions"] = versions() | peers()
    results = write_results(options.out / "samplers.json", found, made_by=made_by, notes=NOTES)
    page = report(results, "Samplers: overhead and accuracy")
    page += "".join(f"\nNote: {line}\n" for line in NOTES)
    write_text(options.out / "samplers.md", page)
    for table in found:
        table.print()
    print(*NOTES, sep="\n")


def peers() -> dict[str, str]:
    """Versions of the libraries compared with."""
    loaded = {"diffusers": load_diffusers(), "azula": load_azula()}
    return {name: library.__version__ for name, library in loaded.items() if library}


if __name__ == "__main__":
    main()
