r"""Core's families on showers: layer energies first, then the voxels as a field by one family.

    p(x | c) = p(E_1..E_L | c) p(z | E_1..E_L, c),   x_v = E_l · share_v(z)

with z the transformed voxels of `preprocessing`, an image of L channels over rings x sectors, the
angle periodic. Diffusion and flow matching use a U-Net; the flow couples affinely; the VAE codes
into a vector; a consistency model is distilled from a diffusion model and has its layer energies.
This is how the field's diffusion and flow models are built (Mikuni and Nachman 2022,
arXiv:2206.11898; Favaro et al. 2024, arXiv:2405.09629); the cascade is what we ship.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apps.hep_simulation.cascade import rotated, standard_condition
from apps.hep_simulation.preprocessing import Shares
from apps.hep_simulation.profile import Profile, compress
from core.errors import AleatorError
from core.model import Context, GenerativeModel, Loss
from core.random import Generators, rand
from core.registry import build

UNET = {"channels": 32, "multipliers": [1, 2], "periodic_x": True}
PATH = {"name": "edm", "sigma_min": 0.01, "sigma_max": 20.0}
STEPS = 8
JUMPS = 2
"""Evaluations a shower of a consistency model."""


class ProfileAndField(GenerativeModel):
    """Events (L, A, R) in MeV; context as of `SplittingCascade`."""

    takes_net = False

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        family: str,
        options: dict[str, Any],
        classes: int,
        threshold: float,
        rotates: bool = True,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (L, A, R).
            family: "consistency", "diffusion", "flow", "flow_matching" or "vae".
            options: of core's model and, under `net`, of its network.
            classes: number of particles.
            threshold: least energy of a voxel, MeV.
            rotates: draw the angle of the first sector, and the sense, at random.
        """
        super().__init__()
        self.event_shape, self.context_shape = torch.Size(event_shape), torch.Size((1,))
        layers, sectors, rings = self.event_shape
        self.classes, self.threshold, self.rotates = classes, threshold, rotates
        self.family = family
        self.profile = Profile(layers, 1 + classes, threshold)
        self.shares = Shares(layers, sectors, rings, threshold)
        vector = 1 + classes + layers
        self.field = build(field_config(family, (layers, rings, sectors), vector, options))

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """The profile's negative log-likelihood (in hundreds of nats) plus the field's loss."""
        condition = standard_condition(context, self.classes)
        energies = x.sum((2, 3))
        profile = torch.zeros(())  # a pupil has its teacher's
        if self.family != "consistency":
            profile = -self.profile.log_prob(energies, condition) / 100
        z = self.shares.forward(x, rand(x.shape, generator))
        inner = self.field.loss(z, self._inner(energies, condition), generator=generator)
        # a VAE's is in nats of all voxels, the others' is per voxel: alike, neither part drowns
        # the other when gradients are clipped
        value = inner.value / (z[0].numel() if self.family == "vae" else 1)
        return Loss(profile + value, {"profile": profile.detach().expand(len(x)), **inner.terms})

    def follow(self, teacher: ProfileAndField) -> None:
        """Begin where a diffusion model of the same size is, to be distilled from it."""
        for name in ("profile", "shares"):
            getattr(self, name).load_state_dict(getattr(teacher, name).state_dict())
        self.profile.requires_grad_(False)
        ours, theirs = (field.denoiser.net for field in (self.field, teacher.field))
        ours.load_state_dict(theirs.state_dict())
        # not a submodule: a teacher's weights are neither trained nor stored here
        object.__setattr__(self.field, "teacher", teacher.field.eval().requires_grad_(False))

    def _inner(self, energies: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """What the field is told: the condition, and the energy of each layer."""
        scaled = torch.cat([condition[:, :1] - 9.0, condition[:, 1:], compress(energies) / 4], 1)
        return {"vector": scaled}

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
        """Draw showers (B, L, A, R), MeV; `shape` must be (); sampler: {"steps": n}."""
        if guidance is not None or tuple(shape):
            raise AleatorError("simulation takes no shape and no guidance")
        condition = standard_condition(context, self.classes)
        batch, (layers, sectors, _) = len(condition), self.event_shape
        turn, first = rand((batch, 2 + 2 * (layers + 1)), generator).split(
            [2, 2 * (layers + 1)], 1
        )
        energies = self.profile.sample(condition, first)
        chosen = self._sampler((sampler or {}).get("steps"))
        z = self.field.sample(
            (), self._inner(energies, condition), sampler=chosen, generator=generator
        )
        x = self.shares.inverse(z, energies)
        return rotated(x, (turn[:, 0] * sectors).long(), turn[:, 1] < 0.5) if self.rotates else x

    def _sampler(self, steps: int | None) -> Any:
        """What core's family takes for so many evaluations, or for as many as is usual."""
        if self.family == "consistency":
            return steps or JUMPS
        if self.family == "flow_matching":
            steps = steps or STEPS
            return {"name": "euler" if steps % 2 else "heun", "steps": steps}
        if self.family == "diffusion":
            return {"steps": steps or STEPS}
        if steps is not None:
            raise AleatorError(f"--steps: the family {self.family} has no steps; leave it out")
        return None

    def standardise(self, x: Tensor, context: Context) -> None:
        """Fit the scales of inputs and of the transformed voxels to some training showers."""
        with torch.no_grad():
            condition = standard_condition(context, self.classes)
            self.profile.standardise(x.sum((2, 3)), condition)
            self.shares.fit(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(0)))


def field_config(
    family: str, shape: tuple[int, int, int], vector: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Core's config of a family over (L, R, A), conditioned on a vector."""
    given = dict(options)
    net = {**dict(given.pop("net", {}))}
    if family in ("consistency", "diffusion", "flow_matching"):
        base: dict[str, Any] = {"family": family}
        base["net"] = {"name": "unet", **UNET, "vector_dim": vector, **net}
        if family != "flow_matching":
            base["path"] = dict(PATH)
    elif family == "flow":
        base = {"family": "real_nvp", "layers": 4, "hidden": [128], "vector_dim": vector}
    else:
        base = {
            "family": "vae",
            "latent_dim": 32,
            "encoder": {"name": "mlp", "width": 256, "blocks": 1, "vector_dim": vector},
            "decoder": {"name": "mlp", "width": 256, "blocks": 1, "vector_dim": vector},
        }
    return {**base, **given, "event_shape": list(shape)}
