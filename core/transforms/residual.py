r"""Invertible residual blocks: y = x + g(x) with a g that contracts.

The inverse is the fixed point of x = y - g(x), and

    ln det(I + J) = Σ_k (-1)^{k+1} tr(J^k) / k,

estimated without bias by random probes (Hutchinson) and a random number of terms, each divided
by the probability that it is reached (Russian roulette); the gradient is estimated likewise, by
the Neumann series of (I + J)^{-1}, which is unbiased and needs one product with a graph instead of
one a term. The exact value, by slogdet of the
Jacobian, is `forward`; a truncated series is not offered, as it would be biased.
References: Behrmann et al. (2019) arXiv:1811.00995; Chen et al. (2019) arXiv:1906.02735.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.errors import AleatorError
from core.model import Context, expand_context
from core.random import Generators, rand
from core.transforms.base import Transform


class Residual(Transform):
    """y = x + g(x, context); g from `core.nets.lipschitz.LipschitzNet`."""

    exact = False

    def __init__(
        self,
        net: nn.Module,
        *,
        exact_terms: int = 4,
        stop: float = 0.5,
        tolerance: float = 1e-6,
        max_steps: int = 500,
    ) -> None:
        """Assemble.

        Args:
            net: (x (B, *E), context) -> (B, *E), of Lipschitz constant below 1 in x.
            exact_terms: terms of the series that are always there.
            stop: probability that the series stops after each further term.
            tolerance: of the inverse, largest change of any element, relative to 1 + |x|;
                never finer than the floating type can tell.
            max_steps: of the inverse, before it gives up.
        """
        super().__init__()
        if exact_terms < 1 or not 0 < stop < 1:
            raise AleatorError(
                f"exact_terms={exact_terms}, stop={stop}: expected exact_terms >= 1 and a "
                "probability in (0, 1)"
            )
        self.net = net
        self.exact_terms, self.stop = exact_terms, stop
        self.tolerance, self.max_steps = tolerance, max_steps

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise; D backward passes for the exact determinant."""
        y, jacobian = self._with_jacobian(x, context)
        return y, torch.linalg.slogdet(jacobian).logabsdet

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data; the exact determinant. Differentiable, by the implicit function."""
        x = self.invert(y, context)
        again, jacobian = self._with_jacobian(x, context)
        if torch.is_grad_enabled():  # one Newton step carries the gradient, and moves nothing
            step = torch.linalg.solve(jacobian.detach(), (y - again).flatten(1))
            x = x + step.reshape(x.shape)
            jacobian = self._with_jacobian(x, context)[1]
        return x, -torch.linalg.slogdet(jacobian).logabsdet

    def _with_jacobian(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Y (B, *E) and dy/dx (B, D, D)."""
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            g = self.net(x, context)
            rows = [
                torch.autograd.grad(column.sum(), x, create_graph=keep, retain_graph=True)[0]
                for column in g.flatten(1).unbind(1)
            ]
            jacobian = torch.stack([row.flatten(1) for row in rows], 1)
            jacobian = jacobian + torch.eye(len(rows), dtype=x.dtype, device=x.device)
            y = x + g
        return (y, jacobian) if keep else (y.detach(), jacobian.detach())

    def encode(self, x: Tensor, context: Context = None) -> Tensor:
        """Data to noise, without any determinant."""
        return x + self.net(x, context)

    @torch.no_grad()
    def invert(self, y: Tensor, context: Context = None) -> Tensor:
        """Noise to data by fixed-point iteration.

        Raises:
            AleatorError: no convergence: the network does not contract, or noise is not finite.
        """
        tolerance = max(self.tolerance, 4 * torch.finfo(y.dtype).eps)
        x = y
        for _ in range(self.max_steps):
            new = y - self.net(x, context)
            change = ((new - x).abs() / (1 + new.abs())).max()
            x = new
            if change <= tolerance:
                return x
        raise AleatorError(
            f"the inverse of a residual block did not converge to {tolerance:g} in "
            f"{self.max_steps} steps; lower the Lipschitz bound or loosen the tolerance"
        )

    def estimate(
        self,
        x: Tensor,
        context: Context = None,
        *,
        probes: int = 1,
        generator: Generators | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Data to noise, with unbiased estimates (probes, B); see `Transform.estimate`."""
        keep, shape = torch.is_grad_enabled(), (len(x), probes, *x.shape[1:])
        options = {"device": x.device, "dtype": x.dtype}
        signs = rand(shape, generator, **options)  # type: ignore[arg-type]
        luck = rand((len(x), probes), generator, **options)  # type: ignore[arg-type]
        v = torch.where(signs < 0.5, -1.0, 1.0).to(x).transpose(0, 1).flatten(0, 1)
        # P(more than k further terms) = (1 - stop)^k
        further = luck.clamp_min(torch.finfo(x.dtype).tiny).log() / _log1m(self.stop)
        terms = self.exact_terms + further.floor().T.flatten()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            many = x.repeat(probes, *[1] * (x.dim() - 1))
            g = self.net(many, expand_context(context, probes))
            total, w, inverse = many.new_zeros(len(many)), v, torch.zeros_like(v)
            for k in range(1, int(terms.max()) + 1):
                reached = (1 - self.stop) ** max(k - self.exact_terms, 0)
                share = torch.where(terms >= k, (-1) ** (k + 1) / reached, 0).to(x)
                inverse = inverse + w * share.reshape(-1, *[1] * (x.dim() - 1))
                (w,) = torch.autograd.grad(g, many, w, retain_graph=True)
                total = total + (w * v).flatten(1).sum(1) * share / k
            if keep:  # d ln det = tr (I + J)^{-1} dJ: one product with a graph, not one a term
                (w,) = torch.autograd.grad(g, many, inverse, create_graph=True)
                slope = (w * v).flatten(1).sum(1)
                total = total + (slope - slope.detach())
            y = (many + g)[: len(x)]
        total = total.reshape(probes, len(x))
        return (y, total) if keep else (y.detach(), total.detach())


def _log1m(p: float) -> float:
    return float(torch.log1p(torch.tensor(-p, dtype=torch.float64)))
