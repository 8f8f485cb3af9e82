r"""Consistency models: one evaluation from any point of a trajectory to where it began.

    f(x_t, t) = f(x_s, s) along the probability flow,   f(x, t_0) = x / α(t_0)
    f = c_skip x_t/α + c_out F
    c_skip = d² / ((r - r_0)² + d²),   c_out = (r - r_0) d / √(r² + d²)

with r = σ/α, r_0 its value at the start of the trajectories and d the spread of the data: the
boundary holds whatever F is. Distillation takes the neighbour x_s from a step of a trained
teacher's flow; training without one takes it from the same example and noise, which is right as
the steps grow small. Two evaluations (noise again, then once more) mend much of what one leaves.
References: Song et al. (2023) arXiv:2303.01469; Song and Dhariwal (2024) arXiv:2310.14189 (no
moving-average target, pseudo-Huber distance, growing number of steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.denoiser import Posterior
from core.errors import AleatorError, Unsupported
from core.model import Context, Density, Loss, unsupported
from core.path_model import PathModel, per_example_uniform
from core.paths import Path
from core.random import Generators, randn
from core.solvers.base import Denoise, Sampler


@dataclass(frozen=True)
class Jumps(Sampler):
    """Jump to the start, noise again, jump again.

    Attributes:
        steps: evaluations.
        middle: σ/α of the second evaluation, in units of the data's spread; further ones are at
            equal ratios below it, down to a tenth of it.
        spread: standard deviation of the data.
    """

    steps: int = 2
    middle: float = 0.8
    spread: float = 1.0

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        x = denoise(x_t, path.t_max).mean
        for k in range(self.steps - 1):
            ratio = self.middle * self.spread * 0.1 ** (k / max(1, self.steps - 2))
            t = path.t_from_log_snr(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)).item()
            point = path.at(t)
            z = randn(x.shape, generator, device=x.device, dtype=x.dtype)
            x = denoise(point.alpha * x + point.sigma * z, t).mean
        return x


class ConsistencyModel(PathModel):
    """A consistency model on any Gaussian path."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "log_prob": "only the ends of its trajectories are known; ask its teacher, or a flow",
        "posterior": "it cannot be guided; condition its teacher",
    }
    teacher: PathModel | None
    step: Tensor

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        path: str | Path | dict[str, Any] = "edm",
        teacher: PathModel | None = None,
        log_snr_max: float = 7.0,
        first_steps: int = 10,
        last_steps: int = 160,
        growth: int = 400,
        huber: float | None = None,
        sampler: Jumps | int | None = None,
        **options: Any,
    ) -> None:
        """Assemble.

        Args:
            net: F.
            event_shape: E.
            context_shape: shape of the main context tensor of one example.
            path: the forward process; the teacher's, if there is one.
            teacher: a trained diffusion or flow-matching model to distil; not stored with this
                one. Without it the model is trained by itself.
            log_snr_max: where trajectories begin: λ(t_0).
            first_steps: into how many steps a trajectory is cut at first.
            last_steps: and at last.
            growth: training steps after which the number doubles.
            huber: c of the pseudo-Huber distance √(|·|² + c²) - c per element, in units of the
                data's spread, e.g. 0.00054 for images; a squared error if None. Without a teacher
                only the squared error is unbiased: the other tends to a median.
            sampler: how many evaluations, 2 by default.
            options: `PathModel`'s.

        Raises:
            AleatorError: an option out of range, or a teacher on another path.
        """
        jumps = self._jumps(sampler, float(options.get("sigma_data", 1.0)))
        if options.pop("prediction", "edm") != "edm" or options.pop("learned_variance", False):
            raise AleatorError(
                "a consistency model has its own output: neither prediction nor "
                "learned_variance apply"
            )
        super().__init__(net, event_shape, context_shape, path=path, **options)
        if not 2 <= first_steps <= last_steps or growth < 1 or (huber is not None and huber <= 0):
            raise AleatorError(
                f"consistency: first_steps={first_steps}, last_steps={last_steps}, "
                f"growth={growth}, huber={huber}; 2 ≤ first ≤ last and positive values are needed"
            )
        if teacher is not None and teacher.path != self.path:
            raise AleatorError(
                f"consistency: the teacher is on path {teacher.path}, this model on {self.path}; "
                "give path=teacher.path"
            )
        self.sampler = jumps
        self.first_steps, self.last_steps, self.growth = first_steps, last_steps, growth
        self.huber = huber
        end = self.path.t_from_log_snr(torch.tensor(log_snr_max, dtype=torch.float64)).item()
        self.t_start = max(end, self.path.t_min)
        start = self.path.at(self.t_start)
        self.r_start = start.sigma / start.alpha
        # Not a submodule: a teacher's weights are neither trained nor stored here.
        object.__setattr__(self, "teacher", teacher)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @staticmethod
    def _jumps(sampler: Any, spread: float) -> Jumps:
        if isinstance(sampler, Jumps):
            return sampler
        if sampler is None or isinstance(sampler, int):
            return Jumps(2 if sampler is None else sampler, spread=spread)
        raise AleatorError(
            f"sampler {sampler!r}: a consistency model takes a number of evaluations, or "
            "core.consistency.Jumps"
        )

    def denoise(self, x_t: Tensor, t: Tensor | float, context: Context = None) -> Posterior:
        """The start of the trajectory through x_t (B, *E), as `mean`: no posterior mean."""
        times = torch.as_tensor(t, dtype=x_t.dtype, device=x_t.device).expand(len(x_t))
        point = self.path.at(times, x_t)
        d, r = self.denoiser.sigma_data, point.sigma / point.alpha
        gap, total = r - self.r_start, (r**2 + d**2).sqrt()
        c_noise = (r.log() / 4).flatten()
        scaled = x_t / (point.alpha * total)
        output = self.denoiser.net(scaled, c_noise, context)
        mean = d**2 / (gap**2 + d**2) * x_t / point.alpha + gap * d / total * output
        return Posterior(mean, x_t, point)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Distance of neighbours on trajectories from x (B, *E), value (B,).

        In training mode each call counts as one step of the schedule.
        """
        steps = self.steps_now()
        if self.training:
            self.step += 1
        u = per_example_uniform(len(x), generator)
        lower, upper = (self._time((u * steps).floor() + k, steps).to(x) for k in (0, 1))
        eps = randn(x.shape, generator, device=x.device, dtype=x.dtype)
        at, to = self.path.at(upper, x), self.path.at(lower, x)
        x_t = at.alpha * x + at.sigma * eps
        context = self.drop_context(context, generator)
        with torch.no_grad():
            x_s = to.alpha * x + to.sigma * eps
            if self.teacher is not None:
                x_s = self._teacher_step(x_t, upper, lower, context)
            target = self.denoise(x_s, lower, context).mean
        found = self.denoise(x_t, upper, context).mean
        distance = (found - target).square().flatten(1).mean(1)
        if self.huber is not None:
            c = self.huber * self.denoiser.sigma_data
            distance = (distance + c**2).sqrt() - c
        gap = (at.sigma / at.alpha - to.sigma / to.alpha).flatten()
        value = distance / gap
        terms = {"distance": distance.detach()}
        terms["steps"] = torch.full_like(terms["distance"], steps)
        return Loss(value, terms)

    def steps_now(self) -> int:
        """Into how many steps a trajectory is cut at this point of training."""
        doubled = self.first_steps * 2 ** min(30, int(self.step) // self.growth)
        return min(self.last_steps, doubled)

    def _time(self, index: Tensor, steps: int) -> Tensor:
        """Times t_0 (index 0) to t_max (index `steps`), uniform in r^{1/7}: close near data."""
        ends = torch.tensor([self.t_start, self.path.t_max], dtype=torch.float64)
        low, high = (-0.5 * self.path.log_snr(ends)).exp().pow(1 / 7).tolist()
        ratio = (low + (high - low) * index.double() / steps) ** 7
        t = self.path.t_from_log_snr(-2 * ratio.log())
        return t.clamp(self.t_start, self.path.t_max)

    def _teacher_step(self, x_t: Tensor, t: Tensor, s: Tensor, context: Context) -> Tensor:
        """Heun's step of the teacher's flow, in y = x/α and r = σ/α: dy/dr = ε̂."""
        assert self.teacher is not None
        at, to = self.path.at(t, x_t), self.path.at(s, x_t)
        first = self.teacher.denoise(x_t, t, context).eps
        h = to.sigma / to.alpha - at.sigma / at.alpha
        y = x_t / at.alpha + h * first
        second = self.teacher.denoise(to.alpha * y, s, context).eps
        return to.alpha * (x_t / at.alpha + 0.5 * h * (first + second))

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw samples by a few jumps: (*S, B, *E); `sampler` is a number of evaluations."""
        if guidance is not None:
            raise AleatorError("a consistency model knows no guidance: guide its teacher instead")
        chosen = (
            self.sampler if sampler is None else self._jumps(sampler, self.denoiser.sigma_data)
        )
        return super().sample(shape, context, sampler=chosen, generator=generator)

    def log_prob(self, x: Tensor, context: Context = None, **options: Any) -> Density:
        """None: the flow is known only by its end points."""
        raise Unsupported(unsupported(type(self), "log_prob"))
