r"""The longitudinal profile: total energy, then the share of each layer, from front to back.

    E_tot / E_inc ~ p(· | E_inc, particle),   u_l = E_l / Σ_{m ≥ l} E_m ~ p(· | u_<l, E_tot, ...)

the ratios of CaloFlow (Krause and Shih 2021, arXiv:2106.05285), but with exact zeros and exact
ends by the law of `splits`, and one network for all layers: it sees the last few layers, what is
left to share out and where the shower began, so that every layer of every shower is an example.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apps.hep_simulation import splits
from apps.hep_simulation.layers import Perceptron, normal_mixture

BACK = 6
"""Earlier layers that a layer's share is told of."""
TOTAL_COMPONENTS = 4
UNIT = 0.5
"""MeV: energies are compressed as log(1 + E / UNIT)."""


def compress(energy: Tensor) -> Tensor:
    """A scale on which single particles and cores of showers differ alike."""
    return torch.log1p(energy / UNIT)


class Profile(nn.Module):
    """p(E_1..E_L | condition)."""

    def __init__(self, layers: int, conditions: int, threshold: float, hidden: int = 128) -> None:
        """L layers, D features of the condition (the first is ln E_inc / MeV)."""
        super().__init__()
        self.layers, self.threshold = layers, threshold
        self.total = Perceptron(conditions, 64, 1 + 3 * TOTAL_COMPONENTS)
        self.place = nn.Embedding(layers, hidden)
        nn.init.normal_(self.place.weight, std=0.1)
        self.share = Perceptron(conditions + BACK + 8, hidden, splits.width())
        splits.spread_out(self.share.last.bias)

    def log_prob(self, energies: Tensor, condition: Tensor) -> Tensor:
        """Ln p of layer energies (B, L) in MeV, given (B, D); nats, see `splits`."""
        total = energies.sum(1)
        value = self._total_log_prob(total, condition)
        left = energies.flip(1).cumsum(1).flip(1)
        rest = torch.cat([left[:, 1:], torch.zeros_like(left[:, :1])], 1)
        features = self._features(energies, left, total)[:, :-1]
        condition = condition[:, None].expand(-1, self.layers - 1, -1)
        there = left[:, :-1] > 0
        place = torch.arange(self.layers - 1).expand(there.shape)[there]
        rows = torch.cat([condition, features], -1)[there]
        parameters = self.share(rows, self.place(place))
        found = splits.log_prob(
            parameters, energies[:, :-1][there], rest[:, :-1][there], self.threshold
        )
        return value.index_add(0, there.nonzero()[:, 0], found)

    def sample(self, condition: Tensor, uniform: Tensor) -> Tensor:
        """Draw (B, L) layer energies, given (B, D) and (B, 2 (L + 1)) uniforms."""
        uniform = uniform.reshape(len(uniform), self.layers + 1, 2)
        total = self._draw_total(condition, uniform[:, 0])
        left = total.clone()
        energies = torch.zeros(len(total), self.layers)
        state = _State(total)
        for layer in range(self.layers):
            if layer == self.layers - 1:
                energies[:, layer] = left
                break
            there = (left > 0).nonzero()[:, 0]
            if not len(there):
                break
            rows = torch.cat([condition, state.features(left)], 1)[there]
            parameters = self.share(rows, self.place.weight[layer].expand(len(rows), -1))
            a, b = splits.draw(parameters, left[there], uniform[there, layer + 1], self.threshold)
            energies[there, layer] = a
            left[there] = b
            state.add(energies[:, layer].clone(), layer)
        return energies

    def standardise(self, energies: Tensor, condition: Tensor) -> None:
        """Take the spread of the networks' inputs from layer energies (B, L)."""
        left = energies.flip(1).cumsum(1).flip(1)
        features = self._features(energies, left, energies.sum(1))[:, :-1]
        condition_rows = condition[:, None].expand(-1, self.layers - 1, -1)
        rows = torch.cat([condition_rows, features], -1)[left[:, :-1] > 0]
        self.share.standardise(rows)
        self.total.standardise(condition)

    def _features(self, energies: Tensor, left: Tensor, total: Tensor) -> Tensor:
        """What is known before each layer is drawn, (B, L, F): `_State` of all layers at once."""

        def before(values: Tensor, back: int = 1) -> Tensor:
            return F.pad(values, (back, 0))[:, : self.layers]

        depth = torch.arange(self.layers).to(energies) / 20
        seen = compress(energies)
        first = (energies > 0).double().argmax(1, keepdim=True)
        begun = before(energies).cumsum(1) > 0
        peak, place = energies.cummax(1)
        peak, place = before(peak), before(depth[place] * (peak > 0))
        return _columns(
            [before(energies, back) for back in (1, 2)],
            [before(seen, back) for back in range(1, BACK + 1)],
            left,
            total[:, None].expand_as(left),
            before(energies.cumsum(1)),
            before((energies * depth).cumsum(1)),
            torch.where(begun, depth[first] - 1, 1.0),
            place,
            peak,
        )

    def _total_log_prob(self, total: Tensor, condition: Tensor) -> Tensor:
        """Ln p(E_tot): a probability of none, else a density of the response."""
        parameters = self.total(condition)
        none, rest = parameters[:, 0] - 5, parameters[:, 1:]
        there = total > 0
        log_ratio = total.clamp(min=self.threshold).log() - condition[:, 0]
        density = normal_mixture(log_ratio, *self._response(rest, condition))
        density = density - total.clamp(min=self.threshold).log()
        return torch.where(there, F.logsigmoid(-none) + density, F.logsigmoid(none))

    def _draw_total(self, condition: Tensor, uniform: Tensor) -> Tensor:
        parameters = self.total(condition)
        none = 1 / (1 + (5 - parameters[:, 0]).exp())
        logits, mean, log_scale = self._response(parameters[:, 1:], condition)
        # one uniform decides whether there is energy and, rescaled, which component it is of
        within = ((uniform[:, 0] - none) / (1 - none)).clamp(0, 1)
        steps = logits.softmax(-1).cumsum(-1)
        component = (within[:, None] * steps[:, -1:] >= steps).sum(-1, keepdim=True)
        component = component.clamp(max=TOTAL_COMPONENTS - 1)
        mean, log_scale = (p.gather(1, component)[:, 0] for p in (mean, log_scale))
        log_ratio = mean + log_scale.exp() * torch.special.ndtri(
            uniform[:, 1].clamp(1e-7, 1 - 1e-7).contiguous()
        )
        total = (condition[:, 0] + log_ratio).exp()
        return torch.where(uniform[:, 0] < none, 0.0, total.clamp(min=self.threshold))

    def _response(self, parameters: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A mixture in ln(E_tot / E_inc), in units of the 1/√E that sampling gives."""
        logits, mean, log_scale = parameters.chunk(3, -1)
        spread = 0.16 * (math.log(1000.0) - condition[:, :1]).mul(0.5).exp()
        return logits, spread * mean, (log_scale.clamp(-4, 4) + spread.log())


class _State:
    """What a shower has done so far, (B,) each: updated layer by layer."""

    def __init__(self, total: Tensor) -> None:
        self.total = total
        zero = torch.zeros_like(total)
        self.last, self.seen = [zero] * 2, [zero] * BACK
        self.sum, self.moment, self.peak = zero, zero, zero
        self.start, self.peak_at = zero + 1, zero

    def add(self, energy: Tensor, layer: int) -> None:
        depth = layer / 20
        self.last = [energy, self.last[0]]
        self.seen = [compress(energy), *self.seen[:-1]]
        # the first layer with energy
        self.start = torch.where((self.sum <= 0) & (energy > 0), depth - 1, self.start)
        self.sum, self.moment = self.sum + energy, self.moment + depth * energy
        self.peak_at = torch.where(energy > self.peak, depth, self.peak_at)
        self.peak = torch.maximum(self.peak, energy)

    def features(self, left: Tensor) -> Tensor:
        """(B, BACK + 8)."""
        return _columns(
            self.last,
            self.seen,
            left,
            self.total,
            self.sum,
            self.moment,
            self.start,
            self.peak_at,
            self.peak,
        )


def _columns(
    last: list[Tensor],
    seen: list[Tensor],
    left: Tensor,
    total: Tensor,
    done: Tensor,
    moment: Tensor,
    start: Tensor,
    peak_at: Tensor,
    peak: Tensor,
) -> Tensor:
    """Features of layers, (..., BACK + 8), from (...) each."""
    columns = [
        *seen,
        compress(left),
        10 * left / total.clamp(min=1e-6),
        moment / done.clamp(min=1e-6),
        start,
        peak_at,
        compress(peak),
        compress(total),
        (last[0] - last[1]) / (last[0] + last[1] + 1e-3),
    ]
    return torch.stack(columns, -1)
