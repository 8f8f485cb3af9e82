r"""A pupil of a diffusion model: the same layer energies, voxels in one or two evaluations.

    f(x_t, t) = f(x_s, s),   x_s a step of the teacher's flow from x_t      (`core.consistency`)

Consistency distillation of Song et al. (2023), arXiv:2303.01469. The pupil has its teacher's
network, preprocessing, particles and energy range, and learns on any showers of these.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np

from apps.hep_simulation.config import Config
from apps.hep_simulation.data import Chunk
from apps.hep_simulation.fields import ProfileAndField
from apps.hep_simulation.geometry import Geometry
from apps.hep_simulation.model import ShowerModel, new_model
from core.errors import AleatorError


def pupil(folder: Path, learnt: Chunk, geometry: Geometry, config: Config) -> ShowerModel:
    """A consistency model that begins where its teacher is.

    Args:
        folder: the teacher, a diffusion model of showers.
        learnt: showers to learn from.
        geometry: of them.
        config: of the training; the networks are the teacher's.

    Raises:
        AleatorError: the teacher is of another family, geometry or of other particles.
    """
    teacher = ShowerModel.load(folder)
    if teacher.config.family != "diffusion":
        raise AleatorError(
            f"{folder}: a model of the family {teacher.config.family}; only diffusion can be "
            "distilled"
        )
    if teacher.geometry.layers != geometry.layers:
        raise AleatorError(f"{folder}: a model of another geometry than {geometry.describe()}")
    if new := set(np.unique(learnt.particles).tolist()) - set(teacher.particles):
        raise AleatorError(f"{folder}: it knows {teacher.reach()}, not particle {min(new)}")
    net = {"net": teacher.config.model["net"]} if "net" in teacher.config.model else {}
    config = dataclasses.replace(config, model=net, rotate=teacher.config.rotate)
    model = new_model(config, geometry, teacher.particles, teacher.threshold, teacher.energy_range)
    cast("ProfileAndField", model.generator).follow(cast("ProfileAndField", teacher.generator))
    return model
