r"""Cylindrical calorimeters in CaloChallenge's binning XML.

    <Bins><Bin pid="11" name="electron"><Layer id="0" r_edges="0,4.65,9.3" n_bin_alpha="16"/>...

A layer has rings between `r_edges` (mm) and `n_bin_alpha` equal sectors from -π to π; one edge
alone means that the layer has no voxel. Voxels are stored with r fastest, then alpha, then layer.
Layout: Krause et al. (2024), arXiv:2410.21611.
"""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from core.errors import AleatorError

KNOWN_VOXELS = {
    368: "CaloChallenge data set 1, photons",
    533: "CaloChallenge data set 1, pions",
    6480: "CaloChallenge data set 2",
    40500: "CaloChallenge data set 3",
}
"""Voxels a shower -> the data set that has so many."""


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        id: its number in the file.
        r_edges: (R + 1,) increasing radii in mm; a single one if it has no voxel.
        sectors: A, equal sectors of the full circle.
    """

    id: int
    r_edges: tuple[float, ...]
    sectors: int

    @property
    def rings(self) -> int:
        """R."""
        return len(self.r_edges) - 1

    @property
    def voxels(self) -> int:
        """R A."""
        return self.rings * self.sectors


@dataclass(frozen=True)
class Geometry:
    """A calorimeter.

    Attributes:
        particle: name of the particle that the binning is for, e.g. "electron".
        pid: its PDG number.
        layers: all of them, those without voxels too.
    """

    particle: str
    pid: int
    layers: tuple[Layer, ...]

    @cached_property
    def active(self) -> tuple[Layer, ...]:
        """The L layers that have voxels."""
        return tuple(layer for layer in self.layers if layer.voxels)

    @property
    def voxels(self) -> int:
        """V, of all layers."""
        return sum(layer.voxels for layer in self.active)

    @cached_property
    def edges(self) -> np.ndarray:
        """(L + 1,) first voxel of each active layer, then V."""
        return np.concatenate([[0], np.cumsum([layer.voxels for layer in self.active])])

    @property
    def rings(self) -> int:
        """Most rings of a layer."""
        return max(layer.rings for layer in self.active)

    @property
    def sectors(self) -> int:
        """Most sectors of a layer."""
        return max(layer.sectors for layer in self.active)

    @cached_property
    def uniform(self) -> bool:
        """All active layers are binned alike, so that rotating all of them is a symmetry."""
        return len({(layer.r_edges, layer.sectors) for layer in self.active}) == 1

    @cached_property
    def columns(self) -> np.ndarray:
        """(V,) place of each voxel in a padded (L, A, R) array, flattened."""
        places = []
        for index, layer in enumerate(self.active):
            alpha, ring = np.divmod(np.arange(layer.voxels), layer.rings)
            places.append((index * self.sectors + alpha) * self.rings + ring)
        return np.concatenate(places)

    @cached_property
    def radii(self) -> np.ndarray:
        """(V,) radius of each voxel's middle, mm."""
        return self._middles()[0]

    @cached_property
    def angles(self) -> np.ndarray:
        """(V,) angle of each voxel's middle, rad in (-π, π)."""
        return self._middles()[1]

    def _middles(self) -> tuple[np.ndarray, np.ndarray]:
        radii, angles = [], []
        for layer in self.active:
            edges = np.asarray(layer.r_edges)
            turn = np.linspace(-math.pi, math.pi, layer.sectors + 1)
            radii.append(np.tile(0.5 * (edges[1:] + edges[:-1]), layer.sectors))
            angles.append(np.repeat(0.5 * (turn[1:] + turn[:-1]), layer.rings))
        return np.concatenate(radii), np.concatenate(angles)

    def describe(self) -> str:
        """In words."""
        known = KNOWN_VOXELS.get(self.voxels)
        shape = f"{len(self.active)} layers, up to {self.rings} rings x {self.sectors} sectors"
        return f"{shape}, {self.voxels} voxels" + (f" (as {known})" if known else "")

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for a checkpoint."""
        layers = [[layer.id, list(layer.r_edges), layer.sectors] for layer in self.layers]
        return {"particle": self.particle, "pid": self.pid, "layers": layers}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Geometry:
        """Undo `to_dict`."""
        layers = tuple(Layer(i, tuple(edges), n) for i, edges, n in stored["layers"])
        return cls(stored["particle"], stored["pid"], layers)

    def to_xml(self) -> str:
        """The binning file that CaloChallenge's scripts read."""
        rows = [
            f'      <Layer id="{layer.id}" r_edges="{",".join(f"{r:g}" for r in layer.r_edges)}" '
            f'n_bin_alpha="{layer.sectors}" />'
            for layer in self.layers
        ]
        opening = f'   <Bin pid="{self.pid}" name={quoteattr(self.particle)}>'
        return "\n".join(["<Bins>", opening, *rows, "   </Bin>", "</Bins>", ""])


def read_geometry(path: Path | str, particle: str | None = None) -> Geometry:
    """Read a binning file.

    Args:
        path: XML.
        particle: name of the particle, where the file has several.

    Raises:
        AleatorError: missing or damaged, no such particle, radii that do not increase, a layer
            given twice or with sectors but no rings, no voxel at all.
    """
    path = Path(path)
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        raise AleatorError(f"{path}: no such binning file") from None
    except ElementTree.ParseError as error:
        raise AleatorError(f"{path}: not a binning file, it is not valid XML ({error})") from None
    bins = {entry.attrib.get("name", ""): entry for entry in root.iter("Bin")}
    if not bins:
        raise AleatorError(f"{path}: not a binning file, it has no <Bin> element")
    if particle is None:
        if len(bins) > 1:
            raise AleatorError(f"{path}: binnings of {', '.join(bins)}; say which particle")
        particle = next(iter(bins))
    if particle not in bins:
        raise AleatorError(f"{path}: no binning of {particle!r}; it has {', '.join(bins)}")
    entry = bins[particle]
    layers = tuple(_layer(path, index, row) for index, row in enumerate(entry.iter("Layer")))
    numbers = [layer.id for layer in layers]
    if twice := {number for number in numbers if numbers.count(number) > 1}:
        raise AleatorError(f"{path}: layer {min(twice)} is given twice")
    geometry = Geometry(particle, _whole(path, "pid", entry.attrib.get("pid", "0")), layers)
    if not geometry.active:
        raise AleatorError(f"{path}: no layer has a voxel")
    return geometry


def _layer(path: Path, index: int, row: ElementTree.Element) -> Layer:
    where = f"{path}: layer {row.attrib.get('id', index)}"
    try:
        edges = tuple(float(text) for text in row.attrib["r_edges"].split(","))
    except KeyError:
        raise AleatorError(f"{where} has no r_edges") from None
    except ValueError:
        raise AleatorError(f"{where}: r_edges={row.attrib['r_edges']!r} are not numbers") from None
    if not all(math.isfinite(r) and r >= 0 for r in edges) or any(
        b <= a for a, b in itertools.pairwise(edges)
    ):
        raise AleatorError(f"{where}: r_edges={row.attrib['r_edges']!r} must increase from >= 0")
    sectors = _whole(path, "n_bin_alpha", row.attrib.get("n_bin_alpha", ""))
    if sectors < 1:
        raise AleatorError(f"{where}: n_bin_alpha={sectors}; at least 1 is needed")
    if len(edges) == 1 and sectors > 1:
        raise AleatorError(f"{where}: {sectors} sectors but one radius only, so no ring")
    return Layer(_whole(path, "id", row.attrib.get("id", str(index))), edges, sectors)


def _whole(path: Path, name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise AleatorError(f"{path}: {name}={text!r} is not a whole number") from None


def check_voxels(count: int, geometry: Geometry, where: str) -> None:
    """Refuse showers that do not fit a geometry, and say what they look like.

    Raises:
        AleatorError: not V voxels.
    """
    if count == geometry.voxels:
        return
    known = KNOWN_VOXELS.get(count)
    looks = f"; {count} voxels is {known}" if known else ""
    raise AleatorError(
        f"{where}: {count} voxels a shower, but the binning of {geometry.particle!r} has "
        f"{geometry.voxels}{looks}; give the binning file of these showers"
    )
