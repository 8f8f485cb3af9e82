r"""Perfect prognosis for stations: their values themselves, not those of the cells they are in.

    z = μ(c) + s(c) · r,    r ~ p(r | μ, s, season),    z ∈ R^(variables × stations)

as in `prognosis`, on a row of stations instead of a map. The residual of all stations and
variables is one vector, drawn jointly by any family of vectors, told the anomaly of the mean, its
uncertainty and the time of the year.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apps.climate_downscaling.config import ResidualConfig
from apps.climate_downscaling.prognosis import PrognosisModel
from core.errors import AleatorError
from core.settings import merge

_FLOWS = {"nsf": {"layers": 3}, "maf": {"layers": 5}, "real_nvp": {"layers": 6}}
_NETWORKED: dict[str, dict[str, Any]] = {
    "diffusion": {
        "path": {"name": "edm", "sigma_min": 0.01, "sigma_max": 20.0},
        "log_sigma_mean": -0.4,
        "log_sigma_std": 1.2,
    },
    "flow_matching": {},
}


def vector_config(
    family: str, variables: int, stations: int, vector_dim: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """A config for `core.build` of a model of vectors: defaults, then the user's options.

    Args:
        family: its name.
        variables: V.
        stations: S.
        vector_dim: length of the context.
        options: of the family; those of the network, `net`, only where it has one.

    Raises:
        AleatorError: not a family of vectors.
    """
    if family in _NETWORKED:
        net = {"name": "mlp", "vector_dim": vector_dim, "width": 128, "blocks": 3, "dropout": 0.2}
        chosen = merge({**_NETWORKED[family], "net": net}, options)
    elif family in _FLOWS:
        own = {name: value for name, value in options.items() if name != "net"}
        chosen = merge({**_FLOWS[family], "vector_dim": vector_dim}, own)
    else:
        known = ", ".join([*_NETWORKED, *_FLOWS])
        raise AleatorError(f"residual.family={family!r}: of stations there are {known}")
    return {"family": family, **chosen, "event_shape": [variables, 1, stations]}


def refuse_unfit(residual: ResidualConfig) -> None:
    """Refuse options that are of maps only, before anything is fitted.

    Raises:
        AleatorError: such a family, or channels.
    """
    vector_config(residual.family, 1, 2, 1, {})
    if residual.channels:
        raise AleatorError("residual.channels: of maps; stations have their own mean and season")


@dataclass
class StationModel(PrognosisModel):
    """A model of stations; fields are (V, 1, S)."""

    def context(
        self, coarse: Tensor, predictors: Tensor, mean: Tensor, scale: Tensor, clock: Tensor
    ) -> dict[str, Tensor]:
        """What the residual is told, `vector` (B, K); arguments as of `DownscalingModel`."""
        if self.config.residual.context == "static":
            return {"vector": mean.new_zeros(len(mean), 1)}
        usual, spread = self.dispersion.usual.to(mean)
        anomaly = ((mean - usual) / spread)[..., self.valid].flatten(1)
        wide = (scale / self.dispersion.scale.to(mean)).log()[..., self.valid].flatten(1)
        return {"vector": torch.cat([anomaly, wide, clock.to(mean)], 1)}

    def residual_config(self, crop: int | None = None) -> dict[str, Any]:
        """The config of the residual's model; there are no patches."""
        residual, size = self.config.residual, len(self.names) * int(self.valid.sum())
        told = 1 if residual.context == "static" else 2 * size + 2 * len(self.clock)
        shape = (len(self.names), self.fine_grid.shape[1])
        return vector_config(residual.family, *shape, told, residual.model)

    def facts(self) -> dict[str, Any]:
        """What the checkpoint stores of this kind of model, beside tensors."""
        return {**super().facts(), "kind": "stations"}
