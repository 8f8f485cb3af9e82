"""What else is used for downscaling, on the interface of our baselines: a U-Net, and xsdba.

Both are deterministic. The U-Net is the network that our models use, without noise: it regresses
what interpolation leaves, by mean square, with the batches, steps and learning rate that it is
given. xsdba maps quantiles of the interpolated field cell by cell: bias correction and spatial
disaggregation (BCSD), where the coarse field has no bias to begin with.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.climate_downscaling.interpolation import interpolate
from core.data import Standardizer, batch_indices
from core.model import Context, GenerativeModel, Loss
from core.nets.unet import UNet
from core.random import Generators
from core.training import FitConfig, fit


class Regression(GenerativeModel):
    """A network that predicts (B, *E) from a field, by mean square; it draws its prediction."""

    def __init__(self, net: nn.Module, event_shape: Sequence[int]) -> None:
        """`net` takes zeros, noise level zero and the context."""
        super().__init__()
        self.net = net
        self.event_shape, self.context_shape = torch.Size(event_shape), None

    def predict(self, context: Context) -> Tensor:
        """(B, *E)."""
        assert isinstance(context, dict)
        count = len(context["field"])
        zeros = context["field"].new_zeros(count, *self.event_shape)
        return self.net(zeros, zeros.new_zeros(count), context)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Mean square error of each example."""
        return Loss((self.predict(context) - x).square().flatten(1).mean(1))

    def sample(self, shape: Sequence[int] = (), context: Context = None, **options: Any) -> Tensor:
        """The prediction, as often as wanted."""
        found = self.predict(context)
        return found.expand(*shape, *found.shape)


@dataclass
class UNetRegression:
    """The residual of interpolation by a U-Net.

    Attributes:
        statics: (S, H, W) standardised fields that it also sees.
        options: training; validation is not used.
        channels: width of the network.
        nonnegative: of amounts, predictions are cut at zero.
        seed: of the initial weights.
    """

    statics: Tensor
    options: FitConfig
    channels: int = 16
    nonnegative: bool = False
    seed: int = 0
    state: dict[str, Any] = field(default_factory=dict)

    def fit(self, coarse: Tensor, fine: Tensor) -> UNetRegression:
        """Train on (T, h, w) and (T, H, W)."""
        self.state["factor"] = fine.shape[-1] // coarse.shape[-1]
        base = self._base(coarse)
        self.state["seen"] = Standardizer.fit(base, (0, 2, 3))
        residual = fine[:, None] - base
        self.state["left"] = Standardizer.fit(residual, (0, 2, 3))
        target, context = self.state["left"](residual), self._context(base)

        def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
            rows = batch_indices(self.options.seed, step, self.options.batch_size, len(target))
            return target[rows], {"field": context[rows]}

        torch.manual_seed(self.seed)
        shape = target.shape[1:]
        net = UNet(shape, field_channels=context.shape[1], channels=self.channels)
        options = dataclasses.replace(self.options, validate_every=0)
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit(Regression(net, shape), batches, options, folder=folder, device="cpu")
        self.state["model"] = fitted.model.eval()
        return self

    @torch.no_grad()
    def predict(
        self, coarse: Tensor, members: int = 1, generator: Generators | None = None
    ) -> Tensor:
        """Downscale (T, h, w) to (1, T, H, W)."""
        base = self._base(coarse)
        found = [
            self.state["model"].predict({"field": part}) for part in self._context(base).split(64)
        ]
        fine = (base + self.state["left"].inverse(torch.cat(found)))[:, 0]
        return (fine.clamp_min(0) if self.nonnegative else fine)[None]

    def _base(self, coarse: Tensor) -> Tensor:
        return interpolate(coarse.double(), self.state["factor"], "bicubic").float()[:, None]

    def _context(self, base: Tensor) -> Tensor:
        statics = self.statics.expand(len(base), -1, -1, -1)
        return torch.cat([self.state["seen"](base), statics], 1)


@dataclass
class XsdbaMapping:
    """Empirical quantile mapping of the interpolated field by xsdba, cell by cell."""

    nonnegative: bool = False
    quantiles: int = 50
    state: dict[str, Any] = field(default_factory=dict)

    def fit(self, coarse: Tensor, fine: Tensor) -> XsdbaMapping:
        """Train on (T, h, w) and (T, H, W)."""
        from xsdba import EmpiricalQuantileMapping

        self.state["factor"] = fine.shape[-1] // coarse.shape[-1]
        self.state["map"] = EmpiricalQuantileMapping.train(
            ref=self._array(fine),
            hist=self._array(self._base(coarse)),
            nquantiles=self.quantiles,
            kind="*" if self.nonnegative else "+",
            group="time",
        )
        return self

    def predict(
        self, coarse: Tensor, members: int = 1, generator: Generators | None = None
    ) -> Tensor:
        """Downscale (T, h, w) to (1, T, H, W)."""
        found = self.state["map"].adjust(
            self._array(self._base(coarse)), interp="linear", extrapolation="constant"
        )
        values = found.transpose("time", "y", "x").values
        return torch.from_numpy(np.ascontiguousarray(values)).float()[None]

    def _base(self, coarse: Tensor) -> Tensor:
        base = interpolate(coarse.double(), self.state["factor"], "bicubic")
        return base.clamp_min(0) if self.nonnegative else base

    def _array(self, values: Tensor) -> Any:
        import xarray as xr

        times = np.datetime64("2001-01-01", "ns") + np.arange(len(values)) * np.timedelta64(1, "D")
        units = "mm d-1" if self.nonnegative else "K"
        return xr.DataArray(
            values.numpy(), dims=("time", "y", "x"), coords={"time": times}, attrs={"units": units}
        )
