r"""Neural likelihood: a flow p(x | u) of single events, and the posterior of any number of them.

    ln q(u | x_1, ..., x_n) = κ_n Σ_i ln p(x_i | u) - ln Z,    κ_n = 1 / (1 + c (n - 1)),
    u in (0, 1)^D

The errors of p are the same for every event and add up, so that κ = 1 is overconfident after few
simulations: they are a floor that more events do not lower. c is the likeliest for held-out
parameters (a power posterior). Counts among the observables are spread over cells of width one.
Z and draws come from adaptive importance sampling: a Gaussian of ln(u / (1 - u)), moved and
widened to the weighted draws in rounds, all of which are kept with the mixture of proposals as
their common density.
References: Papamakarios et al. (2019) arXiv:1805.07226; Holmes and Walker (2017) arXiv:1701.08515
(powers); Cornuet et al. (2012) arXiv:0907.1254 (adaptive multiple importance sampling).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.inference.posterior import Inference
from core.data import batch_indices
from core.errors import AleatorError
from core.flows import NSF
from core.model import Context, Density, GenerativeModel
from core.random import keyed_generator, rand
from core.training import fit

if TYPE_CHECKING:
    from apps.hep_simulation.inference.train import Setup

_ROWS = 4000
_ROUNDS, _PER_ROUND = 4, 256
_MOST = 200_000
"""Evaluations of the flow in a round of importance sampling, about."""


def flow_of(network: Mapping[str, Any]) -> NSF:
    """The flow of events from its options, which are JSON."""
    options = dict(network)
    return NSF(tuple(options.pop("event_shape")), **options)


@dataclass(frozen=True)
class _Pool:
    """Draws u (S, D) of one posterior, their likelihoods, and 1 / density of the proposals."""

    u: Tensor
    log_likelihood: Tensor
    base: Tensor

    def log_weight(self, power: float) -> Tensor:
        """Ln w (S,)."""
        return power * self.log_likelihood + self.base

    def log_z(self, power: float) -> float:
        """Ln of the integral of the likelihood to this power."""
        return float(self.log_weight(power).logsumexp(0) - math.log(len(self.u)))

    def size(self, power: float) -> float:
        """Effective number of draws."""
        return float(1 / self.log_weight(power).softmax(0).square().sum())


@dataclass(frozen=True, eq=False)
class Likelihood(Inference):
    """A flow of events; posteriors are found for each set anew."""

    flow: NSF | None = None
    integer: Tensor | None = None
    memo: dict[bytes, _Pool] = field(default_factory=dict)
    """Of the last set: draws and densities are asked for one after the other."""

    def power(self, events: int) -> float:
        """κ_n."""
        return 1 / (1 + float(self.config["error"]) * (events - 1))

    @torch.no_grad()
    def log_likelihood(self, u: Tensor, events: Tensor) -> Tensor:
        """Σ ln p(x_i | u) (S,) of u (S, D) and standardised, spread events (n, F)."""
        assert self.flow is not None
        total, n = [], len(events)
        for part in u.split(max(1, _ROWS // n)):
            context = part.float().repeat_interleave(n, 0)
            value = self.flow.log_prob(events.repeat(len(part), 1), context).value
            total.append(value.double().reshape(len(part), n).sum(1))
        return torch.cat(total)

    def sample_unit(self, x: np.ndarray, draws: int, stream: torch.Generator) -> Tensor:
        """Draws by resampling the weighted ones; a few repeat where these are few."""
        pool = self._pool(x)
        share = pool.log_weight(self.power(len(x))).softmax(0)
        rows = torch.multinomial(share, draws, True, generator=stream)
        return pool.u[rows]

    def log_prob_unit(self, u: Tensor, x: np.ndarray) -> Density:
        """An estimate: the likelihood is exact, its integral is not."""
        pool = self._pool(x)
        power = self.power(len(x))
        value = power * self.log_likelihood(u, self._events(x)) - pool.log_z(power)
        error = math.sqrt(max(0.0, 1 / pool.size(power) - 1 / len(pool.u)))
        return Density(value, "estimate", torch.full_like(value, error))

    def simulate_unit(self, u: Tensor, events: int, stream: torch.Generator) -> np.ndarray:
        """Events (S, n, F) of the flow given u (S, D): an emulator of the simulator."""
        assert self.flow is not None
        assert self.integer is not None
        context = u.float().repeat_interleave(events, 0)
        s = self.flow.sample((), context, generator=stream)
        x = self.standardizer.inverse(s).reshape(len(u), events, -1)
        return torch.where(self.integer, x.round(), x).numpy()

    def tensors(self) -> dict[str, Tensor]:
        """Weights of the flow, and which observables are counts."""
        assert self.flow is not None
        assert self.integer is not None
        found = {f"flow.{name}": value for name, value in self.flow.state_dict().items()}
        return found | {"integer": self.integer}

    def _events(self, x: np.ndarray) -> Tensor:
        assert self.integer is not None
        generator = keyed_generator(0, len(x))
        return spread(self.standardised(x), self.integer, self.standardizer.std, generator)

    def _pool(self, x: np.ndarray) -> _Pool:
        """Weighted draws; a function of the set alone."""
        key = np.ascontiguousarray(x).tobytes()
        if key not in self.memo:
            found = self._sampled(x)
            self.memo.clear()
            self.memo[key] = found
        return self.memo[key]

    def _sampled(self, x: np.ndarray) -> _Pool:
        """Adaptive importance sampling."""
        events, dims = self._events(x), self.prior.dims
        generator = keyed_generator(1, len(x))
        size = int(min(_PER_ROUND, max(128, _MOST // len(x))))
        law = _gaussian(torch.zeros(dims), 2.5 * torch.eye(dims))  # wide: about uniform in u
        laws, points, found, jacobians = [], [], [], []
        power = self.power(len(x))
        for _ in range(_ROUNDS):
            noise = torch.randn((size, dims), generator=generator, dtype=torch.float64)
            z = law.loc + noise @ law.scale_tril.T
            u = z.sigmoid().clamp(1e-9, 1 - 1e-9)
            laws.append(law)
            points.append(z)
            found.append(self.log_likelihood(u, events))
            jacobians.append((u.log() + (1 - u).log()).sum(1))
            z, value = torch.cat(points), torch.cat(found)
            proposal = torch.stack([law.log_prob(z) for law in laws]).logsumexp(0)
            base = torch.cat(jacobians) - (proposal - math.log(len(laws)))
            weight = power * value + base
            # tempered while few draws carry the weight, so that the proposal widens, then narrows
            share = (weight * _temper(weight)).softmax(0)
            mean = share @ z
            gap = z - mean
            covariance = torch.einsum("s,si,sj->ij", share, gap, gap)
            law = _gaussian(mean, 1.3 * covariance + 1e-6 * torch.eye(dims))
        return _Pool(z.sigmoid().clamp(1e-9, 1 - 1e-9), value, base)


def _temper(log_weight: Tensor, least: float = 40.0) -> float:
    """Largest power of the weights, at most 1, by which `least` draws are effective."""
    power = 1.0
    while power > 1e-3:
        share = (power * log_weight).softmax(0)
        if 1 / share.square().sum() >= least:
            break
        power *= 0.7
    return power


def _gaussian(mean: Tensor, covariance: Tensor) -> torch.distributions.MultivariateNormal:
    return torch.distributions.MultivariateNormal(mean.double(), covariance.double())


def spread(
    events: Tensor, integer: Tensor, std: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Counts (..., F) standardised, moved uniformly within cells of width one."""
    u = rand(events.shape, generator) - 0.5
    return torch.where(integer, events + u / std.reshape(-1), events)


def train_likelihood(
    u: Tensor,
    events: Tensor,
    setup: Setup,
    shared: dict[str, Any],
    card: Callable[[list[dict[str, Any]], int], dict[str, Any]],
) -> Likelihood:
    """Train the flow on single events; the first fold of parameters says when to stop."""
    from apps.hep_simulation.inference.train import folds_of

    config = setup.config
    known: dict[str, Any] = {
        "layers": 4, "hidden": [48, 48], "bins": 6, "bound": 6.0, "autoregressive": False,
    }  # fmt: skip
    if unknown := set(config.network) - set(known):
        raise AleatorError(f"network has no option {min(unknown)!r}; it has {', '.join(known)}")
    options = {
        "event_shape": [events.shape[2]], "vector_dim": u.shape[1], **known, **config.network,
    }  # fmt: skip
    standardizer = shared["standardizer"]
    raw = standardizer.inverse(events)
    integer = ((raw - raw.round()).abs() < 1e-3).flatten(0, 1).all(0)
    held = folds_of(len(u), max(config.folds, 5), config.fit.seed)[0]
    keep = torch.ones(len(u), dtype=torch.bool)
    keep[held] = False
    n = events.shape[1]
    rows, given = events[keep].flatten(0, 1), u[keep].float().repeat_interleave(n, 0)
    checked, checked_given = events[held].flatten(0, 1), u[held].float().repeat_interleave(n, 0)
    fixed = spread(checked, integer, standardizer.std, keyed_generator(config.fit.seed, 2))

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        chosen = batch_indices(config.fit.seed, step, config.fit.batch_size, len(rows))
        return spread(rows[chosen], integer, standardizer.std, generator), given[chosen]

    @torch.no_grad()
    def score(model: GenerativeModel) -> float:
        device = next(model.parameters()).device
        parts = zip(fixed.split(_ROWS), checked_given.split(_ROWS), strict=True)
        found = [model.log_prob(a.to(device), b.to(device)).value.cpu() for a, b in parts]
        return -torch.cat(found).mean().item()

    with torch.random.fork_rng():
        torch.manual_seed(config.fit.seed)
        flow = flow_of(options)
    fitted = fit(
        flow, batches, config.fit, folder=setup.folder / "flow", score=score,
        resume=setup.resume, device=setup.device, job={**setup.job, "network": options},
        progress=None,
    )  # fmt: skip
    assert isinstance(fitted.model, NSF)
    weights = sum(p.numel() for p in fitted.model.parameters())
    raw_model = Likelihood(
        **shared, config={"method": "nle", "network": options, "error": 0.0}, card={},
        flow=fitted.model.eval(), integer=integer,
    )  # fmt: skip
    error, scores = _calibrated(raw_model, u[held], raw[held], setup)
    return Likelihood(
        **{
            **vars(raw_model),
            "memo": {},  # those of raw_model have κ = 1
            "config": {**raw_model.config, "error": error},
            "card": card(scores, weights),
        }
    )


def _calibrated(
    model: Likelihood, u: Tensor, x: Tensor, setup: Setup
) -> tuple[float, list[dict[str, Any]]]:
    """The c that is likeliest for held-out parameters at the largest sets, and its score."""
    some, n = min(len(u), 60), x.shape[1]
    truths, pools = [], []
    for k in range(some):
        events = model._events(x[k].numpy())
        truths.append(model.log_likelihood(u[k][None], events)[0])
        pools.append(model._pool(x[k].numpy()))
    powers = torch.linspace(0.1, 1.0, 37).tolist()
    table = torch.tensor(
        [
            [power * float(t) - pool.log_z(power) for t, pool in zip(truths, pools, strict=True)]
            for power in powers
        ]
    )
    best = int(table.mean(1).argmax())
    mean, error = table[best].mean().item(), table[best].std().item() / math.sqrt(some)
    setup.say(
        f"{n} events, held out: mean ln q {mean:.3f} nats over the prior ({some} sets, "
        f"κ = {powers[best]:.2f})"
    )
    row = {"events": n, "mean ln q": mean, "± s.e.": error, "κ": powers[best]}
    return (1 / powers[best] - 1) / (n - 1), [row]
