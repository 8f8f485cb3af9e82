r"""q(u | x_1, ..., x_n): a network of sets that is a posterior for every n.

    t      = mean over events of [s, s², φ(s)], s the standardised observables, φ a perceptron
    P      = λ + n R(t)ᵀR(t),   m = P⁻¹ [λ ½ + n g(t)]            information adds up over events
    e      = TruncatedGaussian(u; m, P⁻¹),   ε = spline flow(e; m, diag P, n)
    q(u|x) = N(ε; 0, τ(n)²) |∂ε/∂u|

Order cannot matter (only means over events enter), the posterior falls back to the prior as n → 0
and contracts like 1/√n. At birth R and g are those of a linear-Gaussian model fitted in closed
form (generalised least squares) and the flow is near the identity, so that training starts from
what a physicist would do by hand. τ is set after training, on parameters not trained on.

Sets larger than any simulated one are emulated in training: of m events and a regression t*(u),

    t' = t*(u) + (t - t*(u)) √(m / n),    n > m

has the mean and the variance of the statistics of n events.
References: Zaheer et al. (2017) arXiv:1703.06114; Papamakarios et al. (2021) arXiv:1912.02762;
Radev et al. (2020) arXiv:2003.06281 (summary networks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apps.hep_simulation.inference.truncated import TruncatedGaussian
from core.errors import AleatorError
from core.flows import NSF
from core.model import Context, Density, GenerativeModel, Loss, expand_context
from core.random import Generators, randn

_LARGEST = 6.0
"""Standardised observables are clipped here: one odd event must not decide."""


REACH = 20
"""Sets of up to so many times the events of a simulated one are emulated."""
_FORGET = 0.02
"""Share of a batch in the running regression."""


class SetPosterior(GenerativeModel):
    """The posterior of u in (0, 1)^D given a padded set of events.

    Contexts are mappings with `events` (B, N, F) and `mask` (B, N), true where an event is.
    """

    takes_net = False
    start: Tensor
    normal: Tensor
    moment: Tensor
    knots: Tensor
    log_temper: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        features: int,
        width: int = 64,
        learned: int = 16,
        hidden: int = 32,
        layers: int = 2,
        bins: int = 6,
        dropout: float = 0.0,
        most: int = 50,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (D,), the number of parameters.
            features: F, observables of an event.
            width: hidden units of φ and of the corrections.
            learned: statistics that φ puts out.
            hidden: units of the flow's networks.
            layers: of the flow; 0 for none.
            bins: of its splines.
            dropout: within the corrections.
            most: events of the largest set that is trained on; sets up to `REACH` times as large
                are emulated.
        """
        super().__init__()
        (dims,) = event_shape
        self.event_shape, self.context_shape = torch.Size((dims,)), None
        self.dims, self.features, self.most = dims, features, most
        self.encoder = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, learned),
        )  # fmt: skip
        pooled = 2 * features + learned
        self.register_buffer("start", torch.zeros(pooled))
        terms = 1 + dims + dims * (dims + 1) // 2
        self.register_buffer("normal", 1e-6 * torch.eye(terms))
        self.register_buffer("moment", torch.zeros(terms, pooled))
        self.score = nn.Linear(pooled, dims)
        self.root = nn.Parameter(torch.eye(dims))
        outputs = dims + dims * dims
        self.correction = nn.Sequential(
            nn.Linear(pooled, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
        )
        for part in (self.score, self.correction[-1]):
            assert isinstance(part, nn.Linear)
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        self.base = TruncatedGaussian()
        self.flow = (
            NSF((dims,), vector_dim=2 * dims + 1, layers=layers, hidden=(hidden,), bins=bins)
            if layers
            else None
        )
        self.log_floor = nn.Parameter(torch.zeros(dims))
        self.register_buffer("knots", torch.tensor([1.0, float(max(most, 2))]).log())
        self.register_buffer("log_temper", torch.zeros(2))
        self.double()
        self.encoder.float()
        self.correction.float()

    @torch.no_grad()
    def begin(self, u: Tensor, events: Tensor) -> None:
        """Start from the linear-Gaussian model t | u ~ N(b + B u, S / n) of training sets.

        Args:
            u: (N, D).
            events: (N, M, F) standardised, M >= 2.
        """
        t = self._plain(events).double()
        centre, flat = t.mean(1), u.double()
        design = torch.cat([torch.ones(len(flat), 1).double(), flat], 1)
        fitted = torch.linalg.lstsq(design, centre).solution
        slope = fitted[1:]
        within = t - centre[:, None]
        freedom = len(t) * (t.shape[1] - 1)
        noise = torch.einsum("nei,nej->ij", within, within) / freedom
        noise = noise + 1e-3 * noise.diagonal().mean() * torch.eye(len(noise)).to(noise)
        weights = torch.linalg.solve(noise, slope.T).T  # (D, 2F): B S⁻¹
        information = weights @ slope.T
        count = 2 * self.features
        self.score.weight[:, :count] = weights
        self.score.bias.copy_(-weights @ fitted[0])
        eye = torch.eye(self.dims).to(information)
        jitter = 1e-6 * information.diagonal().mean() * eye
        self.root.copy_(torch.linalg.cholesky(information + jitter).T)
        self.start[:count] = centre.mean(0)
        terms = _quadratic(flat)
        self.normal.copy_(terms.T @ terms / len(terms))
        self.moment[:, :count] = terms.T @ centre / len(terms)
        embedded = self.encoder(events.float()).mean(1).double()
        self.moment[:, count:] = terms.T @ embedded / len(terms)

    def law(self, context: Context) -> dict[str, Tensor]:
        """`mean` and `scale_tril` of the base, and `vector`, what the flow sees; all float64."""
        t, count = self.statistics(context)
        return self._law(t, count)

    def statistics(self, context: Context) -> tuple[Tensor, Tensor]:
        """Means t (B, K) of the statistics over each set's events, and its n (B,)."""
        events, mask = _set(context, self.features)
        count = mask.sum(1).double()
        embedded = self.encoder(events.float()).double()
        t = torch.cat([self._plain(events).double(), embedded], 2)
        return torch.einsum("bn,bnk->bk", mask.double() / count[:, None], t), count

    def _law(self, t: Tensor, n: Tensor) -> dict[str, Tensor]:
        count = n[:, None]
        # Means scatter by about 1/√n: the corrections see them in units of that scatter.
        seen = (t - self.start) * count.sqrt().clamp(max=math.sqrt(self.most)) / 4
        raw = self.correction(torch.tanh(seen.float())).double()
        shift, matrix = raw.split([self.dims, self.dims**2], 1)
        root = self.root + 0.3 * matrix.reshape(-1, self.dims, self.dims) * self.root.diagonal()
        floor = F.softplus(self.log_floor)
        precision = count[..., None] * (root.mT @ root) + torch.diag(floor)
        scale = self.root.square().sum(0).sqrt()
        right = count * (self.score(t) + scale * shift) + 0.5 * floor
        mean = torch.linalg.solve(precision, right)
        tril = _root_of_inverse(precision)
        vector = torch.cat(
            [
                (mean - 0.5).clamp(-1.5, 1.5),
                tril.diagonal(dim1=-2, dim2=-1).log().clamp(-5, 1) / 2,
                count.clamp(max=REACH * self.most).log() / math.log(self.most + 1),
            ],
            1,
        )
        return {"mean": mean, "scale_tril": tril, "vector": vector, "count": n}

    def _emulated(self, t: Tensor, n: Tensor, u: Tensor, larger: Tensor) -> Tensor:
        """Statistics of sets of `larger` (B,) events, by a running regression of t on u."""
        terms = _quadratic(u.double())
        with torch.no_grad():
            weighted = terms * n[:, None]
            self.normal.lerp_(weighted.T @ terms / n.sum(), _FORGET)
            self.moment.lerp_(weighted.T @ t / n.sum(), _FORGET)
            centre = terms @ torch.linalg.solve(
                self.normal + 1e-9 * torch.eye(len(self.normal)).to(t), self.moment
            )
        return torch.where(
            (larger > n)[:, None], centre + (t - centre) * (n / larger).sqrt()[:, None], t
        )

    def noise(self, x: Tensor, law: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Noise (B, D) of u, before τ, and ln|∂ε/∂u| (B,)."""
        e, log_det = self.base(x.double(), law)
        if self.flow is None:
            return e, log_det
        z, more = self.flow.transform(e, {"vector": law["vector"]})
        return z, log_det + more

    def log_scale(self, count: Tensor) -> Tensor:
        """Ln τ(n) (B,): linear in ln n between the knots, constant outside."""
        x = count.log().to(self.knots).contiguous()
        right = torch.searchsorted(self.knots, x).clamp(1, len(self.knots) - 1)
        low, high = self.knots[right - 1], self.knots[right]
        share = ((x - low) / (high - low)).clamp(0, 1)
        return torch.lerp(self.log_temper[right - 1], self.log_temper[right], share)

    def set_temper(self, counts: Tensor, log_tau: Tensor) -> None:
        """Say what ln τ is at some n; at least two of them, increasing."""
        self.knots, self.log_temper = counts.double().log(), log_tau.double()

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """-ln q(u | set), in nats: 0 is the prior.

        Where a context has `larger` (B,), the set stands for one of so many events.
        """
        t, n = self.statistics(context)
        assert isinstance(context, Mapping)
        if "larger" in context:
            larger = context["larger"].double()
            t, n = self._emulated(t, n, x, larger), torch.maximum(n, larger)
        value = -self.log_prob_given(x, self._law(t, n))
        return Loss(value, {"nll": value.detach()})

    def log_prob(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Density:
        """Ln q(u | set) of u (B, D) in (0, 1), exact.

        Raises:
            AleatorError: u outside the box, or a context that is not a set of events.
        """
        if not ((x > 0) & (x < 1)).all():
            raise AleatorError("u must lie inside (0, 1): a parameter is outside the prior")
        return Density(self.log_prob_given(x, self.law(context)), "exact")

    def log_prob_given(self, x: Tensor, law: Mapping[str, Tensor]) -> Tensor:
        """As `log_prob`, of what `law` made: many u of one set share the work."""
        z, log_det = self.noise(x, law)
        tau = self.log_scale(law["count"])[:, None]
        prior = -0.5 * (z * (-tau).exp()).square() - tau - 0.5 * math.log(2 * math.pi)
        return prior.sum(1) + log_det

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
        """Draws of u, (*S, B, D), float64; none outside the prior."""
        if sampler is not None or guidance is not None:
            raise AleatorError("this posterior is sampled by its inverse: no sampler, no guidance")
        law, draws = self.law(context), math.prod(shape)
        batch = len(law["mean"])
        expanded: dict[str, Tensor] = expand_context(law, draws)  # type: ignore[assignment]
        z = randn((draws * batch, self.dims), generator, dtype=torch.float64)
        return self.from_noise(z, expanded).reshape(*shape, batch, self.dims)

    def from_noise(self, z: Tensor, law: Mapping[str, Tensor]) -> Tensor:
        """Standard normal z (B, D) to u, the inverse of `noise` with τ."""
        z = z * self.log_scale(law["count"]).exp()[:, None]
        e = z if self.flow is None else self.flow.transform.invert(z, {"vector": law["vector"]})
        return self.base.invert(e, law)

    def _plain(self, events: Tensor) -> Tensor:
        s = events.clamp(-_LARGEST, _LARGEST)
        return torch.cat([s, s.square().clamp(max=16)], -1)


def _quadratic(u: Tensor) -> Tensor:
    """(B, T): 1, u and products of two."""
    i, j = torch.triu_indices(u.shape[1], u.shape[1])
    return torch.cat([torch.ones_like(u[:, :1]), u, u[:, i] * u[:, j]], 1)


def _root_of_inverse(precision: Tensor) -> Tensor:
    """Lower triangular L with L Lᵀ = P⁻¹."""
    upper = torch.linalg.cholesky(precision.flip(-1, -2)).flip(-1, -2)  # P = U Uᵀ
    eye = torch.eye(precision.shape[-1]).to(precision).expand_as(precision)
    return torch.linalg.solve_triangular(upper, eye, upper=True).mT


def _set(context: Context, features: int) -> tuple[Tensor, Tensor]:
    if not isinstance(context, Mapping) or not {"events", "mask"} <= set(context):
        raise AleatorError("a set posterior needs a context with `events` and `mask`")
    events, mask = context["events"], context["mask"]
    if events.dim() != 3 or events.shape[2] != features or mask.shape != events.shape[:2]:
        raise AleatorError(
            f"events of shape {tuple(events.shape)} with a mask of {tuple(mask.shape)}; "
            f"(B, N, {features}) and (B, N) are needed"
        )
    if not mask.any(1).all():
        raise AleatorError("a set without events has no posterior but the prior")
    return events, mask
