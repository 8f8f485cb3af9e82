r"""Core's families on showers: layer energies first, then how they are split, by one family.

    p(x | c) = p(E_1..E_L | c) p(z | E_1..E_L, c) |dz/dx|

with z the `coordinates`: a score for every split of every layer, N(0, 1) by itself, so that any
family starts from showers whose splits are right one by one and learns how they go together.
Diffusion and flow matching use a transformer whose tokens are the layers; the flow couples
affinely; the VAE codes into a vector; a consistency model is distilled from a diffusion model and
has its layer energies. The order, profile before voxels, is the field's (Mikuni and Nachman 2022,
arXiv:2206.11898; Favaro et al. 2024, arXiv:2405.09629); the cascade is what we ship.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from apps.hep_simulation.cascade import rotated, standard_condition
from apps.hep_simulation.coordinates import FACTS, Coordinates
from apps.hep_simulation.profile import Profile, compress
from apps.hep_simulation.tree import Tree
from apps.hep_simulation.turn import Turn
from core.errors import AleatorError
from core.model import Context, GenerativeModel, Loss
from core.random import Generators, rand, randn
from core.registry import NETS, build

NETS.setdefault("depth", "apps.hep_simulation.depth_net.DepthNet")
NET = {"name": "depth", "width": 96, "blocks": 4}
JOINT_DEPTH = 3
"""Halvings of the circle that are drawn together, of the inner third of the rings."""
PATH = {"name": "edm", "sigma_min": 0.01, "sigma_max": 20.0}
BLOCK = 20
"""Showers that are drawn together."""
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
        self.tree = Tree(rings, sectors)
        self.coordinates = Coordinates(self.tree, layers, 1 + classes, threshold)
        self.register_buffer("joint", joint(self.tree), persistent=False)
        if not len(self.joint):
            raise AleatorError(
                f"family {family}: layers of one voxel leave nothing to draw; use the cascade"
            )
        shape, facts = (len(self.joint), 1, layers), 1 + classes + FACTS
        self.field = build(field_config(family, shape, facts, 1 + classes + layers, options))

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """The profile's negative log-likelihood (in hundreds of nats) plus the field's loss."""
        condition, nodes = standard_condition(context, self.classes), self.nodes(x)
        energies = nodes[..., self.tree.root]
        first = torch.zeros(())  # a pupil has its teacher's
        if self.family != "consistency":
            first = -self.profile.log_prob(energies, condition)
            first = (first + self.coordinates.loss(nodes, condition, generator)) / 100
        shape = (len(x), len(self.joint), nodes.shape[1])
        places, noise = rand(shape, generator), randn(shape, generator)
        z = self.coordinates(nodes, condition, self.joint, places, noise)[:, :, None]
        inner = self.field.loss(z, self._inner(energies, condition), generator=generator)
        # flows and VAEs are in nats of all splits, the others per split: alike, no part drowns
        # the other when gradients are clipped
        value = inner.value / (1 if self._stepped else z[0].numel())
        return Loss(first + value, {"first": first.detach().expand(len(x)), **inner.terms})

    def nodes(self, x: Tensor) -> Tensor:
        """Energies of all nodes, (B, L, N), of showers (B, L, A, R)."""
        return self.tree.energies(F.pad(x, (0, 0, 0, self.tree.padded - x.shape[2])))

    @property
    def _stepped(self) -> bool:
        return self.family in ("consistency", "diffusion", "flow_matching")

    def follow(self, teacher: ProfileAndField) -> None:
        """Begin where a diffusion model of the same size is, to be distilled from it."""
        for name in ("profile", "coordinates"):
            getattr(self, name).load_state_dict(getattr(teacher, name).state_dict())
            getattr(self, name).requires_grad_(False)
        ours, theirs = (field.denoiser.net for field in (self.field, teacher.field))
        ours.load_state_dict(theirs.state_dict())
        # not a submodule: a teacher's weights are neither trained nor stored here
        object.__setattr__(self.field, "teacher", teacher.field.eval().requires_grad_(False))

    def _inner(self, energies: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """What the field is told: condition, energies of all layers; of each layer its facts."""
        scaled = torch.cat([condition[:, :1] - 9.0, condition[:, 1:], compress(energies) / 4], 1)
        if not self._stepped:
            return {"vector": scaled}
        return {
            "vector": scaled,
            "field": self.coordinates.standard_facts(energies, condition).mT[:, :, None],
        }

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
        z = randn((batch, len(self.tree.splits), layers), generator)
        z[:, self.joint] = self._drawn(self._inner(energies, condition), chosen, generator)[
            :, :, 0
        ]
        x = self.tree.voxels(self.coordinates.inverse(z, energies, condition))
        return rotated(x, (turn[:, 0] * sectors).long(), turn[:, 1] < 0.5) if self.rotates else x

    def _drawn(
        self, inner: dict[str, Tensor], sampler: Any, generator: Generators | None
    ) -> Tensor:
        """Scores of the joint splits (B, J, 1, L), in whole blocks where each has its stream.

        Networks round differently for other numbers of rows: so that a shower is the same
        whatever its company, a block that is not full is filled with copies.
        """
        if generator is None or isinstance(generator, torch.Generator):
            return self.field.sample((), inner, sampler=sampler, generator=generator)
        parts = []
        for start in range(0, len(generator), BLOCK):
            streams = list(generator[start : start + BLOCK])
            count = len(streams)
            rows = torch.arange(start, start + BLOCK).clamp(max=start + count - 1)
            streams += [torch.Generator().manual_seed(k) for k in range(BLOCK - count)]
            block = {name: part[rows] for name, part in inner.items()}
            drawn = self.field.sample((), block, sampler=sampler, generator=streams)
            parts.append(drawn[:count])
        return torch.cat(parts)

    def _sampler(self, steps: int | None) -> Any:
        """What core's family takes for so many evaluations, or for as many as is usual."""
        if self.family == "consistency":
            return steps or JUMPS
        if self._stepped:
            return Turn(steps or STEPS)
        if steps is not None:
            raise AleatorError(f"--steps: the family {self.family} has no steps; leave it out")
        return None

    def standardise(self, x: Tensor, context: Context) -> None:
        """Fit the scales of the networks' inputs to some training showers."""
        with torch.no_grad():
            condition = standard_condition(context, self.classes)
            nodes = self.nodes(x)
            self.profile.standardise(nodes[..., self.tree.root], condition)
            self.coordinates.standardise(nodes, condition)


def joint(tree: Tree) -> Tensor:
    """Numbers of the splits that a family draws together; the others are drawn by themselves.

    Those between rings, and within the inner third of the rings down to `JOINT_DEPTH` halvings:
    further out and finer, what is split is a particle or two, and the score all but noise.
    """
    first = len(tree.ranges)
    return torch.tensor(
        [
            number
            for number, split in enumerate(tree.splits)
            if split.ring < 0
            or (3 * split.ring < tree.rings and (split.kind - first) // tree.rings < JOINT_DEPTH)
        ],
        dtype=torch.long,
    )


def field_config(
    family: str, shape: tuple[int, int, int], facts: int, vector: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Core's config of a family over (S, 1, L), conditioned on a vector and facts of layers."""
    given = dict(options)
    net = {**dict(given.pop("net", {}))}
    if family in ("consistency", "diffusion", "flow_matching"):
        base: dict[str, Any] = {"family": family}
        base["net"] = {**NET, "vector_dim": vector, "field_channels": facts, **net}
        if family == "flow_matching":
            # of independent noise the best velocity is not zero, the best of this reading is
            base |= {"prediction": "edm"}
        else:
            base["path"] = dict(PATH)
        if family == "consistency" and base["net"]["name"] == "depth":
            base["net"]["turning"] = True
        if family == "diffusion":
            base |= {"log_sigma_mean": 0.0, "log_sigma_std": 1.2}
    elif family == "flow":
        base = {"family": "real_nvp", "layers": 4, "hidden": [128], "vector_dim": vector}
    else:
        base = {
            "family": "vae",
            "latent_dim": 32,
            "likelihood": {"name": "gaussian", "learned": "element"},
            "encoder": {"name": "mlp", "width": 256, "blocks": 1, "vector_dim": vector},
            "decoder": {"name": "mlp", "width": 256, "blocks": 1, "vector_dim": vector},
        }
    return {**base, **given, "event_shape": list(shape)}
